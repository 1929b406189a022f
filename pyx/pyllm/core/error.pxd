"""From C results to Python exceptions."""

# Returns 0 when `code` is 0, else raises `cls` (None: PyllmError) with the log of the call.
cdef int check(int code, str function, object cls=*, str message=*) except -1

# Returns `pointer`, or raises `cls` when it is NULL.
cdef void * not_null(void * pointer, str function, object cls=*, str message=*) except NULL

# Raises `cls(message)` with the log lines of the current call.
cdef int fail(object cls, str message, str function=*, object code=*) except -1

# An exception raised inside a callback waits here until its C function has returned.
cdef void stash(object exception) noexcept
cdef int raise_stashed() except -1

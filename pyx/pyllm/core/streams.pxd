"""Open Python files as C streams."""

from libc.stdio cimport FILE


# A C stream on the file that a Python file object is open on. Both share one position in the kernel.
cdef class Stream:
    cdef FILE * ptr
    cdef object file
    cdef object position          # where the Python object stands, its own buffer counted
    cdef object raw_position      # where the descriptor stood

    # To where the Python object stands.
    cdef int rewind(self) except -1
    # Closes the stream, and puts the descriptor back to where Python believes it is.
    cdef int close(self) except -1

cdef Stream open_stream(object file)

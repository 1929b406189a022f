"""From C results to Python exceptions.

The functions here are the only places where a return code, a NULL pointer, a C++ exception or an
exception stashed by a callback becomes a Python exception, each with what llama.cpp logged meanwhile.
"""

import threading

from pyllm import errors
from pyllm.core cimport guard

# Exceptions raised in callbacks, by thread: nothing Python is ever thrown through C.
cdef object _stashed = threading.local()


cdef int fail(object cls, str message, str function=None, object code=None) except -1:
    guard.park_if_finalizing()  # a daemon thread whose call was ended by the interpreter's exit: say nothing
    raise cls(message, code=code, function=function, log=guard.take_log())


cdef int check(int code, str function, object cls=None, str message=None) except -1:
    raise_stashed()
    if code == 0:
        return 0
    return fail(cls or errors.PyllmError, message or f"{function} failed with code {code}", function, code)


cdef void * not_null(void * pointer, str function, object cls=None, str message=None) except NULL:
    raise_stashed()
    if pointer != NULL:
        return pointer
    fail(cls or errors.PyllmError, message or f"{function} failed", function)
    return NULL


cdef void stash(object exception) noexcept:
    # The first one is the cause; what follows is usually its consequence.
    if getattr(_stashed, "exception", None) is None:
        _stashed.exception = exception


cdef int raise_stashed() except -1:
    exception = getattr(_stashed, "exception", None)
    if exception is None:
        return 0
    _stashed.exception = None
    raise exception


def raise_cpp(str kind, bytes what):
    """Raise the Python exception for a C++ exception (called from ``translate.hpp``).

    Args:
        kind: The C++ class: "bad_alloc", "out_of_range", "invalid_argument", "exception" or "unknown".
        what: Its message.
    """
    raise_stashed()
    message = what.decode("utf-8", "replace")
    assertion = guard.take_assertion()
    if assertion and assertion == message:
        fail(errors.BackendAssertError, f"an assertion in llama.cpp failed: {message}")
    elif kind == "bad_alloc":
        fail(errors.OutOfMemoryError, "llama.cpp ran out of memory")
    elif kind == "out_of_range" or kind == "invalid_argument":
        fail(errors.InvalidArgumentError, f"llama.cpp refused an argument ({kind}: {message})")
    else:
        fail(errors.BackendError, f"llama.cpp threw an exception: {message}")

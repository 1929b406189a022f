"""llama.cpp's log, handed to ``logging.getLogger("pyllm.llama")``.

Nothing is printed unless the application configures logging. Lines that no handler wants never take
the GIL: the level of the logger is read when a model is loaded and when a context is created, or at
once with :func:`refresh_level`.
"""

import logging
import sys
from collections import namedtuple

from cpython.exc cimport PyErr_SetInterrupt
from libcpp.string cimport string

from pyllm.core cimport guard
from pyllm.includes cimport ggml
from pyllm.includes cimport llama as lib

logger = logging.getLogger("pyllm.llama")
logging.getLogger("pyllm").addHandler(logging.NullHandler())

# ggml_log_level: 1 debug, 2 info, 3 warn, 4 error
cdef tuple _PYTHON_LEVELS = (logging.INFO, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.INFO)
cdef int NOBODY_LISTENS = 99
_DROPPED = "Exception in a logging handler, while llama.cpp was logging, ignored"
_Unraisable = namedtuple("_Unraisable", "exc_type exc_value exc_traceback err_msg object")


cdef void refresh():
    cdef int level
    for level in range(1, 5):
        if logger.isEnabledFor(_PYTHON_LEVELS[level]) and _has_handler():
            guard.set_min_level(level)
            return
    guard.set_min_level(NOBODY_LISTENS)


cdef bint _has_handler():
    # The NullHandler of the "pyllm" logger wants nothing.
    current = logger
    while current is not None:
        for handler in current.handlers:
            if not isinstance(handler, logging.NullHandler):
                return True
        current = current.parent if current.propagate else None
    return False


def refresh_level():
    """Read the level of the logger "pyllm.llama" again.

    Needed only when the level was changed while a model is in use and no model or context is
    created afterwards.
    """
    refresh()


cdef void emit(int level, const char * text, size_t size) noexcept nogil:
    if not guard.begin_python():
        return
    emit_to_logger(level, text, size)
    guard.end_python()


cdef void emit_to_logger(int level, const char * text, size_t size) noexcept with gil:
    try:
        lines = text[:size].decode("utf-8", "replace")
        for line in lines.split("\n"):
            logger.log(_PYTHON_LEVELS[level if 0 <= level <= 5 else 2], "%s", line)
    except KeyboardInterrupt:
        PyErr_SetInterrupt()  # it is not about this line: let it come again where it can be raised
    except BaseException as exception:
        sys.unraisablehook(_Unraisable(type(exception), exception, exception.__traceback__, _DROPPED, logger))


cdef void on_log(ggml.ggml_log_level level, const char * text, void * user_data) noexcept nogil:
    cdef string line
    cdef int line_level = 0
    if guard.log_append(<int> level, text, &line_level, &line):
        emit(line_level, line.data(), line.size())


lib.llama_log_set(on_log, NULL)
refresh()

"""The state of a thread inside llama.cpp.

This module owns the one copy of a set of thread-local variables (``guard.hpp``): the log lines of the
current call, and whether a failed assertion may be thrown as a C++ exception. It installs the
callback that ggml calls when an assertion fails, counts forks, and refuses to go on with the
functions of another llama.cpp.
"""

import atexit
import os
import threading
import time

from libcpp.atomic cimport atomic
from libcpp.deque cimport deque

from pyllm.includes cimport ggml as lib
from pyllm.includes cimport ggml_backend, llama


cdef extern from "guard.hpp" namespace "pyllm" nogil:
    cdef struct thread_state:
        string assertion
        deque[string] log
        bool quiet
    thread_state state
    void c_enter "pyllm::enter"() noexcept
    void c_leave "pyllm::leave"() noexcept
    bool c_log_append "pyllm::log_append"(int level, const char * text, int & out_level, string & out) noexcept
    void c_set_min_level "pyllm::min_level.store"(int level) noexcept
    bool c_begin_python "pyllm::begin_python"() noexcept
    void c_end_python "pyllm::end_python"() noexcept
    void c_begin_native "pyllm::begin_native"() noexcept
    void c_end_native "pyllm::end_native"() noexcept
    atomic[bool] finalizing
    atomic[int] in_python
    atomic[int] in_native
    void sleep_forever() noexcept
    void on_abort(const char * message) noexcept


cdef extern from "origin.hpp" namespace "pyllm" nogil:
    string c_origin "pyllm::origin"(void * function) noexcept


cdef extern from "Python.h" nogil:
    long thread_ident "PyThread_get_thread_ident"()


cdef int _fork_generation = 0
cdef long _main_thread = threading.main_thread().ident


cdef int fork_generation() noexcept nogil:
    return _fork_generation


def _after_fork_in_child():
    global _fork_generation, _main_thread
    _fork_generation += 1
    _main_thread = threading.get_ident()  # the thread that forked is the only one here


cdef bool begin_python() noexcept nogil:
    return c_begin_python()


cdef void end_python() noexcept nogil:
    c_end_python()


cdef void begin_native() noexcept nogil:
    c_begin_native()


cdef void end_native() noexcept nogil:
    c_end_native()


cdef bool is_finalizing() noexcept nogil:
    return finalizing.load()


cdef void park_if_finalizing() noexcept:
    if finalizing.load() and not is_main_thread():
        with nogil:
            sleep_forever()


cdef void set_quiet(bint value) noexcept nogil:
    state.quiet = value


def _at_exit():
    """Stop what runs in other threads: decodes abort, and no callback comes back into Python."""
    finalizing.store(True)
    deadline = time.monotonic() + 5
    while in_python.load() + in_native.load() > 0 and time.monotonic() < deadline:
        time.sleep(0.001)


cdef void enter() noexcept nogil:
    c_enter()


cdef void leave() noexcept nogil:
    c_leave()


cdef bint is_main_thread() noexcept nogil:
    return thread_ident() == _main_thread


cdef tuple take_log():
    cdef Py_ssize_t i
    lines = []
    for i in range(<Py_ssize_t> state.log.size()):
        lines.append(state.log[i].data()[:state.log[i].size()].decode("utf-8", "replace"))
    state.log.clear()
    return tuple(lines)


cdef str take_assertion():
    message = state.assertion.data()[:state.assertion.size()].decode("utf-8", "replace")
    state.assertion.clear()
    return message


cdef bool log_append(int level, const char * text, int * out_level, string * out) noexcept nogil:
    return c_log_append(level, text, out_level[0], out[0])


cdef void set_min_level(int level) noexcept nogil:
    c_set_min_level(level)


def origins():
    """The file that each library's functions were bound to: a dict of function name to path.

    One function stands for each library. A path is empty where the system does not tell.
    """
    found = {
        "llama_decode": c_origin(<void *> llama.llama_decode),
        "ggml_backend_load": c_origin(<void *> ggml_backend.ggml_backend_load),
        "ggml_init": c_origin(<void *> lib.ggml_init),
    }
    return {name: os.fsdecode(path) for name, path in found.items()}


def _check_origins():
    """Fail where another library's functions took the place of ours: its structs have other layouts."""
    own = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib")
    for name, path in origins().items():
        if path and os.path.realpath(os.path.dirname(path)) != os.path.realpath(own):
            raise ImportError(
                f"pyllm would call {name} of {path}, not of its own libraries in {own}: a library with the same "
                "functions was loaded into the global scope before (LD_PRELOAD, RTLD_GLOBAL). Load that library "
                "without RTLD_GLOBAL, or import pyllm.core before it"
            )


_check_origins()
atexit.register(_at_exit)
lib.ggml_set_abort_callback(<lib.ggml_abort_callback_t> on_abort)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

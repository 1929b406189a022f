"""Worker threads that stay alive between decodes (wraps ``ggml_threadpool``).

Without one, ggml starts and joins its threads in every decode.
"""

from libc.stdint cimport int32_t

from pyllm import errors
from pyllm.core.arguments cimport int32
from pyllm.core cimport error, guard
from pyllm.includes cimport ggml
from pyllm.includes cimport ggml_backend as lib

from pyllm.core import backend as _backend
from pyllm.core.introspection import not_pickled, signature

# The functions live in the CPU module, which is loaded at run time.
ctypedef ggml.ggml_threadpool_t (*new_t)(ggml.ggml_threadpool_params * params) noexcept nogil
ctypedef void (*free_t)(ggml.ggml_threadpool_t pool) noexcept nogil


cdef void * _cpu_function(const char * name):
    cdef lib.ggml_backend_dev_t device = lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU)
    return lib.ggml_backend_reg_get_proc_address(lib.ggml_backend_dev_backend_reg(device), name)


cdef class ThreadPool:
    """A pool of worker threads for the CPU backend.

    Args:
        n_threads: Number of threads, the calling one included.
        poll: How eagerly idle threads wait for work: 0 sleeps at once, 100 spins longest.
        priority: -1 low, 0 normal, 1 medium, 2 high, 3 real-time.

    Raises:
        InvalidArgumentError: A number is out of range.

    Wraps ``ggml_threadpool_new`` and ``ggml_threadpool_free``.
    """

    __reduce__ = not_pickled("its threads belong to this process; make another one there")
    __signature__ = signature

    def __cinit__(self, n_threads, *, poll=50, priority=0):
        cdef int32_t c_n_threads = int32(n_threads, "n_threads")
        cdef int32_t c_poll = int32(poll, "poll")
        cdef int32_t c_priority = int32(priority, "priority")
        self.ptr = NULL
        self.n_threads = c_n_threads
        self.generation = guard.fork_generation()
        if not 1 <= c_n_threads <= ggml.GGML_MAX_N_THREADS:
            raise errors.InvalidArgumentError(
                f"n_threads must be from 1 to {ggml.GGML_MAX_N_THREADS}, not {c_n_threads}"
            )
        if not 0 <= c_poll <= 100:
            raise errors.InvalidArgumentError(f"poll must be from 0 to 100, not {c_poll}")
        if not -1 <= c_priority <= 3:
            raise errors.InvalidArgumentError(f"priority must be from -1 to 3, not {c_priority}")
        _backend.load_backends()
        guard.enter()
        cdef ggml.ggml_threadpool_params params = ggml.ggml_threadpool_params_default(c_n_threads)
        params.poll = c_poll
        params.prio = <ggml.ggml_sched_priority> c_priority
        cdef new_t create = <new_t> error.not_null(_cpu_function(b"ggml_threadpool_new"), "ggml_threadpool_new")
        with nogil:
            self.ptr = create(&params)
        error.not_null(<void *> self.ptr, "ggml_threadpool_new")

    def __dealloc__(self):
        if self.ptr == NULL or self.generation != guard.fork_generation():
            return  # a forked child has no such threads to join
        cdef free_t destroy = <free_t> _cpu_function(b"ggml_threadpool_free")
        destroy(self.ptr)
        self.ptr = NULL

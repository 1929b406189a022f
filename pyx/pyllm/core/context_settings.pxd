"""The sizes and settings of a context."""

from pyllm.core.model cimport Model
from pyllm.core.resource cimport Resource, mutex
from pyllm.core.threadpool cimport ThreadPool
from pyllm.includes cimport llama as lib


cdef class ContextSettings(Resource):
    cdef lib.llama_context * ptr
    cdef readonly Model model             # must outlive the llama_context
    cdef ThreadPool pool                  # attached to the llama_context; replaced when more threads are asked for
    cdef list old_pools                   # what was attached before, and the backend may still point to
    cdef mutex * pool_lock                # that of the pool, or NULL
    cdef bint embeddings_                 # whether embeddings are output too

    cdef lib.llama_context * require(self) except NULL
    cdef int _attach_pool(self) except -1
    cdef int use_pool(self, ThreadPool pool) except -1
    # Around each computation: another context may have the same pool.
    cdef void lock_pool(self) noexcept nogil
    cdef void unlock_pool(self) noexcept nogil

"""Worker threads that stay alive between decodes."""

from pyllm.core.resource cimport mutex
from pyllm.includes.ggml cimport ggml_threadpool_t


cdef class ThreadPool:
    cdef ggml_threadpool_t ptr
    cdef readonly int n_threads
    cdef mutex lock                    # held while a context computes with it: it serves one at a time
    cdef int generation                # fork generation: the threads exist only in that process

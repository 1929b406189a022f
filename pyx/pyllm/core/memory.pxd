"""The KV cache of a context."""

from pyllm.core.context cimport Context
from pyllm.includes cimport llama as lib


cdef class Memory:
    cdef Context context            # owns the memory

    cdef lib.llama_memory_t require(self) except NULL
    cdef int _check_shift(self, lib.llama_memory_t memory) except -1
    cdef int check_seq(self, int seq_id, bint any_allowed) except -1

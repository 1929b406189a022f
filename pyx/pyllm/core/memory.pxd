"""The KV cache of a context."""

from libc.stdint cimport int32_t

from pyllm.core.context cimport Context
from pyllm.includes cimport llama as lib


# What llama.cpp only notes, and does when it decodes the next time; flags in Context.unapplied.
cdef enum:
    SHIFT = 1
    COPY = 2


cdef class Memory:
    cdef Context context            # owns the memory

    cdef lib.llama_memory_t require(self) except NULL
    cdef int _check_shift(self, lib.llama_memory_t memory) except -1
    cdef int _check_window(self, int32_t seq_id, int32_t pos) except -1
    cdef int _note(self, int flag) except -1 nogil
    cdef bint _copies_whole(self) noexcept nogil
    cdef int _copy_whole(
        self, lib.llama_memory_t memory, int32_t source, int32_t target, int32_t first, int32_t end
    ) except -1 nogil
    cdef int _check_copy(
        self, lib.llama_memory_t memory, int32_t source, int32_t target, int32_t first, int32_t end
    ) except -1
    cdef int check_seq(self, int seq_id, bint any_allowed) except -1

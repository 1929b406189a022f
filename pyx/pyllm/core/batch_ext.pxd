"""Batches whose entries can have a token id, an embedding, or both."""

from libc.stdint cimport int8_t, int32_t
from libcpp.vector cimport vector

from pyllm.core.context cimport Context
from pyllm.includes cimport llama as lib


cdef class BatchExt:
    cdef readonly Context context        # it was made for this one and has its sizes; its memory tells positions
    cdef lib.llama_batch_ext * ptr
    cdef readonly int32_t n_tokens
    cdef readonly int32_t n_outputs
    cdef int32_t content                 # what the entries have: TOKENS, EMBEDDINGS or both; 0 while it is empty
    cdef dict next_pos                   # sequence -> the position that follows what was added
    cdef list sequences                  # of each entry with an output, for Context
    cdef vector[int8_t] wanted           # of each entry, whether its outputs are asked for

    cdef lib.llama_batch_ext * require(self) except NULL
    cdef int fill(
        self, object ids, object rows, object positions, object sequences, object flags, int32_t n
    ) except -1


cdef int process_batch(Context context, BatchExt batch, bint encode) except -1

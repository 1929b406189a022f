"""Tokens (or embeddings) to decode together."""

from libc.stdint cimport int8_t, int32_t

from pyllm.includes cimport llama as lib


cdef class Batch:
    cdef lib.llama_batch c             # points into the arrays below; pos and seq_id may be NULL
    cdef readonly int32_t capacity     # tokens that fit
    cdef readonly int32_t n_seq_max    # sequence ids that fit for each token
    cdef readonly int32_t n_embd       # width of an embedding; 0 when the batch holds token ids
    cdef int32_t pos_stride            # positions stored for each embedding (4 for M-RoPE)
    cdef readonly int32_t n_outputs    # tokens for which output was asked
    cdef int32_t * token
    cdef float * embd
    cdef int32_t * pos
    cdef int32_t * n_seq_id
    cdef int32_t ** seq_id
    cdef int32_t * seq_storage
    cdef int8_t * output

    cdef int allocate(self, int32_t capacity, int32_t n_seq_max, int32_t n_embd, int32_t pos_stride) except -1
    cdef void free_arrays(self) noexcept
    cdef int fill(self, data, positions, sequences, flags) except -1
    # Everything that does not depend on a context is right by construction; this checks the rest.
    cdef int validate(self, int32_t n_tokens_vocab, int32_t n_embd, int32_t n_seq_max, int32_t n_batch) except -1

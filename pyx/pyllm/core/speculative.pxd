"""Drafts of the next tokens, by llama.cpp's own library of them."""

from libc.stdint cimport int32_t, uint8_t
from libcpp.vector cimport vector

from pyllm.core.context cimport Context
from pyllm.core.resource cimport Resource
from pyllm.includes cimport llama as lib
from pyllm.includes cimport speculative as spec


# A copy of what a memory cannot go back to by itself.
cdef class Checkpoint:
    cdef Context context
    cdef vector[uint8_t] data
    cdef readonly int32_t n               # tokens of the sequence at that time; -1: there is none

    cdef int save(self, int32_t seq_id, int32_t n) except -1 nogil
    cdef bint restore(self, int32_t seq_id) except -1 nogil


cdef class Drafter(Resource):
    cdef spec.common_speculative * ptr
    cdef spec.common_params_speculative params
    cdef spec.common_batch * batch        # tokens whose features the draft context reads; NULL where it reads none
    cdef readonly Context target          # whose text it is: ptr points to its llama_context
    cdef readonly Context context         # of the draft model, or None: ptr points to its llama_context
    cdef readonly tuple types
    cdef readonly int32_t n_max           # most tokens of a draft
    cdef bint has_context
    cdef bint reads_features              # it needs what the target computed for each token (MTP)
    cdef bint goes_back                   # the draft context can forget its last tokens
    cdef Checkpoint checkpoint            # where it cannot
    cdef int32_t n_batch
    cdef vector[int32_t] history          # all tokens of the text but the last one
    cdef vector[int32_t] result           # the last draft
    cdef int32_t n_kept                   # so many tokens of `history` are in the draft context
    cdef int32_t n_held                   # so many tokens are in the draft context, drafts included
    cdef bint open                        # the last draft was not judged yet

    cdef int require(self) except -1
    # The caller holds the locks of both contexts, and has called require() in this thread.
    cdef int start(self, const int32_t[::1] tokens) except -1
    cdef void push(self, int32_t token) noexcept nogil
    # Drafts up to n_max tokens behind `last` into `result`. 0, or the code of a failed decode of the draft context.
    cdef int draft_into(self, int32_t last, int32_t n_max) except -99 nogil
    cdef int judge(self, int32_t accepted) except -1 nogil
    # Let it see what the target has just computed: so many tokens, the first of them at `position`.
    cdef int show(self, const int32_t * tokens, int32_t n, int32_t position) except -99 nogil
    cdef int catch_up(self) except -99 nogil
    cdef int cut(self) except -1 nogil
    cdef int make(self) except -1

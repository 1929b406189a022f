"""The step loop with drafts."""

from libc.stdint cimport int8_t, int32_t, int64_t
from libcpp.vector cimport vector

from pyllm.core.generation cimport Generation
from pyllm.core.speculative cimport Checkpoint, Drafter
from pyllm.core.speculative_pace cimport Pace


cdef class SpeculativeGeneration(Generation):
    cdef readonly Drafter drafter
    cdef readonly Pace pace
    cdef Checkpoint checkpoint            # of a memory that cannot be cut back; None where it can
    cdef readonly object limit            # tokens that will be generated at most, or None
    cdef int64_t most                     # the same in C
    cdef int32_t n_ctx_seq
    cdef int32_t n_rollback               # tokens that a recurrent memory can go back by itself
    cdef int32_t allowed                  # outputs that there is room for, less one
    cdef vector[int32_t] draft            # what was computed behind the last token that is known to be right
    cdef int32_t accepted                 # so many of them were chosen
    cdef int32_t first_row                # index in the batch of the logits that choose the first; -1: of the prompt
    cdef vector[int32_t] replay           # tokens between the end of the memory and `last`
    cdef int64_t took_us                  # time for drafting and computing
    # for the report
    cdef readonly int64_t n_drafts
    cdef readonly int64_t n_drafted
    cdef readonly int64_t n_accepted
    cdef readonly int64_t n_decodes
    cdef int64_t n_paused                 # Pace.paused at the beginning
    # scratch for batches
    cdef vector[int32_t] tokens_in
    cdef vector[int32_t] pos_in
    cdef vector[int32_t] n_seq_id_in
    cdef vector[int32_t *] seq_id_in
    cdef vector[int8_t] output_in

    cdef int make_draft(self) except -99 nogil
    cdef int compute(self, int32_t n, bint output) except -99 nogil
    cdef int catch_up(self, int32_t left) except -99 nogil
    cdef int end_draft(self) except -1 nogil
    cdef int go_back(self, int32_t n_computed) except -1 nogil
    cdef int lock(self) except -1
    cdef void unlock(self) noexcept

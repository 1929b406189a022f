"""Many steps of many texts without the GIL."""

from libc.stdint cimport int8_t, int32_t
from libcpp cimport bool
from libcpp.vector cimport vector

from pyllm.core.context cimport Context
from pyllm.core.rows cimport one_row
from pyllm.includes cimport llama as lib


cdef extern from "pyllm/core/round.hpp" namespace "pyllm" nogil:
    cdef cppclass round_flag:
        void set()
        void clear()
        bool is_set()

    bool can_block(int fd)
    void ring(int fd)


cdef class Flag:
    cdef round_flag c


cdef class Round:
    cdef readonly Context context
    cdef tuple rows_
    cdef readonly Flag stop
    cdef readonly int32_t n_steps         # that were computed
    cdef vector[int] fds                  # of pipes that become readable after each step
    cdef vector[int32_t] seq_ids
    cdef vector[int32_t] positions        # of the newest token of each text
    cdef vector[int32_t] limits           # tokens that each may have
    cdef vector[size_t] n_computed        # tokens of each that are computed, as far as this object knows
    cdef vector[one_row] todo
    cdef const lib.llama_vocab * vocab
    cdef size_t next_row                  # the row that chooses next; behind the last one the step is over
    cdef bint over                        # a text has ended, or failed
    # the batch
    cdef vector[int32_t] tokens_in
    cdef vector[int32_t] n_seq_ids_in
    cdef vector[int32_t *] seq_ids_in
    cdef vector[int8_t] outputs_in

    cdef bint has_ended(self) except -1
    cdef int go(self, int32_t n_steps, double ms) except -99 nogil
    cdef int compute(self) except -99 nogil

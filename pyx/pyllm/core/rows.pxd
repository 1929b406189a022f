"""Many texts that are generated in one batch."""

from libc.stdint cimport int32_t
from libcpp.vector cimport vector

from pyllm.core.generation cimport token_list
from pyllm.core.sampler cimport Sampler, reach
from pyllm.core.text_stream cimport TextStream, text_stream
from pyllm.includes cimport llama as lib


cdef class Row:
    cdef readonly Sampler sampler
    cdef readonly TextStream stream
    cdef readonly str finish_reason       # "stop" when the text has ended, else None
    cdef readonly object error              # what its sampler raised in the last call, or None
    cdef bint special                     # all control tokens are written as text
    cdef vector[int32_t] shown            # or these
    cdef token_list tokens_


# A row while its sampler is held: what chooses a token for it, and where that goes.
cdef struct one_row:
    lib.llama_sampler * sampler
    reach * within
    text_stream * stream
    token_list * tokens
    const vector[int32_t] * shown
    bint special
    int32_t index                         # in the batch
    int32_t token                         # that was chosen; -1: none
    bint ended

cdef int check_rows(list rows) except -1
# The caller holds the sampler, by Sampler.begin().
cdef one_row begin_row(Row row, int32_t index) except *
cdef int choose_row(lib.llama_context * context, const lib.llama_vocab * vocab, one_row * row) except -99 nogil
# Keeps what choosing a token has raised.
cdef int fail_row(Row row, object cause) except -1
cdef int end_row(Row row, one_row * one) except -1

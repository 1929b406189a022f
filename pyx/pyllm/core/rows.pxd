"""Many texts that are generated in one batch."""

from libc.stdint cimport int32_t
from libcpp.vector cimport vector

from pyllm.core.generation cimport token_list
from pyllm.core.sampler cimport Sampler
from pyllm.core.text_stream cimport TextStream


cdef class Row:
    cdef readonly Sampler sampler
    cdef readonly TextStream stream
    cdef readonly str finish_reason       # "stop" when the text has ended, else None
    cdef readonly object error            # what its sampler raised in the last call, or None
    cdef bint special                     # all control tokens are written as text
    cdef vector[int32_t] shown            # or these
    cdef token_list tokens_

"""Choosing a token from a row of logits, by a sampler that need not see all of it."""

from libc.stdint cimport int32_t

from pyllm.core.sampler cimport reach
from pyllm.includes cimport llama as lib
from pyllm.includes._translate cimport translate


cdef extern from "choose.hpp" namespace "pyllm" nogil:
    int32_t choose(
        lib.llama_sampler * sampler, lib.llama_context * context, int32_t index, reach & within
    ) except +translate

"""Choosing a token from a row of logits, by a sampler that need not see all of it."""

from libc.stdint cimport int32_t

from pyllm.core.sampler cimport reach
from pyllm.includes cimport llama as lib
from pyllm.includes._translate cimport translate


cdef extern from "pyllm/core/choose.hpp" namespace "pyllm" nogil:
    int32_t choose(
        lib.llama_sampler * sampler, lib.llama_context * context, int32_t index, reach & within
    ) except +translate
    int32_t NO_BATCH
    void collect_row(reach & within, const float * row, size_t n, int32_t index) except +translate
    void check_choice(
        lib.llama_sampler * sampler, const lib.llama_token_data_array & array, int32_t index
    ) except +translate

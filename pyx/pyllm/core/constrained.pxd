"""A grammar around a chain of samplers."""

from libc.stdint cimport int64_t
from libcpp cimport bool
from libcpp.memory cimport shared_ptr

from pyllm.core.sampler cimport Chain, Sampler
from pyllm.includes cimport llama as lib
from pyllm.includes._translate cimport translate


cdef extern from "pyllm/core/constrained.hpp" namespace "pyllm" nogil:
    cdef cppclass token_table:
        pass
    ctypedef shared_ptr[const token_table] token_table_ptr
    cdef cppclass constrained:
        lib.llama_sampler * grammar
        lib.llama_sampler * chain
        int64_t n_chosen
        int64_t n_rejected
    token_table_ptr make_token_table(const lib.llama_vocab * vocab) except +translate
    lib.llama_sampler * make_constrained(
        lib.llama_sampler * grammar, lib.llama_sampler * chain, const token_table_ptr & table, bool text_only,
        bool by_first_byte
    ) except +translate


cdef class TokenTable:
    cdef token_table_ptr c


cdef class Constrained(Sampler):
    cdef object grammar_                 # weak: the Grammar it was made with; the C object belongs to this one
    cdef object samplers_                # weak: the Chain, likewise

    cdef constrained * body(self) except NULL

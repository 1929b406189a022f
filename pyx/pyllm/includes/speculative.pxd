# Declarations of common/speculative.h, and of what it needs of common/common.h: drafts of the next tokens. It is C++,
# and no part of llama.cpp's public interface; what we do not use is left out.

from libc.stdint cimport int32_t, uint16_t, uint32_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

from pyllm.includes._translate cimport translate
# llama_token is an int32_t, which vectors of both must know.
from pyllm.includes.llama cimport llama_context, llama_pos, llama_seq_id, llama_token

cdef extern from "common.h" nogil:
    cdef enum common_speculative_type:
        COMMON_SPECULATIVE_TYPE_NONE

    cdef cppclass common_params_speculative_draft:
        int32_t n_max
        int32_t n_min
        float p_min
        bool backend_sampling
        llama_context * ctx_tgt
        llama_context * ctx_dft

    cdef cppclass common_params_speculative_ngram_mod:
        int32_t n_match
        int32_t n_max
        int32_t n_min

    cdef cppclass common_params_speculative_ngram_map:
        uint16_t size_n
        uint16_t size_m
        uint16_t min_hits

    cdef cppclass common_params_speculative:
        common_params_speculative() except +translate
        vector[common_speculative_type] types
        common_params_speculative_draft draft
        common_params_speculative_ngram_mod ngram_mod
        common_params_speculative_ngram_map ngram_simple
        common_params_speculative_ngram_map ngram_map_k
        common_params_speculative_ngram_map ngram_map_k4v

    cdef cppclass common_batch:
        common_batch(llama_context * ctx) except +translate
        void clear() except +translate
        int32_t add(llama_token id, llama_pos pos, llama_seq_id seq_id, bool output) except +translate

cdef extern from "speculative.h" nogil:
    cdef cppclass common_speculative:
        pass

    cdef cppclass common_speculative_draft_params:
        bool drafting
        int32_t n_max
        llama_pos pos0
        llama_token id_last
        const vector[int32_t] * prompt
        vector[int32_t] * result

    vector[common_speculative_type] common_speculative_types_from_names(const vector[string] & names) except +translate
    string common_speculative_type_to_str(common_speculative_type type) except +translate
    int32_t common_speculative_n_max(const common_speculative * spec) except +translate
    common_speculative * common_speculative_init(common_params_speculative & params, uint32_t n_seq) except +translate
    void common_speculative_free(common_speculative * spec)
    common_speculative_draft_params & common_speculative_get_draft_params(
        common_speculative * spec, llama_seq_id seq_id
    ) except +translate
    void common_speculative_begin(
        common_speculative * spec, llama_seq_id seq_id, const vector[int32_t] & prompt
    ) except +translate
    bool common_speculative_process(common_speculative * spec, const common_batch & batch) except +translate
    void common_speculative_draft(common_speculative * spec) except +translate
    void common_speculative_accept(
        common_speculative * spec, llama_seq_id seq_id, uint16_t n_accepted
    ) except +translate

// The functions of llama.h in the table of pyllm_api.h: the compiler compares each type with the header's.
#pragma once

#include "pyllm_api.h"

namespace pyllm {

inline void fill_functions(pyllm_api & table) {
    table.vocab_n_tokens     = llama_vocab_n_tokens;
    table.vocab_is_eog       = llama_vocab_is_eog;
    table.tokenize           = llama_tokenize;
    table.token_to_piece     = llama_token_to_piece;
    table.detokenize         = llama_detokenize;
    table.batch_init         = llama_batch_init;
    table.batch_free         = llama_batch_free;
    table.decode             = llama_decode;
    table.get_logits_ith     = llama_get_logits_ith;
    table.get_embeddings_ith = llama_get_embeddings_ith;
    table.n_ctx              = llama_n_ctx;
    table.n_batch            = llama_n_batch;
    table.get_memory         = llama_get_memory;
    table.memory_clear       = llama_memory_clear;
    table.memory_seq_rm      = llama_memory_seq_rm;
    table.memory_seq_cp      = llama_memory_seq_cp;
    table.memory_seq_pos_max = llama_memory_seq_pos_max;
    table.sampler_sample     = llama_sampler_sample;
}

}  // namespace pyllm

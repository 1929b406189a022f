// Removing tokens from a sequence without breaking its sliding window: llama.cpp writes over cells that no later token
// reads, and removes whatever it is asked to, although an earlier token would have read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "llama.h"

namespace pyllm {

// Whether the cache still has all that a token at `pos` reads of sequence `seq_id`.
static inline bool window_reaches(llama_context * context, llama_seq_id seq_id, llama_pos pos) {
    const llama_model * model = llama_get_model(context);
    const int32_t       n_swa = llama_model_n_swa(model);
    // A hybrid memory shows the positions of its recurrent state alone, and that one refuses what it cannot do.
    if (n_swa <= 0 || pos <= 0 || llama_model_is_hybrid(model)) {
        return true;
    }
    // The token itself is one of the n_swa that it reads. A sequence that is empty has -1.
    return llama_memory_seq_pos_min(llama_get_memory(context), seq_id) <= std::max(0, pos - n_swa + 1);
}

// Whether the text of a sequence can end at position `p0`, or have a gap that begins there.
static inline bool can_cut(llama_context * context, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const llama_pos last = llama_memory_seq_pos_max(llama_get_memory(context), seq_id);
    // Behind the last position there is nothing of the window: what is removed there was never read.
    if (p0 > last || (p1 >= 0 && p1 <= p0)) {
        return true;
    }
    return window_reaches(context, seq_id, p0);
}

// llama_memory_seq_rm() that also returns false, and changes nothing, where the next token of a sequence would miss
// a part of its window.
static inline bool remove_range(llama_context * context, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const llama_memory_t memory = llama_get_memory(context);
    if (seq_id >= 0) {
        return can_cut(context, seq_id, p0, p1) && llama_memory_seq_rm(memory, seq_id, p0, p1);
    }
    const llama_seq_id n = (llama_seq_id) llama_n_seq_max(context);
    if (p0 <= 0 && p1 < 0) {
        // One by one: recurrent memories refuse all at once.
        for (llama_seq_id s = 0; s < n; ++s) {
            llama_memory_seq_rm(memory, s, -1, -1);
        }
        return true;
    }
    for (llama_seq_id s = 0; s < n; ++s) {
        if (!can_cut(context, s, p0, p1)) {
            return false;
        }
    }
    return llama_memory_seq_rm(memory, seq_id, p0, p1);
}

}  // namespace pyllm

// Choosing a token from a row of logits. A chain that keeps the k largest sees only those: what it does with them is
// llama.cpp's, and so is the result, but it need not look at all of the vocabulary.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "llama.h"
#include "reach.hpp"
#include "row_scan.hpp"

namespace pyllm {

PYLLM_VECTOR static bool any_at_least(const float * row, size_t n, float value) {
    int32_t found = 0;
    for (size_t i = 0; i < n; ++i) {
        found |= row[i] >= value;
    }
    return found != 0;
}

// The candidates of a row; false where the sampler has to see all of it.
static inline bool collect(reach & within, const float * row, size_t n) {
    // Those that are moved may be among the largest, and make room for as many others.
    const size_t most = within.k + within.moved.size();
    if (within.k == 0 || most > n / 4 || (!within.moved.empty() && (size_t) within.moved.back() >= n)) {
        return false;
    }
    const float floor = most == 1 ? row_max(row, n) : kth_largest(row, n, most);
    if (floor == NEVER) {
        return false;  // fewer are possible
    }
    static constexpr size_t BLOCK = 64;
    within.candidates.clear();
    auto next = within.moved.begin();
    for (size_t start = 0; start < n; start += BLOCK) {
        const size_t end       = std::min(start + BLOCK, n);
        const bool   has_moved = next != within.moved.end() && (size_t) *next < end;
        if (!has_moved && !any_at_least(row + start, end - start, floor)) {
            continue;
        }
        for (size_t i = start; i < end; ++i) {
            const bool is_moved = next != within.moved.end() && (size_t) *next == i;
            if (is_moved && !std::isfinite(row[i])) {
                return false;  // it can become NaN, and what that does depends on where it stands
            }
            if (is_moved || row[i] >= floor) {
                within.candidates.push_back(llama_token_data{ (int32_t) i, row[i], 0.0f });
            }
            next += is_moved;
        }
    }
    return true;
}

// llama_sampler_sample(), with the same result but where logits that top-k keeps are equal: these stand in no order.
static inline int32_t choose(llama_sampler * sampler, llama_context * context, int32_t index, reach & within) {
    if (within.k == 0 || llama_get_sampled_token_ith(context, index) != LLAMA_TOKEN_NULL ||
        llama_get_sampled_probs_ith(context, index) != nullptr ||
        llama_get_sampled_logits_ith(context, index) != nullptr) {
        return llama_sampler_sample(sampler, context, index);
    }
    const size_t  n   = (size_t) llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
    const float * row = llama_get_logits_ith(context, index);
    if (row == nullptr || !collect(within, row, n)) {
        return llama_sampler_sample(sampler, context, index);
    }
    llama_token_data_array array = { within.candidates.data(), within.candidates.size(), -1, false };
    llama_sampler_apply(sampler, &array);
    if (array.selected < 0 || array.selected >= (int64_t) array.size) {
        return llama_sampler_sample(sampler, context, index);  // which says what is wrong
    }
    const int32_t token = array.data[array.selected].id;
    llama_sampler_accept(sampler, token);
    return token;
}

}  // namespace pyllm

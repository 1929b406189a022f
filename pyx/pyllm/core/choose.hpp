// Choosing a token from a row of logits. A chain that keeps the k largest sees only those: what it does with them is
// llama.cpp's, and so is the result, but it need not look at all of the vocabulary.
// A row that has no answer is refused: llama.cpp would choose a token that is forbidden, or any.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "llama.h"
#include "reach.hpp"
#include "row_scan.hpp"

namespace pyllm {

// How messages begin that sampler.pyx makes a SamplerError of.
#define PYLLM_CANNOT_CHOOSE "cannot choose a token: "

// The index of a row that is in no batch.
static constexpr int32_t NO_BATCH = INT32_MIN;

[[noreturn]] static inline void refuse_row(int32_t index, const std::string & why) {
    std::string where;
    if (index != NO_BATCH) {
        where = (index < 0 ? "at output " : "at index ") + std::to_string(index) + " of the batch ";
    }
    throw std::runtime_error(PYLLM_CANNOT_CHOOSE "the logits " + where + why);
}

static inline void refuse_nan(int32_t index, const float * row, size_t n) {
    size_t  count = 0;
    int32_t first = -1;
    for (size_t i = 0; i < n; ++i) {
        if (std::isnan(row[i])) {
            first = first < 0 ? (int32_t) i : first;
            ++count;
        }
    }
    if (count == 0) {
        return;
    }
    refuse_row(index, "are NaN for " + std::to_string(count) + " of " + std::to_string(n) + " tokens, the first is token "
                          + std::to_string(first));
}

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
            if (is_moved || row[i] >= floor) {
                within.candidates.push_back(llama_token_data{ (int32_t) i, row[i], 0.0f });
            }
            next += is_moved;
        }
    }
    return true;
}

// Tokens at plus infinity are forced: the sampler chooses among these, and finds them equally likely.
static inline void collect_forced(reach & within, const float * row, size_t n) {
    within.candidates.clear();
    for (size_t i = 0; i < n; ++i) {
        if (row[i] == -NEVER) {
            within.candidates.push_back(llama_token_data{ (int32_t) i, 0.0f, 0.0f });
        }
    }
}

static inline void collect_all(reach & within, const float * row, size_t n) {
    within.candidates.resize(n);
    llama_token_data * data = within.candidates.data();
    for (size_t i = 0; i < n; ++i) {
        data[i] = llama_token_data{ (int32_t) i, row[i], 0.0f };
    }
}

// The candidates of a row, or what is wrong with it.
static inline void collect_row(reach & within, const float * row, size_t n, int32_t index) {
    if (any_nan_or_inf(row, n)) {
        refuse_nan(index, row, n);
        collect_forced(within, row, n);
        return;
    }
    if (!collect(within, row, n)) {
        if (row_max(row, n) == NEVER) {
            refuse_row(index, "are -inf for all tokens: all are forbidden");
        }
        collect_all(within, row, n);
    }
}

// What samplers inside the graph have left of the row, as llama_sampler_sample() takes it; false where it is untouched.
static inline bool collect_sampled(reach & within, llama_context * context, int32_t index) {
    const float * probs  = llama_get_sampled_probs_ith(context, index);
    const float * logits = llama_get_sampled_logits_ith(context, index);
    if (probs == nullptr && logits == nullptr) {
        return false;
    }
    const llama_token * ids = llama_get_sampled_candidates_ith(context, index);
    const size_t        n   = probs != nullptr ? llama_get_sampled_probs_count_ith(context, index)
                                               : llama_get_sampled_logits_count_ith(context, index);
    within.candidates.resize(n);
    for (size_t i = 0; i < n; ++i) {
        within.candidates[i] = llama_token_data{ ids[i], logits[i], probs != nullptr ? probs[i] : 0.0f };
    }
    return true;
}

// Whether the token is selected by its logit alone; what samplers before have left as probabilities means nothing then.
static inline bool is_greedy(llama_sampler * sampler) {
    while (llama_sampler_chain_get(sampler, -1) == sampler && llama_sampler_chain_n(sampler) > 0) {
        sampler = llama_sampler_chain_get(sampler, llama_sampler_chain_n(sampler) - 1);
    }
    return strcmp(llama_sampler_name(sampler), "greedy") == 0;
}

static inline void check_choice(llama_sampler * sampler, const llama_token_data_array & array, int32_t index) {
    if (array.size == 0) {
        refuse_row(index, "have no token left: the samplers have dropped all");
    }
    if (array.selected < 0 || array.selected >= (int64_t) array.size) {
        throw std::runtime_error("no token was selected");
    }
    const llama_token_data & choice = array.data[array.selected];
    if (choice.logit == NEVER) {
        refuse_row(index, "have no token left: the samplers forbid all");
    }
    if (std::isnan(choice.logit) || (std::isnan(choice.p) && !is_greedy(sampler))) {
        refuse_row(index, "became NaN in the samplers");
    }
}

// A token that was chosen inside the graph, checked as far as its numbers were kept.
static inline void check_sampled(llama_context * context, int32_t index, int32_t token) {
    const float *       logits = llama_get_sampled_logits_ith(context, index);
    const llama_token * ids    = llama_get_sampled_candidates_ith(context, index);
    const size_t        n      = llama_get_sampled_logits_count_ith(context, index);
    for (size_t i = 0; logits != nullptr && i < n; ++i) {
        if (ids[i] == token && !(logits[i] > NEVER)) {
            refuse_row(index, std::isnan(logits[i]) ? "are NaN" : "have no token left: the samplers forbid all");
        }
    }
}

// llama_sampler_sample(), with the same result but where logits that top-k keeps are equal: these stand in no order.
static inline int32_t choose(llama_sampler * sampler, llama_context * context, int32_t index, reach & within) {
    const int32_t sampled = llama_get_sampled_token_ith(context, index);
    if (sampled != LLAMA_TOKEN_NULL) {
        check_sampled(context, index, sampled);
        llama_sampler_accept(sampler, sampled);
        return sampled;
    }
    if (!collect_sampled(within, context, index)) {
        const size_t  n   = (size_t) llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
        const float * row = llama_get_logits_ith(context, index);
        if (row == nullptr) {
            refuse_row(index, "are not there");
        }
        collect_row(within, row, n, index);
    }
    llama_token_data_array array = { within.candidates.data(), within.candidates.size(), -1, false };
    llama_sampler_apply(sampler, &array);
    check_choice(sampler, array, index);
    const int32_t token = array.data[array.selected].id;
    llama_sampler_accept(sampler, token);
    return token;
}

}  // namespace pyllm

// A llama_sampler that holds two of llama.cpp's: the budget of a reasoning block, and a grammar that waits until the
// block is over. The order of calls is that of common_sampler_accept and common_sampler_sample.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "llama.h"
#include "reasoning-budget.h"

namespace pyllm {

struct reasoning_gate {
    llama_sampler * fresh   = nullptr;  // the budget as it was at the beginning of the answer
    llama_sampler * budget  = nullptr;
    llama_sampler * grammar = nullptr;  // there may be none
    bool            waits;              // the grammar holds only outside of the block
    bool            replays;            // the grammar sees the tokens that ended the block: one may be its trigger

    reasoning_gate(bool waits, bool replays) : waits(waits), replays(replays) {}

    reasoning_gate(const reasoning_gate &) = delete;
    reasoning_gate & operator=(const reasoning_gate &) = delete;

    ~reasoning_gate() {
        llama_sampler_free(fresh);
        llama_sampler_free(budget);
        llama_sampler_free(grammar);
    }

    bool grammar_holds() const {
        if (grammar == nullptr) {
            return false;
        }
        const auto state = common_reasoning_budget_get_state(budget);
        return !waits || state == REASONING_BUDGET_IDLE || state == REASONING_BUDGET_DONE;
    }
};

static inline reasoning_gate * gate_of(const llama_sampler * self) { return (reasoning_gate *) self->ctx; }

static inline const char * reasoning_name(const llama_sampler *) { return "reasoning"; }

static inline void reasoning_accept(llama_sampler * self, llama_token token) {
    reasoning_gate * gate = gate_of(self);
    const bool       held = gate->grammar_holds();
    llama_sampler_accept(gate->budget, token);
    if (held) {
        llama_sampler_accept(gate->grammar, token);
        return;
    }
    const bool done = common_reasoning_budget_get_state(gate->budget) == REASONING_BUDGET_DONE;
    if (gate->grammar == nullptr || !gate->replays || !done) {
        return;
    }
    const llama_tokens * end = common_reasoning_budget_get_end_match(gate->budget);
    if (end != nullptr) {
        for (const llama_token one : *end) {
            llama_sampler_accept(gate->grammar, one);
        }
    }
}

static inline void reasoning_apply(llama_sampler * self, llama_token_data_array * candidates) {
    reasoning_gate * gate = gate_of(self);
    llama_sampler_apply(gate->budget, candidates);
    if (gate->grammar_holds()) {
        llama_sampler_apply(gate->grammar, candidates);
    }
}

static inline void reasoning_reset(llama_sampler * self) {
    reasoning_gate * gate = gate_of(self);
    llama_sampler * budget = llama_sampler_clone(gate->fresh);
    llama_sampler_free(gate->budget);
    gate->budget = budget;
    if (gate->grammar != nullptr) {
        llama_sampler_reset(gate->grammar);
    }
}

static inline llama_sampler * reasoning_clone(const llama_sampler * self);

static inline void reasoning_free(llama_sampler * self) { delete gate_of(self); }

static llama_sampler_i reasoning_i = {
    /* .name              = */ reasoning_name,
    /* .accept            = */ reasoning_accept,
    /* .apply             = */ reasoning_apply,
    /* .reset             = */ reasoning_reset,
    /* .clone             = */ reasoning_clone,
    /* .free              = */ reasoning_free,
    /* .backend_init      = */ nullptr,
    /* .backend_accept    = */ nullptr,
    /* .backend_apply     = */ nullptr,
    /* .backend_set_input = */ nullptr,
    /* .backend_reset     = */ nullptr,
    /* .copy_state        = */ nullptr,
};

static inline llama_sampler * reasoning_clone(const llama_sampler * self) {
    const reasoning_gate * gate = gate_of(self);
    std::unique_ptr<reasoning_gate> copy(new reasoning_gate(gate->waits, gate->replays));
    copy->fresh  = llama_sampler_clone(gate->fresh);
    copy->budget = llama_sampler_clone(gate->budget);
    if (gate->grammar != nullptr) {
        copy->grammar = llama_sampler_clone(gate->grammar);
    }
    return llama_sampler_init(&reasoning_i, copy.release());
}

static inline llama_sampler * make_reasoning(
        const llama_vocab * vocab, const llama_tokens & start, const std::vector<llama_tokens> & ends,
        const llama_tokens & forced, int32_t budget, const llama_tokens & beginning, const llama_sampler * grammar,
        bool waits, bool replays) {
    std::unique_ptr<reasoning_gate> gate(new reasoning_gate(waits, replays));
    // What the prompt has of the answer may open the block, and close it. It does not count: a budget of 0 would begin to
    // force the end within it.
    gate->fresh = common_reasoning_budget_init(vocab, { start }, ends, forced, INT32_MAX);
    for (const llama_token token : beginning) {
        llama_sampler_accept(gate->fresh, token);
    }
    const auto state = common_reasoning_budget_get_state(gate->fresh);
    llama_sampler_free(gate->fresh);
    gate->fresh  = nullptr;
    gate->fresh  = common_reasoning_budget_init(vocab, { start }, ends, forced, budget, state);
    gate->budget = llama_sampler_clone(gate->fresh);
    if (grammar != nullptr) {
        gate->grammar = llama_sampler_clone(grammar);
    }
    return llama_sampler_init(&reasoning_i, gate.release());
}

static inline int reasoning_state(const llama_sampler * self) {
    return common_reasoning_budget_get_state(gate_of(self)->budget);
}

static inline bool reasoning_force(llama_sampler * self) { return common_reasoning_budget_force(gate_of(self)->budget); }

}  // namespace pyllm

// The logit bias of plus infinity: some tokens are forced. Added to a logit it would leave nothing to compare.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "llama.h"

namespace pyllm {

struct forced {
    std::vector<int32_t> tokens;  // in order
    llama_sampler *      others;  // the biases that are finite, and those that forbid
};

static inline forced & forced_of(const llama_sampler * self) { return *(forced *) self->ctx; }

static inline const char * forced_name(const llama_sampler *) { return "forced-tokens"; }

static inline void forced_apply(llama_sampler * self, llama_token_data_array * candidates) {
    const forced & body = forced_of(self);
    size_t         kept = 0;
    for (size_t i = 0; i < candidates->size; ++i) {
        if (std::binary_search(body.tokens.begin(), body.tokens.end(), candidates->data[i].id)) {
            candidates->data[kept++] = candidates->data[i];
        }
    }
    if (kept == 0) {
        throw std::runtime_error(
            "cannot choose a token: a logit bias of +inf forces tokens that other samplers have dropped"
        );
    }
    candidates->size     = kept;
    candidates->selected = -1;
    llama_sampler_apply(body.others, candidates);
}

static inline void forced_free(llama_sampler * self) {
    llama_sampler_free(forced_of(self).others);
    delete &forced_of(self);
}

static inline llama_sampler * forced_clone(const llama_sampler * self) {
    const forced & body = forced_of(self);
    return llama_sampler_init(self->iface, new forced{ body.tokens, llama_sampler_clone(body.others) });
}

static inline llama_sampler_i make_forced_interface() {
    llama_sampler_i result = {};
    result.name  = forced_name;
    result.apply = forced_apply;
    result.clone = forced_clone;
    result.free  = forced_free;
    return result;
}

static llama_sampler_i forced_interface = make_forced_interface();

// Takes over `others`.
static inline llama_sampler * make_forced(const std::vector<int32_t> & tokens, llama_sampler * others) {
    auto * body = new forced{ tokens, others };
    std::sort(body->tokens.begin(), body->tokens.end());
    return llama_sampler_init(&forced_interface, body);
}

}  // namespace pyllm

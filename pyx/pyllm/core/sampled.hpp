// A chain as the graph of a context can run it, with the same result as on the host.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include "llama.h"

namespace pyllm {

static inline const char * host_name(const llama_sampler *) { return "host"; }

// On the device top-p and min-p leave all candidates there, those that they drop at minus infinity. On the host they
// are gone, and samplers such as typical cannot do with them.
static inline void host_apply(llama_sampler *, llama_token_data_array * candidates) {
    size_t kept = 0;
    for (size_t i = 0; i < candidates->size; ++i) {
        kept += candidates->data[i].logit != -INFINITY;
    }
    if (kept == 0) {
        return;
    }
    kept = 0;
    for (size_t i = 0; i < candidates->size; ++i) {
        if (candidates->data[i].logit != -INFINITY) {
            candidates->data[kept++] = candidates->data[i];
        }
    }
    candidates->size = kept;
}

static llama_sampler * host_clone(const llama_sampler * self) { return llama_sampler_init(self->iface, nullptr); }

// A sampler without operations for the device: what stands behind it runs on the host.
static inline llama_sampler_i make_host_interface() {
    llama_sampler_i result = {};
    result.name  = host_name;
    result.apply = host_apply;
    result.clone = host_clone;
    return result;
}

static llama_sampler_i host_interface = make_host_interface();

static inline bool is_one_of(const char * name, const char * first, const char * second) {
    return strcmp(name, first) == 0 || strcmp(name, second) == 0;
}

static inline bool keeps_more_than(llama_sampler * top_k, size_t n) {
    std::vector<llama_token_data> data(n + 1, llama_token_data{ 0, 0.0f, 0.0f });
    llama_token_data_array        candidates = { data.data(), data.size(), -1, true };
    llama_sampler_apply(top_k, &candidates);
    return candidates.size > n;
}

struct device_chain {
    llama_sampler * chain;
    size_t          n_vocab;
    bool            narrowed = false;  // a sampler has dropped candidates, or put them in another order
    bool            on_host  = false;

    // Moves the members of a chain here, and those of chains inside it: llama.cpp skips what stands in an inner chain
    // before its first sampler without operations.
    void take(llama_sampler * source) {
        while (llama_sampler_chain_n(source) > 0) {
            llama_sampler * member = llama_sampler_chain_remove(source, 0);
            if (llama_sampler_chain_get(member, -1) == member) {
                take(member);
                llama_sampler_free(member);
            } else {
                add(member);
            }
        }
    }

    void add(llama_sampler * member) {
        const char * name = llama_sampler_name(member);
        // The operations of the first two take the index of a candidate for its token; those of the third assert that
        // there are k candidates.
        const bool is_top_k = strcmp(name, "top-k") == 0;
        const bool by_index = is_top_k || is_one_of(name, "greedy", "logit-bias");
        const bool no_ops   = narrowed && (by_index || member->iface->backend_init == nullptr);
        if (!on_host && (no_ops || (is_top_k && keeps_more_than(member, n_vocab)))) {
            llama_sampler_chain_add(chain, llama_sampler_init(&host_interface, nullptr));
            on_host = true;
        }
        narrowed = narrowed || !is_one_of(name, "penalties", "logit-bias");
        llama_sampler_chain_add(chain, member);
    }
};

// Takes over `source`.
static inline llama_sampler * for_device(llama_sampler * source, int32_t n_vocab) {
    device_chain result{ llama_sampler_chain_init(llama_sampler_chain_default_params()), (size_t) n_vocab };
    result.take(source);
    llama_sampler_free(source);
    return result.chain;
}

}  // namespace pyllm

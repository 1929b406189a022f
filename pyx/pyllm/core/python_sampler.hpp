// llama_sampler interfaces whose functions call into Python. An exception there is put aside, and unwinds llama.cpp's
// frames as a C++ exception, so that nothing is sampled or accepted after it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "llama.h"

namespace pyllm {

struct python_failure : std::runtime_error {
    python_failure() : std::runtime_error("a sampler written in Python raised an exception") {}
};

// Each takes the GIL by itself, and returns false (or null) when it has put an exception aside.
struct python_hooks {
    bool (*apply)(void * body, llama_token_data_array * candidates);
    bool (*accept)(void * body, int32_t token);
    bool (*reset)(void * body);
    void * (*clone)(const void * body);
    void (*release)(void * body);
};

static python_hooks hooks;

static inline void require(bool done) {
    if (!done) {
        throw python_failure();
    }
}

static inline const char * python_name(const llama_sampler *) { return "python"; }

static inline const char * bitmask_name(const llama_sampler *) { return "bitmask"; }

static inline void python_accept(llama_sampler * self, llama_token token) { require(hooks.accept(self->ctx, token)); }

static inline void python_apply(llama_sampler * self, llama_token_data_array * candidates) {
    require(hooks.apply(self->ctx, candidates));
}

static inline void python_reset(llama_sampler * self) { require(hooks.reset(self->ctx)); }

static inline llama_sampler * python_clone(const llama_sampler * self) {
    void * body = hooks.clone(self->ctx);
    require(body != nullptr);
    return llama_sampler_init(self->iface, body);
}

static inline void python_free(llama_sampler * self) { hooks.release(self->ctx); }

static inline llama_sampler_i make_interface(const char * (*name)(const llama_sampler *) ) {
    llama_sampler_i result = {};
    result.name   = name;
    result.accept = python_accept;
    result.apply  = python_apply;
    result.reset  = python_reset;
    result.clone  = python_clone;
    result.free   = python_free;
    return result;
}

static llama_sampler_i python_interface  = make_interface(python_name);
static llama_sampler_i bitmask_interface = make_interface(bitmask_name);

// ---- on candidates

static inline int32_t largest_id(const llama_token_data * data, size_t n) {
    int32_t result = -1;
    for (size_t i = 0; i < n; ++i) {
        result = data[i].id > result ? data[i].id : result;
    }
    return result;
}

// The index of the first id that is not from 0 to `last`, or n.
static inline size_t find_bad_id(const llama_token_data * data, size_t n, int32_t last) {
    for (size_t i = 0; i < n; ++i) {
        if (data[i].id < 0 || data[i].id > last) {
            return i;
        }
    }
    return n;
}

static inline bool is_descending(const llama_token_data * data, size_t n) {
    for (size_t i = 1; i < n; ++i) {
        if (!(data[i - 1].logit >= data[i].logit)) {
            return false;
        }
    }
    return true;
}

// The index of the first logit that is NaN, or n.
static inline size_t find_nan(const llama_token_data * data, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        if (data[i].logit != data[i].logit) {
            return i;
        }
    }
    return n;
}

// Candidates at plus infinity are forced: they alone stay, equally likely. Returns how many are left.
static inline size_t keep_forced(llama_token_data * data, size_t n) {
    size_t kept = 0;
    for (size_t i = 0; i < n; ++i) {
        if (data[i].logit == INFINITY) {
            data[kept]         = data[i];
            data[kept++].logit = 0.0f;
        }
    }
    return kept == 0 ? n : kept;
}

// Drops the candidates whose bit is 0 or past the mask, keeping the order; returns how many are left.
static inline size_t keep_allowed(llama_token_data * data, size_t n, const int32_t * words, size_t n_words) {
    size_t kept = 0;
    for (size_t i = 0; i < n; ++i) {
        const size_t id = (size_t) data[i].id;
        if (id / 32 < n_words && (((uint32_t) words[id / 32] >> (id % 32)) & 1u)) {
            data[kept++] = data[i];
        }
    }
    return kept;
}

}  // namespace pyllm

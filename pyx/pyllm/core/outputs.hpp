// What llama.cpp keeps to itself about the outputs of the last decode: their buffer, their number and their order.
//
// llama.cpp has no function to keep the buffer when it makes a larger one, or to let a batch decide which rows there are
// where embeddings are computed. Both need a few members of llama_context, which are private. The names below stand
// in the explicit instantiations alone: a version of llama.cpp that renames one of them fails to compile here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "llama-context.h"
#include "llama.h"

namespace pyllm {

// The language lets an explicit instantiation name a private member.
template <typename Name, auto Member> struct private_member {
    friend constexpr auto member(Name) { return Member; }
};

#define PYLLM_PRIVATE_MEMBER(name)                \
    struct name##_ {                              \
        friend constexpr auto member(name##_);    \
    };                                            \
    template struct private_member<name##_, &llama_context::name>

PYLLM_PRIVATE_MEMBER(cparams);
PYLLM_PRIVATE_MEMBER(logits);
PYLLM_PRIVATE_MEMBER(embd);
PYLLM_PRIVATE_MEMBER(embd_nextn);
PYLLM_PRIVATE_MEMBER(embd_layer_inp);
PYLLM_PRIVATE_MEMBER(embd_batch_idxs);
PYLLM_PRIVATE_MEMBER(sampling);
PYLLM_PRIVATE_MEMBER(n_outputs);
PYLLM_PRIVATE_MEMBER(output_ids);
PYLLM_PRIVATE_MEMBER(output_swaps);
PYLLM_PRIVATE_MEMBER(buf_output);

#undef PYLLM_PRIVATE_MEMBER

// Size of the output buffer in bytes.
static inline size_t output_buffer_size(llama_context * context) {
    const auto & buffer = context->*member(buf_output_{});
    return buffer ? ggml_backend_buffer_get_size(buffer.get()) : 0;
}

// Whether hidden states for NextN layers are output too, and for all tokens of a batch instead of its outputs.
static inline bool has_nextn(llama_context * context) { return (context->*member(cparams_{})).embeddings_nextn; }

static inline bool has_nextn_of_all(llama_context * context) {
    return has_nextn(context) && !(context->*member(cparams_{})).embeddings_nextn_masked;
}

static inline int32_t output_count(llama_context * context) {
    return (int32_t) (context->*member(n_outputs_{}));
}

// The row of the token at an index of the batch; -1: it has none.
static inline int32_t output_row(llama_context * context, int32_t index) {
    const auto & ids = context->*member(output_ids_{});
    return index < 0 || (size_t) index >= ids.size() ? -1 : ids[index];
}

// Takes the output buffer away: llama.cpp has no outputs then, and makes another buffer in its next decode. The caller
// frees the old one. Without a buffer the result is null.
static inline ggml_backend_buffer_t take_output_buffer(llama_context * context) {
    llama_synchronize(context);  // nothing is on its way into it any more
    const auto forget = [](auto & view) {
        view.data = nullptr;
        view.size = 0;
    };
    auto & sampling = context->*member(sampling_{});
    forget(context->*member(logits_{}));
    forget(context->*member(embd_{}));
    forget(context->*member(embd_nextn_{}));
    for (auto & view : context->*member(embd_layer_inp_{})) {
        forget(view);
    }
    forget(sampling.logits);
    forget(sampling.probs);
    forget(sampling.sampled);
    forget(sampling.candidates);
    auto & ids = context->*member(output_ids_{});
    std::fill(ids.begin(), ids.end(), -1);
    (context->*member(output_swaps_{})).clear();
    (context->*member(embd_batch_idxs_{})).clear();
    context->*member(n_outputs_{}) = 0;
    return (context->*member(buf_output_{})).release();
}

// Of a decode that output every token, keeps the outputs of the `wanted` ones alone, as if the others had not been
// asked for: rows, indices of the batch, negative indices, and what samplers in the graph chose. llama.cpp brings rows
// into their order when they are read first; the swaps that are added here are a part of that.
static inline void keep_outputs(llama_context * context, const int8_t * wanted, int32_t n_tokens) {
    auto & ids   = context->*member(output_ids_{});
    auto & swaps = context->*member(output_swaps_{});
    swaps.reserve(swaps.size() + (size_t) n_tokens);
    uint32_t n = 0;
    for (int32_t i = 0; i < n_tokens && (size_t) i < ids.size(); ++i) {
        if (!wanted[i] || ids[i] < 0) {
            ids[i] = -1;
            continue;
        }
        // Rows of all tokens stand in the order of the batch, so that this one is at n or behind it, where no swap
        // before has put anything.
        if ((uint32_t) ids[i] != n) {
            swaps.push_back({ n, (uint32_t) ids[i] });
        }
        ids[i] = (int32_t) n++;
    }
    context->*member(n_outputs_{}) = n;
}

}  // namespace pyllm

// A grammar around a chain of samplers: the token that the chain chooses is checked, and only when it does not fit is
// the grammar applied to the vocabulary. It is how llama.cpp's own programs sample, as one llama_sampler.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama.h"

namespace pyllm {

// ---- UTF-8, byte by byte

struct utf8_state {
    uint8_t remaining = 0;
    uint8_t low       = 0x80;  // what the next byte must at least be
    uint8_t high      = 0xBF;  // and at most

    bool take(uint8_t byte) {
        if (remaining > 0) {
            const bool fits = byte >= low && byte <= high;
            low             = 0x80;
            high            = 0xBF;
            --remaining;
            return fits;
        }
        if (byte < 0x80) {
            return true;
        }
        if (byte < 0xC2 || byte > 0xF4) {
            return false;
        }
        remaining = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
        low       = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
        high      = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
        return true;
    }
};

// ---- what the grammar sees of each token; made once for a vocabulary

struct token_table {
    enum kind : uint8_t { TEXT = 0, INVISIBLE = 1, END = 2, EMPTY = 3 };

    const llama_vocab *      vocab = nullptr;
    std::vector<uint32_t>    starts;  // into `bytes`, one more than tokens
    std::string              bytes;
    std::vector<uint8_t>     kinds;
    std::vector<uint8_t>     ascii;
    std::array<int32_t, 256> single;  // the token that is exactly this byte, or -1

    explicit token_table(const llama_vocab * vocab) : vocab(vocab) {
        const int32_t n = llama_vocab_n_tokens(vocab);
        single.fill(-1);
        starts.reserve(n + 1);
        kinds.reserve(n);
        ascii.reserve(n);
        std::string piece;
        for (int32_t token = 0; token < n; ++token) {
            starts.push_back((uint32_t) bytes.size());
            read(token, true, piece);
            bytes += piece;
            bool is_ascii = true;
            for (const char c : piece) {
                is_ascii = is_ascii && (uint8_t) c < 0x80;
            }
            ascii.push_back(is_ascii);
            if (llama_vocab_is_eog(vocab, token)) {
                kinds.push_back(END);
                continue;
            }
            if (piece.empty() || piece[0] == 0) {
                kinds.push_back(EMPTY);
                continue;
            }
            if (piece.size() == 1 && single[(uint8_t) piece[0]] < 0) {
                single[(uint8_t) piece[0]] = token;
            }
            read(token, false, piece);
            kinds.push_back(piece.empty() ? INVISIBLE : TEXT);
        }
        starts.push_back((uint32_t) bytes.size());
    }

    void read(int32_t token, bool special, std::string & piece) const {
        piece.resize(64);
        int32_t size = llama_token_to_piece(vocab, token, &piece[0], (int32_t) piece.size(), 0, special);
        if (size < 0) {
            piece.resize(-size);
            size = llama_token_to_piece(vocab, token, &piece[0], (int32_t) piece.size(), 0, special);
        }
        piece.resize(size > 0 ? size : 0);
    }

    bool take(utf8_state & state, int32_t token) const {
        if (state.remaining == 0 && ascii[token]) {
            return true;
        }
        for (uint32_t i = starts[token]; i < starts[token + 1]; ++i) {
            if (!state.take((uint8_t) bytes[i])) {
                return false;
            }
        }
        return true;
    }
};

using token_table_ptr = std::shared_ptr<const token_table>;

static inline token_table_ptr make_token_table(const llama_vocab * vocab) {
    return std::make_shared<const token_table>(vocab);
}

// ---- the sampler

static const char * const NO_TOKEN_FITS = "no token of the vocabulary continues the text as the grammar demands";

struct constrained {
    llama_sampler * grammar;
    llama_sampler * chain;
    token_table_ptr table;
    bool            text_only;      // no control tokens, and valid UTF-8
    bool            by_first_byte;  // whether a byte that the grammar refuses says the same of all that begin with it
    utf8_state      text;
    int64_t         n_chosen   = 0;
    int64_t         n_rejected = 0;

    std::vector<float>            logits;  // what the chain was given, where that was the vocabulary in its order
    std::vector<llama_token_data> candidates;

    bool knows(int32_t token) const { return token >= 0 && (size_t) token < table->kinds.size(); }

    // All that can be said without asking the grammar.
    bool is_possible(int32_t token) const {
        if (!knows(token) || table->kinds[token] == token_table::EMPTY) {
            return false;
        }
        if (!text_only) {
            return true;
        }
        if (table->kinds[token] == token_table::END) {
            return text.remaining == 0;
        }
        utf8_state copy = text;
        return table->kinds[token] == token_table::TEXT && table->take(copy, token);
    }

    bool fits(int32_t token) {
        if (!is_possible(token)) {
            return false;
        }
        llama_token_data       data  = { token, 1.0f, 0.0f };
        llama_token_data_array array = { &data, 1, -1, false };
        llama_sampler_apply(grammar, &array);
        return data.logit != -INFINITY;
    }

    void save(const llama_token_data_array * array) {
        const size_t n = array->size;
        logits.resize(n);
        bool in_order = true;
        for (size_t i = 0; i < n; ++i) {
            logits[i] = array->data[i].logit;
            in_order  = in_order && array->data[i].id == (int32_t) i;
        }
        if (in_order) {
            candidates.clear();
        } else {
            candidates.assign(array->data, array->data + n);
        }
    }

    llama_token_data saved(size_t i) const {
        return candidates.empty() ? llama_token_data{ (int32_t) i, logits[i], 0.0f } : candidates[i];
    }

    // Which first bytes the grammar allows; those without a token of their own are not refused.
    std::array<bool, 256> first_bytes() {
        std::array<bool, 256> allowed;
        allowed.fill(true);
        if (!by_first_byte) {
            return allowed;
        }
        std::array<llama_token_data, 256> probes;
        std::array<int, 256>              of;
        size_t                            n = 0;
        for (int byte = 0; byte < 256; ++byte) {
            if (table->single[byte] >= 0) {
                of[n]       = byte;
                probes[n++] = { table->single[byte], 1.0f, 0.0f };
            }
        }
        llama_token_data_array array = { probes.data(), n, -1, false };
        llama_sampler_apply(grammar, &array);
        for (size_t i = 0; i < n; ++i) {
            allowed[of[i]] = probes[i].logit != -INFINITY;
        }
        return allowed;
    }

    bool may_fit(int32_t token, const std::array<bool, 256> & allowed) const {
        return is_possible(token) &&
               (table->kinds[token] != token_table::TEXT || allowed[(uint8_t) table->bytes[table->starts[token]]]);
    }

    // Leaves in the array, which holds all candidates, those that fit.
    void restrict_to_grammar(llama_token_data_array * array) {
        const std::array<bool, 256> allowed = first_bytes();
        size_t                      n       = 0;
        for (size_t i = 0; i < logits.size(); ++i) {
            const llama_token_data item = array->data[i];
            if (item.logit != -INFINITY && may_fit(item.id, allowed)) {
                array->data[n++] = item;
            }
        }
        array->size     = n;
        array->selected = -1;
        array->sorted   = false;
        llama_sampler_apply(grammar, array);
        size_t kept = 0;
        for (size_t i = 0; i < n; ++i) {
            if (array->data[i].logit != -INFINITY) {
                array->data[kept++] = array->data[i];
            }
        }
        array->size = kept;
        if (kept == 0) {
            throw std::runtime_error(NO_TOKEN_FITS);
        }
    }

    // Back to what the chain was given.
    void restore(llama_token_data_array * array, llama_token_data * data) const {
        for (size_t i = 0; i < logits.size(); ++i) {
            data[i] = saved(i);
        }
        array->data     = data;
        array->size     = logits.size();
        array->selected = -1;
        array->sorted   = false;
    }

    // Whether a member of the chain changes logits, each without a look at the others, and removes nothing.
    static bool only_edits(llama_sampler * member) {
        const char * name = llama_sampler_name(member);
        // llama.cpp's names of samplers that do nothing begin with a question mark.
        return name[0] == '?' || strcmp(name, "logit-bias") == 0 || strcmp(name, "penalties") == 0 ||
               strcmp(name, "dry") == 0;
    }

    // How many candidates a member keeps that keeps the best; 0 where it is another sampler.
    static size_t n_best_of(llama_sampler * member, const llama_token_data_array & array, bool is_last) {
        const char * name = llama_sampler_name(member);
        if (is_last && strcmp(name, "greedy") == 0) {
            return 1;
        }
        if (strcmp(name, "top-k") != 0) {
            return 0;
        }
        // It keeps its k for itself, and shows it by what it leaves.
        std::vector<llama_token_data> copy(array.data, array.data + array.size);
        llama_token_data_array        probe = { copy.data(), copy.size(), -1, false };
        llama_sampler_apply(member, &probe);
        return probe.size;
    }

    struct ranked {
        float    logit;
        uint32_t index;

        bool operator<(const ranked & other) const {
            return logit != other.logit ? logit > other.logit : index < other.index;
        }
    };

    // Leaves in the array the n best candidates that fit, in their order; the grammar is asked about the best ones only.
    void keep_best(llama_token_data_array * array, size_t n) {
        const std::array<bool, 256> allowed = first_bytes();
        std::vector<ranked>         order;
        order.reserve(array->size);
        for (size_t i = 0; i < array->size; ++i) {
            const llama_token_data & item = array->data[i];
            if (logits[i] != -INFINITY && may_fit(item.id, allowed)) {
                order.push_back({ std::isnan(item.logit) ? -INFINITY : item.logit, (uint32_t) i });
            }
        }
        std::vector<uint32_t>         kept;
        std::vector<llama_token_data> asked;
        size_t                        step = std::max<size_t>(64, 2 * n);
        for (size_t begin = 0; begin < order.size() && kept.size() < n; step *= 4) {
            const size_t end = std::min(begin + step, order.size());
            if (end < order.size()) {
                std::nth_element(order.begin() + begin, order.begin() + end, order.end());
            }
            std::sort(order.begin() + begin, order.begin() + end);
            asked.clear();
            for (size_t i = begin; i < end; ++i) {
                asked.push_back({ array->data[order[i].index].id, 1.0f, 0.0f });
            }
            llama_token_data_array answer = { asked.data(), asked.size(), -1, false };
            llama_sampler_apply(grammar, &answer);
            for (size_t i = begin; i < end && kept.size() < n; ++i) {
                if (asked[i - begin].logit != -INFINITY) {
                    kept.push_back(order[i].index);
                }
            }
            begin = end;
        }
        if (kept.empty()) {
            throw std::runtime_error(NO_TOKEN_FITS);
        }
        std::sort(kept.begin(), kept.end());
        for (size_t i = 0; i < kept.size(); ++i) {
            array->data[i] = array->data[kept[i]];
        }
        array->size     = kept.size();
        array->selected = -1;
        array->sorted   = false;
    }

    // The chain's choice among the candidates that fit, where it looks at the best ones only; false where it does not.
    bool choose_among_best(llama_token_data_array * array, llama_token_data * data) {
        const int32_t n_members = llama_sampler_chain_n(chain);
        int32_t       i         = 0;
        while (i < n_members && only_edits(llama_sampler_chain_get(chain, i))) {
            ++i;
        }
        if (i == n_members) {
            return false;
        }
        restore(array, data);
        for (int32_t j = 0; j < i; ++j) {
            apply_member(j, array);
        }
        const size_t n_best = n_best_of(llama_sampler_chain_get(chain, i), *array, i + 1 == n_members);
        if (n_best == 0) {
            return false;
        }
        keep_best(array, n_best);
        for (; i < n_members; ++i) {
            apply_member(i, array);
        }
        return true;
    }

    void apply_member(int32_t i, llama_token_data_array * array) {
        llama_sampler * member = llama_sampler_chain_get(chain, i);
        if (member->iface->apply != nullptr) {
            llama_sampler_apply(member, array);
        }
    }

    void apply(llama_token_data_array * array) {
        llama_token_data * data = array->data;
        save(array);
        llama_sampler_apply(chain, array);
        if (array->selected < 0 || (size_t) array->selected >= array->size) {
            return;  // llama.cpp asserts that something was chosen, and says it better
        }
        ++n_chosen;
        if (fits(array->data[array->selected].id)) {
            return;
        }
        ++n_rejected;
        if (!choose_among_best(array, data)) {
            restore(array, data);
            restrict_to_grammar(array);
            llama_sampler_apply(chain, array);
        }
        // A bias may have forbidden all that the grammar allows.
        const bool chosen = array->selected >= 0 && (size_t) array->selected < array->size;
        if (chosen && array->data[array->selected].logit == -INFINITY) {
            throw std::runtime_error(NO_TOKEN_FITS);
        }
    }

    void accept(int32_t token) {
        llama_sampler_accept(grammar, token);
        if (text_only && knows(token) && table->kinds[token] == token_table::TEXT && !table->take(text, token)) {
            text = utf8_state();
        }
        llama_sampler_accept(chain, token);
    }

    void reset() {
        text = utf8_state();
        llama_sampler_reset(grammar);
        llama_sampler_reset(chain);
    }
};

static inline constrained & constrained_of(const llama_sampler * self) { return *(constrained *) self->ctx; }

static inline const char * constrained_name(const llama_sampler *) { return "constrained"; }

static inline void constrained_accept(llama_sampler * self, llama_token token) { constrained_of(self).accept(token); }

static inline void constrained_apply(llama_sampler * self, llama_token_data_array * candidates) {
    constrained_of(self).apply(candidates);
}

static inline void constrained_reset(llama_sampler * self) { constrained_of(self).reset(); }

static inline llama_sampler * constrained_clone(const llama_sampler * self);

static inline void constrained_free(llama_sampler * self) {
    constrained * body = (constrained *) self->ctx;
    llama_sampler_free(body->grammar);
    llama_sampler_free(body->chain);
    delete body;
}

static inline llama_sampler_i make_constrained_interface() {
    llama_sampler_i result = {};
    result.name   = constrained_name;
    result.accept = constrained_accept;
    result.apply  = constrained_apply;
    result.reset  = constrained_reset;
    result.clone  = constrained_clone;
    result.free   = constrained_free;
    return result;
}

static llama_sampler_i constrained_interface = make_constrained_interface();

// Takes over both samplers.
static inline llama_sampler * make_constrained(
    llama_sampler * grammar, llama_sampler * chain, const token_table_ptr & table, bool text_only, bool by_first_byte
) {
    auto * body = new constrained{ grammar, chain, table, text_only, by_first_byte };
    return llama_sampler_init(&constrained_interface, body);
}

static inline llama_sampler * constrained_clone(const llama_sampler * self) {
    const constrained & body = constrained_of(self);
    auto * copy = new constrained{ llama_sampler_clone(body.grammar), llama_sampler_clone(body.chain), body.table,
                                   body.text_only, body.by_first_byte };
    copy->text  = body.text;
    // As in sampler.pyx: a cloned adaptive-p remembers a choice without the probabilities it would need to accept it.
    for (int32_t i = 0; i < llama_sampler_chain_n(copy->chain); ++i) {
        llama_sampler * member = llama_sampler_chain_get(copy->chain, i);
        if (strcmp(llama_sampler_name(member), "adaptive-p") == 0) {
            llama_sampler_accept(member, -2);
        }
    }
    return llama_sampler_init(&constrained_interface, copy);
}

}  // namespace pyllm

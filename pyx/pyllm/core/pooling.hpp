// Which sequences of a batch llama.cpp would divide among micro-batches, each of which is pooled by itself.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "llama.h"

namespace pyllm {

// Marks the tokens of a micro-batch as llama_batch_allocr takes them, and returns how many they are.
struct micro_batches {
    const llama_batch & batch;
    std::vector<bool>   used;

    explicit micro_batches(const llama_batch & batch) : batch(batch), used(batch.n_tokens, false) {}

    llama_seq_id seq(int32_t i) const { return batch.seq_id == nullptr ? 0 : batch.seq_id[i][0]; }

    size_t first() const { return std::find(used.begin(), used.end(), false) - used.begin(); }

    bool done() const { return first() == used.size(); }

    // split_simple(): tokens as they come.
    void take_in_order(size_t n_ubatch) {
        size_t i = first();
        for (size_t n = 0; n < n_ubatch && i < used.size(); ++n, ++i) {
            used[i] = true;
        }
    }

    // split_seq(): tokens of one sequence.
    void take_sequence(size_t n_ubatch) {
        const llama_seq_id id = seq((int32_t) first());
        for (size_t i = first(), n = 0; n < n_ubatch && i < used.size(); ++i) {
            if (!used[i] && seq((int32_t) i) == id) {
                used[i] = true;
                ++n;
            }
        }
    }

    // split_equal(): as many tokens of each of some sequences with consecutive ids.
    void take_equal(size_t n_ubatch) {
        std::vector<llama_seq_id> ids;
        for (size_t i = first(); i < used.size() && ids.size() <= n_ubatch; ++i) {
            if (!used[i] && (ids.empty() || seq((int32_t) i) == ids.back() + 1)) {
                ids.push_back(seq((int32_t) i));
            }
        }
        size_t n = used.size();
        for (const llama_seq_id id : ids) {
            n = std::min(n, count(id));
        }
        n = std::min(n, std::max<size_t>(1, n_ubatch / ids.size()));
        for (const llama_seq_id id : ids) {
            size_t left = n;
            for (size_t i = 0; left > 0 && i < used.size(); ++i) {
                if (!used[i] && seq((int32_t) i) == id) {
                    used[i] = true;
                    --left;
                }
            }
        }
    }

    size_t count(llama_seq_id id) const {
        size_t n = 0;
        for (size_t i = 0; i < used.size(); ++i) {
            n += !used[i] && seq((int32_t) i) == id;
        }
        return n;
    }

    // A sequence of which a part was taken and another was not, or -1.
    llama_seq_id divided() const {
        std::vector<llama_seq_id> taken, left;
        for (size_t i = 0; i < used.size(); ++i) {
            const int32_t n = batch.n_seq_id == nullptr ? 1 : batch.n_seq_id[i];
            for (int32_t s = 0; s < n; ++s) {
                (used[i] ? taken : left).push_back(batch.seq_id == nullptr ? 0 : batch.seq_id[i][s]);
            }
        }
        std::sort(taken.begin(), taken.end());
        for (const llama_seq_id id : left) {
            if (std::binary_search(taken.begin(), taken.end(), id)) {
                return id;
            }
        }
        return -1;
    }
};

// The first sequence that would not be whole in one micro-batch, or -1.
static inline llama_seq_id first_split(const llama_batch & batch, int32_t n_ubatch, bool unified, bool recurrent) {
    if (unified && !recurrent && batch.n_tokens <= n_ubatch) {
        return -1;
    }
    micro_batches rest(batch);
    while (!rest.done()) {
        if (recurrent) {
            rest.take_sequence(n_ubatch);
        } else if (unified) {
            rest.take_in_order(n_ubatch);
        } else {
            rest.take_equal(n_ubatch);
        }
        const llama_seq_id id = rest.divided();
        if (id >= 0) {
            return id;
        }
    }
    return -1;
}

}  // namespace pyllm

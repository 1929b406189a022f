// Looking through a row of logits for the largest: plain loops that a compiler turns into vector instructions.
// Never compile this with -ffast-math: minus infinity is an ordinary value here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

// One binary for all CPUs: where the loader can choose, it takes the widest vectors this one has.
// The sanitizers are not ready yet when the loader chooses.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && \
    !defined(__clang__) && __GNUC__ >= 12 && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define PYLLM_VECTOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PYLLM_VECTOR
#endif

namespace pyllm {

static constexpr float  NEVER = -std::numeric_limits<float>::infinity();
// A reduction needs one accumulator for each lane: the compiler may not change the order of additions.
static constexpr size_t LANES = 16;

PYLLM_VECTOR static float row_max(const float * row, size_t n) {
    float lanes[LANES];
    for (size_t j = 0; j < LANES; ++j) {
        lanes[j] = NEVER;
    }
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (size_t j = 0; j < LANES; ++j) {
            lanes[j] = row[i + j] > lanes[j] ? row[i + j] : lanes[j];
        }
    }
    float best = NEVER;
    for (; i < n; ++i) {
        best = row[i] > best ? row[i] : best;
    }
    for (size_t j = 0; j < LANES; ++j) {
        best = lanes[j] > best ? lanes[j] : best;
    }
    return best;
}

// Whether a value is NaN or plus infinity: one comparison, which both fail.
PYLLM_VECTOR static bool any_nan_or_inf(const float * row, size_t n) {
    int32_t found = 0;
    for (size_t i = 0; i < n; ++i) {
        found |= !(row[i] <= std::numeric_limits<float>::max());
    }
    return found != 0;
}

PYLLM_VECTOR static bool any_greater(const float * row, size_t n, float value) {
    int32_t found = 0;
    for (size_t i = 0; i < n; ++i) {
        found |= row[i] > value;
    }
    return found != 0;
}

// The k-th largest value, 1 <= k <= n; NaN counts as the smallest.
static float kth_largest(const float * row, size_t n, size_t k) {
    static constexpr size_t BLOCK = 64;
    std::vector<float> best;
    const size_t       room = 2 * k + BLOCK;
    best.reserve(room + BLOCK);
    float      floor = NEVER;
    const auto shrink = [&] {
        std::nth_element(best.begin(), best.begin() + (k - 1), best.end(), std::greater<float>());
        best.resize(k);
        floor = best[k - 1];
    };
    size_t i = 0;
    while (i < n) {
        const size_t size = std::min(BLOCK, n - i);
        if (any_greater(row + i, size, floor)) {
            for (size_t j = i; j < i + size; ++j) {
                if (row[j] > floor) {
                    best.push_back(row[j]);
                }
            }
            if (best.size() >= room) {
                shrink();
            }
        }
        i += size;
    }
    if (best.size() < k) {
        return NEVER;
    }
    shrink();
    return floor;
}

}  // namespace pyllm

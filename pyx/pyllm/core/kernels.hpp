// Arithmetic on rows of logits: plain loops that a compiler turns into vector instructions by itself.
// Never compile this with -ffast-math: minus infinity is an ordinary value here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "row_scan.hpp"

namespace pyllm {

// ---- pieces of a row

// e^x for x <= 0, to 1e-14 relative: 2^n times a polynomial; about 1e-304 for everything below -700.
static inline double exp_negative(double x) {
    static constexpr double SHIFT = 6755399441055744.0;  // adding it leaves the nearest integer in the low bits
    x = x < -700.0 ? -700.0 : x;
    const double shifted = x * 1.4426950408889634 + SHIFT;
    const double n = shifted - SHIFT;
    const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    double p = 2.505210838544172e-8;
    p = p * r + 2.755731922398589e-7;
    p = p * r + 2.755731922398589e-6;
    p = p * r + 2.48015873015873e-5;
    p = p * r + 1.984126984126984e-4;
    p = p * r + 1.388888888888889e-3;
    p = p * r + 8.333333333333333e-3;
    p = p * r + 4.1666666666666664e-2;
    p = p * r + 1.6666666666666666e-1;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    const int64_t bits = __builtin_bit_cast(int64_t, shifted);
    const double  scale = __builtin_bit_cast(double, (int64_t) ((uint64_t) (bits + 1023) << 52));
    return p * scale;
}

// The sum of e^(x - top) over a row.
PYLLM_VECTOR static double sum_exp(const float * row, size_t n, double top) {
    double lanes[LANES] = {};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (size_t j = 0; j < LANES; ++j) {
            lanes[j] += exp_negative((double) row[i + j] - top);
        }
    }
    double sum = 0;
    for (; i < n; ++i) {
        sum += exp_negative((double) row[i] - top);
    }
    for (size_t j = 0; j < LANES; ++j) {
        sum += lanes[j];
    }
    return sum;
}

// The sum of (x - top) e^(x - top) over a row; a token that cannot be adds nothing.
PYLLM_VECTOR static double sum_x_exp(const float * row, size_t n, double top) {
    double lanes[LANES] = {};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (size_t j = 0; j < LANES; ++j) {
            double x = (double) row[i + j] - top;
            x = x < -700.0 ? -700.0 : x;
            lanes[j] += x * exp_negative(x);
        }
    }
    double sum = 0;
    for (; i < n; ++i) {
        double x = (double) row[i] - top;
        x = x < -700.0 ? -700.0 : x;
        sum += x * exp_negative(x);
    }
    for (size_t j = 0; j < LANES; ++j) {
        sum += lanes[j];
    }
    return sum;
}

// One after the other, so that nothing is lost where the largest logit is huge.
PYLLM_VECTOR static void subtract(const float * row, float * out, size_t n, double top, double log_sum) {
    for (size_t i = 0; i < n; ++i) {
        out[i] = (float) (((double) row[i] - top) - log_sum);
    }
}

PYLLM_VECTOR static int64_t count_greater(const float * row, size_t n, float value) {
    int64_t count = 0;
    for (size_t i = 0; i < n;) {
        // Blocks, so that a lane of 32 bits is enough.
        const size_t end = std::min(n, i + 65536);
        int32_t part = 0;
        for (; i < end; ++i) {
            part += row[i] > value;
        }
        count += part;
    }
    return count;
}

PYLLM_VECTOR static int64_t count_equal(const float * row, size_t n, float value) {
    int64_t count = 0;
    for (size_t i = 0; i < n;) {
        const size_t end = std::min(n, i + 65536);
        int32_t part = 0;
        for (; i < end; ++i) {
            part += row[i] == value;
        }
        count += part;
    }
    return count;
}

PYLLM_VECTOR static void drop_below(float * row, size_t n, float value) {
    for (size_t i = 0; i < n; ++i) {
        row[i] = row[i] >= value ? row[i] : NEVER;
    }
}

// One word of a bitmask: bit j allows row[j].
PYLLM_VECTOR static void mask_words(float * row, const int32_t * words, size_t n_words) {
    for (size_t i = 0; i < n_words; ++i, row += 32) {
        const uint32_t word = (uint32_t) words[i];
        if (word == 0xFFFFFFFFu) {
            continue;
        }
        if (word == 0) {
            for (size_t j = 0; j < 32; ++j) {
                row[j] = NEVER;
            }
            continue;
        }
        for (uint32_t j = 0; j < 32; ++j) {
            row[j] = (word & (1u << j)) != 0 ? row[j] : NEVER;
        }
    }
}

// ---- whole rows

// The log of the sum of e^x is top + log_sum. Where top is infinite, log_sum is the log of how many are there, and NaN
// stays NaN.
struct normalizer {
    double top;
    double log_sum;

    normalizer(const float * row, size_t n) : top(row_max(row, n)) {
        if (!std::isinf(top)) {
            log_sum = std::log(sum_exp(row, n, top));
            return;
        }
        // NaN is not greater than anything: a row of nothing else has no maximum either.
        log_sum = std::log((double) count_equal(row, n, (float) top));
        for (size_t i = 0; i < n; ++i) {
            if (std::isnan(row[i])) {
                top = std::numeric_limits<double>::quiet_NaN();
                return;
            }
        }
    }

    double total() const { return std::isinf(top) ? top : top + log_sum; }

    // Tokens at plus infinity share the probability; where all are at minus infinity there is none.
    double logprob(float value) const {
        if (std::isinf(top)) {
            return top > 0 && value == (float) top ? -log_sum : (double) NEVER;
        }
        return ((double) value - top) - log_sum;
    }
};

static double row_logsumexp(const float * row, size_t n) { return normalizer(row, n).total(); }

static double row_token_logprob(const float * row, size_t n, size_t token) {
    return normalizer(row, n).logprob(row[token]);
}

static void row_log_softmax(const float * row, float * out, size_t n) {
    const normalizer norm(row, n);
    if (!std::isinf(norm.top)) {
        subtract(row, out, n, norm.top, norm.log_sum);
        return;
    }
    for (size_t i = 0; i < n; ++i) {
        out[i] = (float) norm.logprob(row[i]);
    }
}

// In nats. 0 for a row without a possible token.
static double row_entropy(const float * row, size_t n) {
    const normalizer norm(row, n);
    if (std::isinf(norm.top)) {
        return norm.top > 0 ? norm.log_sum : 0.0;
    }
    const double result = norm.log_sum - sum_x_exp(row, n, norm.top) / std::exp(norm.log_sum);
    return result < 0 ? 0.0 : result;
}

// How many tokens come before `token`: greater ones, and equal ones with a lower id.
static int32_t row_rank(const float * row, size_t n, size_t token) {
    return (int32_t) (count_greater(row, n, row[token]) + count_equal(row, token, row[token]));
}

// All but the k largest become minus infinity; of equal ones the lowest ids stay.
static void row_keep_top_k(float * row, size_t n, size_t k) {
    if (k >= n) {
        return;
    }
    const float floor = kth_largest(row, n, k);
    if (floor == NEVER) {
        drop_below(row, n, floor);  // fewer than k are possible: only NaN goes
        return;
    }
    size_t above = (size_t) count_greater(row, n, floor);
    const size_t equal = (size_t) count_equal(row, n, floor);
    drop_below(row, n, floor);
    if (above + equal > k) {
        size_t left = k - above;
        for (size_t i = 0; i < n; ++i) {
            if (row[i] == floor) {
                if (left == 0) {
                    row[i] = NEVER;
                } else {
                    --left;
                }
            }
        }
    }
}

// The k most likely tokens, most likely first, of equal ones the lowest id first.
static void row_top_k_logprobs(const float * row, size_t n, size_t k, int32_t * ids, float * logprobs) {
    const normalizer norm(row, n);
    const float      floor = kth_largest(row, n, k);
    std::vector<int32_t> found;
    found.reserve(k);
    size_t equal = k - (size_t) count_greater(row, n, floor);
    for (size_t i = 0; i < n && found.size() < k; ++i) {
        if (row[i] > floor) {
            found.push_back((int32_t) i);
        } else if (row[i] == floor && equal > 0) {
            found.push_back((int32_t) i);
            --equal;
        }
    }
    // NaN is all that is left.
    for (size_t i = 0; i < n && found.size() < k; ++i) {
        if (std::isnan(row[i])) {
            found.push_back((int32_t) i);
        }
    }
    std::sort(found.begin(), found.end(), [row](int32_t a, int32_t b) {
        const bool nan_a = std::isnan(row[a]), nan_b = std::isnan(row[b]);
        if (nan_a || nan_b) {
            return nan_a == nan_b ? a < b : nan_b;
        }
        return row[a] != row[b] ? row[a] > row[b] : a < b;
    });
    for (size_t j = 0; j < k; ++j) {
        ids[j] = found[j];
        logprobs[j] = (float) norm.logprob(row[found[j]]);
    }
}

// Forbids the tokens whose bit is 0, and those past the mask.
static void row_apply_bitmask(float * row, size_t n, const int32_t * words, size_t n_words) {
    const size_t whole = std::min(n / 32, n_words);
    mask_words(row, words, whole);
    for (size_t i = 32 * whole; i < n; ++i) {
        if (i / 32 >= n_words || !(((uint32_t) words[i / 32] >> (i % 32)) & 1u)) {
            row[i] = NEVER;
        }
    }
}

}  // namespace pyllm

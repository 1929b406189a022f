// Which tokens a sampler can choose, where that is known before it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "llama.h"

namespace pyllm {

struct reach {
    size_t                        k = 0;       // so many of those with the largest logits; 0: any token
    std::vector<int32_t>          moved;       // tokens whose logits it changes first, in order
    std::vector<llama_token_data> candidates;  // what is left of the last row
};

}  // namespace pyllm

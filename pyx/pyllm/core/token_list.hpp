// Token ids that one thread appends while others read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace pyllm {

class token_list {
  public:
    void push_back(int32_t token) {
        std::lock_guard<std::mutex> lock(mutex);
        tokens.push_back(token);
    }

    int32_t back() {
        std::lock_guard<std::mutex> lock(mutex);
        return tokens.back();
    }

    size_t size() {
        std::lock_guard<std::mutex> lock(mutex);
        return tokens.size();
    }

    std::vector<int32_t> copy() {
        std::lock_guard<std::mutex> lock(mutex);
        return tokens;
    }

    std::vector<int32_t> copy_from(size_t start) {
        std::lock_guard<std::mutex> lock(mutex);
        return std::vector<int32_t>(tokens.begin() + std::min(start, tokens.size()), tokens.end());
    }

  private:
    std::mutex           mutex;
    std::vector<int32_t> tokens;
};

}  // namespace pyllm

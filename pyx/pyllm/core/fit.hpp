// common_fit_params, one call at a time, leaving llama.cpp's log as it was.
#pragma once

#include <mutex>

#include "fit.h"
#include "llama.h"

namespace pyllm {

// common_fit_params puts a logger of its own in place, whose data lie on its stack, and takes it away only where
// nothing fails. Two calls at once would take away each other's.
class LogKeeper {
public:
    LogKeeper() { llama_log_get(&callback_, &data_); }
    ~LogKeeper() { llama_log_set(callback_, data_); }
    LogKeeper(const LogKeeper &) = delete;
    LogKeeper & operator=(const LogKeeper &) = delete;

private:
    ggml_log_callback callback_ = nullptr;
    void * data_ = nullptr;
};

static inline common_params_fit_status fit_params(
    const char * path, llama_model_params * model, llama_context_params * context, float * tensor_split,
    llama_model_tensor_buft_override * overrides, size_t * margins, uint32_t n_ctx_min
) {
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    LogKeeper keeper;
    return common_fit_params(
        path, model, context, tensor_split, overrides, margins, n_ctx_min, nullptr, GGML_LOG_LEVEL_ERROR
    );
}

}  // namespace pyllm

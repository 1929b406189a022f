# ggml-opt.h: only the types that the training functions of llama.h need.

from libc.stdint cimport int64_t
from libcpp cimport bool

cdef extern from "ggml-opt.h" nogil:

    # Handles
    struct ggml_opt_dataset
    struct ggml_opt_context
    struct ggml_opt_result

    ctypedef ggml_opt_dataset * ggml_opt_dataset_t
    ctypedef ggml_opt_context * ggml_opt_context_t
    ctypedef ggml_opt_result * ggml_opt_result_t

    # Optimizer
    enum ggml_opt_optimizer_type:
        GGML_OPT_OPTIMIZER_TYPE_ADAMW = 0
        GGML_OPT_OPTIMIZER_TYPE_SGD = 1
        GGML_OPT_OPTIMIZER_TYPE_COUNT = 2

    # opaque here: one struct for each optimizer, passed through by value
    struct ggml_opt_optimizer_params:
        pass

    ctypedef ggml_opt_optimizer_params (*ggml_opt_get_optimizer_params)(void * userdata) noexcept nogil

    # Called after each evaluated batch of an epoch
    ctypedef void (*ggml_opt_epoch_callback)(
        bool train, ggml_opt_context_t opt_ctx, ggml_opt_dataset_t dataset, ggml_opt_result_t result,
        int64_t ibatch, int64_t ibatch_max, int64_t t_start_us
    ) noexcept nogil

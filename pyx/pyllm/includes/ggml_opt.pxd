# ggml-opt.h: only what the training functions of llama.h need: types, datasets and results.

from libc.stdint cimport int64_t
from libcpp cimport bool

from pyllm.includes._translate cimport translate
from pyllm.includes.ggml cimport ggml_tensor, ggml_type

cdef extern from "ggml-opt.h" nogil:

    # Handles
    struct ggml_opt_dataset
    struct ggml_opt_context
    struct ggml_opt_result

    ctypedef ggml_opt_dataset * ggml_opt_dataset_t
    ctypedef ggml_opt_context * ggml_opt_context_t
    ctypedef ggml_opt_result * ggml_opt_result_t

    # Dataset
    ggml_opt_dataset_t ggml_opt_dataset_init(
        ggml_type type_data, ggml_type type_label, int64_t ne_datapoint, int64_t ne_label, int64_t ndata,
        int64_t ndata_shard
    ) except +translate
    void ggml_opt_dataset_free(ggml_opt_dataset_t dataset) except +translate
    int64_t ggml_opt_dataset_ndata(ggml_opt_dataset_t dataset) except +translate
    ggml_tensor * ggml_opt_dataset_data(ggml_opt_dataset_t dataset) except +translate
    ggml_tensor * ggml_opt_dataset_labels(ggml_opt_dataset_t dataset) except +translate

    # Optimizer
    enum ggml_opt_optimizer_type:
        GGML_OPT_OPTIMIZER_TYPE_ADAMW = 0
        GGML_OPT_OPTIMIZER_TYPE_SGD = 1
        GGML_OPT_OPTIMIZER_TYPE_COUNT = 2

    # opaque here: one struct for each optimizer, passed through by value
    struct ggml_opt_optimizer_params:
        pass

    ctypedef ggml_opt_optimizer_params (*ggml_opt_get_optimizer_params)(void * userdata) noexcept nogil

    # Result
    ggml_opt_result_t ggml_opt_result_init() except +translate
    void ggml_opt_result_free(ggml_opt_result_t result) except +translate
    void ggml_opt_result_reset(ggml_opt_result_t result) except +translate
    void ggml_opt_result_ndata(ggml_opt_result_t result, int64_t * ndata) except +translate
    void ggml_opt_result_loss(ggml_opt_result_t result, double * loss, double * unc) except +translate
    void ggml_opt_result_accuracy(ggml_opt_result_t result, double * accuracy, double * unc) except +translate

    # Called after each evaluated batch of an epoch
    ctypedef void (*ggml_opt_epoch_callback)(
        bool train, ggml_opt_context_t opt_ctx, ggml_opt_dataset_t dataset, ggml_opt_result_t result,
        int64_t ibatch, int64_t ibatch_max, int64_t t_start_us
    ) noexcept nogil

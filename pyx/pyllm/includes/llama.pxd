# llama.h: the whole public C API of llama.cpp, in the order of the header; deprecated functions are left out.
#
# Two functions share their name with an enum, which C allows and Cython does not. The enum keeps the name:
#     llama_pooling_type(ctx)  is  llama_get_pooling_type(ctx)
#     llama_vocab_type(vocab)  is  llama_vocab_get_type(vocab)
#
# Every function is `except +translate`: a C++ exception, and an assertion in llama.cpp that became one, is a
# Python exception. Callbacks are `noexcept nogil`: nothing that Python raises may travel through C.

from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport FILE
from libcpp cimport bool

from pyllm.includes._translate cimport translate
from pyllm.includes.ggml cimport (
    ggml_abort_callback, ggml_cgraph, ggml_context, ggml_log_callback, ggml_tensor, ggml_threadpool_t, ggml_type,
)
from pyllm.includes.ggml_backend cimport (
    ggml_backend_buffer_type_t, ggml_backend_dev_t, ggml_backend_sched_eval_callback,
)
from pyllm.includes.ggml_cpu cimport ggml_numa_strategy
from pyllm.includes.ggml_opt cimport (
    ggml_opt_dataset_t, ggml_opt_epoch_callback, ggml_opt_get_optimizer_params, ggml_opt_optimizer_type,
    ggml_opt_result_t,
)
from pyllm.includes.gguf cimport gguf_context

cdef extern from "llama.h" nogil:

    # Constants (macros in C)
    const uint32_t LLAMA_DEFAULT_SEED
    const int LLAMA_TOKEN_NULL
    const uint32_t LLAMA_FILE_MAGIC_GGLA
    const uint32_t LLAMA_FILE_MAGIC_GGSN
    const uint32_t LLAMA_FILE_MAGIC_GGSQ
    const uint32_t LLAMA_SESSION_MAGIC
    const int LLAMA_SESSION_VERSION
    const uint32_t LLAMA_STATE_SEQ_MAGIC
    const int LLAMA_STATE_SEQ_VERSION

    # Handles and scalar types
    struct llama_vocab
    struct llama_model
    struct llama_context
    struct llama_sampler

    struct llama_memory_i

    ctypedef llama_memory_i * llama_memory_t
    ctypedef int32_t llama_pos
    ctypedef int32_t llama_token
    ctypedef int32_t llama_seq_id

    # Enumerations, and the names of their values
    enum llama_vocab_type:
        LLAMA_VOCAB_TYPE_NONE = 0
        LLAMA_VOCAB_TYPE_SPM = 1
        LLAMA_VOCAB_TYPE_BPE = 2
        LLAMA_VOCAB_TYPE_WPM = 3
        LLAMA_VOCAB_TYPE_UGM = 4
        LLAMA_VOCAB_TYPE_RWKV = 5
        LLAMA_VOCAB_TYPE_PLAMO2 = 6
        LLAMA_VOCAB_TYPE_TEST = 7

    enum llama_rope_type:
        LLAMA_ROPE_TYPE_NONE = -1
        LLAMA_ROPE_TYPE_NORM = 0
        LLAMA_ROPE_TYPE_NEOX = 2
        LLAMA_ROPE_TYPE_MROPE = 8
        LLAMA_ROPE_TYPE_IMROPE = 40
        LLAMA_ROPE_TYPE_VISION = 24

    enum llama_token_type:
        LLAMA_TOKEN_TYPE_UNDEFINED = 0
        LLAMA_TOKEN_TYPE_NORMAL = 1
        LLAMA_TOKEN_TYPE_UNKNOWN = 2
        LLAMA_TOKEN_TYPE_CONTROL = 3
        LLAMA_TOKEN_TYPE_USER_DEFINED = 4
        LLAMA_TOKEN_TYPE_UNUSED = 5
        LLAMA_TOKEN_TYPE_BYTE = 6

    enum llama_token_attr:
        LLAMA_TOKEN_ATTR_UNDEFINED = 0
        LLAMA_TOKEN_ATTR_UNKNOWN = 1
        LLAMA_TOKEN_ATTR_UNUSED = 2
        LLAMA_TOKEN_ATTR_NORMAL = 4
        LLAMA_TOKEN_ATTR_CONTROL = 8
        LLAMA_TOKEN_ATTR_USER_DEFINED = 16
        LLAMA_TOKEN_ATTR_BYTE = 32
        LLAMA_TOKEN_ATTR_NORMALIZED = 64
        LLAMA_TOKEN_ATTR_LSTRIP = 128
        LLAMA_TOKEN_ATTR_RSTRIP = 256
        LLAMA_TOKEN_ATTR_SINGLE_WORD = 512

    enum llama_ftype:
        LLAMA_FTYPE_ALL_F32 = 0
        LLAMA_FTYPE_MOSTLY_F16 = 1
        LLAMA_FTYPE_MOSTLY_Q4_0 = 2
        LLAMA_FTYPE_MOSTLY_Q4_1 = 3
        LLAMA_FTYPE_MOSTLY_Q8_0 = 7
        LLAMA_FTYPE_MOSTLY_Q5_0 = 8
        LLAMA_FTYPE_MOSTLY_Q5_1 = 9
        LLAMA_FTYPE_MOSTLY_Q2_K = 10
        LLAMA_FTYPE_MOSTLY_Q3_K_S = 11
        LLAMA_FTYPE_MOSTLY_Q3_K_M = 12
        LLAMA_FTYPE_MOSTLY_Q3_K_L = 13
        LLAMA_FTYPE_MOSTLY_Q4_K_S = 14
        LLAMA_FTYPE_MOSTLY_Q4_K_M = 15
        LLAMA_FTYPE_MOSTLY_Q5_K_S = 16
        LLAMA_FTYPE_MOSTLY_Q5_K_M = 17
        LLAMA_FTYPE_MOSTLY_Q6_K = 18
        LLAMA_FTYPE_MOSTLY_IQ2_XXS = 19
        LLAMA_FTYPE_MOSTLY_IQ2_XS = 20
        LLAMA_FTYPE_MOSTLY_Q2_K_S = 21
        LLAMA_FTYPE_MOSTLY_IQ3_XS = 22
        LLAMA_FTYPE_MOSTLY_IQ3_XXS = 23
        LLAMA_FTYPE_MOSTLY_IQ1_S = 24
        LLAMA_FTYPE_MOSTLY_IQ4_NL = 25
        LLAMA_FTYPE_MOSTLY_IQ3_S = 26
        LLAMA_FTYPE_MOSTLY_IQ3_M = 27
        LLAMA_FTYPE_MOSTLY_IQ2_S = 28
        LLAMA_FTYPE_MOSTLY_IQ2_M = 29
        LLAMA_FTYPE_MOSTLY_IQ4_XS = 30
        LLAMA_FTYPE_MOSTLY_IQ1_M = 31
        LLAMA_FTYPE_MOSTLY_BF16 = 32
        LLAMA_FTYPE_MOSTLY_TQ1_0 = 36
        LLAMA_FTYPE_MOSTLY_TQ2_0 = 37
        LLAMA_FTYPE_MOSTLY_MXFP4_MOE = 38
        LLAMA_FTYPE_MOSTLY_NVFP4 = 39
        LLAMA_FTYPE_MOSTLY_Q1_0 = 40
        LLAMA_FTYPE_MOSTLY_Q2_0 = 41
        LLAMA_FTYPE_GUESSED = 1024

    const char * llama_ftype_name(llama_ftype ftype) except +translate

    enum llama_rope_scaling_type:
        LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED = -1
        LLAMA_ROPE_SCALING_TYPE_NONE = 0
        LLAMA_ROPE_SCALING_TYPE_LINEAR = 1
        LLAMA_ROPE_SCALING_TYPE_YARN = 2
        LLAMA_ROPE_SCALING_TYPE_LONGROPE = 3
        LLAMA_ROPE_SCALING_TYPE_MAX_VALUE = 3

    enum llama_pooling_type:
        LLAMA_POOLING_TYPE_UNSPECIFIED = -1
        LLAMA_POOLING_TYPE_NONE = 0
        LLAMA_POOLING_TYPE_MEAN = 1
        LLAMA_POOLING_TYPE_CLS = 2
        LLAMA_POOLING_TYPE_LAST = 3
        LLAMA_POOLING_TYPE_RANK = 4

    enum llama_attention_type:
        LLAMA_ATTENTION_TYPE_UNSPECIFIED = -1
        LLAMA_ATTENTION_TYPE_CAUSAL = 0
        LLAMA_ATTENTION_TYPE_NON_CAUSAL = 1

    enum llama_flash_attn_type:
        LLAMA_FLASH_ATTN_TYPE_AUTO = -1
        LLAMA_FLASH_ATTN_TYPE_DISABLED = 0
        LLAMA_FLASH_ATTN_TYPE_ENABLED = 1

    const char * llama_flash_attn_type_name(llama_flash_attn_type flash_attn_type) except +translate

    enum llama_split_mode:
        LLAMA_SPLIT_MODE_NONE = 0
        LLAMA_SPLIT_MODE_LAYER = 1
        LLAMA_SPLIT_MODE_ROW = 2
        LLAMA_SPLIT_MODE_TENSOR = 3

    enum llama_load_mode:
        LLAMA_LOAD_MODE_AUTO = -1
        LLAMA_LOAD_MODE_NONE = 0
        LLAMA_LOAD_MODE_MMAP = 1
        LLAMA_LOAD_MODE_MLOCK = 2
        LLAMA_LOAD_MODE_MMAP_MLOCK = 3
        LLAMA_LOAD_MODE_DIRECT_IO = 4

    const char * llama_load_mode_name(llama_load_mode load_mode) except +translate
    llama_load_mode llama_load_mode_from_str(const char * str) except +translate

    enum llama_lazy_mode:
        LLAMA_LAZY_MODE_OFF = 0
        LLAMA_LAZY_MODE_AUTO = 1
        LLAMA_LAZY_MODE_ON = 2

    enum llama_context_type:
        LLAMA_CONTEXT_TYPE_DEFAULT = 0
        LLAMA_CONTEXT_TYPE_MTP = 1

    # Data of a step: candidates and batches
    ctypedef struct llama_token_data:
        llama_token id
        float logit
        float p

    ctypedef struct llama_token_data_array:
        llama_token_data * data
        size_t size
        int64_t selected
        bool sorted

    ctypedef bool (*llama_progress_callback)(float progress, void * user_data) noexcept nogil

    ctypedef struct llama_batch:
        int32_t n_tokens
        llama_token * token
        float * embd
        llama_pos * pos
        int32_t * n_seq_id
        llama_seq_id ** seq_id
        int8_t * logits

    # Parameters of models, contexts, quantization and samplers
    enum llama_model_kv_override_type:
        LLAMA_KV_OVERRIDE_TYPE_INT = 0
        LLAMA_KV_OVERRIDE_TYPE_FLOAT = 1
        LLAMA_KV_OVERRIDE_TYPE_BOOL = 2
        LLAMA_KV_OVERRIDE_TYPE_STR = 3

    enum llama_model_meta_key:
        LLAMA_MODEL_META_KEY_SAMPLING_SEQUENCE = 0
        LLAMA_MODEL_META_KEY_SAMPLING_TOP_K = 1
        LLAMA_MODEL_META_KEY_SAMPLING_TOP_P = 2
        LLAMA_MODEL_META_KEY_SAMPLING_MIN_P = 3
        LLAMA_MODEL_META_KEY_SAMPLING_XTC_PROBABILITY = 4
        LLAMA_MODEL_META_KEY_SAMPLING_XTC_THRESHOLD = 5
        LLAMA_MODEL_META_KEY_SAMPLING_TEMP = 6
        LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_LAST_N = 7
        LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_REPEAT = 8
        LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT = 9
        LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_TAU = 10
        LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_ETA = 11

    enum llama_process_type:
        LLAMA_PROCESS_TYPE_ENCODE = 0
        LLAMA_PROCESS_TYPE_DECODE = 1

    struct llama_model_kv_override:
        llama_model_kv_override_type tag
        char key[128]
        # the members of an anonymous union: one is alive, which one `tag` says
        int64_t val_i64
        double val_f64
        bool val_bool
        char val_str[128]

    struct llama_model_tensor_buft_override:
        const char * pattern
        ggml_backend_buffer_type_t buft

    struct llama_model_params:
        ggml_backend_dev_t * devices
        const llama_model_tensor_buft_override * tensor_buft_overrides
        int32_t n_gpu_layers
        llama_split_mode split_mode
        llama_load_mode load_mode
        llama_lazy_mode lazy_mode
        int32_t main_gpu
        const float * tensor_split
        llama_progress_callback progress_callback
        void * progress_callback_user_data
        const llama_model_kv_override * kv_overrides
        bool vocab_only
        bool check_tensors
        bool use_extra_bufts
        bool no_host
        bool no_alloc
        bool load_mtp

    struct llama_sampler_seq_config:
        llama_seq_id seq_id
        llama_sampler * sampler

    struct llama_context_params:
        uint32_t n_ctx
        uint32_t n_batch
        uint32_t n_ubatch
        uint32_t n_seq_max
        uint32_t n_rs_seq
        uint32_t n_outputs_max
        uint32_t n_outputs_max_per_seq
        int32_t n_threads
        int32_t n_threads_batch
        llama_context_type ctx_type
        llama_rope_scaling_type rope_scaling_type
        llama_pooling_type pooling_type
        llama_attention_type attention_type
        llama_flash_attn_type flash_attn_type
        float rope_freq_base
        float rope_freq_scale
        float yarn_ext_factor
        float yarn_attn_factor
        float yarn_beta_fast
        float yarn_beta_slow
        uint32_t yarn_orig_ctx
        float defrag_thold
        ggml_backend_sched_eval_callback cb_eval
        void * cb_eval_user_data
        ggml_type type_k
        ggml_type type_v
        ggml_abort_callback abort_callback
        void * abort_callback_data
        bool embeddings
        bool offload_kqv
        bool no_perf
        bool op_offload
        bool swa_full
        bool kv_unified
        llama_sampler_seq_config * samplers
        size_t n_samplers
        llama_context * ctx_other

    struct llama_model_tensor_override:
        const char * pattern
        ggml_type type

    struct llama_model_imatrix_data:
        const char * name
        const float * data
        size_t size

    ctypedef struct llama_model_quantize_params:
        int32_t nthread
        llama_ftype ftype
        ggml_type output_tensor_type
        ggml_type token_embedding_type
        bool allow_requantize
        bool quantize_output_tensor
        bool only_copy
        bool pure
        bool keep_split
        bool dry_run
        const llama_model_imatrix_data * imatrix
        const llama_model_kv_override * kv_overrides
        const llama_model_tensor_override * tt_overrides
        const int32_t * prune_layers
        size_t max_buf_size

    ctypedef struct llama_logit_bias:
        llama_token token
        float bias

    ctypedef struct llama_sampler_chain_params:
        bool no_perf

    ctypedef struct llama_chat_message:
        const char * role
        const char * content

    struct llama_adapter_lora

    # Version, default parameters, start and end
    const char * llama_version() except +translate
    llama_model_params llama_model_default_params() except +translate
    llama_context_params llama_context_default_params() except +translate
    llama_sampler_chain_params llama_sampler_chain_default_params() except +translate
    llama_model_quantize_params llama_model_quantize_default_params() except +translate
    void llama_backend_init() except +translate
    void llama_backend_free() except +translate
    void llama_numa_init(ggml_numa_strategy numa) except +translate

    # Thread pools
    void llama_attach_threadpool(
        llama_context * ctx, ggml_threadpool_t threadpool, ggml_threadpool_t threadpool_batch
    ) except +translate
    void llama_detach_threadpool(llama_context * ctx) except +translate

    # Loading, saving and freeing models and contexts
    ctypedef void (*llama_model_set_tensor_data_t)(ggml_tensor * tensor, void * userdata) noexcept nogil

    llama_model * llama_model_init_from_user(
        gguf_context * metadata, llama_model_set_tensor_data_t set_tensor_data, void * set_tensor_data_ud,
        llama_model_params params
    ) except +translate
    llama_model * llama_model_load_from_file(const char * path_model, llama_model_params params) except +translate
    llama_model * llama_model_load_from_file_ptr(FILE * file, llama_model_params params) except +translate
    llama_model * llama_model_load_from_splits(
        const char ** paths, size_t n_paths, llama_model_params params
    ) except +translate
    void llama_model_save_to_file(const llama_model * model, const char * path_model) except +translate
    void llama_model_free(llama_model * model) except +translate
    llama_context * llama_init_from_model(llama_model * model, llama_context_params params) except +translate
    void llama_free(llama_context * ctx) except +translate

    # What this build supports
    int64_t llama_time_us() except +translate
    size_t llama_max_devices() except +translate
    size_t llama_max_parallel_sequences() except +translate
    size_t llama_max_tensor_buft_overrides() except +translate
    bool llama_supports_mmap() except +translate
    bool llama_supports_mlock() except +translate
    bool llama_supports_gpu_offload() except +translate
    bool llama_supports_rpc() except +translate

    # What a context was really made with
    uint32_t llama_n_ctx(const llama_context * ctx) except +translate
    uint32_t llama_n_ctx_seq(const llama_context * ctx) except +translate
    uint32_t llama_n_batch(const llama_context * ctx) except +translate
    uint32_t llama_n_ubatch(const llama_context * ctx) except +translate
    uint32_t llama_n_seq_max(const llama_context * ctx) except +translate
    uint32_t llama_n_rs_seq(const llama_context * ctx) except +translate

    # Facts about a model
    const llama_model * llama_get_model(const llama_context * ctx) except +translate
    llama_memory_t llama_get_memory(const llama_context * ctx) except +translate
    llama_pooling_type llama_get_pooling_type "llama_pooling_type"(const llama_context * ctx) except +translate
    const llama_vocab * llama_model_get_vocab(const llama_model * model) except +translate
    llama_rope_type llama_model_rope_type(const llama_model * model) except +translate
    int32_t llama_model_n_ctx_train(const llama_model * model) except +translate
    int32_t llama_model_n_embd(const llama_model * model) except +translate
    int32_t llama_model_n_embd_inp(const llama_model * model) except +translate
    int32_t llama_model_n_embd_out(const llama_model * model) except +translate
    int32_t llama_model_n_layer(const llama_model * model) except +translate
    int32_t llama_model_n_layer_nextn(const llama_model * model) except +translate
    int32_t llama_model_n_head(const llama_model * model) except +translate
    int32_t llama_model_n_head_kv(const llama_model * model) except +translate
    int32_t llama_model_n_swa(const llama_model * model) except +translate
    float llama_model_rope_freq_scale_train(const llama_model * model) except +translate
    uint32_t llama_model_n_cls_out(const llama_model * model) except +translate
    const char * llama_model_cls_label(const llama_model * model, uint32_t i) except +translate
    llama_vocab_type llama_vocab_get_type "llama_vocab_type"(const llama_vocab * vocab) except +translate
    int32_t llama_vocab_n_tokens(const llama_vocab * vocab) except +translate

    # Metadata of a model as strings; a length is returned, or -1
    int32_t llama_model_meta_val_str(
        const llama_model * model, const char * key, char * buf, size_t buf_size
    ) except +translate
    int32_t llama_model_meta_count(const llama_model * model) except +translate
    const char * llama_model_meta_key_str(llama_model_meta_key key) except +translate
    int32_t llama_model_meta_key_by_index(
        const llama_model * model, int32_t i, char * buf, size_t buf_size
    ) except +translate
    int32_t llama_model_meta_val_str_by_index(
        const llama_model * model, int32_t i, char * buf, size_t buf_size
    ) except +translate

    # What kind of model it is
    int32_t llama_model_desc(const llama_model * model, char * buf, size_t buf_size) except +translate
    llama_ftype llama_model_ftype(const llama_model * model) except +translate
    uint64_t llama_model_size(const llama_model * model) except +translate
    const char * llama_model_chat_template(const llama_model * model, const char * name) except +translate
    uint64_t llama_model_n_params(const llama_model * model) except +translate
    bool llama_model_has_encoder(const llama_model * model) except +translate
    bool llama_model_has_decoder(const llama_model * model) except +translate
    llama_token llama_model_decoder_start_token(const llama_model * model) except +translate
    bool llama_model_is_recurrent(const llama_model * model) except +translate
    bool llama_model_is_hybrid(const llama_model * model) except +translate
    bool llama_model_is_diffusion(const llama_model * model) except +translate

    # Quantization of a file: 0 is success
    uint32_t llama_model_quantize(
        const char * fname_inp, const char * fname_out, const llama_model_quantize_params * params
    ) except +translate

    # Adapters
    llama_adapter_lora * llama_adapter_lora_init(llama_model * model, const char * path_lora) except +translate
    llama_adapter_lora * llama_adapter_lora_init_from_file_ptr(llama_model * model, FILE * file) except +translate
    int32_t llama_adapter_meta_val_str(
        const llama_adapter_lora * adapter, const char * key, char * buf, size_t buf_size
    ) except +translate
    int32_t llama_adapter_meta_count(const llama_adapter_lora * adapter) except +translate
    int32_t llama_adapter_meta_key_by_index(
        const llama_adapter_lora * adapter, int32_t i, char * buf, size_t buf_size
    ) except +translate
    int32_t llama_adapter_meta_val_str_by_index(
        const llama_adapter_lora * adapter, int32_t i, char * buf, size_t buf_size
    ) except +translate
    void llama_adapter_lora_free(llama_adapter_lora * adapter) except +translate
    uint64_t llama_adapter_get_alora_n_invocation_tokens(const llama_adapter_lora * adapter) except +translate
    const llama_token * llama_adapter_get_alora_invocation_tokens(const llama_adapter_lora * adapter) except +translate

    # Adapters of a context
    int32_t llama_set_adapters_lora(
        llama_context * ctx, llama_adapter_lora ** adapters, size_t n_adapters, float * scales
    ) except +translate
    int32_t llama_set_adapter_cvec(
        llama_context * ctx, const float * data, size_t len, int32_t n_embd, int32_t il_start, int32_t il_end
    ) except +translate

    # Memory
    void llama_memory_clear(llama_memory_t mem, bool data) except +translate
    bool llama_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1) except +translate
    void llama_memory_seq_cp(
        llama_memory_t mem, llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1
    ) except +translate
    void llama_memory_seq_keep(llama_memory_t mem, llama_seq_id seq_id) except +translate
    void llama_memory_seq_add(
        llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta
    ) except +translate
    void llama_memory_seq_div(
        llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d
    ) except +translate
    llama_pos llama_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq_id) except +translate
    llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id) except +translate
    bool llama_memory_can_shift(llama_memory_t mem) except +translate

    # State / sessions
    size_t llama_state_get_size(llama_context * ctx) except +translate
    size_t llama_state_get_data(llama_context * ctx, uint8_t * dst, size_t size) except +translate
    size_t llama_state_set_data(llama_context * ctx, const uint8_t * src, size_t size) except +translate
    bool llama_state_load_file(
        llama_context * ctx, const char * path_session, llama_token * tokens_out, size_t n_token_capacity,
        size_t * n_token_count_out
    ) except +translate
    bool llama_state_save_file(
        llama_context * ctx, const char * path_session, const llama_token * tokens, size_t n_token_count
    ) except +translate
    size_t llama_state_seq_get_size(llama_context * ctx, llama_seq_id seq_id) except +translate
    size_t llama_state_seq_get_data(
        llama_context * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id
    ) except +translate
    size_t llama_state_seq_set_data(
        llama_context * ctx, const uint8_t * src, size_t size, llama_seq_id dest_seq_id
    ) except +translate
    size_t llama_state_seq_save_file(
        llama_context * ctx, const char * filepath, llama_seq_id seq_id, const llama_token * tokens,
        size_t n_token_count
    ) except +translate
    size_t llama_state_seq_load_file(
        llama_context * ctx, const char * filepath, llama_seq_id dest_seq_id, llama_token * tokens_out,
        size_t n_token_capacity, size_t * n_token_count_out
    ) except +translate

    # State of one sequence, with flags
    const uint32_t LLAMA_STATE_SEQ_FLAGS_NONE
    const uint32_t LLAMA_STATE_SEQ_FLAGS_SWA_ONLY
    const uint32_t LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    const uint32_t LLAMA_STATE_SEQ_FLAGS_ON_DEVICE

    ctypedef uint32_t llama_state_seq_flags

    size_t llama_state_seq_get_size_ext(
        llama_context * ctx, llama_seq_id seq_id, llama_state_seq_flags flags
    ) except +translate
    size_t llama_state_seq_get_data_ext(
        llama_context * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id, llama_state_seq_flags flags
    ) except +translate
    size_t llama_state_seq_set_data_ext(
        llama_context * ctx, const uint8_t * src, size_t size, llama_seq_id dest_seq_id, llama_state_seq_flags flags
    ) except +translate

    # Decoding
    llama_batch llama_batch_get_one(llama_token * tokens, int32_t n_tokens) except +translate
    llama_batch llama_batch_init(int32_t n_tokens, int32_t embd, int32_t n_seq_max) except +translate
    void llama_batch_free(llama_batch batch) except +translate
    int32_t llama_encode(llama_context * ctx, llama_batch batch) except +translate
    int32_t llama_decode(llama_context * ctx, llama_batch batch) except +translate

    # Extended batch API
    struct llama_batch_ext

    struct llama_embd:
        const float * data
        size_t n_rows
        size_t n_embd

    llama_batch_ext * llama_batch_ext_init(llama_context * ctx) except +translate
    void llama_batch_ext_free(llama_batch_ext * batch) except +translate
    void llama_batch_ext_clear(llama_batch_ext * batch) except +translate
    int32_t llama_batch_ext_add(llama_batch_ext * batch, llama_seq_id seq_id) except +translate
    int32_t llama_batch_ext_add_token(llama_batch_ext * batch, llama_seq_id seq_id, llama_token id) except +translate
    int32_t llama_batch_ext_add_embd(llama_batch_ext * batch, llama_seq_id seq_id, llama_embd embd) except +translate
    bool llama_batch_ext_add_seq(llama_batch_ext * batch, int32_t idx, llama_seq_id seq_id) except +translate
    bool llama_batch_ext_set_embd_token(llama_batch_ext * batch, int32_t idx, llama_embd embd) except +translate
    bool llama_batch_ext_set_embd_state(llama_batch_ext * batch, int32_t idx, llama_embd embd) except +translate
    bool llama_batch_ext_set_output_embd(llama_batch_ext * batch, int32_t idx, bool value) except +translate
    bool llama_batch_ext_set_output_logits(llama_batch_ext * batch, int32_t idx, bool value) except +translate
    bool llama_batch_ext_set_pos(llama_batch_ext * batch, int32_t idx, const llama_pos * pos) except +translate

    # Running a batch; threads and modes of a context
    int32_t llama_process(llama_context * ctx, llama_process_type type, llama_batch_ext * batch) except +translate
    void llama_set_n_threads(llama_context * ctx, int32_t n_threads, int32_t n_threads_batch) except +translate
    int32_t llama_n_threads(llama_context * ctx) except +translate
    int32_t llama_n_threads_batch(llama_context * ctx) except +translate
    void llama_set_embeddings(llama_context * ctx, bool embeddings) except +translate
    void llama_set_causal_attn(llama_context * ctx, bool causal_attn) except +translate
    bool llama_get_causal_attn(const llama_context * ctx) except +translate
    void llama_set_abort_callback(
        llama_context * ctx, ggml_abort_callback abort_callback, void * abort_callback_data
    ) except +translate
    void llama_synchronize(llama_context * ctx) except +translate

    # Results of the last batch
    float * llama_get_logits(llama_context * ctx) except +translate
    float * llama_get_logits_ith(llama_context * ctx, int32_t i) except +translate
    float * llama_get_embeddings(llama_context * ctx) except +translate
    float * llama_get_embeddings_ith(llama_context * ctx, int32_t i) except +translate
    float * llama_get_embeddings_seq(llama_context * ctx, llama_seq_id seq_id) except +translate

    # Results of samplers that ran on the backend (experimental)
    llama_token llama_get_sampled_token_ith(llama_context * ctx, int32_t i) except +translate
    float * llama_get_sampled_probs_ith(llama_context * ctx, int32_t i) except +translate
    uint32_t llama_get_sampled_probs_count_ith(llama_context * ctx, int32_t i) except +translate
    float * llama_get_sampled_logits_ith(llama_context * ctx, int32_t i) except +translate
    uint32_t llama_get_sampled_logits_count_ith(llama_context * ctx, int32_t i) except +translate
    llama_token * llama_get_sampled_candidates_ith(llama_context * ctx, int32_t i) except +translate
    uint32_t llama_get_sampled_candidates_count_ith(llama_context * ctx, int32_t i) except +translate

    # Vocab
    const char * llama_vocab_get_text(const llama_vocab * vocab, llama_token token) except +translate
    float llama_vocab_get_score(const llama_vocab * vocab, llama_token token) except +translate
    llama_token_attr llama_vocab_get_attr(const llama_vocab * vocab, llama_token token) except +translate
    bool llama_vocab_is_eog(const llama_vocab * vocab, llama_token token) except +translate
    bool llama_vocab_is_control(const llama_vocab * vocab, llama_token token) except +translate
    llama_token llama_vocab_bos(const llama_vocab * vocab) except +translate
    llama_token llama_vocab_eos(const llama_vocab * vocab) except +translate
    llama_token llama_vocab_eot(const llama_vocab * vocab) except +translate
    llama_token llama_vocab_sep(const llama_vocab * vocab) except +translate
    llama_token llama_vocab_nl(const llama_vocab * vocab) except +translate
    llama_token llama_vocab_pad(const llama_vocab * vocab) except +translate
    llama_token llama_vocab_mask(const llama_vocab * vocab) except +translate
    bool llama_vocab_get_add_bos(const llama_vocab * vocab) except +translate
    bool llama_vocab_get_add_eos(const llama_vocab * vocab) except +translate
    bool llama_vocab_get_add_sep(const llama_vocab * vocab) except +translate
    const llama_token * llama_vocab_get_suppress_tokens(
        const llama_vocab * vocab, int32_t * n_suppress_tokens
    ) except +translate
    llama_token llama_vocab_fim_pre(const llama_vocab * vocab) except +translate
    llama_token llama_vocab_fim_suf(const llama_vocab * vocab) except +translate
    llama_token llama_vocab_fim_mid(const llama_vocab * vocab) except +translate
    llama_token llama_vocab_fim_pad(const llama_vocab * vocab) except +translate
    llama_token llama_vocab_fim_rep(const llama_vocab * vocab) except +translate
    llama_token llama_vocab_fim_sep(const llama_vocab * vocab) except +translate

    # Tokenization (thread-safe)
    int32_t llama_tokenize(
        const llama_vocab * vocab, const char * text, int32_t text_len, llama_token * tokens, int32_t n_tokens_max,
        bool add_special, bool parse_special
    ) except +translate
    int32_t llama_token_to_piece(
        const llama_vocab * vocab, llama_token token, char * buf, int32_t length, int32_t lstrip, bool special
    ) except +translate
    int32_t llama_detokenize(
        const llama_vocab * vocab, const llama_token * tokens, int32_t n_tokens, char * text, int32_t text_len_max,
        bool remove_special, bool unparse_special
    ) except +translate

    # Chat templates
    int32_t llama_chat_apply_template(
        const char * tmpl, const llama_chat_message * chat, size_t n_msg, bool add_ass, char * buf, int32_t length
    ) except +translate
    int32_t llama_chat_builtin_templates(const char ** output, size_t len) except +translate

    # Sampling API
    ctypedef void * llama_sampler_context_t

    struct llama_sampler_data:
        ggml_tensor * logits
        ggml_tensor * probs
        ggml_tensor * sampled
        ggml_tensor * candidates

    struct llama_sampler_i:
        const char * (*name)(const llama_sampler * smpl) noexcept nogil
        void (*accept)(llama_sampler * smpl, llama_token token) noexcept nogil
        void (*apply)(llama_sampler * smpl, llama_token_data_array * cur_p) noexcept nogil
        void (*reset)(llama_sampler * smpl) noexcept nogil
        llama_sampler * (*clone)(const llama_sampler * smpl) noexcept nogil
        void (*free)(llama_sampler * smpl) noexcept nogil
        bool (*backend_init)(
            llama_sampler * smpl, ggml_backend_buffer_type_t buft, uint32_t n_outputs_max_per_seq
        ) noexcept nogil
        void (*backend_accept)(
            llama_sampler * smpl, ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * selected_token
        ) noexcept nogil
        void (*backend_apply)(
            llama_sampler * smpl, ggml_context * ctx, ggml_cgraph * gf, llama_sampler_data * data
        ) noexcept nogil
        void (*backend_set_input)(llama_sampler * smpl) noexcept nogil
        void (*backend_reset)(llama_sampler * smpl) noexcept nogil
        void (*copy_state)(const llama_sampler * src, llama_sampler * dst) noexcept nogil

    struct llama_sampler:
        llama_sampler_i * iface
        llama_sampler_context_t ctx

    bool llama_set_sampler(llama_context * ctx, llama_seq_id seq_id, llama_sampler * smpl) except +translate
    llama_sampler * llama_sampler_init(llama_sampler_i * iface, llama_sampler_context_t ctx) except +translate
    const char * llama_sampler_name(const llama_sampler * smpl) except +translate
    void llama_sampler_accept(llama_sampler * smpl, llama_token token) except +translate
    void llama_sampler_apply(llama_sampler * smpl, llama_token_data_array * cur_p) except +translate
    void llama_sampler_reset(llama_sampler * smpl) except +translate
    llama_sampler * llama_sampler_clone(const llama_sampler * smpl) except +translate
    void llama_sampler_copy(const llama_sampler * src, llama_sampler * dst) except +translate
    void llama_sampler_free(llama_sampler * smpl) except +translate

    # Chains of samplers: a chain owns what is added to it
    llama_sampler * llama_sampler_chain_init(llama_sampler_chain_params params) except +translate
    void llama_sampler_chain_add(llama_sampler * chain, llama_sampler * smpl) except +translate
    llama_sampler * llama_sampler_chain_get(llama_sampler * chain, int32_t i) except +translate
    int32_t llama_sampler_chain_n(const llama_sampler * chain) except +translate
    llama_sampler * llama_sampler_chain_remove(llama_sampler * chain, int32_t i) except +translate

    # Samplers
    llama_sampler * llama_sampler_init_greedy() except +translate
    llama_sampler * llama_sampler_init_dist(uint32_t seed) except +translate
    llama_sampler * llama_sampler_init_top_k(int32_t k) except +translate
    llama_sampler * llama_sampler_init_top_p(float p, size_t min_keep) except +translate
    llama_sampler * llama_sampler_init_min_p(float p, size_t min_keep) except +translate
    llama_sampler * llama_sampler_init_typical(float p, size_t min_keep) except +translate
    llama_sampler * llama_sampler_init_temp(float t) except +translate
    llama_sampler * llama_sampler_init_temp_ext(float t, float delta, float exponent) except +translate
    llama_sampler * llama_sampler_init_xtc(float p, float t, size_t min_keep, uint32_t seed) except +translate
    llama_sampler * llama_sampler_init_top_n_sigma(float n) except +translate
    llama_sampler * llama_sampler_init_mirostat(
        int32_t n_vocab, uint32_t seed, float tau, float eta, int32_t m
    ) except +translate
    llama_sampler * llama_sampler_init_mirostat_v2(uint32_t seed, float tau, float eta) except +translate
    llama_sampler * llama_sampler_init_grammar(
        const llama_vocab * vocab, const char * grammar_str, const char * grammar_root
    ) except +translate
    llama_sampler * llama_sampler_init_grammar_lazy_patterns(
        const llama_vocab * vocab, const char * grammar_str, const char * grammar_root, const char ** trigger_patterns,
        size_t num_trigger_patterns, const llama_token * trigger_tokens, size_t num_trigger_tokens
    ) except +translate
    llama_sampler * llama_sampler_init_penalties(
        int32_t n_vocab, int32_t penalty_last_n, float penalty_repeat, float penalty_freq, float penalty_present
    ) except +translate
    llama_sampler * llama_sampler_init_dry(
        const llama_vocab * vocab, float dry_multiplier, float dry_base, int32_t dry_allowed_length,
        int32_t dry_penalty_last_n, const char ** seq_breakers, size_t num_breakers
    ) except +translate
    llama_sampler * llama_sampler_init_adaptive_p(float target, float decay, uint32_t seed) except +translate
    llama_sampler * llama_sampler_init_logit_bias(
        int32_t n_vocab, int32_t n_logit_bias, const llama_logit_bias * logit_bias
    ) except +translate
    llama_sampler * llama_sampler_init_infill(const llama_vocab * vocab) except +translate

    # Using a sampler
    uint32_t llama_sampler_get_seed(const llama_sampler * smpl) except +translate
    llama_token llama_sampler_sample(llama_sampler * smpl, llama_context * ctx, int32_t idx) except +translate

    # Model split
    int32_t llama_split_path(
        char * split_path, size_t maxlen, const char * path_prefix, int32_t split_no, int32_t split_count
    ) except +translate
    int32_t llama_split_prefix(
        char * split_prefix, size_t maxlen, const char * split_path, int32_t split_no, int32_t split_count
    ) except +translate

    # System information and log
    const char * llama_print_system_info() except +translate
    void llama_log_get(ggml_log_callback * log_callback, void ** user_data) except +translate
    void llama_log_set(ggml_log_callback log_callback, void * user_data) except +translate

    # Performance utils
    struct llama_perf_context_data:
        double t_start_ms
        double t_load_ms
        double t_p_eval_ms
        double t_eval_ms
        int32_t n_p_eval
        int32_t n_eval
        int32_t n_reused

    struct llama_perf_sampler_data:
        double t_sample_ms
        int32_t n_sample

    llama_perf_context_data llama_perf_context(const llama_context * ctx) except +translate
    void llama_perf_context_print(const llama_context * ctx) except +translate
    void llama_perf_context_reset(llama_context * ctx) except +translate
    llama_perf_sampler_data llama_perf_sampler(const llama_sampler * chain) except +translate
    void llama_perf_sampler_print(const llama_sampler * chain) except +translate
    void llama_perf_sampler_reset(llama_sampler * chain) except +translate

    # Training
    ctypedef bool (*llama_opt_param_filter)(const ggml_tensor * tensor, void * userdata) noexcept nogil

    bool llama_opt_param_filter_all(const ggml_tensor * tensor, void * userdata) except +translate

    struct llama_opt_params:
        uint32_t n_ctx_train
        llama_opt_param_filter param_filter
        void * param_filter_ud
        ggml_opt_get_optimizer_params get_opt_pars
        void * get_opt_pars_ud
        ggml_opt_optimizer_type optimizer_type

    void llama_opt_init(llama_context * lctx, llama_model * model, llama_opt_params lopt_params) except +translate
    void llama_opt_epoch(
        llama_context * lctx, ggml_opt_dataset_t dataset, ggml_opt_result_t result_train, ggml_opt_result_t result_eval,
        int64_t idata_split, ggml_opt_epoch_callback callback_train, ggml_opt_epoch_callback callback_eval
    ) except +translate

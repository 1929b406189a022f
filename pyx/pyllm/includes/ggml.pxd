# ggml.h: tensors, their types and memory, log, quantization of rows, thread pool parameters.
# Not the whole header: the operators that build graphs are left out until something here builds graphs.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t
from libcpp cimport bool

from pyllm.includes._translate cimport translate

cdef extern from "ggml.h" nogil:

    # Constants (macros in C)
    const uint32_t GGML_FILE_MAGIC
    const int GGML_FILE_VERSION
    const int GGML_QNT_VERSION
    const int GGML_MAX_DIMS
    const int GGML_MAX_SRC
    const int GGML_MAX_N_THREADS
    const int GGML_MAX_OP_PARAMS
    const int GGML_MAX_NAME
    const int GGML_DEFAULT_N_THREADS
    const int GGML_DEFAULT_GRAPH_SIZE
    const int GGML_MEM_ALIGN
    const int GGML_ROPE_TYPE_NORMAL
    const int GGML_ROPE_TYPE_NEOX
    const int GGML_ROPE_TYPE_MROPE
    const int GGML_ROPE_TYPE_VISION
    const int GGML_ROPE_TYPE_IMROPE

    # Fatal errors: the callback must not return; it may throw a C++ exception
    ctypedef void (*ggml_abort_callback_t)(const char * error_message) noexcept nogil

    ggml_abort_callback_t ggml_set_abort_callback(ggml_abort_callback_t callback) except +translate

    # Status
    enum ggml_status:
        GGML_STATUS_ALLOC_FAILED = -2
        GGML_STATUS_FAILED = -1
        GGML_STATUS_SUCCESS = 0
        GGML_STATUS_ABORTED = 1

    const char * ggml_status_to_string(ggml_status status) except +translate

    # Half precision, IEEE and bfloat16
    ctypedef uint16_t ggml_fp16_t

    float ggml_fp16_to_fp32(ggml_fp16_t) except +translate
    ggml_fp16_t ggml_fp32_to_fp16(float) except +translate
    void ggml_fp16_to_fp32_row(const ggml_fp16_t *, float *, int64_t) except +translate
    void ggml_fp32_to_fp16_row(const float *, ggml_fp16_t *, int64_t) except +translate

    ctypedef struct ggml_bf16_t:
        uint16_t bits

    ggml_bf16_t ggml_fp32_to_bf16(float) except +translate
    float ggml_bf16_to_fp32(ggml_bf16_t) except +translate
    void ggml_bf16_to_fp32_row(const ggml_bf16_t *, float *, int64_t) except +translate
    void ggml_fp32_to_bf16_row(const float *, ggml_bf16_t *, int64_t) except +translate

    # Handles
    struct ggml_context
    struct ggml_cgraph

    # Enumerations
    enum ggml_type:
        GGML_TYPE_F32 = 0
        GGML_TYPE_F16 = 1
        GGML_TYPE_Q4_0 = 2
        GGML_TYPE_Q4_1 = 3
        GGML_TYPE_Q5_0 = 6
        GGML_TYPE_Q5_1 = 7
        GGML_TYPE_Q8_0 = 8
        GGML_TYPE_Q8_1 = 9
        GGML_TYPE_Q2_K = 10
        GGML_TYPE_Q3_K = 11
        GGML_TYPE_Q4_K = 12
        GGML_TYPE_Q5_K = 13
        GGML_TYPE_Q6_K = 14
        GGML_TYPE_Q8_K = 15
        GGML_TYPE_IQ2_XXS = 16
        GGML_TYPE_IQ2_XS = 17
        GGML_TYPE_IQ3_XXS = 18
        GGML_TYPE_IQ1_S = 19
        GGML_TYPE_IQ4_NL = 20
        GGML_TYPE_IQ3_S = 21
        GGML_TYPE_IQ2_S = 22
        GGML_TYPE_IQ4_XS = 23
        GGML_TYPE_I8 = 24
        GGML_TYPE_I16 = 25
        GGML_TYPE_I32 = 26
        GGML_TYPE_I64 = 27
        GGML_TYPE_F64 = 28
        GGML_TYPE_IQ1_M = 29
        GGML_TYPE_BF16 = 30
        GGML_TYPE_TQ1_0 = 34
        GGML_TYPE_TQ2_0 = 35
        GGML_TYPE_MXFP4 = 39
        GGML_TYPE_NVFP4 = 40
        GGML_TYPE_Q1_0 = 41
        GGML_TYPE_Q2_0 = 42
        GGML_TYPE_COUNT = 43

    enum ggml_op:
        GGML_OP_NONE = 0
        GGML_OP_DUP = 1
        GGML_OP_ADD = 2
        GGML_OP_ADD_ID = 3
        GGML_OP_ADD1 = 4
        GGML_OP_ACC = 5
        GGML_OP_SUB = 6
        GGML_OP_MUL = 7
        GGML_OP_DIV = 8
        GGML_OP_SQR = 9
        GGML_OP_SQRT = 10
        GGML_OP_LOG = 11
        GGML_OP_SIN = 12
        GGML_OP_COS = 13
        GGML_OP_SUM = 14
        GGML_OP_SUM_ROWS = 15
        GGML_OP_CUMSUM = 16
        GGML_OP_MEAN = 17
        GGML_OP_ARGMAX = 18
        GGML_OP_COUNT_EQUAL = 19
        GGML_OP_REPEAT = 20
        GGML_OP_REPEAT_BACK = 21
        GGML_OP_CONCAT = 22
        GGML_OP_SILU_BACK = 23
        GGML_OP_NORM = 24
        GGML_OP_RMS_NORM = 25
        GGML_OP_RMS_NORM_BACK = 26
        GGML_OP_GROUP_NORM = 27
        GGML_OP_L2_NORM = 28
        GGML_OP_MUL_MAT = 29
        GGML_OP_MUL_MAT_ID = 30
        GGML_OP_OUT_PROD = 31
        GGML_OP_SCALE = 32
        GGML_OP_SET = 33
        GGML_OP_CPY = 34
        GGML_OP_CONT = 35
        GGML_OP_RESHAPE = 36
        GGML_OP_VIEW = 37
        GGML_OP_PERMUTE = 38
        GGML_OP_TRANSPOSE = 39
        GGML_OP_GET_ROWS = 40
        GGML_OP_GET_ROWS_BACK = 41
        GGML_OP_SET_ROWS = 42
        GGML_OP_DIAG = 43
        GGML_OP_DIAG_MASK_INF = 44
        GGML_OP_DIAG_MASK_ZERO = 45
        GGML_OP_SOFT_MAX = 46
        GGML_OP_SOFT_MAX_BACK = 47
        GGML_OP_ROPE = 48
        GGML_OP_ROPE_BACK = 49
        GGML_OP_CLAMP = 50
        GGML_OP_CONV_TRANSPOSE_1D = 51
        GGML_OP_IM2COL = 52
        GGML_OP_IM2COL_BACK = 53
        GGML_OP_IM2COL_3D = 54
        GGML_OP_COL2IM_1D = 55
        GGML_OP_CONV_2D = 56
        GGML_OP_CONV_3D = 57
        GGML_OP_CONV_2D_DW = 58
        GGML_OP_CONV_TRANSPOSE_2D = 59
        GGML_OP_POOL_1D = 60
        GGML_OP_POOL_2D = 61
        GGML_OP_POOL_2D_BACK = 62
        GGML_OP_UPSCALE = 63
        GGML_OP_PAD = 64
        GGML_OP_PAD_REFLECT_1D = 65
        GGML_OP_ROLL = 66
        GGML_OP_ARANGE = 67
        GGML_OP_TIMESTEP_EMBEDDING = 68
        GGML_OP_ARGSORT = 69
        GGML_OP_TOP_K = 70
        GGML_OP_LEAKY_RELU = 71
        GGML_OP_TRI = 72
        GGML_OP_FILL = 73
        GGML_OP_FLASH_ATTN_EXT = 74
        GGML_OP_FLASH_ATTN_BACK = 75
        GGML_OP_SSM_CONV = 76
        GGML_OP_SSM_SCAN = 77
        GGML_OP_WIN_PART = 78
        GGML_OP_WIN_UNPART = 79
        GGML_OP_GET_REL_POS = 80
        GGML_OP_ADD_REL_POS = 81
        GGML_OP_RWKV_WKV6 = 82
        GGML_OP_GATED_LINEAR_ATTN = 83
        GGML_OP_RWKV_WKV7 = 84
        GGML_OP_SOLVE_TRI = 85
        GGML_OP_GATED_DELTA_NET = 86
        GGML_OP_LIGHTNING_INDEXER = 87
        GGML_OP_DSV4_HC_COMB = 88
        GGML_OP_DSV4_HC_PRE = 89
        GGML_OP_DSV4_HC_POST = 90
        GGML_OP_UNARY = 91
        GGML_OP_MAP_CUSTOM1 = 92
        GGML_OP_MAP_CUSTOM2 = 93
        GGML_OP_MAP_CUSTOM3 = 94
        GGML_OP_CUSTOM = 95
        GGML_OP_CROSS_ENTROPY_LOSS = 96
        GGML_OP_CROSS_ENTROPY_LOSS_BACK = 97
        GGML_OP_OPT_STEP_ADAMW = 98
        GGML_OP_OPT_STEP_SGD = 99
        GGML_OP_GLU = 100
        GGML_OP_COUNT = 101

    enum ggml_log_level:
        GGML_LOG_LEVEL_NONE = 0
        GGML_LOG_LEVEL_DEBUG = 1
        GGML_LOG_LEVEL_INFO = 2
        GGML_LOG_LEVEL_WARN = 3
        GGML_LOG_LEVEL_ERROR = 4
        GGML_LOG_LEVEL_CONT = 5

    enum ggml_tensor_flag:
        GGML_TENSOR_FLAG_INPUT = 1
        GGML_TENSOR_FLAG_OUTPUT = 2
        GGML_TENSOR_FLAG_PARAM = 4
        GGML_TENSOR_FLAG_LOSS = 8
        GGML_TENSOR_FLAG_COMPUTE = 16

    # Tensors
    struct ggml_init_params:
        size_t mem_size
        void * mem_buffer
        bool no_alloc

    # defined in ggml-backend.h and behind it; here because tensors point to one
    struct ggml_backend_buffer

    struct ggml_tensor:
        ggml_type type
        ggml_backend_buffer * buffer
        int64_t ne[4]
        size_t nb[4]
        ggml_op op
        int32_t op_params[16]
        int32_t flags
        ggml_tensor * src[10]
        ggml_tensor * view_src
        size_t view_offs
        void * data
        char name[64]
        void * extra
        char padding[8]

    # Asked during a computation; true ends it
    ctypedef bool (*ggml_abort_callback)(void * data) noexcept nogil

    # Version and time
    const char * ggml_version() except +translate
    const char * ggml_commit() except +translate
    void ggml_time_init() except +translate
    int64_t ggml_time_ms() except +translate
    int64_t ggml_time_us() except +translate

    # Sizes and names
    int64_t ggml_nelements(const ggml_tensor * tensor) except +translate
    int64_t ggml_nrows(const ggml_tensor * tensor) except +translate
    size_t ggml_nbytes(const ggml_tensor * tensor) except +translate
    int64_t ggml_blck_size(ggml_type type) except +translate
    size_t ggml_type_size(ggml_type type) except +translate
    size_t ggml_row_size(ggml_type type, int64_t ne) except +translate
    const char * ggml_type_name(ggml_type type) except +translate
    const char * ggml_op_name(ggml_op op) except +translate
    const char * ggml_op_desc(const ggml_tensor * t) except +translate
    size_t ggml_element_size(const ggml_tensor * tensor) except +translate
    bool ggml_is_quantized(ggml_type type) except +translate
    bool ggml_is_transposed(const ggml_tensor * tensor) except +translate
    bool ggml_is_permuted(const ggml_tensor * tensor) except +translate
    bool ggml_is_view(const ggml_tensor * tensor) except +translate
    int ggml_n_dims(const ggml_tensor * tensor) except +translate
    bool ggml_is_contiguous(const ggml_tensor * tensor) except +translate

    # Contexts, and tensors in them
    size_t ggml_tensor_overhead() except +translate
    bool ggml_validate_row_data(ggml_type type, const void * data, size_t nbytes) except +translate
    ggml_context * ggml_init(ggml_init_params params) except +translate
    void ggml_reset(ggml_context * ctx) except +translate
    void ggml_free(ggml_context * ctx) except +translate
    size_t ggml_used_mem(const ggml_context * ctx) except +translate
    ggml_tensor * ggml_new_tensor(ggml_context * ctx, ggml_type type, int n_dims, const int64_t * ne) except +translate
    ggml_tensor * ggml_new_tensor_1d(ggml_context * ctx, ggml_type type, int64_t ne0) except +translate
    ggml_tensor * ggml_new_tensor_2d(ggml_context * ctx, ggml_type type, int64_t ne0, int64_t ne1) except +translate
    ggml_tensor * ggml_new_tensor_3d(
        ggml_context * ctx, ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2
    ) except +translate
    ggml_tensor * ggml_new_tensor_4d(
        ggml_context * ctx, ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3
    ) except +translate
    ggml_tensor * ggml_get_first_tensor(const ggml_context * ctx) except +translate
    ggml_tensor * ggml_get_next_tensor(const ggml_context * ctx, ggml_tensor * tensor) except +translate
    ggml_tensor * ggml_get_tensor(ggml_context * ctx, const char * name) except +translate
    void * ggml_get_data(const ggml_tensor * tensor) except +translate
    const char * ggml_get_name(const ggml_tensor * tensor) except +translate
    ggml_tensor * ggml_set_name(ggml_tensor * tensor, const char * name) except +translate

    # Graphs
    int ggml_graph_size(ggml_cgraph * cgraph) except +translate
    ggml_tensor * ggml_graph_node(ggml_cgraph * cgraph, int i) except +translate
    int ggml_graph_n_nodes(ggml_cgraph * cgraph) except +translate
    ggml_tensor * ggml_graph_get_tensor(const ggml_cgraph * cgraph, const char * name) except +translate

    # Log
    ctypedef void (*ggml_log_callback)(ggml_log_level level, const char * text, void * user_data) noexcept nogil

    void ggml_log_get(ggml_log_callback * log_callback, void ** user_data) except +translate
    void ggml_log_set(ggml_log_callback log_callback, void * user_data) except +translate

    # Quantization
    void ggml_quantize_init(ggml_type type) except +translate
    void ggml_quantize_free() except +translate
    bool ggml_quantize_requires_imatrix(ggml_type type) except +translate
    size_t ggml_quantize_chunk(
        ggml_type type, const float * src, void * dst, int64_t start, int64_t nrows, int64_t n_per_row,
        const float * imatrix
    ) except +translate

    # Traits of a type
    ctypedef void (*ggml_to_float_t)(const void * x, float * y, int64_t k) noexcept nogil
    ctypedef void (*ggml_from_float_t)(const float * x, void * y, int64_t k) noexcept nogil

    struct ggml_type_traits:
        const char * type_name
        int64_t blck_size
        int64_t blck_size_interleave
        size_t type_size
        bool is_quantized
        ggml_to_float_t to_float
        ggml_from_float_t from_float_ref

    const ggml_type_traits * ggml_get_type_traits(ggml_type type) except +translate

    # Thread pool parameters
    enum ggml_sched_priority:
        GGML_SCHED_PRIO_LOW = -1
        GGML_SCHED_PRIO_NORMAL = 0
        GGML_SCHED_PRIO_MEDIUM = 1
        GGML_SCHED_PRIO_HIGH = 2
        GGML_SCHED_PRIO_REALTIME = 3

    struct ggml_threadpool_params:
        bool cpumask[512]
        int n_threads
        ggml_sched_priority prio
        uint32_t poll
        bool strict_cpu
        bool paused

    struct ggml_threadpool

    ctypedef ggml_threadpool * ggml_threadpool_t

    ggml_threadpool_params ggml_threadpool_params_default(int n_threads) except +translate
    void ggml_threadpool_params_init(ggml_threadpool_params * p, int n_threads) except +translate
    bool ggml_threadpool_params_match(
        const ggml_threadpool_params * p0, const ggml_threadpool_params * p1
    ) except +translate

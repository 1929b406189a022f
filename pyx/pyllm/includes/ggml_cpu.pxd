# ggml-cpu.h: compute plans, thread pools and the CPU's features.
#
# The backends are modules that are loaded at run time, and these functions live in the CPU module: an extension
# cannot link them. They are declared for their types; get their addresses by name with
# ggml_backend_reg_get_proc_address, or through the public functions of ggml_backend.pxd.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t
from libcpp cimport bool

from pyllm.includes._translate cimport translate
from pyllm.includes.ggml cimport (
    ggml_abort_callback, ggml_bf16_t, ggml_cgraph, ggml_context, ggml_fp16_t, ggml_from_float_t, ggml_status,
    ggml_tensor, ggml_threadpool, ggml_threadpool_params, ggml_threadpool_t, ggml_type,
)
from pyllm.includes.ggml_backend cimport ggml_backend_reg_t, ggml_backend_t

cdef extern from "ggml-cpu.h" nogil:

    # The plan of a computation
    struct ggml_cplan:
        size_t work_size
        uint8_t * work_data
        int n_threads
        ggml_threadpool * threadpool
        ggml_abort_callback abort_callback
        void * abort_callback_data
        bool use_ref

    # NUMA
    enum ggml_numa_strategy:
        GGML_NUMA_STRATEGY_DISABLED = 0
        GGML_NUMA_STRATEGY_DISTRIBUTE = 1
        GGML_NUMA_STRATEGY_ISOLATE = 2
        GGML_NUMA_STRATEGY_NUMACTL = 3
        GGML_NUMA_STRATEGY_MIRROR = 4
        GGML_NUMA_STRATEGY_COUNT = 5

    void ggml_numa_init(ggml_numa_strategy numa) except +translate
    bool ggml_is_numa() except +translate

    # Scalars and single elements
    ggml_tensor * ggml_new_i32(ggml_context * ctx, int32_t value) except +translate
    ggml_tensor * ggml_new_f32(ggml_context * ctx, float value) except +translate
    ggml_tensor * ggml_set_i32(ggml_tensor * tensor, int32_t value) except +translate
    ggml_tensor * ggml_set_f32(ggml_tensor * tensor, float value) except +translate
    int32_t ggml_get_i32_1d(const ggml_tensor * tensor, int i) except +translate
    void ggml_set_i32_1d(const ggml_tensor * tensor, int i, int32_t value) except +translate
    int32_t ggml_get_i32_nd(const ggml_tensor * tensor, int i0, int i1, int i2, int i3) except +translate
    void ggml_set_i32_nd(const ggml_tensor * tensor, int i0, int i1, int i2, int i3, int32_t value) except +translate
    float ggml_get_f32_1d(const ggml_tensor * tensor, int i) except +translate
    void ggml_set_f32_1d(const ggml_tensor * tensor, int i, float value) except +translate
    float ggml_get_f32_nd(const ggml_tensor * tensor, int i0, int i1, int i2, int i3) except +translate
    void ggml_set_f32_nd(const ggml_tensor * tensor, int i0, int i1, int i2, int i3, float value) except +translate

    # Thread pools
    ggml_threadpool * ggml_threadpool_new(ggml_threadpool_params * params) except +translate
    void ggml_threadpool_free(ggml_threadpool * threadpool) except +translate
    int ggml_threadpool_get_n_threads(ggml_threadpool * threadpool) except +translate
    void ggml_threadpool_pause(ggml_threadpool * threadpool) except +translate
    void ggml_threadpool_resume(ggml_threadpool * threadpool) except +translate

    # Computing a graph
    ggml_cplan ggml_graph_plan(
        const ggml_cgraph * cgraph, int n_threads, ggml_threadpool * threadpool
    ) except +translate
    ggml_status ggml_graph_compute(ggml_cgraph * cgraph, ggml_cplan * cplan) except +translate
    ggml_status ggml_graph_compute_with_ctx(ggml_context * ctx, ggml_cgraph * cgraph, int n_threads) except +translate

    # System info: x86
    int ggml_cpu_has_sse3() except +translate
    int ggml_cpu_has_ssse3() except +translate
    int ggml_cpu_has_avx() except +translate
    int ggml_cpu_has_avx_vnni() except +translate
    int ggml_cpu_has_avx2() except +translate
    int ggml_cpu_has_bmi2() except +translate
    int ggml_cpu_has_f16c() except +translate
    int ggml_cpu_has_fma() except +translate
    int ggml_cpu_has_avx512() except +translate
    int ggml_cpu_has_avx512_vbmi() except +translate
    int ggml_cpu_has_avx512_vnni() except +translate
    int ggml_cpu_has_avx512_bf16() except +translate
    int ggml_cpu_has_amx_int8() except +translate

    # System info: ARM
    int ggml_cpu_has_neon() except +translate
    int ggml_cpu_has_arm_fma() except +translate
    int ggml_cpu_has_fp16_va() except +translate
    int ggml_cpu_has_dotprod() except +translate
    int ggml_cpu_has_matmul_int8() except +translate
    int ggml_cpu_has_sve() except +translate
    int ggml_cpu_get_sve_cnt() except +translate
    int ggml_cpu_has_sme() except +translate
    int ggml_cpu_has_sme2() except +translate

    # System info: others
    int ggml_cpu_has_riscv_v() except +translate
    int ggml_cpu_get_rvv_vlen() except +translate
    int ggml_cpu_has_vsx() except +translate
    int ggml_cpu_has_vxe() except +translate
    int ggml_cpu_has_wasm_simd() except +translate
    int ggml_cpu_has_llamafile() except +translate

    # Traits of a type on this CPU
    ctypedef void (*ggml_vec_dot_t)(
        int n, float * s, size_t bs, const void * x, size_t bx, const void * y, size_t by, int nrc
    ) noexcept nogil

    struct ggml_type_traits_cpu:
        ggml_from_float_t from_float
        ggml_vec_dot_t vec_dot
        ggml_type vec_dot_type
        int64_t nrows

    const ggml_type_traits_cpu * ggml_get_type_traits_cpu(ggml_type type) except +translate
    void ggml_cpu_init() except +translate

    # CPU backend
    ggml_backend_t ggml_backend_cpu_init() except +translate
    bool ggml_backend_is_cpu(ggml_backend_t backend) except +translate
    void ggml_backend_cpu_set_n_threads(ggml_backend_t backend_cpu, int n_threads) except +translate
    void ggml_backend_cpu_set_threadpool(ggml_backend_t backend_cpu, ggml_threadpool_t threadpool) except +translate
    void ggml_backend_cpu_set_abort_callback(
        ggml_backend_t backend_cpu, ggml_abort_callback abort_callback, void * abort_callback_data
    ) except +translate
    void ggml_backend_cpu_set_use_ref(ggml_backend_t backend_cpu, bool use_ref) except +translate
    ggml_backend_reg_t ggml_backend_cpu_reg() except +translate

    # Conversion of rows
    void ggml_cpu_fp32_to_fp32(const float *, float *, int64_t) except +translate
    void ggml_cpu_fp32_to_i32(const float *, int32_t *, int64_t) except +translate
    void ggml_cpu_fp32_to_fp16(const float *, ggml_fp16_t *, int64_t) except +translate
    void ggml_cpu_fp16_to_fp32(const ggml_fp16_t *, float *, int64_t) except +translate
    void ggml_cpu_fp32_to_bf16(const float *, ggml_bf16_t *, int64_t) except +translate
    void ggml_cpu_bf16_to_fp32(const ggml_bf16_t *, float *, int64_t) except +translate

# ggml-backend.h: buffers, devices, the registry of backends and the scheduler.
# Left out: the meta device, comparing graphs between backends, GUIDs.
#
# One function shares its name with an enum, which C allows and Cython does not. The enum keeps the name:
#     ggml_backend_dev_type(device)  is  ggml_backend_dev_get_type(device)

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t
from libcpp cimport bool

from pyllm.includes._translate cimport translate
from pyllm.includes.ggml cimport ggml_abort_callback, ggml_backend_buffer, ggml_cgraph, ggml_status, ggml_tensor

cdef extern from "ggml-backend.h" nogil:

    # Handles
    struct ggml_backend_buffer_type
    struct ggml_backend_event
    struct ggml_backend
    struct ggml_backend_reg
    struct ggml_backend_device

    ctypedef ggml_backend_buffer_type * ggml_backend_buffer_type_t
    ctypedef ggml_backend_buffer * ggml_backend_buffer_t
    ctypedef ggml_backend_event * ggml_backend_event_t
    ctypedef ggml_backend * ggml_backend_t
    ctypedef void * ggml_backend_graph_plan_t
    ctypedef ggml_backend_reg * ggml_backend_reg_t
    ctypedef ggml_backend_device * ggml_backend_dev_t

    # Backend buffer type
    const char * ggml_backend_buft_name(ggml_backend_buffer_type_t buft) except +translate
    ggml_backend_buffer_t ggml_backend_buft_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) except +translate
    size_t ggml_backend_buft_get_alignment(ggml_backend_buffer_type_t buft) except +translate
    size_t ggml_backend_buft_get_max_size(ggml_backend_buffer_type_t buft) except +translate
    size_t ggml_backend_buft_get_alloc_size(
        ggml_backend_buffer_type_t buft, const ggml_tensor * tensor
    ) except +translate
    bool ggml_backend_buft_is_host(ggml_backend_buffer_type_t buft) except +translate
    ggml_backend_dev_t ggml_backend_buft_get_device(ggml_backend_buffer_type_t buft) except +translate

    # Backend buffer
    enum ggml_backend_buffer_usage:
        GGML_BACKEND_BUFFER_USAGE_ANY = 0
        GGML_BACKEND_BUFFER_USAGE_WEIGHTS = 1
        GGML_BACKEND_BUFFER_USAGE_COMPUTE = 2

    const char * ggml_backend_buffer_name(ggml_backend_buffer_t buffer) except +translate
    void ggml_backend_buffer_free(ggml_backend_buffer_t buffer) except +translate
    void * ggml_backend_buffer_get_base(ggml_backend_buffer_t buffer) except +translate
    size_t ggml_backend_buffer_get_size(ggml_backend_buffer_t buffer) except +translate
    ggml_status ggml_backend_buffer_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) except +translate
    size_t ggml_backend_buffer_get_alignment(ggml_backend_buffer_t buffer) except +translate
    size_t ggml_backend_buffer_get_max_size(ggml_backend_buffer_t buffer) except +translate
    size_t ggml_backend_buffer_get_alloc_size(
        ggml_backend_buffer_t buffer, const ggml_tensor * tensor
    ) except +translate
    void ggml_backend_buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) except +translate
    bool ggml_backend_buffer_is_host(ggml_backend_buffer_t buffer) except +translate
    void ggml_backend_buffer_set_usage(ggml_backend_buffer_t buffer, ggml_backend_buffer_usage usage) except +translate
    ggml_backend_buffer_usage ggml_backend_buffer_get_usage(ggml_backend_buffer_t buffer) except +translate
    ggml_backend_buffer_type_t ggml_backend_buffer_get_type(ggml_backend_buffer_t buffer) except +translate
    void ggml_backend_buffer_reset(ggml_backend_buffer_t buffer) except +translate

    # Copies between backends
    void ggml_backend_tensor_copy(const ggml_tensor * src, ggml_tensor * dst) except +translate

    # Backend (stream)
    const char * ggml_backend_name(ggml_backend_t backend) except +translate
    void ggml_backend_free(ggml_backend_t backend) except +translate
    ggml_backend_buffer_type_t ggml_backend_get_default_buffer_type(ggml_backend_t backend) except +translate
    ggml_backend_buffer_t ggml_backend_alloc_buffer(ggml_backend_t backend, size_t size) except +translate
    size_t ggml_backend_get_alignment(ggml_backend_t backend) except +translate
    size_t ggml_backend_get_max_size(ggml_backend_t backend) except +translate
    void ggml_backend_tensor_set_async(
        ggml_backend_t backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size
    ) except +translate
    void ggml_backend_tensor_get_async(
        ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size
    ) except +translate
    void ggml_backend_tensor_set_2d_async(
        ggml_backend_t backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size, size_t n_copies,
        size_t stride_tensor, size_t stride_data
    ) except +translate
    void ggml_backend_tensor_get_2d_async(
        ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size, size_t n_copies,
        size_t stride_tensor, size_t stride_data
    ) except +translate
    void ggml_backend_tensor_set(ggml_tensor * tensor, const void * data, size_t offset, size_t size) except +translate
    void ggml_backend_tensor_get(const ggml_tensor * tensor, void * data, size_t offset, size_t size) except +translate
    void ggml_backend_tensor_set_2d(
        ggml_tensor * tensor, const void * data, size_t offset, size_t size, size_t n_copies, size_t stride_tensor,
        size_t stride_data
    ) except +translate
    void ggml_backend_tensor_get_2d(
        const ggml_tensor * tensor, void * data, size_t offset, size_t size, size_t n_copies, size_t stride_tensor,
        size_t stride_data
    ) except +translate
    void ggml_backend_tensor_memset(ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) except +translate
    void ggml_backend_synchronize(ggml_backend_t backend) except +translate
    ggml_backend_graph_plan_t ggml_backend_graph_plan_create(
        ggml_backend_t backend, ggml_cgraph * cgraph
    ) except +translate
    void ggml_backend_graph_plan_free(ggml_backend_t backend, ggml_backend_graph_plan_t plan) except +translate
    ggml_status ggml_backend_graph_plan_compute(
        ggml_backend_t backend, ggml_backend_graph_plan_t plan
    ) except +translate
    ggml_status ggml_backend_graph_compute(ggml_backend_t backend, ggml_cgraph * cgraph) except +translate
    ggml_status ggml_backend_graph_compute_async(ggml_backend_t backend, ggml_cgraph * cgraph) except +translate
    bool ggml_backend_supports_op(ggml_backend_t backend, const ggml_tensor * op) except +translate
    bool ggml_backend_supports_buft(ggml_backend_t backend, ggml_backend_buffer_type_t buft) except +translate
    bool ggml_backend_offload_op(ggml_backend_t backend, const ggml_tensor * op) except +translate
    void ggml_backend_tensor_copy_async(
        ggml_backend_t backend_src, ggml_backend_t backend_dst, const ggml_tensor * src, ggml_tensor * dst
    ) except +translate
    ggml_backend_dev_t ggml_backend_get_device(ggml_backend_t backend) except +translate

    # Events
    ggml_backend_event_t ggml_backend_event_new(ggml_backend_dev_t device) except +translate
    void ggml_backend_event_free(ggml_backend_event_t event) except +translate
    void ggml_backend_event_record(ggml_backend_event_t event, ggml_backend_t backend) except +translate
    void ggml_backend_event_synchronize(ggml_backend_event_t event) except +translate
    void ggml_backend_event_wait(ggml_backend_t backend, ggml_backend_event_t event) except +translate

    # Backend device
    enum ggml_backend_dev_type:
        GGML_BACKEND_DEVICE_TYPE_CPU = 0
        GGML_BACKEND_DEVICE_TYPE_GPU = 1
        GGML_BACKEND_DEVICE_TYPE_IGPU = 2
        GGML_BACKEND_DEVICE_TYPE_ACCEL = 3
        GGML_BACKEND_DEVICE_TYPE_META = 4

    struct ggml_backend_dev_caps:
        bool async_ "async"
        bool host_buffer
        bool buffer_from_host_ptr
        bool events
        bool mmap_support

    struct ggml_backend_dev_props:
        const char * name
        const char * description
        size_t memory_free
        size_t memory_total
        ggml_backend_dev_type type
        const char * device_id
        ggml_backend_dev_caps caps

    const char * ggml_backend_dev_name(ggml_backend_dev_t device) except +translate
    const char * ggml_backend_dev_description(ggml_backend_dev_t device) except +translate
    void ggml_backend_dev_memory(ggml_backend_dev_t device, size_t * free, size_t * total) except +translate
    ggml_backend_dev_type ggml_backend_dev_get_type "ggml_backend_dev_type"(ggml_backend_dev_t device) except +translate
    void ggml_backend_dev_get_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) except +translate
    ggml_backend_reg_t ggml_backend_dev_backend_reg(ggml_backend_dev_t device) except +translate
    ggml_backend_t ggml_backend_dev_init(ggml_backend_dev_t device, const char * params) except +translate
    ggml_backend_buffer_type_t ggml_backend_dev_buffer_type(ggml_backend_dev_t device) except +translate
    ggml_backend_buffer_type_t ggml_backend_dev_host_buffer_type(ggml_backend_dev_t device) except +translate
    ggml_backend_buffer_t ggml_backend_dev_buffer_from_host_ptr(
        ggml_backend_dev_t device, void * ptr, size_t size, size_t max_tensor_size
    ) except +translate
    bool ggml_backend_dev_supports_op(ggml_backend_dev_t device, const ggml_tensor * op) except +translate
    bool ggml_backend_dev_supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft) except +translate
    bool ggml_backend_dev_offload_op(ggml_backend_dev_t device, const ggml_tensor * op) except +translate

    # Backend (reg)
    const char * ggml_backend_reg_name(ggml_backend_reg_t reg) except +translate
    size_t ggml_backend_reg_dev_count(ggml_backend_reg_t reg) except +translate
    ggml_backend_dev_t ggml_backend_reg_dev_get(ggml_backend_reg_t reg, size_t index) except +translate
    void * ggml_backend_reg_get_proc_address(ggml_backend_reg_t reg, const char * name) except +translate

    # Types of the functions that ggml_backend_reg_get_proc_address finds by name
    ctypedef void * (*ggml_backend_comm_init_t)(ggml_backend_t * backends, size_t n_backends) noexcept nogil
    ctypedef void (*ggml_backend_comm_free_t)(void * comm_ctx) noexcept nogil
    ctypedef bool (*ggml_backend_comm_allreduce_tensor_t)(void * comm_ctx, ggml_tensor ** tensors) noexcept nogil
    ctypedef ggml_backend_buffer_type_t (*ggml_backend_split_buffer_type_t)(
        int main_device, const float * tensor_split
    ) noexcept nogil
    ctypedef void (*ggml_backend_set_n_threads_t)(ggml_backend_t backend, int n_threads) noexcept nogil
    ctypedef ggml_backend_buffer_type_t * (*ggml_backend_dev_get_extra_bufts_t)(
        ggml_backend_dev_t device
    ) noexcept nogil
    ctypedef void (*ggml_backend_set_abort_callback_t)(
        ggml_backend_t backend, ggml_abort_callback abort_callback, void * abort_callback_data
    ) noexcept nogil

    struct ggml_backend_feature:
        const char * name
        const char * value

    ctypedef ggml_backend_feature * (*ggml_backend_get_features_t)(ggml_backend_reg_t reg) noexcept nogil

    # Backend registry
    void ggml_backend_register(ggml_backend_reg_t reg) except +translate
    void ggml_backend_device_register(ggml_backend_dev_t device) except +translate
    size_t ggml_backend_reg_count() except +translate
    ggml_backend_reg_t ggml_backend_reg_get(size_t index) except +translate
    ggml_backend_reg_t ggml_backend_reg_by_name(const char * name) except +translate
    size_t ggml_backend_dev_count() except +translate
    ggml_backend_dev_t ggml_backend_dev_get(size_t index) except +translate
    ggml_backend_dev_t ggml_backend_dev_by_name(const char * name) except +translate
    ggml_backend_dev_t ggml_backend_dev_by_type(ggml_backend_dev_type type) except +translate
    ggml_backend_t ggml_backend_init_by_name(const char * name, const char * params) except +translate
    ggml_backend_t ggml_backend_init_by_type(ggml_backend_dev_type type, const char * params) except +translate
    ggml_backend_t ggml_backend_init_best() except +translate

    # Loading and unloading backends at run time
    ggml_backend_reg_t ggml_backend_load(const char * path) except +translate
    void ggml_backend_unload(ggml_backend_reg_t reg) except +translate
    void ggml_backend_load_all() except +translate
    void ggml_backend_load_all_from_path(const char * dir_path) except +translate

    # Backend scheduler
    struct ggml_backend_sched

    ctypedef ggml_backend_sched * ggml_backend_sched_t
    ctypedef bool (*ggml_backend_sched_eval_callback)(ggml_tensor * t, bool ask, void * user_data) noexcept nogil

    ggml_backend_sched_t ggml_backend_sched_new(
        ggml_backend_t * backends, ggml_backend_buffer_type_t * bufts, int n_backends, size_t graph_size, bool parallel,
        bool op_offload
    ) except +translate
    void ggml_backend_sched_free(ggml_backend_sched_t sched) except +translate
    void ggml_backend_sched_reserve_size(
        ggml_backend_sched_t sched, ggml_cgraph * measure_graph, size_t * sizes
    ) except +translate
    bool ggml_backend_sched_reserve(ggml_backend_sched_t sched, ggml_cgraph * measure_graph) except +translate
    int ggml_backend_sched_get_n_backends(ggml_backend_sched_t sched) except +translate
    ggml_backend_t ggml_backend_sched_get_backend(ggml_backend_sched_t sched, int i) except +translate
    int ggml_backend_sched_get_n_splits(ggml_backend_sched_t sched) except +translate
    int ggml_backend_sched_get_n_copies(ggml_backend_sched_t sched) except +translate
    ggml_backend_buffer_type_t ggml_backend_sched_get_buffer_type(
        ggml_backend_sched_t sched, ggml_backend_t backend
    ) except +translate
    size_t ggml_backend_sched_get_buffer_size(ggml_backend_sched_t sched, ggml_backend_t backend) except +translate
    void ggml_backend_sched_set_tensor_backend(
        ggml_backend_sched_t sched, ggml_tensor * node, ggml_backend_t backend
    ) except +translate
    ggml_backend_t ggml_backend_sched_get_tensor_backend(
        ggml_backend_sched_t sched, ggml_tensor * node
    ) except +translate
    void ggml_backend_sched_split_graph(ggml_backend_sched_t sched, ggml_cgraph * graph) except +translate
    bool ggml_backend_sched_alloc_graph(ggml_backend_sched_t sched, ggml_cgraph * graph) except +translate
    ggml_status ggml_backend_sched_graph_compute(ggml_backend_sched_t sched, ggml_cgraph * graph) except +translate
    ggml_status ggml_backend_sched_graph_compute_async(
        ggml_backend_sched_t sched, ggml_cgraph * graph
    ) except +translate
    void ggml_backend_sched_synchronize(ggml_backend_sched_t sched) except +translate
    void ggml_backend_sched_reset(ggml_backend_sched_t sched) except +translate
    void ggml_backend_sched_set_eval_callback(
        ggml_backend_sched_t sched, ggml_backend_sched_eval_callback callback, void * user_data
    ) except +translate

    # Utils
    ggml_status ggml_backend_tensor_alloc(
        ggml_backend_buffer_t buffer, ggml_tensor * tensor, void * addr
    ) except +translate
    ggml_status ggml_backend_view_init(ggml_tensor * tensor) except +translate
    ggml_backend_buffer_t ggml_backend_cpu_buffer_from_ptr(void * ptr, size_t size) except +translate
    ggml_backend_buffer_type_t ggml_backend_cpu_buffer_type() except +translate

# llama-ext.h: upstream's staging header. What is here may change or go with any new version of llama.cpp.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint32_t
from libcpp cimport bool
from libcpp.map cimport map

from pyllm.includes._translate cimport translate
from pyllm.includes.ggml cimport ggml_cgraph, ggml_tensor, ggml_type
from pyllm.includes.ggml_backend cimport ggml_backend_buffer_type_t, ggml_backend_dev_t
from pyllm.includes.llama cimport llama_context, llama_ftype, llama_model, llama_model_quantize_params

cdef extern from "llama-ext.h" nogil:

    # Reserving a graph: valid until the next call
    ggml_cgraph * llama_graph_reserve(
        llama_context * ctx, uint32_t n_tokens, uint32_t n_seqs, uint32_t n_outputs
    ) except +translate

    # Which type each tensor is quantized to
    ggml_type llama_ftype_get_default_type(llama_ftype ftype) except +translate

    struct quantize_state_impl

    quantize_state_impl * llama_quant_init(
        const llama_model * model, const llama_model_quantize_params * params
    ) except +translate
    void llama_quant_free(quantize_state_impl * qs) except +translate

    struct llama_quant_model_desc:
        const char * architecture
        uint32_t n_embd
        uint32_t n_ff
        uint32_t n_layer
        uint32_t n_head
        uint32_t n_head_kv
        uint32_t n_expert
        uint32_t n_embd_head_k
        uint32_t n_embd_head_v

    llama_model * llama_quant_model_from_metadata(const llama_quant_model_desc * desc) except +translate
    bool llama_quant_tensor_allows_quantization(
        const quantize_state_impl * qs, const ggml_tensor * tensor
    ) except +translate
    void llama_quant_compute_types(
        quantize_state_impl * qs, llama_ftype ftype, ggml_tensor ** tensors, ggml_type * result_types, size_t n_tensors
    ) except +translate

    # Memory in bytes, for each buffer type
    struct llama_memory_breakdown_data:
        size_t model
        size_t context
        size_t compute

    struct llama_device_memory_data:
        int64_t total
        int64_t free
        llama_memory_breakdown_data mb

    ctypedef map[ggml_backend_buffer_type_t, llama_memory_breakdown_data] llama_memory_breakdown

    # Facts about a model
    int32_t llama_model_n_expert(const llama_model * model) except +translate
    int32_t llama_model_n_devices(const llama_model * model) except +translate
    ggml_backend_dev_t llama_model_get_device(const llama_model * model, int i) except +translate

    # Memory of a context
    llama_memory_breakdown llama_get_memory_breakdown(const llama_context * ctx) except +translate

    # Embeddings for multi-token prediction, and inputs of layers
    void llama_set_embeddings_nextn(llama_context * ctx, bool value, bool masked) except +translate
    void llama_set_nextn_layer_offset(llama_context * ctx, int32_t offset) except +translate
    float * llama_get_embeddings_nextn(llama_context * ctx) except +translate
    float * llama_get_embeddings_nextn_ith(llama_context * ctx, int32_t i) except +translate
    void llama_set_embeddings_layer_inp(llama_context * ctx, uint32_t lid, bool value) except +translate
    float * llama_get_embeddings_layer_inp(llama_context * ctx, uint32_t lid) except +translate
    llama_context * llama_get_ctx_other(llama_context * ctx) except +translate

    # Data of a model
    int32_t llama_model_dflash_selector_top_k(const llama_model * model) except +translate
    const int32_t * llama_model_target_layer_ids(const llama_model * model) except +translate
    uint32_t llama_model_target_layer_ids_n(const llama_model * model) except +translate
    uint32_t llama_model_get_tok_embd(const llama_model * model, float * out) except +translate

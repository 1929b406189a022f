# Declarations of common/fit.h: parameters that fit into the memory of devices. It is C++, and no part of llama.cpp's
# public interface; what we do not use is left out. `fit_params` of fit.hpp stands before `common_fit_params`.

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t

from pyllm.includes._translate cimport translate
from pyllm.includes.llama cimport llama_context_params, llama_model_params, llama_model_tensor_buft_override

cdef extern from "fit.h" nogil:
    cdef enum common_params_fit_status:
        COMMON_PARAMS_FIT_STATUS_SUCCESS
        COMMON_PARAMS_FIT_STATUS_FAILURE
        COMMON_PARAMS_FIT_STATUS_ERROR

cdef extern from "pyllm/core/fit.hpp" namespace "pyllm" nogil:
    common_params_fit_status fit_params(
        const char * path, llama_model_params * model, llama_context_params * context, float * tensor_split,
        llama_model_tensor_buft_override * overrides, size_t * margins, uint32_t n_ctx_min
    ) except +translate

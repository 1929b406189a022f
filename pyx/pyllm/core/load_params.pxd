"""llama_model_params, with the memory its pointers need."""

from pyllm.core.rpc cimport Connections
from pyllm.includes cimport llama as lib


cdef class LoadParams:
    cdef lib.llama_model_params c
    cdef object keep                                      # what the pointers in `c` point into
    cdef lib.llama_model_kv_override * kv_overrides
    cdef lib.llama_model_tensor_buft_override * buft_overrides
    cdef void ** devices
    cdef float * tensor_split
    cdef Connections connections                          # to RPC servers; None: all devices are here

    cdef int _set_tensor_split(self, list shares) except -1
    cdef int _set_devices(self, list names) except -1
    cdef int _set_kv_overrides(self, dict overrides) except -1
    cdef int _set_buft_overrides(self, dict overrides) except -1

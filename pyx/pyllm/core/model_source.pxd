"""Where a model comes from, when it is not one file."""

from libc.stdio cimport FILE

from pyllm.includes cimport gguf
from pyllm.includes cimport llama as lib


cdef class ModelSource:
    cdef readonly str name                    # for messages, and Model.path

    # The GIL is held; NULL, or an exception, when it fails.
    cdef lib.llama_model * load(self, lib.llama_model_params * params) except? NULL
    # After the load, before anything is computed.
    cdef int check(self) except -1


cdef class SplitSource(ModelSource):
    cdef list paths


cdef class FileSource(ModelSource):
    cdef object file


cdef class ArraySource(ModelSource):
    cdef gguf.gguf_context * metadata
    cdef dict data                            # name -> (contiguous array, shape); kept until the load is done
    cdef set used
    cdef list missing


cdef class AddressSource(ModelSource):
    cdef lib.llama_model * ptr


# Refuses weights of a type that no matrix multiplication knows. Frees `file`; NULL is not looked at.
cdef int check_tensor_types(gguf.gguf_context * file, str path) except -1

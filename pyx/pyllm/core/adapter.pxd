"""LoRA adapters and control vectors: what changes a model while a context runs."""

from pyllm.core.context cimport Context
from pyllm.core.model cimport Model
from pyllm.includes cimport llama as lib


cdef class LoraAdapter:
    cdef lib.llama_adapter_lora * ptr
    cdef readonly Model model              # must outlive the adapter, whose tensors lie beside its own
    cdef readonly str path                 # for messages
    cdef object contexts                   # WeakSet of those that use it: closing takes it out of them first
    cdef object __weakref__

    cdef lib.llama_adapter_lora * require(self) except NULL

cdef int apply_adapters(Context context, object adapters) except -1
cdef int remove_adapter(Context context, LoraAdapter adapter) except -1
cdef int apply_control_vector(Context context, object data, object il_start, object il_end) except -1

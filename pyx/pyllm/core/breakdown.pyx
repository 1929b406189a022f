"""How much memory a model and a context take, by kind of buffer (wraps ``llama_get_memory_breakdown``)."""

from dataclasses import dataclass

from cython.operator cimport dereference, preincrement
from libcpp.map cimport map

from pyllm.core.context cimport Context
from pyllm.includes cimport ggml_backend
from pyllm.includes cimport llama_ext as lib


@dataclass(frozen=True)
class BufferMemory:
    """Bytes in one kind of buffer.

    Attributes:
        buffer_type: Name of the buffer type, e.g. "CPU" or "CUDA0".
        device: Name of the device whose memory it is, or "host".
        model: Weights.
        context: KV cache or recurrent state, and outputs.
        compute: Room for intermediate results.
    """

    buffer_type: str
    device: str
    model: int
    context: int
    compute: int


def memory_breakdown(Context context not None):
    """Bytes that a context and its model take, one entry for each kind of buffer.

    With a model loaded with ``no_alloc=True`` these are the bytes they would take.

    Returns:
        list[BufferMemory]: In the order of the buffer types.

    Wraps ``llama_get_memory_breakdown``.
    """
    cdef lib.llama_memory_breakdown found
    cdef map[ggml_backend.ggml_backend_buffer_type_t, lib.llama_memory_breakdown_data].iterator entry
    context.acquire()
    try:
        found = lib.llama_get_memory_breakdown(context.require())
    finally:
        context.release()
    result = []
    entry = found.begin()
    while entry != found.end():
        data = dereference(entry).second
        name = (<bytes> ggml_backend.ggml_backend_buft_name(dereference(entry).first)).decode()
        device = _device_of(dereference(entry).first)
        result.append(BufferMemory(name, device, data.model, data.context, data.compute))
        preincrement(entry)
    return result


cdef str _device_of(ggml_backend.ggml_backend_buffer_type_t buft):
    cdef ggml_backend.ggml_backend_dev_t device = ggml_backend.ggml_backend_buft_get_device(buft)
    if ggml_backend.ggml_backend_buft_is_host(buft) or device == NULL:
        return "host"
    # Accelerators of the CPU, and buffers with weights in an order of its own, are memory of the host.
    if ggml_backend.ggml_backend_dev_get_type(device) in (
        ggml_backend.GGML_BACKEND_DEVICE_TYPE_CPU, ggml_backend.GGML_BACKEND_DEVICE_TYPE_ACCEL
    ):
        return "host"
    return (<bytes> ggml_backend.ggml_backend_dev_name(device)).decode()

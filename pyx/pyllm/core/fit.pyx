"""Parameters that fit into the memory of devices, as llama.cpp's own programs find them (wraps ``common/fit.h``)."""

import operator
import os
from dataclasses import dataclass

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from pyllm import errors
from pyllm.core import common as _  # no-cython-lint: it silences the log of llama-common
from pyllm.core cimport error, guard, log
from pyllm.core.arguments cimport c_text, int32
from pyllm.core.context_params cimport ContextArguments
from pyllm.core.load_params cimport LoadParams
from pyllm.includes cimport fit as lib_fit
from pyllm.includes cimport ggml_backend
from pyllm.includes cimport llama as lib

from pyllm.core import backend as _backend

cdef tuple CONTEXT_ARGUMENTS = (
    "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq", "n_outputs_max", "n_outputs_max_per_seq", "n_threads",
    "n_threads_batch", "ctx_type", "rope_scaling_type", "pooling_type", "attention_type", "flash_attn_type",
    "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow",
    "yarn_orig_ctx", "type_k", "type_v", "embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full",
    "kv_unified",
)


@dataclass(frozen=True)
class FitResult:
    """What llama.cpp proposes.

    Attributes:
        n_gpu_layers: Layers for the devices; negative means all.
        n_ctx: Size of the context in tokens.
        tensor_split: The share of each device; None where nothing is to be split.
        tensor_buft_overrides: Buffer types for tensors, by regular expression; empty where all go with their layer.
    """

    n_gpu_layers: int
    n_ctx: int
    tensor_split: tuple[float, ...] | None
    tensor_buft_overrides: dict[str, str]


cdef class _Buffers:
    """What llama.cpp writes its answer into."""

    cdef float * tensor_split
    cdef lib.llama_model_tensor_buft_override * overrides
    cdef size_t * margins

    def __cinit__(self):
        self.tensor_split = <float *> calloc(lib.llama_max_devices(), sizeof(float))
        self.overrides = <lib.llama_model_tensor_buft_override *> calloc(
            lib.llama_max_tensor_buft_overrides(), sizeof(lib.llama_model_tensor_buft_override)
        )
        self.margins = <size_t *> calloc(lib.llama_max_devices(), sizeof(size_t))
        if self.tensor_split == NULL or self.overrides == NULL or self.margins == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.tensor_split)
        free(self.overrides)
        free(self.margins)


def fit_params(path, *, margins, n_ctx_min=4096, model=None, context=None):
    """Find how many layers go to the devices, how they are split, and how long the context can be.

    The memory of the host is taken for unlimited where there are devices. Where there are none, only the context can
    be made smaller. Only what was left at its default is changed; the context where it is 0. Other threads may load
    and decode meanwhile, and two calls wait for each other.

    Args:
        path: The GGUF file.
        margins: Bytes to leave free on each device, in the order in which llama.cpp uses them; without a device, one
            number for the host, of whose whole memory it is taken.
        n_ctx_min: The context is not made smaller than this, in tokens.
        model: Arguments of :class:`pyllm.core.model.Model`, a dict.
        context: Arguments of :class:`pyllm.core.context.Context`, a dict.

    Returns:
        FitResult | None: None where nothing was found that fits.

    Raises:
        ModelLoadError: The file cannot be loaded, or no such context is possible; ``.log`` has llama.cpp's words.
        InvalidArgumentError: An argument is out of range.

    Wraps ``common_fit_params``.
    """
    cdef LoadParams load
    cdef ContextArguments arguments
    cdef _Buffers buffers = _Buffers()
    cdef lib_fit.common_params_fit_status status
    cdef uint32_t c_n_ctx_min
    cdef const char * c_path
    cdef Py_ssize_t i, n_devices = lib.llama_max_devices()
    encoded = c_text(os.fsencode(path), "the path")
    c_path = encoded
    _backend.load_backends()
    load = LoadParams(**(model or {}))
    given = dict.fromkeys(CONTEXT_ARGUMENTS) | (context or {})
    arguments = ContextArguments(**given)
    if given["n_ctx"] is None:
        arguments.c.n_ctx = 0
    if int32(n_ctx_min, "n_ctx_min") < 0:
        raise errors.InvalidArgumentError(f"n_ctx_min must be from 0 to 2147483647, not {n_ctx_min}")
    c_n_ctx_min = int32(n_ctx_min, "n_ctx_min")
    # In the limited API Cython cuts floats to integers.
    numbers = [operator.index(margin) for margin in margins]
    if len(numbers) > n_devices or not all([0 <= number < 1 << 62 for number in numbers]):
        raise errors.InvalidArgumentError(
            f"margins must be up to {n_devices} numbers of bytes >= 0, not {numbers}"
        )
    for i in range(len(numbers)):
        buffers.margins[i] = numbers[i]
    log.refresh()
    guard.enter()
    with nogil:
        guard.begin_native()
        try:
            status = lib_fit.fit_params(
                c_path, &load.c, &arguments.c, buffers.tensor_split, buffers.overrides, buffers.margins, c_n_ctx_min
            )
        finally:
            guard.end_native()
    if status == lib_fit.COMMON_PARAMS_FIT_STATUS_ERROR:
        error.fail(errors.ModelLoadError, f"{os.fsdecode(encoded)!r} could not be measured", "common_fit_params")
    if status == lib_fit.COMMON_PARAMS_FIT_STATUS_FAILURE:
        return None
    shares = [buffers.tensor_split[i] for i in range(n_devices)]
    while shares and shares[-1] == 0:
        shares.pop()
    return FitResult(load.c.n_gpu_layers, arguments.c.n_ctx, tuple(shares) or None, _overrides(buffers))


cdef dict _overrides(_Buffers buffers):
    cdef size_t i
    found = {}
    for i in range(lib.llama_max_tensor_buft_overrides()):
        if buffers.overrides[i].pattern == NULL:
            break
        found[(<bytes> buffers.overrides[i].pattern).decode()] = (
            <bytes> ggml_backend.ggml_backend_buft_name(buffers.overrides[i].buft)
        ).decode()
    return found

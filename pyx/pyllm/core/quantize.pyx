"""Model files in fewer bits (wraps ``llama_model_quantize``)."""

import os
import shutil
import tempfile

import numpy as np

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free

from pyllm import errors
from pyllm.core cimport error, guard, log
from pyllm.core.arguments cimport c_text, int32
from pyllm.core.load_params cimport LoadParams
from pyllm.core.tensor_types cimport tensor_type
from pyllm.includes cimport ggml
from pyllm.includes cimport llama as lib

from pyllm.core import backend as _backend
from pyllm.core.gguf import GGUFReader
from pyllm.core.text_limits import check_pattern

cdef dict NUMBERS = {
    "F32": <int> lib.LLAMA_FTYPE_ALL_F32,
    "F16": <int> lib.LLAMA_FTYPE_MOSTLY_F16,
    "BF16": <int> lib.LLAMA_FTYPE_MOSTLY_BF16,
    "Q8_0": <int> lib.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q6_K": <int> lib.LLAMA_FTYPE_MOSTLY_Q6_K,
    "Q5_K_M": <int> lib.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "Q5_K_S": <int> lib.LLAMA_FTYPE_MOSTLY_Q5_K_S,
    "Q5_0": <int> lib.LLAMA_FTYPE_MOSTLY_Q5_0,
    "Q5_1": <int> lib.LLAMA_FTYPE_MOSTLY_Q5_1,
    "Q4_K_M": <int> lib.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q4_K_S": <int> lib.LLAMA_FTYPE_MOSTLY_Q4_K_S,
    "Q4_0": <int> lib.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_1": <int> lib.LLAMA_FTYPE_MOSTLY_Q4_1,
    "IQ4_NL": <int> lib.LLAMA_FTYPE_MOSTLY_IQ4_NL,
    "IQ4_XS": <int> lib.LLAMA_FTYPE_MOSTLY_IQ4_XS,
    "Q3_K_L": <int> lib.LLAMA_FTYPE_MOSTLY_Q3_K_L,
    "Q3_K_M": <int> lib.LLAMA_FTYPE_MOSTLY_Q3_K_M,
    "Q3_K_S": <int> lib.LLAMA_FTYPE_MOSTLY_Q3_K_S,
    "IQ3_M": <int> lib.LLAMA_FTYPE_MOSTLY_IQ3_M,
    "IQ3_S": <int> lib.LLAMA_FTYPE_MOSTLY_IQ3_S,
    "IQ3_XS": <int> lib.LLAMA_FTYPE_MOSTLY_IQ3_XS,
    "IQ3_XXS": <int> lib.LLAMA_FTYPE_MOSTLY_IQ3_XXS,
    "Q2_K": <int> lib.LLAMA_FTYPE_MOSTLY_Q2_K,
    "Q2_K_S": <int> lib.LLAMA_FTYPE_MOSTLY_Q2_K_S,
    "IQ2_M": <int> lib.LLAMA_FTYPE_MOSTLY_IQ2_M,
    "IQ2_S": <int> lib.LLAMA_FTYPE_MOSTLY_IQ2_S,
    "IQ2_XS": <int> lib.LLAMA_FTYPE_MOSTLY_IQ2_XS,
    "IQ2_XXS": <int> lib.LLAMA_FTYPE_MOSTLY_IQ2_XXS,
    "IQ1_M": <int> lib.LLAMA_FTYPE_MOSTLY_IQ1_M,
    "IQ1_S": <int> lib.LLAMA_FTYPE_MOSTLY_IQ1_S,
    "TQ1_0": <int> lib.LLAMA_FTYPE_MOSTLY_TQ1_0,
    "TQ2_0": <int> lib.LLAMA_FTYPE_MOSTLY_TQ2_0,
    "MXFP4_MOE": <int> lib.LLAMA_FTYPE_MOSTLY_MXFP4_MOE,
    "NVFP4": <int> lib.LLAMA_FTYPE_MOSTLY_NVFP4,
    "Q1_0": <int> lib.LLAMA_FTYPE_MOSTLY_Q1_0,
    "Q2_0": <int> lib.LLAMA_FTYPE_MOSTLY_Q2_0,
}

#: What :func:`quantize` takes as `ftype`: the mixtures of types that llama.cpp knows, from many bits to few.
FTYPES = tuple(NUMBERS)

# Tensors of these types are copied: ggml cannot turn them into floats.
cdef frozenset NO_FLOATS = frozenset(("I8", "I16", "I32", "I64", "F64"))

# What ggml can search a grid for. Beyond it the sums of squares overflow, it finds no point, and a worker thread ends
# the process. Trained weights are below 1000, importances below 1e12.
cdef double MAX_WEIGHT = 1e8
cdef double MAX_IMPORTANCE = 1e16

# Formats of intermediate results: ggml has no quantization of weights to them.
cdef frozenset INTERMEDIATE = frozenset(("Q8_1", "Q8_K"))


cdef class _Parameters:
    """llama_model_quantize_params, with the memory its pointers need."""

    cdef lib.llama_model_quantize_params c
    cdef lib.llama_model_tensor_override * types
    cdef lib.llama_model_imatrix_data * imatrix
    cdef int32_t * layers
    cdef LoadParams overrides
    cdef list keep

    def __cinit__(self):
        self.types = NULL
        self.imatrix = NULL
        self.layers = NULL
        self.keep = []
        self.c = lib.llama_model_quantize_default_params()

    def __dealloc__(self):
        free(self.types)
        free(self.imatrix)
        free(self.layers)

    cdef int set_types(self, dict types) except -1:
        cdef bytes pattern
        self.types = <lib.llama_model_tensor_override *> calloc(
            len(types) + 1, sizeof(lib.llama_model_tensor_override)
        )
        if self.types == NULL:
            raise MemoryError()
        for i, (key, name) in enumerate(types.items()):
            pattern = c_text(key, "a pattern in tensor_types")
            check_pattern(pattern, "a pattern in tensor_types")  # std::regex says the rest
            self.keep.append(pattern)
            self.types[i].pattern = pattern
            self.types[i].type = <ggml.ggml_type> _type(name, "tensor_types")
        # The list ends with a pattern that is NULL.
        self.types[len(types)].type = ggml.GGML_TYPE_COUNT
        self.c.tt_overrides = self.types

    cdef int set_imatrix(self, dict imatrix) except -1:
        cdef const float[::1] view
        cdef bytes name
        self.imatrix = <lib.llama_model_imatrix_data *> calloc(
            len(imatrix) + 1, sizeof(lib.llama_model_imatrix_data)
        )
        if self.imatrix == NULL:
            raise MemoryError()
        for i, (key, values) in enumerate(imatrix.items()):
            name = c_text(key, "the name of a tensor in imatrix")
            array = np.ascontiguousarray(values, np.float32).reshape(-1)
            if not array.size or not np.isfinite(array).all() or array.min() < 0:
                raise errors.InvalidArgumentError(f"imatrix[{key!r}] must hold finite numbers >= 0, one for a column")
            if array.max() > MAX_IMPORTANCE:
                raise errors.InvalidArgumentError(
                    f"imatrix[{key!r}] holds {array.max():g}; at most {MAX_IMPORTANCE:g} can be computed with: scale it"
                )
            view = array
            self.keep.append((name, array))
            self.imatrix[i].name = name
            self.imatrix[i].data = &view[0]
            self.imatrix[i].size = array.size
        self.c.imatrix = self.imatrix

    cdef int set_layers(self, list layers) except -1:
        self.layers = <int32_t *> calloc(len(layers) + 1, sizeof(int32_t))
        if self.layers == NULL:
            raise MemoryError()
        for i, layer in enumerate(layers):
            self.layers[i] = layer
        self.layers[len(layers)] = -1
        self.c.prune_layers = self.layers


cdef int _type(name, str what) except -1:
    if isinstance(name, str) and name.upper() in NO_FLOATS | INTERMEDIATE:
        raise errors.InvalidArgumentError(f"{what}: weights cannot be quantized to {name}")
    try:
        return tensor_type(what, None, name)
    except errors.GGUFError as exception:
        raise errors.InvalidArgumentError(str(exception)) from None


def quantize(
    input, output, ftype="Q8_0", *, n_threads=0, output_tensor_type=None, token_embedding_type=None,
    allow_requantize=False, quantize_output_tensor=True, only_copy=False, pure=False, keep_split=False, dry_run=False,
    imatrix=None, kv_overrides=None, tensor_types=None, prune_layers=(), max_buf_size=None,
):
    """Write a model file in fewer bits.

    Other threads of Python run meanwhile. Ctrl-C is raised when llama.cpp is done: it cannot be interrupted here.

    Args:
        input: The model, best in F32, F16 or BF16. Of a split model, the first part.
        output: Where to. It appears when it is complete; a file that is there is replaced then.
        ftype: One of :data:`FTYPES`, e.g. "Q4_K_M".
        n_threads: Threads; 0 takes all CPUs.
        output_tensor_type: Type of the output matrix, e.g. "Q6_K".
        token_embedding_type: Type of the token embeddings.
        allow_requantize: Quantize tensors that are quantized already, which costs quality.
        quantize_output_tensor: Quantize the output matrix too.
        only_copy: Copy all tensors as they are.
        pure: All tensors in the same type, without llama.cpp's mixture.
        keep_split: Write as many parts as were read, named as :func:`pyllm.core.model_source.split_path` does.
        dry_run: Do everything but the work; nothing is written.
        imatrix: Importance of columns: a dict of tensor name to float32 array, one number for each column, or for
            each column of each expert. Types of very few bits need it.
        kv_overrides: Metadata to write, by key; values are int, float, bool or str.
        tensor_types: Types by regular expression on the tensor's name, e.g. ``{"ffn_down": "Q8_0"}``.
        prune_layers: Layers to leave out.
        max_buf_size: Most bytes of a tensor that are kept in memory at once; None takes llama.cpp's 8 GiB.

    Returns:
        list[str]: The files written; empty with dry_run.

    Raises:
        ModelNotFoundError: There is no such file.
        InvalidArgumentError: An argument is out of range, or output is the input.
        GGUFError: The input is not a model file.
        QuantizeError: A weight is larger than 1e8, for the IQ types, or llama.cpp could not do it; ``.log`` holds
            its own words. No file was written.

    Wraps ``llama_model_quantize``.

    Example:
        >>> quantize("model-f16.gguf", "model-q4_k_m.gguf", "Q4_K_M")
        ['model-q4_k_m.gguf']
    """
    cdef _Parameters parameters = _Parameters()
    cdef uint32_t code
    cdef const char * c_input
    cdef const char * c_output
    if not isinstance(ftype, str) or ftype.upper() not in NUMBERS:
        raise errors.InvalidArgumentError(f"ftype={ftype!r} is not one of {', '.join(FTYPES)}")
    source = os.fsdecode(input)
    target = os.fsdecode(output)
    parameters.c.ftype = <lib.llama_ftype> <int> NUMBERS[ftype.upper()]
    parameters.c.nthread = int32(n_threads, "n_threads")
    if not 0 <= parameters.c.nthread <= 512:
        raise errors.InvalidArgumentError(f"n_threads must be from 0 to 512, not {n_threads}")
    if output_tensor_type is not None:
        parameters.c.output_tensor_type = <ggml.ggml_type> _type(output_tensor_type, "output_tensor_type")
    if token_embedding_type is not None:
        parameters.c.token_embedding_type = <ggml.ggml_type> _type(token_embedding_type, "token_embedding_type")
    parameters.c.allow_requantize = allow_requantize
    parameters.c.quantize_output_tensor = quantize_output_tensor
    parameters.c.only_copy = only_copy
    parameters.c.pure = pure
    parameters.c.keep_split = keep_split
    parameters.c.dry_run = dry_run
    if max_buf_size is not None:
        if max_buf_size < 1:
            raise errors.InvalidArgumentError(f"max_buf_size must be at least 1, not {max_buf_size}")
        parameters.c.max_buf_size = max_buf_size
    if imatrix:
        parameters.set_imatrix(dict(imatrix))
    if tensor_types:
        parameters.set_types(dict(tensor_types))
    if kv_overrides:
        parameters.overrides = LoadParams(kv_overrides=kv_overrides)
        parameters.c.kv_overrides = parameters.overrides.kv_overrides
    kinds = [ftype, output_tensor_type, token_embedding_type, *dict(tensor_types or {}).values()]
    n_layer = _check_input(source, any([str(kind).upper().startswith("IQ") for kind in kinds]))
    layers = [int32(layer, "a layer") for layer in prune_layers]
    if any([not 0 <= layer < n_layer for layer in layers]):
        raise errors.InvalidArgumentError(f"prune_layers must be from 0 to {n_layer - 1}, not {layers}")
    if layers:
        parameters.set_layers(sorted(set(layers)))
    if os.path.exists(target) and os.path.samefile(source, target):
        raise errors.InvalidArgumentError(f"the output {target!r} is the input: llama.cpp reads while it writes")
    encoded_input = c_text(os.fsencode(source), "the path")
    c_input = encoded_input

    _backend.load_backends()
    log.refresh()
    real = os.path.realpath(target)
    # In the same folder, so that the result can be moved into place in one step.
    folder = tempfile.mkdtemp(prefix=".pyllm-", dir=os.path.dirname(real))
    try:
        encoded_output = c_text(os.fsencode(os.path.join(folder, os.path.basename(real))), "the path")
        c_output = encoded_output
        guard.enter()
        with nogil:
            guard.begin_native()
            try:
                code = lib.llama_model_quantize(c_input, c_output, &parameters.c)
            finally:
                guard.end_native()
        PyErr_CheckSignals()
        error.check(
            <int> code, "llama_model_quantize", errors.QuantizeError, f"{source!r} could not be quantized to {ftype}"
        )
        written = []
        for name in sorted(os.listdir(folder)):
            with GGUFReader(os.path.join(folder, name)):
                written.append(name)  # complete: the disk was not full
        for name in written:
            os.replace(os.path.join(folder, name), os.path.join(os.path.dirname(real), name))
        return [
            target if name == os.path.basename(real) else os.path.join(os.path.dirname(target), name)
            for name in written
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_input(source, searches_grid):
    """The number of layers; refuses what a worker thread of llama.cpp would die of."""
    with GGUFReader(source) as file:
        arch = file.metadata.get("general.architecture")
        for tensor in file.tensors:
            if tensor.type in NO_FLOATS and tensor.name.endswith(".weight") and "tid2eid" not in tensor.name:
                raise errors.GGUFError(f"{source!r} is damaged: {tensor.name} is of type {tensor.type}")
            if searches_grid and tensor.type in ("F32", "BF16", "MXFP4", "NVFP4"):
                values = file.tensor(tensor.name, dequantize=tensor.type != "F32")
                peak = max(-float(values.min()), float(values.max())) if values.size else 0.0
                if peak > MAX_WEIGHT:
                    raise errors.QuantizeError(
                        f"{source!r} is damaged: {tensor.name} holds a weight of {peak:g}, and types such as IQ2_XXS "
                        f"take at most {MAX_WEIGHT:g}"
                    )
        n_layer = file.metadata.get(f"{arch}.block_count", 0)
        return n_layer if isinstance(n_layer, int) else 0

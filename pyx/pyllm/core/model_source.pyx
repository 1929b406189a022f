"""Models from elsewhere than one file: several files, an open file, NumPy arrays.

What is behind ``Model.from_splits``, ``Model.from_file`` and ``Model.from_arrays``.
"""

import os

import numpy as np

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdio cimport FILE
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from pyllm import errors
from pyllm.core.introspection import not_pickled, signature
from pyllm.core cimport error, guard
from pyllm.core.arguments cimport c_text, int32, pointer
from pyllm.core.gguf_values cimport c_string, set_value
from pyllm.core.streams cimport Stream, open_stream
from pyllm.core.tensor_types cimport tensor_data, tensor_type
from pyllm.includes cimport ggml, ggml_backend, gguf
from pyllm.includes cimport llama as lib

cdef dict INTEGER_TYPES = {
    <int> ggml.GGML_TYPE_I8: "i8",
    <int> ggml.GGML_TYPE_I16: "i16",
    <int> ggml.GGML_TYPE_I32: "i32",
    <int> ggml.GGML_TYPE_I64: "i64",
    <int> ggml.GGML_TYPE_F64: "f64",
}


cdef gguf.gguf_init_params _no_tensors() noexcept:
    cdef gguf.gguf_init_params params
    params.no_alloc = True
    params.ctx = NULL
    guard.enter()
    return params


cdef int _check_type(int kind, str name, str path) except -1:
    # Tables of expert ids are integers; everything else that is called a weight is multiplied.
    if kind in INTEGER_TYPES and name.endswith(".weight") and "tid2eid" not in name:
        raise errors.ModelLoadError(
            f"{path!r} is damaged: {name} is of type {INTEGER_TYPES[kind]}, which weights never are"
        )
    # Whatever wrote the file kept these in full: no kernel of the CPU multiplies with others.
    if name.endswith("_norm.weight") and kind != <int> ggml.GGML_TYPE_F32:
        raise errors.ModelLoadError(f"{path!r} is damaged: {name} is not of type f32, which norms always are")
    return 0


cdef int check_tensor_types(gguf.gguf_context * file, str path) except -1:
    cdef int64_t i
    if file == NULL:
        return 0  # llama.cpp has read it in another way, and that is what counts
    try:
        for i in range(gguf.gguf_get_n_tensors(file)):
            name = (<bytes> gguf.gguf_get_tensor_name(file, i)).decode("utf-8", "replace")
            _check_type(<int> gguf.gguf_get_tensor_type(file, i), name, path)
    finally:
        gguf.gguf_free(file)
    return 0


cdef class ModelSource:
    """Where a model comes from. Made by the class methods of Model."""

    __reduce__ = not_pickled("the file or the arrays belong to this process")

    cdef lib.llama_model * load(self, lib.llama_model_params * params) except? NULL:
        raise TypeError("a ModelSource is made by Model.from_splits, from_file or from_arrays")

    cdef int check(self) except -1:
        return 0


cdef class AddressSource(ModelSource):
    """A model that C code has loaded."""

    __signature__ = signature

    def __init__(self, address):
        self.ptr = <lib.llama_model *> <uintptr_t> pointer(address, "a llama_model")
        self.name = f"llama_model at {address:#x}"

    cdef lib.llama_model * load(self, lib.llama_model_params * params) except? NULL:
        return self.ptr


cdef class SplitSource(ModelSource):
    """The parts of a model, under any names."""

    __signature__ = signature

    def __cinit__(self, paths):
        if isinstance(paths, (str, bytes, os.PathLike)):
            raise TypeError("paths is a list of paths; a first part with a usual name can be given to Model itself")
        self.paths = [os.fsencode(path) for path in paths]
        if not self.paths:
            raise errors.InvalidArgumentError("paths is empty: a model has at least one part")
        self.name = os.fsdecode(self.paths[0])
        for path in self.paths:
            c_text(path, "a path")
            try:
                with open(path, "rb") as file:
                    magic = file.read(4)
            except FileNotFoundError as cause:
                raise errors.ModelNotFoundError(
                    cause.errno, f"there is no model file {os.fsdecode(path)!r}", os.fsdecode(path)
                ) from None
            except OSError as cause:
                raise errors.ModelLoadError(
                    cause.errno, f"{os.fsdecode(path)!r} cannot be read: {cause.strerror}", os.fsdecode(path)
                ) from cause
            if magic != b"GGUF":
                raise errors.ModelLoadError(f"{os.fsdecode(path)!r} is not a GGUF file: it begins with {magic!r}")

    def __reduce__(self):
        return SplitSource, ([os.path.abspath(path) for path in self.paths],)

    cdef lib.llama_model * load(self, lib.llama_model_params * params) except? NULL:
        cdef size_t n = len(self.paths)
        cdef size_t i
        cdef lib.llama_model * model
        cdef const char ** c_paths = <const char **> malloc(n * sizeof(char *))
        if c_paths == NULL:
            raise MemoryError()
        try:
            for i in range(n):
                c_paths[i] = <const char *> <bytes> self.paths[i]
            with nogil:
                guard.begin_native()
                try:
                    model = lib.llama_model_load_from_splits(c_paths, n, params[0])
                finally:
                    guard.end_native()
            return model
        finally:
            free(c_paths)

    cdef int check(self) except -1:
        cdef const char * c_path
        for path in self.paths:
            c_path = path
            check_tensor_types(gguf.gguf_init_from_file(c_path, _no_tensors()), os.fsdecode(path))
        return 0


cdef class FileSource(ModelSource):
    """An open file, read from where it stands."""

    __signature__ = signature

    def __cinit__(self, file):
        self.file = file
        self.name = str(getattr(file, "name", "an open file"))

    cdef lib.llama_model * load(self, lib.llama_model_params * params) except? NULL:
        cdef Stream stream = open_stream(self.file)
        cdef FILE * c_file = stream.ptr
        cdef lib.llama_model * model
        try:
            with nogil:
                guard.begin_native()
                try:
                    model = lib.llama_model_load_from_file_ptr(c_file, params[0])
                finally:
                    guard.end_native()
            return model
        finally:
            stream.close()

    cdef int check(self) except -1:
        cdef Stream stream = open_stream(self.file)
        try:
            return check_tensor_types(gguf.gguf_init_from_file_ptr(stream.ptr, _no_tensors()), self.name)
        finally:
            stream.close()


cdef void set_tensor_data(ggml.ggml_tensor * tensor, void * user_data) noexcept nogil:
    if guard.begin_python():
        _fill(tensor, user_data)
        guard.end_python()


cdef void _fill(ggml.ggml_tensor * tensor, void * user_data) noexcept with gil:
    self = <ArraySource> user_data
    try:
        self.fill(<size_t> tensor)
    except BaseException as exception:
        error.stash(exception)


@cython.no_gc_clear
cdef class ArraySource(ModelSource):
    """Metadata and NumPy arrays."""

    __signature__ = signature

    def __cinit__(self, metadata, tensors):
        cdef int number
        self.metadata = NULL
        self.name = "<arrays>"
        self.data = {}
        self.used = set()
        self.missing = []
        guard.enter()
        self.metadata = gguf.gguf_init_empty()
        if self.metadata == NULL:
            raise MemoryError()
        for key, value in metadata.items():
            name = c_string(key, "a key")
            if not name:
                raise errors.GGUFError("a key of the metadata is empty")
            try:
                set_value(self.metadata, name, value, None)
            except (TypeError, ValueError, OverflowError) as exception:
                if isinstance(exception, errors.PyllmError):
                    raise
                raise errors.GGUFError(f"{key}: {exception}") from exception
        for name, value in tensors.items():
            array, type = value if isinstance(value, tuple) else (value, None)
            array = np.atleast_1d(np.asarray(array))
            encoded = c_string(name, "the name of a tensor")
            if not 0 < len(encoded) < ggml.GGML_MAX_NAME or not 1 <= array.ndim <= 4 or array.size == 0:
                raise errors.GGUFError(
                    f"tensor {name!r} has shape {array.shape}: names have 1 to {ggml.GGML_MAX_NAME - 1} bytes, "
                    "tensors 1 to 4 dimensions and at least one element"
                )
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            number = tensor_type(name, array.dtype, type)
            _check_type(number, name, self.name)
            data, shape = tensor_data(name, array, number, None)
            self.data[name] = (data, _squeezed(shape))
            _add_tensor(self.metadata, encoded, number, shape)
            if name == "token_embd.weight" and "output.weight" not in tensors:
                # Tied: the output matrix is that of the embeddings, in their type.
                _add_tensor(self.metadata, b"output.weight", number, shape)

    def __dealloc__(self):
        if self.metadata != NULL:
            gguf.gguf_free(self.metadata)
            self.metadata = NULL

    def fill(self, address):
        """Copy the array for a tensor that llama.cpp has just made."""
        cdef ggml.ggml_tensor * tensor = <ggml.ggml_tensor *> <size_t> address
        cdef Py_buffer view
        name = (<bytes> tensor.name).decode("utf-8", "replace")
        shape = _squeezed(tuple([tensor.ne[3], tensor.ne[2], tensor.ne[1], tensor.ne[0]]))
        if name in self.data:
            array, found = self.data[name]
            if found != shape:
                raise errors.ModelLoadError(f"tensor {name!r} has the shape {found}, and must have {shape}")
            self.used.add(name)
        elif name.endswith(".bias"):
            # llama.cpp makes every tensor that a model of this architecture may have.
            array = np.zeros(shape, np.float32)
        elif name.endswith(("_scale", ".scale")) or name.startswith("rope_freqs"):
            array = np.ones(shape, np.float32)
        elif name == "output.weight" and "token_embd.weight" in self.data:
            array = self.data["token_embd.weight"][0]  # tied
        else:
            self.missing.append((name, shape))
            return
        if <size_t> array.nbytes != ggml.ggml_nbytes(tensor):
            raise errors.ModelLoadError(
                f"tensor {name!r} has {array.nbytes} bytes, and must have {ggml.ggml_nbytes(tensor)}"
            )
        PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
        try:
            ggml_backend.ggml_backend_tensor_set(tensor, view.buf, 0, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef lib.llama_model * load(self, lib.llama_model_params * params) except? NULL:
        cdef lib.llama_model * model
        with nogil:
            guard.begin_native()
            try:
                model = lib.llama_model_init_from_user(self.metadata, set_tensor_data, <void *> self, params[0])
            finally:
                guard.end_native()
        return model

    cdef int check(self) except -1:
        if self.missing:
            raise errors.ModelLoadError(
                "these tensors are missing: " + ", ".join([f"{name} {shape}" for name, shape in self.missing[:8]])
                + (f" and {len(self.missing) - 8} more" if len(self.missing) > 8 else "")
            )
        unused = sorted(set(self.data) - self.used)
        if unused:
            raise errors.ModelLoadError(f"a model of this architecture has no tensors {', '.join(unused[:8])}")
        self.data = {}
        return 0


cdef tuple _squeezed(tuple shape):
    shape = tuple([int(n) for n in shape])
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


cdef int _add_tensor(gguf.gguf_context * ctx, bytes name, int number, tuple shape) except -1:
    cdef ggml.ggml_tensor tensor
    cdef int i, n_dims = len(shape)
    # Only name, type and shape of it are read; strides are what its size is computed from.
    memset(&tensor, 0, sizeof(tensor))
    tensor.type = <ggml.ggml_type> number
    for i in range(4):
        tensor.ne[i] = shape[n_dims - 1 - i] if i < n_dims else 1
    tensor.nb[0] = ggml.ggml_type_size(tensor.type)
    tensor.nb[1] = ggml.ggml_row_size(tensor.type, tensor.ne[0])
    for i in range(2, 4):
        tensor.nb[i] = tensor.nb[i - 1] * tensor.ne[i - 1]
    ggml.ggml_set_name(&tensor, name)
    guard.enter()
    gguf.gguf_add_tensor(ctx, &tensor)
    return 0


def split_path(prefix, split_no, split_count):
    """The usual path of one part of a split model: ``prefix-00002-of-00004.gguf``.

    Args:
        prefix: Path without the numbers.
        split_no: Which part, from 0.
        split_count: How many there are.

    Raises:
        InvalidArgumentError: There is no such part.

    Wraps ``llama_split_path``.
    """
    cdef int32_t c_no = int32(split_no, "split_no")
    cdef int32_t c_count = int32(split_count, "split_count")
    cdef int32_t n
    cdef char * buffer
    if not 0 <= c_no < c_count:
        raise errors.InvalidArgumentError(f"split_no must be from 0 to {c_count - 1}, not {c_no}")
    encoded = c_text(os.fsencode(prefix), "the prefix")
    target = bytearray(len(encoded) + 64)
    buffer = target
    n = lib.llama_split_path(buffer, len(target), encoded, c_no, c_count)
    return os.fsdecode(bytes(target[:n]))


def split_prefix(path, split_no, split_count):
    """The prefix of the path of a part, or None when the path is not that of this part.

    Args:
        path: The path of the part.
        split_no: Which part, from 0.
        split_count: How many there are.

    Wraps ``llama_split_prefix``.
    """
    cdef int32_t c_no = int32(split_no, "split_no")
    cdef int32_t c_count = int32(split_count, "split_count")
    cdef int32_t n
    cdef char * buffer
    encoded = c_text(os.fsencode(path), "the path")
    target = bytearray(len(encoded) + 64)
    buffer = target
    n = lib.llama_split_prefix(buffer, len(target), encoded, c_no, c_count)
    return None if n <= 0 else os.fsdecode(bytes(target[:n]))

"""GGUF files: metadata and tensors, read and written through llama.cpp's own ``gguf.h``.

A reader maps the file, lets llama.cpp parse the header from the mapping, turns all of it into Python values
at once and frees the C object: nothing of it has to stay alive. Tensors are NumPy arrays on the mapping.
"""

import mmap
import os
import secrets
import stat
import struct
from dataclasses import dataclass

import numpy as np

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t

from pyllm import errors
from pyllm.core.tensor_types import TENSOR_TYPES  # no-cython-lint

from pyllm.core cimport error, guard
from pyllm.core.gguf_values cimport c_string, name_of, read_metadata, set_value
from pyllm.core.tensor_types cimport tensor_array, tensor_data, tensor_type
from pyllm.includes cimport ggml as lib_ggml
from pyllm.includes cimport gguf as lib

# The callback that collects llama.cpp's explanations is installed by this module.
import pyllm.core.log  # no-cython-lint
from pyllm.core.introspection import not_pickled, signature

# The C++ parser keeps what it reads in objects several times the size they have in the file. Real headers stay
# under 64 MiB and 10,000 tensors; these bounds keep a hostile file of many gigabytes from filling the memory.
cdef Py_ssize_t MAX_HEADER = 128 << 20
cdef object MAX_ENTRIES = 1 << 20

# magic, version, number of tensors, number of key-value pairs
cdef object HEADER = struct.Struct("<4sIqq")

DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies in a GGUF file and how to read it.

    Attributes:
        name: Its name, for example ``blk.0.attn_q.weight``.
        shape: Number of elements in each dimension, slowest first as in NumPy (GGUF stores the reverse).
            Dimensions of 1 in front are not kept by the format.
        type: Name of the ggml type, for example ``F32`` or ``Q4_K``.
        offset: Position of its first byte in the file.
        nbytes: Its size in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


cdef class GGUFReader:
    """The metadata and tensors of a GGUF file.

    Args:
        path: The file.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelLoadError: It is not a regular file, or cannot be read.
        GGUFError: It is not a well-formed GGUF file, or shorter than its header says.

    Everything in the header is read and checked when the object is made. Files are little-endian. Of a model in
    several files each is read on its own: ``split.no`` and ``split.count`` in its metadata say which part it is, and
    ``split.tensors.count`` how many tensors all have. Wraps `gguf_init_from_buffer`.

    >>> with GGUFReader("model.gguf") as file:  # doctest: +SKIP
    ...     file.metadata["general.architecture"], file.tensors[0].shape
    ('llama', (49152, 576))
    """

    __reduce__ = not_pickled("it reads an open file; open the file again by its path")
    __signature__ = signature

    cdef readonly str path
    cdef object map        # None once closed; arrays given out keep it alive themselves
    cdef object bytes_     # the whole file as a read-only uint8 array
    cdef dict metadata_
    cdef tuple tensors_
    cdef dict by_name
    cdef int version_
    cdef size_t alignment_
    cdef size_t data_offset_
    cdef object __weakref__

    def __cinit__(self, path):
        self.path = os.fsdecode(path)
        self.map = _map_file(self.path)
        self.bytes_ = np.frombuffer(self.map, dtype=np.uint8)
        self._parse()

    cdef int _parse(self) except -1:
        cdef lib.gguf_context * ctx = NULL
        cdef lib.gguf_init_params params
        cdef Py_buffer buffer
        cdef Py_ssize_t size = min(len(self.bytes_), MAX_HEADER)
        _check_header(self.path, self.bytes_[:HEADER.size].tobytes())
        params.no_alloc = True
        params.ctx = NULL
        PyObject_GetBuffer(self.bytes_, &buffer, PyBUF_SIMPLE)
        try:
            with nogil:
                guard.enter()
                ctx = lib.gguf_init_from_buffer(buffer.buf, size, params)
        finally:
            PyBuffer_Release(&buffer)
        error.not_null(ctx, "gguf_init_from_buffer", errors.GGUFError, f"{self.path}: not a well-formed GGUF file")
        try:
            self.version_ = lib.gguf_get_version(ctx)
            self.alignment_ = lib.gguf_get_alignment(ctx)
            self.data_offset_ = lib.gguf_get_data_offset(ctx)
            self.metadata_ = read_metadata(ctx)
            self.tensors_ = _read_tensors(ctx)
        finally:
            lib.gguf_free(ctx)
        for tensor in self.tensors_:
            if tensor.offset + tensor.nbytes > len(self.bytes_):
                raise errors.GGUFError(
                    f"{self.path}: the file is cut off: tensor {tensor.name!r} ends at byte "
                    f"{tensor.offset + tensor.nbytes}, the file at byte {len(self.bytes_)}"
                )
        self.by_name = {tensor.name: tensor for tensor in self.tensors_}
        return 0

    cdef int require(self) except -1:
        if self.map is None:
            raise errors.ClosedError(f"the GGUF file {self.path} was closed")
        return 0

    @property
    def metadata(self):
        """The key-value pairs, in file order (dict).

        Numbers, bool and str as such; arrays of numbers as NumPy arrays of the stored type, arrays of strings
        as lists. A string that is not UTF-8 is bytes.
        """
        self.require()
        return self.metadata_

    @property
    def tensors(self):
        """The tensors, in file order (tuple of TensorInfo)."""
        self.require()
        return self.tensors_

    @property
    def version(self):
        """Version of the format: 2 or 3 (int)."""
        self.require()
        return self.version_

    @property
    def alignment(self):
        """Every tensor starts at a multiple of this from ``data_offset``, in bytes (int)."""
        self.require()
        return self.alignment_

    @property
    def data_offset(self):
        """Position in the file where the data of the tensors starts (int)."""
        self.require()
        return self.data_offset_

    def tensor(self, name, *, dequantize=False):
        """The data of a tensor.

        Args:
            name: Its name.
            dequantize: Convert to float32.

        Returns:
            Without `dequantize` a read-only array on the mapped file, with no copy: in the shape of the tensor for
            types NumPy knows, else the raw rows as uint8, ``(*shape[:-1], bytes_per_row)``. It stays valid after
            the reader is closed. With `dequantize` a new float32 array in the shape of the tensor.

        Raises:
            GGUFError: There is no tensor of that name, or no conversion of its type to float32.
            ClosedError: The reader was closed.

        As with every mapped file, the file must not be cut short while the array is in use.
        """
        self.require()
        info = self.by_name.get(name)
        if info is None:
            count = self.metadata_.get("split.count", 0)
            part = f"; it is part {self.metadata_.get('split.no', 0) + 1} of {count} of a model" if count > 1 else ""
            raise errors.GGUFError(
                f"{self.path}: there is no tensor {name!r} among its {len(self.tensors_)} tensors{part}"
            )
        raw = self.bytes_[info.offset : info.offset + info.nbytes]
        try:
            return tensor_array(raw, info.type, info.shape, dequantize)
        except ValueError as exception:
            if isinstance(exception, errors.PyllmError):
                raise
            # Only tensors without elements come here: their other dimensions may be larger than NumPy allows.
            raise errors.GGUFError(f"{self.path}: tensor {name!r} of shape {info.shape}: {exception}") from exception

    def close(self):
        """Give up the mapping. Arrays from :meth:`tensor` stay valid. Closing twice is fine."""
        self.bytes_ = None
        self.map = None

    @property
    def closed(self):
        """Whether the reader was closed (bool)."""
        return self.map is None

    def __enter__(self):
        self.require()
        return self

    def __exit__(self, *exception):
        self.close()

    def __repr__(self):
        if self.map is None:
            return f"<GGUFReader {self.path!r}, closed>"
        return f"<GGUFReader {self.path!r}: {len(self.metadata_)} keys, {len(self.tensors_)} tensors>"


cdef class GGUFWriter:
    """Collects metadata and tensors and writes them as a GGUF file.

    Args:
        alignment: Where tensors may start, in bytes; a power of two.

    Nothing is written before :meth:`write`, which may be called more than once.
    Wraps `gguf_set_val_*`, `gguf_set_arr_*`, `gguf_add_tensor` and `gguf_get_meta_data`.

    >>> import numpy as np
    >>> writer = GGUFWriter()
    >>> writer.add("general.architecture", "llama")
    >>> writer.add("llama.block_count", 2)
    >>> writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32), type="Q8_0")
    """

    __reduce__ = not_pickled("it may refer to files; write the file, and pickle its path")
    __signature__ = signature

    cdef lib.gguf_context * ptr
    cdef list data              # what the tensors are made of, in order
    cdef size_t alignment
    cdef object __weakref__

    def __cinit__(self, *, alignment=DEFAULT_ALIGNMENT):
        self.ptr = NULL
        self.data = []
        if not 0 < alignment < 1 << 31 or alignment & (alignment - 1):
            raise errors.GGUFError(f"alignment is {alignment!r} but must be a power of two below 2**31")
        self.alignment = alignment
        self.ptr = _new_context(alignment)

    def __dealloc__(self):
        if self.ptr != NULL:
            lib.gguf_free(self.ptr)
            self.ptr = NULL

    def add(self, key, value, type=None):
        """Add a key-value pair. A key that is there already is replaced.

        Args:
            key: Its name, for example ``general.name``.
            value: A number, bool, str or bytes, or a list or one-dimensional array of one of these.
            type: Type in the file: ``uint8`` … ``int64``, ``float32``, ``float64``, ``bool`` or ``string``;
                for a list, the type of its elements. None chooses: an int becomes uint32, or the first of int32,
                int64 and uint64 that holds it; ints in a list int32, int64 or uint64; a float float32;
                an array keeps its dtype. ``array`` is None for lists alone.

        Raises:
            GGUFError: The key is empty, or the value does not fit the type.
        """
        name = c_string(key, "a key")
        if not 0 < len(name) < 1 << 16:
            raise errors.GGUFError(f"a key must have 1 to 65535 bytes, not {len(name)}")
        if name == b"general.alignment":
            raise errors.GGUFError("general.alignment is set with GGUFWriter(alignment=...)")
        try:
            with cython.critical_section(self):
                set_value(self.ptr, name, value, type)
        except (TypeError, ValueError, OverflowError) as exception:
            if isinstance(exception, errors.PyllmError):
                raise
            raise errors.GGUFError(f"{key}: {exception}") from exception

    def add_tensor(self, name, array, type=None, imatrix=None):
        """Add a tensor.

        Args:
            name: Its name, at most 63 bytes.
            array: The elements, one to four dimensions, in NumPy order. A float32, float16, float64 or
                int8 … int64 array of native byte order that needs no conversion is kept, not copied:
                do not change it before :meth:`write`.
            type: A tensor type such as ``F16``, ``Q8_0`` or ``Q4_K``; None keeps the dtype of the array. A uint8
                array with a quantized type is taken as rows that are quantized already, as
                ``GGUFReader.tensor`` gives them.
            imatrix: How much each column matters, as :func:`pyllm.core.ggml_types.quantize` takes it; some types
                need it.

        Raises:
            GGUFError: The name is taken, the row length is not a multiple of the type's block, or the values
                cannot be converted.
        """
        encoded = c_string(name, "the name of a tensor")
        if not 0 < len(encoded) < lib_ggml.GGML_MAX_NAME:
            raise errors.GGUFError(
                f"the name of a tensor must have 1 to {lib_ggml.GGML_MAX_NAME - 1} bytes, not {len(encoded)}: {name!r}"
            )
        array = np.atleast_1d(np.asarray(array))
        if array.ndim > lib_ggml.GGML_MAX_DIMS or array.size == 0:
            raise errors.GGUFError(
                f"tensor {name!r} has shape {array.shape}; at most {lib_ggml.GGML_MAX_DIMS} dimensions "
                "and at least one element are possible"
            )
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        cdef int number = tensor_type(name, array.dtype, type)
        data, shape = tensor_data(name, array, number, imatrix)
        with cython.critical_section(self):
            taken = lib.gguf_find_tensor(self.ptr, encoded) >= 0
            if not taken:
                _add_tensor_info(self.ptr, encoded, number, shape)
                self.data.append(data)
        if taken:
            raise errors.GGUFError(f"there is a tensor {name!r} already")

    def write(self, path):
        """Write the file.

        Args:
            path: Where to. A file that is there is replaced in one step once the new one is complete;
                when anything fails it stays as it was, and nothing else is left behind.

        Raises:
            OSError: The file cannot be written.
        """
        with cython.critical_section(self):
            header = _metadata_bytes(self.ptr)
            tensors = list(self.data)

        # A symbolic link stays one: what it points to is replaced.
        target = os.path.realpath(os.fsdecode(path))
        temporary = os.path.join(os.path.dirname(target), f".pyllm-{secrets.token_hex(8)}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(header)
                for data in tensors:
                    # The view as bytes lets the file write the memory of the array itself.
                    file.write(memoryview(data).cast("B"))
                    file.write(bytes(-data.nbytes % self.alignment))
            os.replace(temporary, target)
        except BaseException as exception:
            try:
                os.unlink(temporary)
            except OSError:
                pass
            if isinstance(exception, OSError) and exception.filename is not None:
                exception.filename, exception.filename2 = os.fsdecode(path), None
            raise

    def __repr__(self):
        return f"<GGUFWriter: {lib.gguf_get_n_kv(self.ptr)} keys, {len(self.data)} tensors>"


# Reading

cdef object _map_file(str path):
    try:
        # Opening a pipe would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise errors.ModelLoadError(f"{path} is not a regular file")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise errors.GGUFError(f"{path}: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as exception:
        raise errors.ModelNotFoundError(f"there is no file {path}") from exception
    except errors.PyllmError:
        raise
    except (OSError, ValueError) as exception:
        raise errors.ModelLoadError(f"{path} cannot be read: {exception}") from exception


cdef int _check_header(str path, bytes start) except -1:
    # Magic and version are left to llama.cpp, which explains them well.
    if len(start) == HEADER.size:
        magic, version, n_tensors, n_kv = HEADER.unpack(start)
        if magic == b"GGUF" and 0 < int.from_bytes(start[4:8], "big") <= lib.GGUF_VERSION:
            raise errors.GGUFError(
                f"{path}: the file is big-endian, and this machine reads little-endian ones; gguf-py converts it: "
                "gguf-convert-endian FILE little"
            )
        for what, count in (("tensors", n_tensors), ("key-value pairs", n_kv)):
            if magic == b"GGUF" and version in (2, 3) and not 0 <= count <= MAX_ENTRIES:
                raise errors.GGUFError(
                    f"{path}: the header speaks of {count} {what}; at most {MAX_ENTRIES} are believed"
                )
    return 0


cdef tuple _read_tensors(const lib.gguf_context * ctx):
    cdef int64_t i
    cdef int dim, n_dims
    cdef const int64_t * ne
    data_offset = lib.gguf_get_data_offset(ctx)
    tensors = []
    for i in range(lib.gguf_get_n_tensors(ctx)):
        ne = lib.gguf_get_tensor_ne(ctx, i)
        n_dims = lib_ggml.GGML_MAX_DIMS
        while n_dims > 1 and ne[n_dims - 1] == 1:
            n_dims -= 1
        tensors.append(TensorInfo(
            name=name_of(lib.gguf_get_tensor_name(ctx, i)),
            shape=tuple([ne[dim] for dim in range(n_dims - 1, -1, -1)]),
            type=lib_ggml.ggml_type_name(lib.gguf_get_tensor_type(ctx, i)).decode("ascii").upper(),
            # Python ints: a hostile offset must not wrap around.
            offset=int(data_offset) + int(lib.gguf_get_tensor_offset(ctx, i)),
            nbytes=lib.gguf_get_tensor_size(ctx, i),
        ))
    return tuple(tensors)


# Writing

cdef lib.gguf_context * _new_context(size_t alignment) except NULL:
    cdef lib.gguf_init_params params
    cdef lib.gguf_context * ctx
    cdef bytes header
    guard.enter()
    if alignment == DEFAULT_ALIGNMENT:
        ctx = lib.gguf_init_empty()
    else:
        # gguf.h can take an alignment from a file only: this is a file with that key and nothing else.
        key = b"general.alignment"
        header = HEADER.pack(b"GGUF", lib.GGUF_VERSION, 0, 1) + struct.pack(
            f"<Q{len(key)}siI", len(key), key, <int> lib.GGUF_TYPE_UINT32, alignment
        )
        params.no_alloc = True
        params.ctx = NULL
        ctx = lib.gguf_init_from_buffer(<const char *> header, len(header), params)
    return <lib.gguf_context *> error.not_null(ctx, "gguf_init_empty", errors.GGUFError)


cdef bytearray _metadata_bytes(const lib.gguf_context * ctx):
    cdef char * out
    guard.enter()
    header = bytearray(lib.gguf_get_meta_size(ctx))
    out = header
    lib.gguf_get_meta_data(ctx, out)
    return header


cdef int _add_tensor_info(lib.gguf_context * ctx, bytes name, int number, tuple shape) except -1:
    cdef lib_ggml.ggml_init_params params
    cdef lib_ggml.ggml_context * scratch
    cdef lib_ggml.ggml_tensor * tensor
    cdef int64_t ne[4]
    cdef int i, n_dims = len(shape)
    for i in range(n_dims):
        ne[i] = shape[n_dims - 1 - i]
    # gguf_add_tensor copies the tensor, so the ggml context it is made in can go at once.
    guard.enter()
    params.mem_size = lib_ggml.ggml_tensor_overhead()
    params.mem_buffer = NULL
    params.no_alloc = True
    scratch = lib_ggml.ggml_init(params)
    error.not_null(scratch, "ggml_init", errors.OutOfMemoryError)
    try:
        tensor = lib_ggml.ggml_new_tensor(scratch, <lib_ggml.ggml_type> number, n_dims, ne)
        lib_ggml.ggml_set_name(tensor, name)
        lib.gguf_add_tensor(ctx, tensor)
    finally:
        lib_ggml.ggml_free(scratch)
    return 0

"""The types of ggml's tensors: what they are made of, and rows of them to and from NumPy.

A quantized row is a run of blocks: some 32 or 256 numbers with a scale or two. Here such rows are uint8 arrays whose
last axis is the bytes of a row, which is also how :class:`pyllm.core.gguf.GGUFReader` gives them.
"""

import operator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t

from pyllm import errors
from pyllm.core cimport guard
from pyllm.core.arguments cimport int32
from pyllm.includes cimport ggml as lib

# Numbers that one call into ggml converts, so that Ctrl-C and other threads need not wait long.
cdef enum:
    CHUNK = 1 << 20
    MAX_THREADS = 512

cdef dict DTYPES = {
    <int> lib.GGML_TYPE_F32: np.dtype(np.float32),
    <int> lib.GGML_TYPE_F16: np.dtype(np.float16),
    <int> lib.GGML_TYPE_F64: np.dtype(np.float64),
    <int> lib.GGML_TYPE_I8: np.dtype(np.int8),
    <int> lib.GGML_TYPE_I16: np.dtype(np.int16),
    <int> lib.GGML_TYPE_I32: np.dtype(np.int32),
    <int> lib.GGML_TYPE_I64: np.dtype(np.int64),
}

# Formats of intermediate results, which ggml fills while it multiplies matrices and never reads back.
cdef object Q8_1_BLOCK = np.dtype([("d", np.float16), ("s", np.float16), ("qs", np.int8, 32)])
cdef object Q8_K_BLOCK = np.dtype([("d", np.float32), ("qs", np.int8, 256), ("bsums", np.int16, 16)])
cdef dict INTERMEDIATE = {<int> lib.GGML_TYPE_Q8_1: Q8_1_BLOCK, <int> lib.GGML_TYPE_Q8_K: Q8_K_BLOCK}


@dataclass(frozen=True, slots=True)
class TypeTraits:
    """What a type of tensor is made of.

    Attributes:
        name: Its name in capitals, e.g. "Q4_K".
        number: Its value in ``enum ggml_type``.
        block_size: Numbers in a block; the length of a row is a multiple of it.
        type_size: Bytes of a block.
        is_quantized: Whether a block holds several numbers that share a scale.
        dtype: The NumPy dtype of its elements; None where NumPy has none.
        to_float: Whether ggml itself converts rows of it to float32.
        from_float: Whether ggml quantizes weights to it.
        requires_imatrix: Whether :func:`quantize` needs an importance matrix for it.
    """

    name: str
    number: int
    block_size: int
    type_size: int
    is_quantized: bool
    dtype: object
    to_float: bool
    from_float: bool
    requires_imatrix: bool

    @property
    def bits_per_weight(self):
        """Bits for each number, scales included (float)."""
        return 8 * self.type_size / self.block_size


cdef dict _all_numbers():
    cdef int number
    names = {}
    for number in range(<int> lib.GGML_TYPE_COUNT):
        # Numbers of removed types stay in the enum with a block size of 0.
        if lib.ggml_blck_size(<lib.ggml_type> number) > 0:
            names[lib.ggml_type_name(<lib.ggml_type> number).decode("ascii").upper()] = number
    return names


cdef dict NUMBERS = _all_numbers()


cdef dict numpy_dtypes():
    return DTYPES


cdef dict type_numbers():
    return NUMBERS


cdef str type_name(int number):
    return lib.ggml_type_name(<lib.ggml_type> number).decode("ascii").upper()


cdef object row_bytes(int number, object n_per_row):
    return n_per_row // lib.ggml_blck_size(<lib.ggml_type> number) * lib.ggml_type_size(<lib.ggml_type> number)


cdef int type_number(object type) except -1:
    number = NUMBERS.get(type.upper()) if isinstance(type, str) else None
    if number is None:
        raise errors.InvalidArgumentError(f"unknown tensor type {type!r}; known are {', '.join(NUMBERS)}")
    return number


def type_traits(type):
    """What a type is made of.

    Args:
        type: Its name, e.g. "Q4_K", in any case.

    Returns:
        TypeTraits: The traits.

    Raises:
        InvalidArgumentError: There is no such type; the message lists those there are.

    Wraps ``ggml_get_type_traits`` and ``ggml_quantize_requires_imatrix``.

    >>> type_traits("q8_0").block_size, type_traits("q8_0").type_size
    (32, 34)
    """
    cdef int number = type_number(type)
    cdef const lib.ggml_type_traits * traits = lib.ggml_get_type_traits(<lib.ggml_type> number)
    return TypeTraits(
        name=type_name(number),
        number=number,
        block_size=traits.blck_size,
        type_size=traits.type_size,
        is_quantized=traits.is_quantized,
        dtype=DTYPES.get(number),
        to_float=traits.to_float != NULL or number == <int> lib.GGML_TYPE_F32,
        from_float=_quantizable(number),
        requires_imatrix=lib.ggml_quantize_requires_imatrix(<lib.ggml_type> number),
    )


def all_types():
    """The traits of every type, in ggml's order (list of TypeTraits)."""
    return [type_traits(name) for name in NUMBERS]


def row_size(type, n_per_row):
    """Bytes of a row.

    Args:
        type: Name of the type.
        n_per_row: Numbers in the row.

    Returns:
        int: Its size in bytes.

    Raises:
        InvalidArgumentError: The length is negative or no multiple of the block.

    Wraps ``ggml_row_size``.
    """
    cdef int number = type_number(type)
    length = operator.index(n_per_row)
    block = lib.ggml_blck_size(<lib.ggml_type> number)
    if length < 0 or length % block:
        raise errors.InvalidArgumentError(
            f"rows of {length} elements are not a multiple of {type_name(number)}'s block of {block}"
        )
    return row_bytes(number, length)


cdef bint _quantizable(int number) noexcept:
    return (
        number != <int> lib.GGML_TYPE_Q8_1
        and number != <int> lib.GGML_TYPE_Q8_K
        and not (<int> lib.GGML_TYPE_I8 <= number <= <int> lib.GGML_TYPE_F64)
    )


def quantize(array, type, imatrix=None, *, n_threads=1):
    """Convert rows of numbers to a type.

    Args:
        array: Numbers, shape (..., n), taken as float32. n is a multiple of the type's block.
        type: Name of the type, e.g. "Q4_K".
        imatrix: How much each column matters, not negative: shape (n,) for all rows, or (..., n) with one row for
            each matrix where the array has shape (..., rows, n). Types without use for it ignore it.
        n_threads: Threads that share the rows.

    Returns:
        numpy.ndarray: uint8, shape (..., bytes of a row).

    Raises:
        InvalidArgumentError: Lengths or shapes that do not fit, infinite or NaN values, an unknown type, or one that
            needs an importance matrix when none is given.

    The GIL is released meanwhile. Wraps ``ggml_quantize_chunk``; for "Q8_1" and "Q8_K", to which ggml quantizes
    nothing but intermediate results, it gives what ggml would compute then.

    >>> import numpy as np
    >>> rows = quantize(np.ones((2, 64), np.float32), "Q8_0")
    >>> rows.shape, dequantize(rows, "Q8_0").shape
    ((2, 68), (2, 64))
    """
    cdef int number = type_number(type)
    cdef int threads = _threads(n_threads)
    values = np.asarray(array)
    if values.ndim < 1 or values.dtype.kind not in "iufb":
        raise errors.InvalidArgumentError(
            f"the array must hold numbers in at least one dimension, not {values.dtype} of shape {values.shape}"
        )
    block = lib.ggml_blck_size(<lib.ggml_type> number)
    if values.shape[-1] % block:
        raise errors.InvalidArgumentError(
            f"rows of {values.shape[-1]} elements are not a multiple of {type_name(number)}'s block of {block}"
        )
    weights = None if imatrix is None else check_imatrix(imatrix, values.shape)
    if number in DTYPES:
        return _as_bytes(_cast(values, number))
    try:
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(values, dtype=np.float32)
        if number in INTERMEDIATE:
            return _intermediate(values, number)
        return rows_from_float(values, number, weights, threads)
    except (TypeError, ValueError) as exception:
        if isinstance(exception, errors.PyllmError):
            raise
        raise errors.InvalidArgumentError(str(exception)) from exception


def dequantize(data, type, n_per_row=None, *, n_threads=1):
    """Convert rows of a type to float32.

    Args:
        data: The rows as bytes: uint8, shape (..., bytes of a row), or any contiguous bytes-like object for one row.
        type: Name of the type.
        n_per_row: Numbers in a row, to be checked; None takes as many as the bytes hold.
        n_threads: Threads that share the rows.

    Returns:
        numpy.ndarray: float32, shape (..., n_per_row).

    Raises:
        InvalidArgumentError: The bytes are no whole number of blocks, or not as many as n_per_row needs.

    The GIL is released meanwhile. Wraps the ``to_float`` of ``ggml_get_type_traits``.
    """
    cdef int number = type_number(type)
    cdef int threads = _threads(n_threads)
    rows = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    if rows.dtype != np.uint8 or rows.ndim < 1:
        raise errors.InvalidArgumentError(
            f"the rows must be uint8 in at least one dimension, not {rows.dtype} of shape {rows.shape}"
        )
    size = lib.ggml_type_size(<lib.ggml_type> number)
    if rows.shape[-1] % size:
        raise errors.InvalidArgumentError(
            f"rows of {rows.shape[-1]} bytes are not a multiple of {type_name(number)}'s block of {size} bytes"
        )
    n = rows.shape[-1] // size * lib.ggml_blck_size(<lib.ggml_type> number)
    if n_per_row is not None and n != operator.index(n_per_row):
        raise errors.InvalidArgumentError(
            f"rows of {rows.shape[-1]} bytes hold {n} numbers of type {type_name(number)}, not {n_per_row}"
        )
    return rows_to_float(np.ascontiguousarray(rows), number, (*rows.shape[:-1], n), threads)


cdef int _threads(n_threads) except -1:
    cdef int threads = int32(n_threads, "n_threads")
    if not 1 <= threads <= MAX_THREADS:
        raise errors.InvalidArgumentError(f"n_threads must be from 1 to {MAX_THREADS}, not {threads}")
    return threads


cdef object _cast(values, int number):
    dtype = DTYPES[number]
    if dtype.kind == "i":
        limits = np.iinfo(dtype)
        if values.dtype.kind == "f" or (
            values.size and not limits.min <= int(values.min()) <= int(values.max()) <= limits.max
        ):
            raise errors.InvalidArgumentError(f"{values.dtype} with these values cannot be stored as {dtype}")
        return values.astype(dtype)
    with np.errstate(over="ignore"):
        result = values.astype(dtype)
    if not np.array_equal(np.isfinite(values), np.isfinite(result)):
        raise errors.InvalidArgumentError(f"a value is outside the range of {dtype}")
    return result


cdef object _as_bytes(array):
    array = np.ascontiguousarray(array)
    if array.size == 0:
        return np.empty((*array.shape[:-1], array.shape[-1] * array.itemsize), np.uint8)
    return array.view(np.uint8)


cdef object check_imatrix(imatrix, tuple shape):
    weights = np.ascontiguousarray(imatrix, dtype=np.float32)
    if weights.shape != (shape[-1],) and (len(shape) < 3 or weights.shape != (*shape[:-2], shape[-1])):
        raise errors.InvalidArgumentError(
            f"the importance matrix has shape {weights.shape}; an array of shape {shape} takes ({shape[-1]},)"
            + (f" or {(*shape[:-2], shape[-1])}" if len(shape) > 2 else "")
        )
    if weights.size and not (np.isfinite(weights).all() and weights.min() >= 0):
        raise errors.InvalidArgumentError("the importance matrix must be finite and not negative")
    return weights


# Intermediate formats

cdef object _intermediate(values, int number):
    if not np.isfinite(values).all():
        raise ValueError(f"infinite or NaN values cannot be quantized to {type_name(number)}")
    dtype = INTERMEDIATE[number]
    size = dtype["qs"].shape[0]
    shape = (*values.shape[:-1], values.shape[-1] // size)
    groups = values.reshape(*shape, size)
    blocks = np.empty(shape, dtype)
    if number == <int> lib.GGML_TYPE_Q8_1:
        scale = np.abs(groups).max(-1) / np.float32(127)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        scaled = groups * inverse[..., None]
        # As C's roundf: halves go away from zero.
        blocks["qs"] = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
        with np.errstate(over="ignore"):
            blocks["d"] = scale
            blocks["s"] = blocks["qs"].sum(-1, dtype=np.int32) * scale
        if not (np.isfinite(blocks["d"]).all() and np.isfinite(blocks["s"]).all()):
            raise ValueError("a value is too large for the float16 scale of Q8_1")
    else:
        # The largest number, whatever its sign, becomes -127.
        largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
        inverse = np.divide(np.float32(-127), largest, out=np.zeros_like(largest), where=largest != 0)
        blocks["qs"] = np.minimum(np.rint(groups * inverse[..., None]), 127)
        blocks["bsums"] = blocks["qs"].reshape(*shape, 16, 16).sum(-1, dtype=np.int16)
        blocks["d"] = np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse != 0)
    return blocks.view(np.uint8).reshape(*values.shape[:-1], shape[-1] * dtype.itemsize)


# Rows, in C

@cython.internal
cdef class Rows:
    """Rows that several threads convert; start to stop are theirs."""

    cdef Py_buffer source, target, weights
    cdef bint has_source, has_target, has_weights
    cdef int number
    cdef int64_t n_per_row
    cdef int64_t rows_per_matrix         # of those that share a row of the importance matrix
    cdef bint quantize

    def __cinit__(self, int number, source, target, weights, n_per_row, rows_per_matrix, bint quantize):
        PyObject_GetBuffer(source, &self.source, PyBUF_SIMPLE)
        self.has_source = True
        PyObject_GetBuffer(target, &self.target, PyBUF_WRITABLE)
        self.has_target = True
        if weights is not None:
            PyObject_GetBuffer(weights, &self.weights, PyBUF_SIMPLE)
            self.has_weights = True
        self.number = number
        self.n_per_row = n_per_row
        self.rows_per_matrix = rows_per_matrix
        self.quantize = quantize

    def __dealloc__(self):
        if self.has_source:
            PyBuffer_Release(&self.source)
        if self.has_target:
            PyBuffer_Release(&self.target)
        if self.has_weights:
            PyBuffer_Release(&self.weights)

    def convert(self, int64_t start, int64_t stop):
        cdef lib.ggml_type type = <lib.ggml_type> self.number
        cdef int64_t n = self.n_per_row
        cdef int64_t size = n // lib.ggml_blck_size(type) * <int64_t> lib.ggml_type_size(type)
        cdef const lib.ggml_type_traits * traits = lib.ggml_get_type_traits(type)
        cdef const float * weights = NULL
        if self.has_weights:
            weights = <const float *> self.weights.buf + start // self.rows_per_matrix * n
        with nogil:
            guard.enter()
            if self.quantize:
                lib.ggml_quantize_chunk(
                    type, <const float *> self.source.buf + start * n, <char *> self.target.buf + start * size, 0,
                    stop - start, n, weights
                )
            else:
                traits.to_float(
                    <const char *> self.source.buf + start * size, <float *> self.target.buf + start * n,
                    (stop - start) * n
                )
            guard.leave()

    cdef int run(self, int64_t n_rows, int n_threads) except -1:
        cdef int64_t step = max(1, CHUNK // self.n_per_row)
        if n_threads > 1:
            # Small chunks too, so that every thread has its share.
            step = min(step, max(1, n_rows // (4 * n_threads)))
        chunks = []
        for first in range(0, n_rows, self.rows_per_matrix):
            last = min(first + self.rows_per_matrix, n_rows)
            chunks.extend((start, min(start + step, last)) for start in range(first, last, step))
        if n_threads == 1 or len(chunks) < 2:
            for start, stop in chunks:
                PyErr_CheckSignals()
                self.convert(start, stop)
            return 0
        with ThreadPoolExecutor(min(n_threads, len(chunks))) as pool:
            try:
                for future in [pool.submit(self.convert, start, stop) for start, stop in chunks]:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return 0


cdef object rows_to_float(object raw, int number, tuple shape, int n_threads):
    cdef Rows rows
    cdef int64_t n
    dtype = DTYPES.get(number)
    if dtype is not None:
        # Bytes of a file may start anywhere; NumPy copies what is not aligned.
        return raw.reshape(-1).view(dtype).reshape(shape).astype(np.float32)
    if number in INTERMEDIATE:
        blocks = raw.reshape(-1).view(INTERMEDIATE[number])
        return (blocks["qs"] * blocks["d"].astype(np.float32)[:, None]).reshape(shape)
    if lib.ggml_get_type_traits(<lib.ggml_type> number).to_float == NULL:
        raise errors.GGUFError(f"ggml has no conversion from {type_name(number)} to float32")
    # A file may put its tensors at any byte; the blocks are C structs, which start at even addresses.
    if raw.ctypes.data % 16:
        raw = raw.copy()
    result = np.empty(shape, np.float32)
    if result.size:
        n = shape[-1]
        rows = Rows(number, raw, result, None, n, result.size // n, False)
        rows.run(result.size // n, n_threads)
    return result


cdef object rows_from_float(object values, int number, object imatrix, int n_threads):
    cdef Rows rows
    name = type_name(number)
    if not _quantizable(number):
        raise TypeError(f"ggml does not quantize tensors to {name}")
    if imatrix is None and lib.ggml_quantize_requires_imatrix(<lib.ggml_type> number):
        raise TypeError(f"quantizing to {name} needs an importance matrix")
    if lib.ggml_blck_size(<lib.ggml_type> number) > 1 and not np.isfinite(values).all():
        raise ValueError(f"infinite or NaN values cannot be quantized to {name}")
    n = values.shape[-1]
    result = np.empty((*values.shape[:-1], row_bytes(number, n)), np.uint8)
    if values.size:
        n_rows = values.size // n
        per_matrix = n_rows if imatrix is None or imatrix.ndim == 1 else values.shape[-2]
        rows = Rows(number, values, result, imatrix, n, per_matrix, True)
        rows.run(n_rows, n_threads)
    return result

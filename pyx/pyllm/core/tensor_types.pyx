"""The data types of tensors: their names, and conversion to and from NumPy arrays.

Wraps `ggml_type_name`, `ggml_quantize_chunk` and the `to_float` of `ggml_get_type_traits`.
"""

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t

from pyllm import errors
from pyllm.core cimport guard
from pyllm.includes cimport ggml as lib

# Tensor types whose elements NumPy knows.
cdef dict DTYPE_OF_TENSOR = {
    <int> lib.GGML_TYPE_F32: np.dtype(np.float32),
    <int> lib.GGML_TYPE_F16: np.dtype(np.float16),
    <int> lib.GGML_TYPE_F64: np.dtype(np.float64),
    <int> lib.GGML_TYPE_I8: np.dtype(np.int8),
    <int> lib.GGML_TYPE_I16: np.dtype(np.int16),
    <int> lib.GGML_TYPE_I32: np.dtype(np.int32),
    <int> lib.GGML_TYPE_I64: np.dtype(np.int64),
}
cdef dict TENSOR_TYPE_OF = {dtype: number for number, dtype in DTYPE_OF_TENSOR.items()}

# Formats of intermediate results: ggml has no quantization of weights to them.
cdef frozenset NOT_QUANTIZABLE = frozenset((<int> lib.GGML_TYPE_Q8_1, <int> lib.GGML_TYPE_Q8_K))


cdef dict _tensor_types():
    cdef int number
    names = {}
    for number in range(<int> lib.GGML_TYPE_COUNT):
        # Numbers of removed types stay in the enum with a block size of 0.
        if lib.ggml_blck_size(<lib.ggml_type> number) > 0:
            names[lib.ggml_type_name(<lib.ggml_type> number).decode("ascii").upper()] = number
    return names


cdef dict TENSOR_NUMBERS = _tensor_types()

#: Names of all tensor types, as in ``TensorInfo.type`` and as ``GGUFWriter.add_tensor`` takes them.
TENSOR_TYPES = tuple(TENSOR_NUMBERS)


cdef object _row_size(int number, object n_per_row):
    return n_per_row // lib.ggml_blck_size(<lib.ggml_type> number) * lib.ggml_type_size(<lib.ggml_type> number)


cdef object cast(object array, object dtype):
    if dtype.kind in "iu":
        if array.dtype.kind == "f":
            raise TypeError(f"floats cannot be stored as {dtype}")
        limits = np.iinfo(dtype)
        if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
            raise OverflowError(f"{array.min()} to {array.max()} is outside the range of {dtype}")
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if dtype.kind == "f" and not np.array_equal(np.isfinite(array), np.isfinite(result)):
        raise OverflowError(f"a value is outside the range of {dtype}")
    return result


cdef object tensor_array(object raw, str type_name, tuple shape, bint dequantize):
    cdef int number = TENSOR_NUMBERS[type_name]
    dtype = DTYPE_OF_TENSOR.get(number)
    if dtype is not None:
        array = raw.view(dtype).reshape(shape)
        return array.astype(np.float32) if dequantize else array
    if dequantize:
        return _dequantize(raw, number, shape)
    *rows, n_per_row = shape
    return raw.reshape(*rows, _row_size(number, n_per_row))


cdef object _dequantize(object raw, int number, tuple shape):
    cdef const lib.ggml_type_traits * traits = lib.ggml_get_type_traits(<lib.ggml_type> number)
    cdef Py_buffer source, target
    cdef int64_t n
    if traits.to_float == NULL:
        raise errors.GGUFError(f"ggml has no conversion from {traits.type_name.decode('ascii')} to float32")
    # A file may put its tensors at any byte; the blocks are C structs, which start at even addresses.
    if raw.ctypes.data % 16:
        raw = raw.copy()
    result = np.empty(shape, np.float32)
    n = result.size
    if n:
        PyObject_GetBuffer(raw, &source, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(result, &target, PyBUF_WRITABLE)
            try:
                with nogil:
                    traits.to_float(source.buf, <float *> target.buf, n)
            finally:
                PyBuffer_Release(&target)
        finally:
            PyBuffer_Release(&source)
    return result


cdef int tensor_type(object name, object dtype, object type) except -1:
    if type is None:
        if dtype not in TENSOR_TYPE_OF:
            known = ", ".join(str(known) for known in TENSOR_TYPE_OF)
            raise errors.GGUFError(f"tensor {name!r}: {dtype} is not a type of GGUF; known are {known}")
        return TENSOR_TYPE_OF[dtype]
    number = TENSOR_NUMBERS.get(type.upper()) if isinstance(type, str) else None
    if number is None:
        raise errors.GGUFError(f"tensor {name!r}: unknown type {type!r}; known are {', '.join(TENSOR_NUMBERS)}")
    return number


cdef tuple tensor_data(object name, object array, int number):
    # The bytes of the tensor as a contiguous array, and its shape in elements.
    cdef int64_t block = lib.ggml_blck_size(<lib.ggml_type> number)
    cdef int64_t block_size = lib.ggml_type_size(<lib.ggml_type> number)
    type_name = lib.ggml_type_name(<lib.ggml_type> number).decode("ascii").upper()
    dtype = DTYPE_OF_TENSOR.get(number)
    if dtype is not None and dtype == array.dtype:
        return np.ascontiguousarray(array), array.shape
    if dtype is None and array.dtype == np.uint8:
        *rows, n_bytes = array.shape
        if n_bytes % block_size:
            raise errors.GGUFError(
                f"tensor {name!r}: rows of {n_bytes} bytes are not a multiple of {type_name}'s "
                f"block of {block_size} bytes"
            )
        return np.ascontiguousarray(array), (*rows, n_bytes // block_size * block)
    if array.dtype.kind not in "iuf":
        raise errors.GGUFError(f"tensor {name!r}: {array.dtype} cannot be converted to {type_name}")
    try:
        if dtype is not None:
            return np.ascontiguousarray(cast(array, dtype)), array.shape
        return _quantize(array, number, type_name, block), array.shape
    except (TypeError, ValueError, OverflowError) as exception:
        raise errors.GGUFError(f"tensor {name!r}: {exception}") from exception


cdef object _quantize(object array, int number, str type_name, int64_t block):
    cdef Py_buffer source, target
    cdef int64_t n_per_row, n_rows
    *rows, n_per_row = array.shape
    n_rows = array.size // n_per_row
    if n_per_row % block:
        raise ValueError(f"rows of {n_per_row} elements are not a multiple of {type_name}'s block of {block}")
    if number in NOT_QUANTIZABLE:
        raise TypeError(f"ggml does not quantize tensors to {type_name}")
    if lib.ggml_quantize_requires_imatrix(<lib.ggml_type> number):
        raise TypeError(f"quantizing to {type_name} needs an importance matrix; choose another type")
    values = np.ascontiguousarray(cast(array, np.dtype(np.float32)))
    if block > 1 and not np.isfinite(values).all():
        raise ValueError(f"infinite or NaN values cannot be quantized to {type_name}")
    result = np.empty((*rows, _row_size(number, n_per_row)), np.uint8)
    PyObject_GetBuffer(values, &source, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(result, &target, PyBUF_WRITABLE)
        try:
            with nogil:
                guard.enter()
                lib.ggml_quantize_chunk(
                    <lib.ggml_type> number, <const float *> source.buf, target.buf, 0, n_rows, n_per_row, NULL
                )
        finally:
            PyBuffer_Release(&target)
    finally:
        PyBuffer_Release(&source)
    return result

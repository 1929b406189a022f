"""The data types of tensors: their names, and conversion to and from NumPy arrays.

Rows are converted by :mod:`pyllm.core.ggml_types`.
"""

import numpy as np

from libc.stdint cimport int64_t

from pyllm import errors
from pyllm.core.ggml_types cimport (
    check_imatrix, numpy_dtypes, row_bytes, rows_from_float, rows_to_float, type_numbers,
)
from pyllm.includes cimport ggml as lib

# Tensor types whose elements NumPy knows.
cdef dict DTYPE_OF_TENSOR = numpy_dtypes()
cdef dict TENSOR_TYPE_OF = {dtype: number for number, dtype in DTYPE_OF_TENSOR.items()}

cdef dict TENSOR_NUMBERS = type_numbers()

#: Names of all tensor types, as in ``TensorInfo.type`` and as ``GGUFWriter.add_tensor`` takes them.
TENSOR_TYPES = tuple(TENSOR_NUMBERS)


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
        return rows_to_float(raw, number, shape, 1)
    *rows, n_per_row = shape
    return raw.reshape(*rows, row_bytes(number, n_per_row))


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


cdef tuple tensor_data(object name, object array, int number, object imatrix=None):
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
        if imatrix is not None:
            imatrix = check_imatrix(imatrix, array.shape)
        return _quantize(array, number, type_name, block, imatrix), array.shape
    except (TypeError, ValueError, OverflowError) as exception:
        raise errors.GGUFError(f"tensor {name!r}: {exception}") from exception


cdef object _quantize(object array, int number, str type_name, int64_t block, object imatrix):
    n_per_row = array.shape[-1]
    if n_per_row % block:
        raise ValueError(f"rows of {n_per_row} elements are not a multiple of {type_name}'s block of {block}")
    values = np.ascontiguousarray(cast(array, np.dtype(np.float32)))
    return rows_from_float(values, number, imatrix, 1)

"""The key-value pairs of GGUF files, between ``gguf.h`` and Python values."""

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport (
    int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.stdlib cimport free, malloc

from pyllm import errors
from pyllm.core cimport guard
from pyllm.core.tensor_types cimport cast
from pyllm.includes cimport gguf as lib

# GGUF value types by the name the writer takes, and the element type of arrays of them.
cdef dict VALUE_TYPES = {
    "uint8": (<int> lib.GGUF_TYPE_UINT8, np.dtype(np.uint8)),
    "int8": (<int> lib.GGUF_TYPE_INT8, np.dtype(np.int8)),
    "uint16": (<int> lib.GGUF_TYPE_UINT16, np.dtype(np.uint16)),
    "int16": (<int> lib.GGUF_TYPE_INT16, np.dtype(np.int16)),
    "uint32": (<int> lib.GGUF_TYPE_UINT32, np.dtype(np.uint32)),
    "int32": (<int> lib.GGUF_TYPE_INT32, np.dtype(np.int32)),
    "uint64": (<int> lib.GGUF_TYPE_UINT64, np.dtype(np.uint64)),
    "int64": (<int> lib.GGUF_TYPE_INT64, np.dtype(np.int64)),
    "float32": (<int> lib.GGUF_TYPE_FLOAT32, np.dtype(np.float32)),
    "float64": (<int> lib.GGUF_TYPE_FLOAT64, np.dtype(np.float64)),
    "bool": (<int> lib.GGUF_TYPE_BOOL, np.dtype(np.bool_)),
}
cdef dict DTYPE_OF_VALUE = {number: dtype for number, dtype in VALUE_TYPES.values()}
cdef dict VALUE_TYPE_OF = {dtype: name for name, (number, dtype) in VALUE_TYPES.items()}

cdef tuple _NUMBER = (int, float, np.integer, np.floating)


cdef object _text(const char * text):
    cdef bytes raw = text
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


cdef str name_of(const char * text):
    # Names are dict keys and go back to C: distinct bytes must stay distinct.
    return (<bytes> text).decode("utf-8", "surrogateescape")


cdef dict read_metadata(const lib.gguf_context * ctx):
    cdef int64_t i
    return {name_of(lib.gguf_get_key(ctx, i)): _read_value(ctx, i) for i in range(lib.gguf_get_n_kv(ctx))}


cdef object _read_value(const lib.gguf_context * ctx, int64_t i):
    cdef int number = <int> lib.gguf_get_kv_type(ctx, i)
    if number == lib.GGUF_TYPE_ARRAY:
        return _read_array(ctx, i)
    if number == lib.GGUF_TYPE_STRING:
        return _text(lib.gguf_get_val_str(ctx, i))
    # One way for all numbers: the bytes of the value, read as an array of one.
    dtype = DTYPE_OF_VALUE[number]
    return np.frombuffer((<const char *> lib.gguf_get_val_data(ctx, i))[: dtype.itemsize], dtype=dtype)[0].item()


cdef object _read_array(const lib.gguf_context * ctx, int64_t i):
    cdef size_t n = lib.gguf_get_arr_n(ctx, i)
    cdef size_t j
    cdef int number = <int> lib.gguf_get_arr_type(ctx, i)
    if number == lib.GGUF_TYPE_STRING:
        return [_text(lib.gguf_get_arr_str(ctx, i, j)) for j in range(n)]
    dtype = DTYPE_OF_VALUE[number]
    if n == 0:
        return np.empty(0, dtype)
    data = bytearray((<const char *> lib.gguf_get_arr_data(ctx, i))[: n * dtype.itemsize])
    if number == lib.GGUF_TYPE_BOOL:
        return np.frombuffer(data, dtype=np.int8) != 0
    return np.frombuffer(data, dtype=dtype)


cdef bytes c_string(object text, str what):
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogateescape")
    elif not isinstance(text, bytes):
        raise errors.GGUFError(f"{what} must be str, not {type(text).__name__}")
    if b"\0" in text:
        raise errors.GGUFError(f"{what} cannot contain a NUL character")
    return text


cdef int set_value(lib.gguf_context * ctx, bytes key, object value, str type) except -1:
    if type is not None and type not in VALUE_TYPES and type not in ("string", "array"):
        raise ValueError(f"unknown type {type!r}; known are {', '.join(VALUE_TYPES)}, string and array")
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    guard.enter()
    if isinstance(value, (list, tuple, np.ndarray)):
        return _set_array(ctx, key, value, None if type == "array" else type)
    if type == "array":
        raise TypeError(f"{value!r} is not a list")
    return _set_scalar(ctx, key, value, type)


cdef int _set_scalar(lib.gguf_context * ctx, bytes key, object value, str type) except -1:
    cdef int number
    if isinstance(value, (str, bytes)):
        if type not in (None, "string"):
            raise TypeError(f"a string cannot be stored as {type}")
        lib.gguf_set_val_str(ctx, key, c_string(value, "a string"))
        return 0
    if type == "string":
        raise TypeError(f"{value!r} is not a string")
    if type is None and isinstance(value, np.generic):
        type = VALUE_TYPE_OF.get(value.dtype)
    if type is None:
        type = _type_of_scalar(value)
    array = _numbers(np.asarray(value), type)
    number = VALUE_TYPES[type][0]
    value = array.item()
    # Conversions below cannot overflow any more.
    if number == lib.GGUF_TYPE_UINT8:
        lib.gguf_set_val_u8(ctx, key, <uint8_t> value)
    elif number == lib.GGUF_TYPE_INT8:
        lib.gguf_set_val_i8(ctx, key, <int8_t> value)
    elif number == lib.GGUF_TYPE_UINT16:
        lib.gguf_set_val_u16(ctx, key, <uint16_t> value)
    elif number == lib.GGUF_TYPE_INT16:
        lib.gguf_set_val_i16(ctx, key, <int16_t> value)
    elif number == lib.GGUF_TYPE_UINT32:
        lib.gguf_set_val_u32(ctx, key, <uint32_t> value)
    elif number == lib.GGUF_TYPE_INT32:
        lib.gguf_set_val_i32(ctx, key, <int32_t> value)
    elif number == lib.GGUF_TYPE_UINT64:
        lib.gguf_set_val_u64(ctx, key, <uint64_t> value)
    elif number == lib.GGUF_TYPE_INT64:
        lib.gguf_set_val_i64(ctx, key, <int64_t> value)
    elif number == lib.GGUF_TYPE_FLOAT32:
        lib.gguf_set_val_f32(ctx, key, <float> value)
    elif number == lib.GGUF_TYPE_FLOAT64:
        lib.gguf_set_val_f64(ctx, key, <double> value)
    else:
        lib.gguf_set_val_bool(ctx, key, <bint> value)
    return 0


cdef str _type_of_scalar(object value):
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, float):
        return "float32"
    if not isinstance(value, int):
        raise TypeError(f"a value of type {type(value).__name__} cannot be stored")
    return _integer_type(("uint32", "int32", "int64", "uint64"), value, value)


cdef object _numbers(object array, str type):
    # `array` as numbers of that type, without loss other than rounding.
    dtype = VALUE_TYPES[type][1]
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biuf" or (dtype.kind == "b") != (array.dtype.kind == "b"):
        raise TypeError(f"values of type {array.dtype} cannot be stored as {type}")
    return cast(array, dtype)


cdef int _set_array(lib.gguf_context * ctx, bytes key, object values, str type) except -1:
    cdef Py_buffer buffer
    cdef int number
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise TypeError(f"an array must have one dimension, not {values.ndim}")
        if values.dtype.kind in "US":
            values = values.tolist()
            type = type or "string"
    elif not values and type is None:
        raise ValueError("the type of the elements of an empty list must be given")
    if type == "string" or (not isinstance(values, np.ndarray) and any(isinstance(v, (str, bytes)) for v in values)):
        if type not in (None, "string"):
            raise TypeError(f"strings cannot be stored as {type}")
        return _set_strings(ctx, key, [c_string(value, "a string") for value in values])
    if isinstance(values, np.ndarray):
        array = values.astype(values.dtype.newbyteorder("="), copy=False)
        if type is None:
            type = VALUE_TYPE_OF.get(array.dtype)
            if type is None:
                raise TypeError(f"arrays of {array.dtype} cannot be stored")
    else:
        array, type = _array_of_list(list(values), type)
    array = np.ascontiguousarray(_numbers(array, type))
    number = VALUE_TYPES[type][0]
    PyObject_GetBuffer(array, &buffer, PyBUF_SIMPLE)
    try:
        lib.gguf_set_arr_data(ctx, key, <lib.gguf_type> number, buffer.buf, array.size)
    finally:
        PyBuffer_Release(&buffer)
    return 0


cdef tuple _array_of_list(list values, str type):
    # Not np.asarray(values): that makes floats of integers beyond 2**63.
    if not values:
        return np.empty(0, VALUE_TYPES[type][1]), type
    if all([isinstance(value, (bool, np.bool_)) for value in values]):
        return np.array(values, np.bool_), type or "bool"
    if not all([isinstance(value, _NUMBER) and not isinstance(value, bool) for value in values]):
        raise TypeError("the elements must be all strings, all bool or all numbers")
    if not all([isinstance(value, (int, np.integer)) for value in values]):
        return np.array(values, np.float64), type or "float32"
    low, high = int(min(values)), int(max(values))
    if type is None:
        type = _integer_type(("int32", "int64", "uint64"), low, high)
    dtype = VALUE_TYPES[type][1]
    if dtype.kind == "f":
        return np.array(values, np.float64), type
    if dtype.kind == "b":
        raise TypeError("integers cannot be stored as bool")
    _integer_type((type,), low, high)
    return np.array(values, dtype), type


cdef str _integer_type(tuple names, object low, object high):
    # The first of these types that holds both.
    for name in names:
        limits = np.iinfo(VALUE_TYPES[name][1])
        if limits.min <= low and high <= limits.max:
            return name
    raise OverflowError(f"{low if low == high else f'{low} to {high}'} is outside the range of {' and '.join(names)}")


cdef int _set_strings(lib.gguf_context * ctx, bytes key, list strings) except -1:
    cdef Py_ssize_t i, n = len(strings)
    cdef const char ** pointers = <const char **> malloc(max(n, 1) * sizeof(char *))
    if pointers == NULL:
        raise MemoryError
    try:
        for i in range(n):
            pointers[i] = <bytes> strings[i]
        lib.gguf_set_arr_str(ctx, key, pointers, n)
    finally:
        free(pointers)
    return 0

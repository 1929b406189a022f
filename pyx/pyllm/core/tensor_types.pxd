"""The data types of tensors: their names, and conversion to and from NumPy arrays."""

# The data of a tensor, uint8, as NumPy gives it: in its own dtype where NumPy has one, else raw rows; or as float32.
cdef object tensor_array(object raw, str type_name, tuple shape, bint dequantize)

# `array` with another dtype; raises where a value does not fit, and for floats as integers.
cdef object cast(object array, object dtype)

# The ggml type a tensor gets: the one that was asked for, or the one of the dtype.
cdef int tensor_type(object name, object dtype, object type) except -1

# The bytes of a tensor as a contiguous array, and its shape in elements; `imatrix` is None or the columns' weights.
cdef tuple tensor_data(object name, object array, int number, object imatrix=*)

"""The types of ggml's tensors: what they are made of, and rows of them to and from float32."""

# Type number -> the dtype of its elements, for the types that NumPy knows.
cdef dict numpy_dtypes()

# Name in capitals -> type number, for every type that there is.
cdef dict type_numbers()

# The number of a type from its name in any case; raises InvalidArgumentError.
cdef int type_number(object type) except -1

cdef str type_name(int number)
cdef object row_bytes(int number, object n_per_row)

# Rows of blocks (uint8, contiguous, any address) as a new float32 array of `shape`.
cdef object rows_to_float(object raw, int number, tuple shape, int n_threads)

# A float32 array as uint8 rows. Raises TypeError and ValueError with the reason, for the caller to dress.
cdef object rows_from_float(object values, int number, object imatrix, int n_threads)

# Weights of the columns as a contiguous float32 array that fits `shape`; raises InvalidArgumentError.
cdef object check_imatrix(object imatrix, tuple shape)

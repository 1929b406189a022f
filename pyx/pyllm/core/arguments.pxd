"""Checks of arguments that C would take without a word."""

from libc.stdint cimport int32_t, uintptr_t

# An integer that fits: floats are a TypeError, others out of range an InvalidArgumentError.
cdef int32_t int32(value, str name) except? -1

# A float within [low, high]; NaN never is.
cdef float number(value, str name, double low=*, double high=*) except? -1

# An address that a C object can have: not NULL, and a multiple of a pointer's size. No more can be checked.
cdef uintptr_t pointer(value, str what) except? 0

# Text for a C function: encoded, and refused where a NUL would cut it short.
cdef bytes c_text(value, str what)

"""Checks of arguments that C would take without a word: floats cut to integers, NaN, text with a NUL in it."""

import math
import operator

from libc.stdint cimport int32_t, uintptr_t

from pyllm import errors


cdef int32_t int32(value, str name) except? -1:
    # operator.index, because in the limited API Cython cuts floats to integers.
    integer = operator.index(value)
    if not -(2**31) <= integer < 2**31:
        raise errors.InvalidArgumentError(f"{name} must be from -2147483648 to 2147483647, not {value}")
    return integer


cdef float number(value, str name, double low=-math.inf, double high=math.inf) except? -1:
    cdef double checked = value
    if math.isnan(checked) or checked < low or checked > high:
        raise errors.InvalidArgumentError(f"{name} must be a number from {low} to {high}, not {value}")
    return checked


cdef uintptr_t pointer(value, str what) except? 0:
    address = operator.index(value)
    if address < 4096 or address.bit_length() > 8 * sizeof(void *) or address % sizeof(void *):
        raise errors.InvalidArgumentError(f"{address:#x} cannot be the address of {what}")
    return address


cdef bytes c_text(value, str what):
    if not isinstance(value, (str, bytes)):
        raise TypeError(f"{what} must be text, not {type(value).__name__}")
    cdef bytes encoded = value.encode() if isinstance(value, str) else value
    if b"\0" in encoded:
        raise errors.InvalidArgumentError(f"{what} contains a NUL character: {value!r}")
    return encoded

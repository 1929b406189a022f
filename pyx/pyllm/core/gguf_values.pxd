"""The key-value pairs of GGUF files, between gguf.h and Python values."""

from pyllm.includes cimport gguf as lib

# Names are dict keys and go back to C: distinct bytes stay distinct.
cdef str name_of(const char * text)

# Bytes for C; raises where there is a NUL in them.
cdef bytes c_string(object text, str what)

cdef dict read_metadata(const lib.gguf_context * ctx)

# Sets a key to a Python value, in the type of that name or, for None, in the one that fits.
cdef int set_value(lib.gguf_context * ctx, bytes key, object value, str type) except -1

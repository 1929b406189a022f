"""Logits and embeddings that know the decode they came from."""

from libc.stdint cimport int32_t

from pyllm.core.context cimport Context

cdef enum:
    LOGITS = 0
    EMBEDDINGS = 1


# The same value with plain arrays in place of Outputs. Raises StaleLogitsError where one is stale.
cdef object plain(value)

# The rows of the last decode. The caller does not hold the context.
cdef object read_outputs(Context context, int kind)
# These rows, or one of them (None: all), in memory of their own.
cdef object copy_outputs(Context context, int kind, object row)
cdef object read_ith(Context context, int kind, int32_t i)
cdef object read_pooled(Context context, int32_t seq_id)

# Enlarges the output buffer of a new context to so many rows.
cdef int make_room(Context context, int32_t n_outputs) except -1

# The index for llama.cpp's functions of one output: `row` counts outputs, `index` tokens of the batch, and `i` may
# be either where both mean the same. The caller holds the context.
cdef int32_t output_index(Context context, object i, object index, object row) except *

# From here on the object that read_outputs() has given raises `error(message)`. There must be one.
cdef int expire_outputs(Context context, int kind, object error, str message) except -1

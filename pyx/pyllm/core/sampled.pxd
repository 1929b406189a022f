"""What samplers inside the graph of a context chose."""

from libc.stdint cimport int32_t, int64_t

from pyllm.core.context cimport Context


cdef class Sampled:
    cdef Context context           # whose memory is read; the arrays are copies
    cdef int64_t decode            # Context.decodes when it was made; stale when that has moved on

    cdef int32_t begin(self, object i, object index, object row) except *

cdef int attach_sampler(Context context, int32_t seq_id, object chain) except -1
cdef Sampled wrap_sampled(Context context)

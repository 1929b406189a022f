"""Logits and embeddings that know the decode they came from."""

from libc.stdint cimport int64_t

from pyllm.core.context cimport Context
from pyllm.core.view cimport View

cdef enum:
    LOGITS = 0
    EMBEDDINGS = 1


cdef class Outputs(View):
    cdef Context context
    cdef int kind                  # LOGITS or EMBEDDINGS
    cdef int64_t decode            # Context.decodes when it was made; stale when that has moved on
    cdef object shadow             # debug mode: the private copy that is shown instead of llama.cpp's buffer

cdef Outputs wrap_outputs(Context context, int kind, float * data)

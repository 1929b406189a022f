"""Looking into the graph of a context while it is computed."""

from libc.stdint cimport int64_t

from pyllm.core.batch cimport Batch
from pyllm.core.context cimport Context


cdef class Capture:
    cdef readonly Context context    # what is looked into; made with capture=True
    cdef list hooks                  # by slot: the Python function, or None
    cdef list names                  # by slot: the (name, occurrence) it stands for

    cdef int _run(self, Batch batch, bint encode) except -1
    cdef int _call(self, int slot, float * data, const int64_t * ne) except -2

"""Text that grows piece by piece."""

from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector


cdef extern from "pyllm/core/text_stream.hpp" namespace "pyllm" nogil:
    cdef cppclass text_stream:
        void set_stops(const vector[string] & values)
        bool append(const char * data, size_t size)
        string take(bool all)
        string all_text()
        int stopped_by()


cdef class TextStream:
    cdef text_stream c
    cdef readonly tuple stops

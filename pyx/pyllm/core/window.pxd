"""Removing tokens from a sequence without breaking its sliding window."""

from libc.stdint cimport int32_t
from libcpp cimport bool

from pyllm.includes cimport llama as lib
from pyllm.includes._translate cimport translate


cdef extern from "window.hpp" namespace "pyllm" nogil:
    bool window_reaches(lib.llama_context * context, int32_t seq_id, int32_t pos) except +translate
    bool remove_range(lib.llama_context * context, int32_t seq_id, int32_t p0, int32_t p1) except +translate

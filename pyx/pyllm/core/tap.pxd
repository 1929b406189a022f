"""What a context calls while it computes its graph (``tap.hpp``); see core.capture."""

from libc.stdint cimport int32_t, int64_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.unordered_set cimport unordered_set
from libcpp.vector cimport vector

from pyllm.includes.ggml cimport ggml_tensor


cdef extern from "pyllm/core/tap.hpp" namespace "pyllm" nogil:
    cdef cppclass tap:
        cppclass node:
            string name
            string op
            int occurrence
            int type
            int64_t ne[4]
            float param

        cppclass piece:
            int slot
            int type
            int64_t ne[4]
            vector[float] data

        int (*hook)(void * owner, int slot, float * data, const int64_t * ne) noexcept
        void * owner
        bool active
        bool listing
        bool failed
        bool has_tokens
        bool names_known
        unordered_set[string] names
        vector[node] nodes
        vector[piece] pieces
        vector[int32_t] tokens
        string error

        void reset() noexcept
        int count(const string & name) except +
        void add(const string & name, int occurrence, int slot, bool read, bool with_hook) except +

        @staticmethod
        bool callback(ggml_tensor * t, bool ask, void * data) noexcept

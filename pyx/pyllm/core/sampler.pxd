"""Samplers and chains of samplers."""

from libc.stdint cimport int32_t
from libcpp.vector cimport vector

from pyllm.core.context cimport Context
from pyllm.core.resource cimport Resource
from pyllm.includes cimport llama as lib


cdef extern from "pyllm/core/reach.hpp" namespace "pyllm" nogil:
    cdef cppclass reach:
        size_t k
        vector[int32_t] moved
        vector[lib.llama_token_data] candidates


cdef class Sampler(Resource):
    cdef lib.llama_sampler * ptr
    cdef Sampler chain              # the chain that owns ptr, if any; holding it keeps ptr alive
    cdef reach reach_               # which tokens it can choose
    cdef bint reach_known
    cdef object model               # the Model whose vocabulary ptr points into, if any
    cdef readonly dict params       # what it was made with, for repr

    cdef lib.llama_sampler * require(self) except NULL
    cdef Sampler root(self)
    # Around a call into llama.cpp: the lock of the whole chain, and the models it points into. begin() returns the
    # Sampler whose lock was taken, for finish().
    cdef Sampler begin(self)
    cdef int finish(self, Sampler root) except -1
    cdef list used_models(self)
    cdef int forget(self) except -1
    cdef reach * within(self) except NULL
    cdef int check_attached(self, Context context, int32_t i) except -1
    # Takes over a new llama_sampler; NULL raises `cls` with `message`.
    cdef int own(self, lib.llama_sampler * ptr, str function, dict params, model=*, cls=*, str message=*) except -1


cdef class Chain(Sampler):
    cdef object members             # weak: address of a llama_sampler -> its Sampler
    cdef dict kinds                 # address of a llama_sampler -> (class, params, model) it was added with
    cdef list models                # Models that members point into; they outlive the chain

    cdef int _copy_kinds(self, Chain source) except -1
    cdef int _find_reach(self) except -1


# A clearer error for the assertion that a sampler selected nothing; other assertions as they are.
cdef object explain(object cause)

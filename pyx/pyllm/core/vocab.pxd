"""The tokenizer of a model."""

from libc.stdint cimport int32_t

from pyllm.core.model cimport Model
from pyllm.includes cimport llama as lib


cdef class Vocab:
    cdef Model model                     # owns the vocabulary
    cdef const lib.llama_vocab * ptr
    cdef readonly int32_t n_tokens       # constant for the life of the model
    cdef object __weakref__

    cdef const lib.llama_vocab * require(self) except NULL
    # `use` and model.done() stand around a `with nogil` block.
    cdef const lib.llama_vocab * use(self) except NULL
    cdef int check_token(self, long long token) except -1

"""The step loop: decode, sample, accept, detokenise."""

from libc.stdint cimport int8_t, int32_t, int64_t
from libcpp.string cimport string
from libcpp.vector cimport vector

from pyllm.core.context cimport Context
from pyllm.core.sampler cimport Sampler, reach
from pyllm.core.text_stream cimport TextStream
from pyllm.core.vocab cimport Vocab
from pyllm.includes cimport llama as lib


cdef extern from "pyllm/core/token_list.hpp" namespace "pyllm" nogil:
    cdef cppclass token_list:
        void push_back(int32_t token)
        int32_t back()
        size_t size()
        vector[int32_t] copy()
        vector[int32_t] copy_from(size_t start)


cdef class Generation:
    cdef readonly Context context
    cdef readonly Sampler sampler
    cdef readonly TextStream stream
    cdef readonly int32_t seq_id
    cdef readonly int32_t n_past          # positions of the sequence that are in the KV cache
    cdef bint special                     # all control tokens are written as text
    cdef vector[int32_t] shown            # or these
    cdef token_list tokens_               # what was generated, without the token that ended it
    cdef token_list prompt_
    cdef bint has_pending                 # `last` is not in the KV cache yet
    cdef int32_t last                     # the last token of the text so far
    cdef int64_t decode                   # Context.decodes of the logits that belong to this text
    cdef readonly str finish_reason       # None while it can go on
    cdef reach * within                   # which tokens the sampler can choose, for the call that runs
    cdef int32_t sampled_row              # index in the batch of the logits to choose from; -1 is the last output
    cdef Vocab vocab
    cdef const lib.llama_vocab * vocab_ptr

    cdef int ready(self, int32_t n) except -1
    cdef int decode_pending(self) except -99 nogil
    cdef int sample_one(self) except -99 nogil
    cdef bint is_shown(self, int32_t token) noexcept nogil
    cdef int append_long(self, int32_t token, int32_t size) except -99 nogil
    cdef int loop(self, int32_t n) except -99 nogil
    cdef int stopped_by(self, int state, str function) except -1

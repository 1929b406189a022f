"""llama_context_params from keyword arguments."""

from pyllm.core.model cimport Model
from pyllm.includes cimport llama as lib


cdef class ContextArguments:
    cdef lib.llama_context_params c

    cdef int check_pooling(self, Model model) except -1
    cdef int _set_sizes(
        self, n_ctx, n_batch, n_ubatch, n_seq_max, n_rs_seq, n_outputs_max, n_outputs_max_per_seq, yarn_orig_ctx
    ) except -1

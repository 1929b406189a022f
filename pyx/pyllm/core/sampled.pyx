"""What samplers inside the graph of a context chose (wraps ``llama_set_sampler`` and ``llama_get_sampled_*``)."""

cimport cython
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memcpy
from libcpp cimport bool

import numpy as np

from pyllm import errors
from pyllm.core cimport error
from pyllm.core.arguments cimport int32
from pyllm.core.context cimport Context
from pyllm.core.outputs cimport output_index
from pyllm.core.sampler cimport Chain
from pyllm.includes cimport llama as lib


cdef extern from "sampled.hpp" namespace "pyllm" nogil:
    lib.llama_sampler * for_device(lib.llama_sampler * source, int32_t n_vocab) except +


cdef int attach_sampler(Context context, int32_t seq_id, object chain) except -1:
    cdef Chain copy = None
    cdef lib.llama_sampler * sampler = NULL
    cdef bool ok
    context.acquire()
    try:
        context.require()
        if not 0 <= seq_id < context.n_seq_max_:
            raise errors.InvalidArgumentError(
                f"sequence {seq_id} is out of range: the context has n_seq_max={context.n_seq_max_}"
            )
        if chain is not None:
            if not isinstance(chain, Chain):
                raise errors.SamplerError(
                    f"a sequence takes a Chain, not {type(chain).__name__}; put the sampler into one: Chain(sampler)"
                )
            if len(chain) == 0:
                raise errors.SamplerError("the chain is empty: there is nothing that could run in the context")
            # Nobody else can reach the clone, so llama.cpp has it for itself while it decodes.
            copy = chain.clone()
            copy.ptr = for_device(copy.ptr, context.n_vocab)
            copy.kinds = {}
            sampler = copy.ptr
        context.forget_outputs()
        context.require()
        try:
            with nogil:
                ok = lib.llama_set_sampler(context.ptr, seq_id, sampler)
        except errors.PyllmError:
            # What is attached now is unknown; nothing is the only safe answer.
            lib.llama_set_sampler(context.ptr, seq_id, NULL)
            context.samplers_.pop(seq_id, None)
            context.n_samplers = <int32_t> len(context.samplers_)
            raise
        # Only now: until here llama.cpp pointed to the old one.
        context.samplers_.pop(seq_id, None)
        if ok and copy is not None:
            context.samplers_[seq_id] = copy
        context.n_samplers = <int32_t> len(context.samplers_)
        if not ok:
            error.fail(
                errors.SamplerError, f"llama.cpp cannot run {chain!r} in this context; no sampler is attached now",
                "llama_set_sampler",
            )
        return 0
    finally:
        context.release()


@cython.no_gc_clear
cdef class Sampled:
    """Tokens, probabilities and candidates of one decode, chosen by samplers inside the graph.

    An output is named by `index`, that of its token in the batch, by `row`, that in ``Context.logits``, or by `i`,
    where both are the same; negative ones count outputs from the end, so that -1 is the last. All arrays are copies.
    After a newer decode every method raises StaleLogitsError.

    Example:
        >>> ctx.set_sampler(0, Chain(TopK(40), Temp(0.8), Dist(seed=1)))
        >>> ctx.decode(batch)
        >>> token = ctx.sampled.sample()
    """

    def __init__(self):
        raise TypeError("read Context.sampled instead")

    cdef int32_t begin(self, object i, object index, object row) except *:
        """Take the lock of the context and check that the output is there; its index for llama.cpp."""
        cdef int32_t c_i
        if self.context is None:
            raise TypeError("read Context.sampled instead")
        self.context.acquire()
        try:
            self.context.require()
            if self.decode != self.context.decodes:
                raise errors.StaleLogitsError(
                    "this belongs to an earlier decode, and the memory shows a newer one; read ctx.sampled again"
                )
            c_i = output_index(self.context, i, index, row)
            if lib.llama_get_logits_ith(self.context.ptr, c_i) == NULL:
                error.fail(errors.NoOutputError, f"no output was asked for index {c_i} of the batch")
            return c_i
        except BaseException:
            self.context.release()
            raise

    def token(self, i=-1, *, index=None, row=None):
        """The token that was chosen on the device (int), or None where the chain goes on in :meth:`sample`.

        The samplers have not accepted it: :meth:`sample` does both. Wraps ``llama_get_sampled_token_ith``.
        """
        cdef int32_t c_i
        cdef int32_t token
        c_i = self.begin(i, index, row)
        try:
            with nogil:
                token = lib.llama_get_sampled_token_ith(self.context.ptr, c_i)
            return None if token == lib.LLAMA_TOKEN_NULL else token
        finally:
            self.context.release()

    def probs(self, i=-1, *, index=None, row=None):
        """The probabilities of the candidates: float32, shape (n,); None where no sampler computed them.

        Wraps ``llama_get_sampled_probs_ith`` and ``llama_get_sampled_probs_count_ith``.
        """
        cdef int32_t c_i
        cdef uint32_t n
        cdef float * data
        c_i = self.begin(i, index, row)
        try:
            with nogil:
                data = lib.llama_get_sampled_probs_ith(self.context.ptr, c_i)
                n = lib.llama_get_sampled_probs_count_ith(self.context.ptr, c_i)
            return None if data == NULL else _floats(data, n)
        finally:
            self.context.release()

    def logits(self, i=-1, *, index=None, row=None):
        """The logits of the candidates as the samplers left them: float32, shape (n,); None where there are none.

        Wraps ``llama_get_sampled_logits_ith`` and ``llama_get_sampled_logits_count_ith``.
        """
        cdef int32_t c_i
        cdef uint32_t n
        cdef float * data
        c_i = self.begin(i, index, row)
        try:
            with nogil:
                data = lib.llama_get_sampled_logits_ith(self.context.ptr, c_i)
                n = lib.llama_get_sampled_logits_count_ith(self.context.ptr, c_i)
            return None if data == NULL else _floats(data, n)
        finally:
            self.context.release()

    def candidates(self, i=-1, *, index=None, row=None):
        """The token ids that :meth:`probs` and :meth:`logits` speak of: int32, shape (n,).

        The whole vocabulary where no sampler made a choice. Wraps ``llama_get_sampled_candidates_ith`` and
        ``llama_get_sampled_candidates_count_ith``.
        """
        cdef int32_t c_i
        cdef uint32_t n
        cdef lib.llama_token * data
        cdef int32_t[::1] view
        c_i = self.begin(i, index, row)
        try:
            with nogil:
                n = lib.llama_get_sampled_candidates_count_ith(self.context.ptr, c_i)
                data = lib.llama_get_sampled_candidates_ith(self.context.ptr, c_i)
            if n == 0:
                n = <uint32_t> self.context.n_vocab  # llama.cpp then points to a list of all ids
            result = np.empty(n, np.int32)
            view = result
            memcpy(&view[0], data, n * sizeof(int32_t))
            return result
        finally:
            self.context.release()

    def sample(self, i=-1, seq_id=0, *, index=None, row=None):
        """Choose a token: the one from the device, or what the rest of the chain selects; and accept it.

        Args:
            i: Which output; -1 is the last one.
            index: Which one, as the index of its token in the batch.
            row: Which one, as its row in ``Context.logits``.
            seq_id: The sequence that the output belongs to, whose chain samples.

        Returns:
            int: The token id.

        Raises:
            SamplerError: The sequence has no sampler, or its chain never selects a token.
            NoOutputError: There is no output at that index.
            InvalidArgumentError: `i` can mean two outputs.
            StaleLogitsError: There was a newer decode.

        Wraps ``llama_sampler_sample``.
        """
        cdef int32_t c_i
        cdef int32_t c_seq_id = int32(seq_id, "seq_id")
        c_i = self.begin(i, index, row)
        try:
            chain = self.context.samplers_.get(c_seq_id)
            if chain is None:
                raise errors.SamplerError(f"sequence {c_seq_id} has no sampler: attach one with Context.set_sampler()")
            return chain.sample(self.context, index=c_i)
        finally:
            self.context.release()

    def __repr__(self):
        if self.context is None:
            return "<Sampled of nothing>"
        state = "" if self.context.ptr != NULL and self.decode == self.context.decodes else " (stale)"
        return f"<Sampled: {self.context.n_outputs} outputs{state}>"


cdef object _floats(const float * data, uint32_t n):
    result = np.empty(n, np.float32)
    cdef float[::1] view = result
    if n:
        memcpy(&view[0], data, n * sizeof(float))
    return result


cdef Sampled wrap_sampled(Context context):
    cdef Sampled self
    context.acquire()
    try:
        context.require()
        if context.n_samplers == 0:
            raise errors.NoOutputError("no sequence has a sampler: attach one with set_sampler()")
        if context.n_outputs == 0:
            raise errors.NoOutputError("the last decode gave no outputs; ask for them with Batch outputs=...")
        self = Sampled.__new__(Sampled)
        self.context = context
        self.decode = context.decodes
        return self
    finally:
        context.release()

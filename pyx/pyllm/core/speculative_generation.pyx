"""The step loop with drafts: several tokens are computed at once, and those that would have been chosen are kept."""

cimport cython
from libc.stdint cimport int32_t, int64_t

import numpy as np

from pyllm import errors
from pyllm.core.introspection import signature
from pyllm.core.arguments cimport int32
from pyllm.core.context cimport Context
from pyllm.core.generation cimport Generation
from pyllm.core.sampler cimport Sampler
from pyllm.core.speculative cimport Checkpoint, Drafter
from pyllm.core.speculative_pace cimport Pace
from pyllm.core.window cimport remove_range
from pyllm.includes cimport ggml
from pyllm.includes cimport llama as lib

cdef enum:
    # A code of llama_decode: nothing was computed, there is no room.
    NO_SLOT = 1
    # How Generation.sample_one says that the text has not ended.
    GOING_ON = 1000


@cython.no_gc_clear
cdef class SpeculativeGeneration(Generation):
    """A :class:`pyllm.core.generation.Generation` that computes drafts along with the text.

    Each token is chosen by the sampler from the logits of its own row, whether it was drafted or not, and the sampler
    sees the same tokens in the same order as without drafts: the draft decides only how many rows are computed at
    once. Logits of rows that are computed together are rounded otherwise, so that of two tokens which are almost
    equally likely the other one can win.

    Args:
        context: Where to decode; that of the drafter.
        sampler: What selects the tokens.
        drafter: What makes the drafts. It follows this text from its :meth:`prefill` on.
        past: The tokens that sequence 0 of the context has already: ids, shape (n_past,).
        pace: How long drafts may be, and when there are none. None: a new one.
        limit: How many tokens will be generated at most, so that no draft goes beyond; None: no limit.
        stop: Stop strings.
        special: Write control tokens as text.
        **options: As of Generation.
    """

    __signature__ = signature

    def __cinit__(
        self, Context context not None, Sampler sampler not None, *, Drafter drafter not None, past=(),
        Pace pace=None, limit=None, **options
    ):
        cdef int32_t token
        if drafter.target is not context:
            raise errors.InvalidArgumentError("the drafter was made for another context")
        if self.seq_id != 0:
            raise errors.InvalidArgumentError(f"drafts are made for sequence 0, not {self.seq_id}")
        known = self.vocab.as_token_array(past)
        if len(known) != self.n_past:
            raise errors.InvalidArgumentError(
                f"sequence 0 has {self.n_past} tokens already and past names {len(known)}; "
                "give all of them, or clear the memory"
            )
        self.drafter = drafter
        self.pace = Pace(drafter.n_max) if pace is None else pace
        self.limit = limit
        self.most = 0x7FFFFFFF if limit is None else int32(limit, "limit")
        self.n_ctx_seq = context.n_ctx_seq
        if context.model.is_recurrent or context.model.is_hybrid:
            self.checkpoint = Checkpoint(context)
            self.n_rollback = context.n_rs_seq
        self.n_paused = self.pace.paused
        for token in known:
            self.replay.push_back(token)  # until prefill(), which begins the text with them

    def prefill(self, tokens, *, bint accept=False):
        """Decode a prompt; see :meth:`pyllm.core.generation.Generation.prefill`."""
        cdef int32_t i
        cdef int code
        cdef bint first = self.prompt_.size() == 0 and self.tokens_.size() == 0
        ids = self.vocab.as_token_array(tokens)
        if len(ids) == 0:
            raise errors.InvalidBatchError("there is nothing to decode: give at least one token")
        self.lock()
        try:
            if first:
                known = np.empty(self.replay.size(), np.int32)
                for i in range(len(known)):
                    known[i] = self.replay[i]
            else:
                self.settle()
                with nogil:
                    code = self.catch_up(0)
                self.context.raise_for(code, "llama_decode")
                known = np.append(_array(self.drafter), np.int32(self.last))
            self.first_row = -1
            self.accepted = 0
            try:
                if self.drafter.reads_features:
                    self.drafter.start(np.ascontiguousarray(known, np.int32))
                    self._prefill_shown(ids)
                else:
                    Generation.prefill(self, ids)
            finally:
                # What was computed before an error is a text too.
                n = self.n_past - len(known)
                if n > 0:
                    if first:
                        self.replay.clear()
                    self.drafter.start(np.ascontiguousarray(np.concatenate([known, ids[:n - 1]]), np.int32))
            if accept:
                for token in ids:
                    self.sampler.accept(token)
        finally:
            self.unlock()

    def _prefill_shown(self, ids):
        """As prefill, and the drafter sees what was computed for each batch before the next replaces it."""
        cdef int32_t[::1] view
        cdef int32_t n, position
        cdef int code
        cdef Context context = self.context
        start = 0
        while start < len(ids):
            pending = 1 if self.has_pending else 0
            part = np.ascontiguousarray(ids[start:start + context.n_batch_ - pending], np.int32)
            position = self.n_past
            shown = np.concatenate([np.array([self.last], np.int32), part]) if pending else part
            Generation.prefill(self, part)
            start += len(part)
            view = np.ascontiguousarray(shown, np.int32)
            n = <int32_t> view.shape[0]
            with nogil:
                code = self.drafter.show(&view[0], n, position)
            self.drafter.context.raise_for(code, "llama_process")

    def run(self, n):
        """Generate up to `n` tokens without the GIL; see :meth:`pyllm.core.generation.Generation.run`."""
        self.lock()
        try:
            return Generation.run(self, n)
        finally:
            self.unlock()

    def decode_next(self):
        """Compute the logits of the next token; see :meth:`pyllm.core.generation.Generation.decode_next`.

        They are the row :attr:`row` of ``context.logits``.
        """
        self.lock()
        try:
            Generation.decode_next(self)
        finally:
            self.unlock()

    def shift(self, keep, discard):
        """Forget tokens in the middle; see :meth:`pyllm.core.generation.Generation.shift`."""
        cdef int32_t c_keep = int32(keep, "keep")
        cdef int32_t c_discard = int32(discard, "discard")
        self.lock()
        try:
            self.settle()
            Generation.shift(self, c_keep, c_discard)
            self.drafter.history.erase(
                self.drafter.history.begin() + c_keep, self.drafter.history.begin() + c_keep + c_discard
            )
            self.drafter.n_kept = min(self.drafter.n_kept, c_keep)
            if self.checkpoint is not None:
                self.checkpoint.n = -1  # its positions are those of before
            self.drafter.start(_array(self.drafter))
        finally:
            self.unlock()

    def settle(self):
        """Take out of the memory what was drafted and not chosen, so that it holds the text and nothing else."""
        self.lock()
        try:
            self.context.require()
            with nogil:
                self.end_draft()
        finally:
            self.unlock()

    @property
    def row(self):
        """The row of ``context.logits`` that the next token is chosen from (int)."""
        if self.first_row < 0:
            return -1
        return self.accepted

    @property
    def n_paused(self):
        """Steps without a draft because drafts had cost more than they saved (int)."""
        return self.pace.paused - self.n_paused

    cdef int lock(self) except -1:
        self.context.acquire()
        try:
            if self.drafter.has_context:
                self.drafter.context.acquire()
        except BaseException:
            self.context.release()
            raise
        return 0

    cdef void unlock(self) noexcept:
        if self.drafter.has_context:
            self.drafter.context.release()
        self.context.release()

    # ---- what the step loop calls

    cdef int ready(self, int32_t n) except -1:
        cdef Context context = self.context
        cdef int32_t most = min(self.pace.n_max, self.drafter.n_max)
        self.drafter.require()
        if self.draft.size() and self.decode != context.decodes:
            with nogil:
                self.end_draft()  # another decode has replaced the rows of the draft
        Generation.ready(self, n)
        self.allowed = most
        if context.embeddings_ or context.n_samplers:
            self.allowed = 0  # every token would be output then, or no logits at all
        elif (
            not self.has_pending and context.output_memory.views.load() > 0
            and not context.has_room_for(1 + self.allowed)
        ):
            self.allowed = 0  # the next token is chosen from rows in a buffer that would be given up to a view
        if self.has_pending or n > 1:
            # With embeddings, tokens that are computed again have outputs too.
            context.prepare(context.n_batch_ if context.embeddings_ else 1 + self.allowed)
        if self.drafter.has_context:
            self.drafter.context.begin_raw()
        if not self.has_pending:
            self.decode = context.decodes  # the logits are still there
        return 0

    cdef int decode_pending(self) except -99 nogil:
        cdef int code
        cdef int64_t started = ggml.ggml_time_us()
        cdef int32_t n_replay
        if not self.has_pending:
            return 0
        code = self.catch_up(self.drafter.n_batch - 1)
        if code != 0:
            return code
        n_replay = <int32_t> self.replay.size()
        self.draft.clear()
        self.accepted = 0
        if n_replay == 0:
            code = self.make_draft()
            if code != 0:
                return code
        code = self.compute(n_replay + 1 + <int32_t> self.draft.size(), True)
        if code == NO_SLOT and self.draft.size() > 0:
            self.draft.clear()
            self.drafter.judge(0)
            code = self.compute(n_replay + 1, True)
        if code != 0:
            return code
        lib.llama_synchronize(self.context.ptr)
        self.took_us = ggml.ggml_time_us() - started
        self.first_row = n_replay
        self.replay.clear()
        self.has_pending = False
        self.decode = self.context.decodes
        self.n_decodes += 1
        if self.draft.size() > 0:
            self.n_drafts += 1
            self.n_drafted += self.draft.size()
        elif n_replay == 0:
            self.pace.plain(self.took_us)
        return 0

    cdef int make_draft(self) except -99 nogil:
        cdef int code
        cdef size_t i
        cdef int64_t n = min(self.allowed, self.pace.allowed())
        n = min(n, self.most - <int64_t> self.tokens_.size() - 1)
        n = min(n, self.n_ctx_seq - self.n_past - 1)
        if n < 1:
            return 0
        code = self.drafter.draft_into(self.last, <int32_t> n)
        if code != 0:
            return code
        for i in range(self.drafter.result.size()):
            self.draft.push_back(self.drafter.result[i])
        if self.draft.size() and self.checkpoint is not None and <int32_t> self.draft.size() > self.n_rollback:
            self.checkpoint.save(self.seq_id, self.n_past)
            if self.checkpoint.n < 0:
                self.draft.clear()
                self.drafter.judge(0)
        return 0

    cdef int compute(self, int32_t n, bint output) except -99 nogil:
        """Compute `n` tokens behind the memory: of `replay`, the last one, and of the draft."""
        cdef int32_t i, n_replay = <int32_t> self.replay.size()
        cdef int32_t n_outputs = 0
        cdef int code
        cdef lib.llama_batch batch
        self.tokens_in.resize(n)
        self.pos_in.resize(n)
        self.n_seq_id_in.assign(n, 1)
        self.seq_id_in.assign(n, &self.seq_id)
        self.output_in.assign(n, 0)
        for i in range(n):
            if i < n_replay:
                self.tokens_in[i] = self.replay[i]
            else:
                self.tokens_in[i] = self.last if i == n_replay else self.draft[i - n_replay - 1]
                self.output_in[i] = output
                n_outputs += output
            self.pos_in[i] = self.n_past + i
        batch.n_tokens = n
        batch.token = self.tokens_in.data()
        batch.embd = NULL
        batch.pos = self.pos_in.data()
        batch.n_seq_id = self.n_seq_id_in.data()
        batch.seq_id = self.seq_id_in.data()
        batch.logits = self.output_in.data()
        code = self.context.decode_unchecked(batch, n_outputs, False)
        if code == 0:
            code = self.drafter.show(self.tokens_in.data(), n, self.n_past)
            self.n_past += min(n, n_replay + 1)
        elif code != NO_SLOT:
            # Some micro-batches may have been computed.
            self.draft.clear()
            self.go_back(-1)
        return code

    cdef int catch_up(self, int32_t left) except -99 nogil:
        """Compute what a memory lacks that had to go back far, until only so many tokens are left."""
        cdef int code
        cdef int32_t n
        while <int32_t> self.replay.size() > left:
            n = min(self.drafter.n_batch, <int32_t> self.replay.size())
            code = self.compute(n, False)
            if code != 0:
                return code
            self.replay.erase(self.replay.begin(), self.replay.begin() + n)
        return 0

    cdef int sample_one(self) except -99 nogil:
        cdef int state
        cdef int32_t before = self.last
        cdef size_t n = self.tokens_.size()
        self.sampled_row = -1 if self.first_row < 0 else self.first_row + self.accepted
        state = Generation.sample_one(self)
        if self.tokens_.size() == n:
            self.end_draft()  # the text has ended
            return state
        self.drafter.push(before)
        if self.accepted < <int32_t> self.draft.size() and self.draft[self.accepted] == self.last:
            self.accepted += 1
            self.n_accepted += 1
            self.n_past += 1
            self.has_pending = False
            if state == GOING_ON:
                return state
        self.end_draft()
        return state

    cdef int end_draft(self) except -1 nogil:
        """Nothing more is chosen from the rows of the draft: the memory keeps what was chosen."""
        cdef int32_t n = <int32_t> self.draft.size()
        if n == 0:
            return 0
        self.pace.round(n, self.accepted, self.took_us)
        self.drafter.judge(self.accepted)
        self.draft.clear()
        if self.accepted < n:
            self.go_back(n - self.accepted)
        return 0

    cdef int go_back(self, int32_t n_computed) except -1 nogil:
        """Let the memory forget what it has behind n_past; `n_computed` tokens, -1 is unknown."""
        cdef lib.llama_memory_t memory = lib.llama_get_memory(self.context.ptr)
        cdef int32_t i, n, size = <int32_t> self.drafter.history.size()
        if lib.llama_memory_seq_pos_max(memory, self.seq_id) < self.n_past:
            return 0
        if self.checkpoint is None or 0 < n_computed <= self.n_rollback:
            if remove_range(self.context.ptr, self.seq_id, self.n_past, -1):
                return 0
        # The tokens behind the checkpoint are computed again, together with the next one.
        n = 0
        if (
            self.checkpoint is not None
            and 0 <= self.checkpoint.n <= self.n_past
            and self.checkpoint.restore(self.seq_id)
        ):
            n = self.checkpoint.n
        else:
            lib.llama_memory_seq_rm(memory, self.seq_id, -1, -1)
        self.replay.clear()
        for i in range(n, size):
            self.replay.push_back(self.drafter.history[i])
        self.n_past = n
        self.has_pending = True
        return 0


cdef object _array(Drafter drafter):
    """The text of a drafter without its last token: int32, shape (n,)."""
    array = np.empty(drafter.history.size(), np.int32)
    cdef int32_t[::1] view = array
    cdef Py_ssize_t i
    for i in range(view.shape[0]):
        view[i] = drafter.history[i]
    return array

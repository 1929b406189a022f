"""The step loop: decode, sample, accept, test for the end, detokenise; any number of steps without the GIL."""

cimport cython
from libc.stdint cimport int8_t, int32_t
from libcpp.string cimport string
from libcpp.vector cimport vector

import numpy as np

from pyllm import errors
from pyllm.core.introspection import not_pickled, signature
from pyllm.core.arguments cimport int32
from pyllm.core.batch cimport Batch
from pyllm.core.choose cimport choose
from pyllm.core.context cimport Context
from pyllm.core.sampler cimport Sampler, explain
from pyllm.core.text_stream cimport TextStream
from pyllm.core.window cimport remove_range
from pyllm.includes cimport llama as lib

# How `loop` ended; other values are return codes of llama_decode.
cdef enum:
    GOING_ON = 1000
    END_OF_GENERATION = 1001
    STOP_STRING = 1002


@cython.no_gc_clear
cdef class Generation:
    """One text in the making: a context, a sampler and the sequence they work on.

    After :meth:`prefill` each step samples a token from the logits and decodes it when the next one is asked for.
    Between two steps the logits may be edited in place. Nothing is lost when a step raises: ``tokens`` and
    ``stream`` hold what was generated, and the next call goes on.

    Args:
        context: Where to decode. Other sequences of it are left alone.
        sampler: What selects the tokens.
        seq_id: The sequence.
        stop: Stop strings.
        special: Write control tokens as text: True for all, or the ids of those to write.

    Example:
        >>> generation = Generation(ctx, Chain(Greedy()), stop=["\\n"])
        >>> generation.prefill(vocab.tokenize("The capital of France is"))
        >>> generation.run(16)
        >>> generation.stream.take(all=True)
        ' Paris.'
    """

    __reduce__ = not_pickled(
        "it continues a text in its context; pickle its prompt and its tokens, and prefill them there"
    )
    __signature__ = signature

    def __cinit__(
        self, Context context not None, Sampler sampler not None, *, seq_id=0, stop=(), special=False,
        **others,
    ):
        if others and type(self) is Generation:
            raise TypeError(f"Generation() has no argument {next(iter(others))!r}")
        cdef int32_t c_seq_id = int32(seq_id, "seq_id")
        self.context = context
        self.sampler = sampler
        self.seq_id = c_seq_id
        if isinstance(special, bool):
            self.special = special
        else:
            for token in special:
                self.shown.push_back(int32(token, "a token of special"))
        self.stream = TextStream(stop)
        self.sampled_row = -1
        self.vocab = context.model.vocab
        self.vocab_ptr = self.vocab.require()
        context.require()
        if not 0 <= c_seq_id < context.n_seq_max_:
            raise errors.InvalidArgumentError(
                f"sequence id {c_seq_id} is out of range: the context has n_seq_max={context.n_seq_max_}"
            )
        self.n_past = lib.llama_memory_seq_pos_max(lib.llama_get_memory(context.ptr), c_seq_id) + 1

    def prefill(self, tokens, *, bint accept=False):
        """Decode a prompt; it goes on where the sequence ends in the memory of the context.

        Args:
            tokens: Token ids, int32, shape (n,), n >= 1.
            accept: Let the sampler count them, for penalties that should see the prompt.

        Raises:
            InvalidBatchError: Nothing to decode, or an id out of range.
            NoKVSlotError: It does not fit; what fits before stays.
        """
        cdef Context context = self.context
        cdef int32_t i, n, start, step = context.n_batch_
        ids = self.vocab.as_token_array(tokens)
        if len(ids) == 0:
            raise errors.InvalidBatchError("there is nothing to decode: give at least one token")
        context.acquire()
        try:
            if self.has_pending:
                ids = np.concatenate([np.array([self.last], np.int32), ids])
            n = <int32_t> len(ids)
            for start in range(0, n, step):
                part = ids[start:start + step]
                context.decode(Batch.from_arrays(
                    part, pos=np.arange(self.n_past, self.n_past + len(part), dtype=np.int32),
                    seq_ids=np.full(len(part), self.seq_id, np.int32),
                    outputs="last" if start + step >= n else "none",
                ))
                self.n_past += <int32_t> len(part)
                for i in range(1 if self.has_pending else 0, len(part)):
                    self.prompt_.push_back(part[i])
                self.last = part[len(part) - 1]
                self.has_pending = False
            self.decode = context.decodes
            self.finish_reason = None
        finally:
            context.release()
        if accept:
            for token in self.vocab.as_token_array(tokens):
                self.sampler.accept(token)

    def step(self):
        """Generate one token.

        Returns:
            int | None: Its id, or None when the text has ended; then ``finish_reason`` says why.
        """
        cdef size_t before = self.tokens_.size()
        self.run(1)
        if self.tokens_.size() == before:
            return None
        return self.tokens_.back()

    def run(self, n):
        """Generate up to `n` tokens without the GIL, stopping earlier at an end-of-generation token or stop string.

        Returns:
            int: How many were generated.

        Raises:
            NoKVSlotError: The KV cache is full; what was generated is kept.
            KeyboardInterrupt: Ctrl-C; what was generated is kept.
        """
        cdef int32_t c_n = int32(n, "n")
        cdef int state
        cdef size_t before = self.tokens_.size()
        cdef Sampler root
        if c_n < 1 or self.finish_reason is not None:
            return 0
        self.context.acquire()
        try:
            root = self.sampler.begin()
            try:
                self.ready(c_n)
                self.within = self.sampler.within()
                try:
                    with nogil:
                        state = self.loop(c_n)
                except (errors.BackendAssertError, errors.BackendError) as cause:
                    raise explain(cause) from cause
                self.stopped_by(state, "llama_decode")
            finally:
                self.sampler.finish(root)
        finally:
            self.context.release()
        return self.tokens_.size() - before

    def decode_next(self):
        """Decode the token that was sampled last, so that its logits can be edited before the next step.

        :meth:`step` and :meth:`run` do this by themselves.
        """
        cdef int state
        self.context.acquire()
        try:
            self.ready(1)
            with nogil:
                state = self.decode_pending()
            self.stopped_by(state if state != 0 else GOING_ON, "llama_decode")
        finally:
            self.context.release()

    def shift(self, keep, discard):
        """Make room in the middle: forget tokens of the memory, and move those behind them down. A context shift.

        What comes next sees the text without them; what is there already was computed when it still saw them.
        ``tokens`` and ``prompt`` go on holding all.

        Args:
            keep: Positions at the beginning that stay.
            discard: How many behind them go.

        Raises:
            InvalidArgumentError: The sequence has no such positions.
            ContextError: Positions cannot be changed in the memory of this model.

        Wraps ``llama_memory_seq_rm`` and ``llama_memory_seq_add``.
        """
        cdef int32_t c_keep = int32(keep, "keep")
        cdef int32_t c_discard = int32(discard, "discard")
        self.context.acquire()
        try:
            self.context.require()
            if c_keep < 0 or c_discard < 1 or c_discard >= self.n_past - c_keep:
                raise errors.InvalidArgumentError(
                    f"keep={c_keep} and discard={c_discard} must be positions before the last of {self.n_past}, "
                    "and discard at least 1"
                )
            memory = self.context.memory
            if not memory.can_shift:
                raise errors.ContextError(
                    "positions cannot be changed in the memory of this context (can_shift is False)"
                )
            # The tokens behind the gap move down to it. Where they fill the window, nothing before it is read.
            tail = self.n_past - c_keep - c_discard
            if tail >= lib.llama_model_n_swa(self.context.model.require()) - 1:
                removed = lib.llama_memory_seq_rm(
                    lib.llama_get_memory(self.context.ptr), self.seq_id, c_keep, c_keep + c_discard
                )
            else:
                removed = memory.rm(self.seq_id, c_keep, c_keep + c_discard)
            if not removed:
                raise errors.ContextError("tokens cannot be taken out of the middle of this model's memory")
            memory.add(self.seq_id, -c_discard, c_keep + c_discard, self.n_past)
            self.n_past -= c_discard
        finally:
            self.context.release()

    cdef int ready(self, int32_t n) except -1:
        cdef Context context = self.context
        context.require()
        if self.seq_id in context.samplers_:
            raise errors.SamplerError(
                f"sequence {self.seq_id} has a sampler in the graph of the context, and this text has another one: "
                f"take the first one away with set_sampler({self.seq_id}, None), or decode and read ctx.sampled"
            )
        if self.n_past == 0 or (self.prompt_.size() == 0 and self.tokens_.size() == 0):
            raise errors.NoOutputError("there are no logits to sample from: call prefill() first")
        if not self.has_pending and self.decode != context.decodes:
            # Another sequence was decoded since. The logits of this one are computed again from its last token.
            if not remove_range(context.ptr, self.seq_id, self.n_past - 1, -1):
                raise errors.StaleLogitsError(
                    "another decode on this context has replaced the logits of this text, and the memory of this "
                    "model cannot go back by one token to compute them again; use one context for each text"
                )
            self.n_past -= 1
            self.has_pending = True
        context.sync_shadow()
        if self.has_pending or n > 1:
            context.prepare(1)
        return 0

    cdef int decode_pending(self) except -99 nogil:
        cdef int code
        cdef int32_t token = self.last
        cdef int32_t pos = self.n_past
        cdef int32_t n_seq_id = 1
        cdef int32_t seq_id = self.seq_id
        cdef int32_t * seq_ids = &seq_id
        cdef int8_t output = 1
        cdef lib.llama_batch batch
        if not self.has_pending:
            return 0
        batch.n_tokens = 1
        batch.token = &token
        batch.embd = NULL
        batch.pos = &pos
        batch.n_seq_id = &n_seq_id
        batch.seq_id = &seq_ids
        batch.logits = &output
        code = self.context.decode_unchecked(batch, 1, False)
        if code == 0:
            self.n_past += 1
            self.has_pending = False
            self.decode = self.context.decodes
        return code

    cdef int sample_one(self) except -99 nogil:
        cdef int32_t token
        cdef char piece[256]
        cdef int32_t n
        # A sampler written in Python must not decode with the context, or close it.
        self.context.in_call = True
        try:
            token = choose(self.sampler.ptr, self.context.ptr, self.sampled_row, self.within[0])
        finally:
            self.context.in_call = False
        if lib.llama_vocab_is_eog(self.vocab_ptr, token):
            return END_OF_GENERATION
        self.tokens_.push_back(token)
        self.last = token
        self.has_pending = True
        n = lib.llama_token_to_piece(self.vocab_ptr, token, piece, sizeof(piece), 0, self.is_shown(token))
        if n >= 0:
            if self.stream.c.append(piece, n):
                return STOP_STRING
            return GOING_ON
        return self.append_long(token, -n)

    cdef bint is_shown(self, int32_t token) noexcept nogil:
        cdef size_t i
        if self.special:
            return True
        for i in range(self.shown.size()):
            if self.shown[i] == token:
                return True
        return False

    cdef int append_long(self, int32_t token, int32_t size) except -99 nogil:
        cdef string piece
        piece.resize(size)
        lib.llama_token_to_piece(self.vocab_ptr, token, <char *> piece.data(), size, 0, self.is_shown(token))
        return STOP_STRING if self.stream.c.append(piece.data(), size) else GOING_ON

    cdef int loop(self, int32_t n) except -99 nogil:
        cdef int32_t _
        cdef int state
        for _ in range(n):
            state = self.decode_pending()
            if state != 0:
                return state
            state = self.sample_one()
            if state != GOING_ON:
                return state
        return GOING_ON

    cdef int stopped_by(self, int state, str function) except -1:
        if state == END_OF_GENERATION or state == STOP_STRING:
            self.finish_reason = "stop"
            state = 0
        elif state == GOING_ON:
            state = 0
        return self.context.raise_for(state, function)

    def settle(self):
        """Let the memory hold the text and nothing else, as it does already, where nothing is computed ahead of it."""

    @property
    def row(self):
        """The row of ``context.logits`` that the next token is chosen from, after :meth:`decode_next` (int)."""
        return -1

    @property
    def tokens(self):
        """The ids generated so far (list of int), without the token that ended the text."""
        return _to_list(self.tokens_.copy())

    @property
    def n_generated(self):
        """How many tokens were generated so far (int)."""
        return self.tokens_.size()

    @property
    def prompt(self):
        """The ids prefilled so far (list of int)."""
        return _to_list(self.prompt_.copy())


cdef list _to_list(vector[int32_t] tokens):
    cdef size_t i
    return [tokens[i] for i in range(tokens.size())]

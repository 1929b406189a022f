"""Drafts of the next tokens (wraps ``common_speculative``): by a smaller model, or by what the text had before.

A draft is a guess: :class:`pyllm.core.speculative_generation.SpeculativeGeneration` computes all of its tokens at once
and keeps those that would have been chosen anyway.
"""

cimport cython
from libc.stdint cimport int8_t, int32_t, uint16_t
from libc.string cimport strcmp
from libcpp.string cimport string
from libcpp.vector cimport vector

import numpy as np

from pyllm import errors
from pyllm.core import common as _  # no-cython-lint: it makes the log of that library silent
from pyllm.core cimport error, guard
from pyllm.core.arguments cimport int32, number
from pyllm.core.context cimport Context
from pyllm.core.vocab cimport Vocab
from pyllm.core.window cimport remove_range
from pyllm.includes cimport llama as lib
from pyllm.includes cimport llama_ext as ext
from pyllm.includes cimport speculative as spec

NGRAM_TYPES = ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache")
DRAFT_TYPES = ("draft-simple", "draft-mtp")

# llama_state_seq_flags: what the memory of tokens can do by itself is left out.
cdef enum:
    PARTIAL_ONLY = 1


# As llama.cpp has it: the first ids are often control tokens of other names, the last ones padding.
cdef enum:
    FIRST_COMPARED = 5
    MOST_MISSING = 128


def check_vocabulary(Vocab target not None, Vocab draft not None):
    """Check that a draft model has the tokens of the model it is to draft for.

    Raises:
        VocabularyMismatchError: It has not; the message says what differs.
    """
    cdef const lib.llama_vocab * ours = target.require()
    cdef const lib.llama_vocab * theirs = draft.require()
    cdef int32_t i, n = min(len(target), len(draft))
    if target.type != draft.type:
        raise errors.VocabularyMismatchError(
            f"the draft model has another tokenizer: {draft.type.name}, and the model {target.type.name}"
        )
    if abs(len(target) - len(draft)) > MOST_MISSING:
        raise errors.VocabularyMismatchError(
            f"the draft model has {len(draft)} tokens and the model {len(target)}; they may differ by {MOST_MISSING}"
        )
    for name in ("bos", "eos"):
        adds = [getattr(vocab, "add_" + name) for vocab in (target, draft)]
        ids = [getattr(vocab, name) for vocab in (target, draft)]
        if adds[0] != adds[1] or (adds[0] and ids[0] != ids[1]):
            raise errors.VocabularyMismatchError(
                f"the draft model has another {name} token: {ids[1]} (added: {adds[1]}), and the model {ids[0]} "
                f"(added: {adds[0]})"
            )
    for i in range(FIRST_COMPARED, n):
        if strcmp(lib.llama_vocab_get_text(ours, i), lib.llama_vocab_get_text(theirs, i)) != 0:
            raise errors.VocabularyMismatchError(
                f"token {i} is {draft.text(i)!r} in the draft model and {target.text(i)!r} in the model"
            )


@cython.no_gc_clear
cdef class Checkpoint:
    """A copy of that part of a sequence's state which cannot be cut back. Not made from Python."""

    def __cinit__(self, Context context not None):
        self.context = context
        self.n = -1

    cdef int save(self, int32_t seq_id, int32_t n) except -1 nogil:
        cdef size_t size = lib.llama_state_seq_get_size_ext(self.context.ptr, seq_id, PARTIAL_ONLY)
        self.n = -1
        self.data.resize(size)
        if size and lib.llama_state_seq_get_data_ext(
            self.context.ptr, self.data.data(), size, seq_id, PARTIAL_ONLY
        ) == size:
            self.n = n
        return 0

    cdef bint restore(self, int32_t seq_id) except -1 nogil:
        """Back to the state of :meth:`save`; False where that did not work."""
        if self.n < 0 or lib.llama_state_seq_set_data_ext(
            self.context.ptr, self.data.data(), self.data.size(), seq_id, PARTIAL_ONLY
        ) != self.data.size():
            return False
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.context.ptr), seq_id, self.n, -1)
        return True


@cython.no_gc_clear
cdef class Drafter(Resource):
    """Guesses how a text goes on. It belongs to one context, and follows one text at a time.

    Args:
        target: The context of the model that writes the text.
        context: A context of the draft model, which nobody else uses. It needs room for as many tokens.
        types: How to draft: one name, or several that are asked in this order: ngram-simple, ngram-map-k,
            ngram-map-k4v, ngram-mod, ngram-cache, draft-simple, draft-mtp. None: "draft-simple" with a context, and
            else "ngram-simple". An n-gram type looks for the last tokens at an earlier place of the text, and
            proposes what came behind them there. "ngram-mod" remembers what it saw in earlier texts too.
            "draft-mtp" reads the layers for multi-token prediction that a model has: `context` is one of the
            same model then, made with ``ctx_type="mtp"``.
        n_max: Most tokens of a draft. None: llama.cpp's default for the type.
        n_min: A model's, and ngram-mod's, shorter drafts are dropped. None: llama.cpp's default.
        p_min: A model's draft ends before a token less likely than this.
        ngram_size: How many tokens must agree. None: llama.cpp's default for the type.
        min_hits: How often "ngram-map-k4v" must have seen them.

    Raises:
        InvalidArgumentError: A number is out of range, a type is unknown, or needs a context that is not there.
        VocabularyMismatchError: The draft model has other tokens.

    Example:
        >>> drafter = Drafter(ctx, types="ngram-simple", ngram_size=2, n_max=4)
        >>> drafter.begin([1, 2, 3, 4, 5, 6, 7, 8, 1])
        >>> drafter.draft(2).tolist()
        [3, 4, 5, 6]

    Wraps ``common_speculative_init``.
    """

    def __cinit__(
        self, Context target not None, Context context=None, *, types=None, n_max=None, n_min=None, p_min=0.0,
        ngram_size=None, min_hits=None,
    ):
        cdef int32_t c_n_max
        self.ptr = NULL
        self.batch = NULL
        self.target = target
        self.context = context
        self.has_context = context is not None
        self.types = self._check_types(types)
        self.reads_features = "draft-mtp" in self.types
        target.require()
        if not target.has_memory or target.model.has_encoder:
            raise errors.InvalidArgumentError("drafts are for models whose prompt stands before the text they write")
        # All of a draft must be computed at once: between two micro-batches a sliding window forgets.
        self.n_batch = min(target.n_batch_, target.n_ubatch_)
        if self.n_batch < 2:
            raise errors.InvalidArgumentError(
                f"drafts are checked in one batch of at least 2 tokens, and the context has n_batch={target.n_batch_} "
                f"and n_ubatch={target.n_ubatch_}"
            )
        self._set_params(n_max, n_min, p_min, ngram_size, min_hits)
        if context is not None:
            self._check_context()
            check_vocabulary(target.model.vocab, context.model.vocab)
            self.params.draft.ctx_dft = context.ptr
            # The layers for multi-token prediction are of attention everywhere.
            self.goes_back = self.reads_features or not (context.model.is_recurrent or context.model.is_hybrid)
            self.checkpoint = Checkpoint(context)
        self.params.draft.ctx_tgt = target.ptr
        # The samplers would have to be taken out of the draft context again, which may be closed by then.
        self.params.draft.backend_sampling = False
        self.make()
        c_n_max = spec.common_speculative_n_max(self.ptr)
        self.n_max = max(1, min(self.n_max if self.n_max else c_n_max, min(c_n_max, self.n_batch - 1)))

    def _check_types(self, types):
        names = ("draft-simple" if self.has_context else "ngram-simple",) if types is None else types
        names = (names,) if isinstance(names, str) else tuple(names)
        known = NGRAM_TYPES + DRAFT_TYPES
        for name in names:
            if name not in known:
                raise errors.InvalidArgumentError(
                    f"there is no way to draft named {name!r}; there are {', '.join(known)}"
                )
            if name in DRAFT_TYPES and not self.has_context:
                raise errors.InvalidArgumentError(f"{name!r} needs a context of a draft model")
        if not names:
            raise errors.InvalidArgumentError("types names no way to draft")
        if self.has_context and not any([name in DRAFT_TYPES for name in names]):
            raise errors.InvalidArgumentError(f"{', '.join(names)}: none of these uses the context of a draft model")
        if all([name in names for name in DRAFT_TYPES]):
            raise errors.InvalidArgumentError("draft-simple and draft-mtp need a context each; name one of them")
        return names

    def _check_context(self):
        if self.context is self.target:
            raise errors.InvalidArgumentError("the draft needs a context of its own")
        self.context.require()
        if not self.context.has_memory or self.context.model.has_encoder:
            raise errors.InvalidArgumentError(f"{self.context.model.path!r} writes no text and cannot draft")
        if self.context.n_seq_max_ != 1:
            raise errors.InvalidArgumentError(
                f"the draft context must have n_seq_max=1, not {self.context.n_seq_max_}"
            )
        if self.context.n_ctx_seq < self.target.n_ctx_seq:
            raise errors.InvalidArgumentError(
                f"the draft context holds n_ctx={self.context.n_ctx_seq} tokens and must hold as many as that of the "
                f"model, {self.target.n_ctx_seq}"
            )
        if self.reads_features and self.context.model is not self.target.model:
            raise errors.InvalidArgumentError("draft-mtp needs a context of the same model, made with ctx_type='mtp'")

    def _set_params(self, n_max, n_min, p_min, ngram_size, min_hits):
        cdef int32_t c_n_max = 0 if n_max is None else int32(n_max, "n_max")
        cdef int32_t c_n_min = 0 if n_min is None else int32(n_min, "n_min")
        cdef int32_t c_size = 0 if ngram_size is None else int32(ngram_size, "ngram_size")
        cdef int32_t c_hits = 1 if min_hits is None else int32(min_hits, "min_hits")
        cdef spec.common_params_speculative * c = &self.params
        cdef vector[string] names
        for name, value, given in (
            ("n_max", c_n_max, n_max), ("ngram_size", c_size, ngram_size), ("min_hits", c_hits, min_hits)
        ):
            if given is not None and not 1 <= value <= 1024:
                raise errors.InvalidArgumentError(f"{name} must be from 1 to 1024, not {value}")
        if not 0 <= c_n_min <= 1024:
            raise errors.InvalidArgumentError(f"n_min must be from 0 to 1024, not {c_n_min}")
        c.draft.p_min = number(p_min, "p_min", 0, 1)
        for name in self.types:
            names.push_back(<string> (<str> name).encode())
        c.types = spec.common_speculative_types_from_names(names)
        if n_max is not None:
            c.draft.n_max = c.ngram_mod.n_max = c_n_max
            c.ngram_simple.size_m = c.ngram_map_k.size_m = c.ngram_map_k4v.size_m = <uint16_t> c_n_max
            # Else nothing as short as this would ever be proposed.
            c.ngram_mod.n_min = min(c.ngram_mod.n_min, c_n_max)
        if n_min is not None:
            c.draft.n_min = c.ngram_mod.n_min = c_n_min
        if ngram_size is not None:
            c.ngram_simple.size_n = c.ngram_map_k.size_n = c.ngram_map_k4v.size_n = <uint16_t> c_size
            c.ngram_mod.n_match = c_size
        c.ngram_map_k4v.min_hits = c.ngram_map_k.min_hits = <uint16_t> c_hits
        self.n_max = c_n_max

    cdef int make(self) except -1:
        cdef spec.common_speculative * ptr
        guard.enter()
        with nogil:
            ptr = spec.common_speculative_init(self.params, 1)
        spec.common_speculative_free(self.ptr)
        self.ptr = ptr
        error.not_null(ptr, "common_speculative_init", errors.InvalidArgumentError)
        if self.reads_features and self.batch == NULL:
            self.batch = new spec.common_batch(self.context.ptr)
            # What llama.cpp outputs for each token from now on stands in the output buffer too.
            self.target.layer_floats += <long long> self.target.n_embd_out * self.target.n_batch_
        return 0

    def __dealloc__(self):
        # It does not look at its contexts any more, which may be closed.
        guard.set_quiet(True)
        spec.common_speculative_free(self.ptr)
        del self.batch
        self.ptr = NULL
        self.batch = NULL
        guard.set_quiet(False)

    cdef int require(self) except -1:
        if self.ptr == NULL:
            raise errors.ClosedError("the drafter has been closed")
        self.target.require()
        if self.has_context:
            self.context.require()
        return 0

    def close(self):
        """Free what it remembers; its contexts stay open. Closing twice is allowed.

        Wraps ``common_speculative_free``.
        """
        self.target.acquire()
        try:
            spec.common_speculative_free(self.ptr)
            self.ptr = NULL
        finally:
            self.target.release()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        state = " (closed)" if self.ptr == NULL else ""
        return f"<Drafter {', '.join(self.types)} n_max={self.n_max}{state}>"

    @property
    def closed(self):
        """True after :meth:`close`."""
        return self.ptr == NULL

    # ---- for Python: one text, one draft after the other

    def _hold(self):
        self.target.acquire()
        if self.has_context:
            try:
                self.context.acquire()
            except BaseException:
                self.target.release()
                raise

    def _let_go(self):
        if self.has_context:
            self.context.release()
        self.target.release()

    def begin(self, tokens):
        """Follow a new text.

        Args:
            tokens: What is there of it, without the last token: ids, shape (n,).

        Wraps ``common_speculative_begin``.
        """
        self._hold()
        try:
            self.require()
            self.start(np.ascontiguousarray(self.target.model.vocab.as_tokens(tokens), np.int32))
        finally:
            self._let_go()

    def draft(self, last, n_max=None):
        """Guess what comes next. The last draft counts as rejected unless :meth:`accept` was called.

        Args:
            last: The last token of the text.
            n_max: Most tokens, where fewer than usual.

        Returns:
            int32 array, shape (n,): The draft; empty where there is none.

        Raises:
            DecodeAborted: The draft context was aborted.

        Wraps ``common_speculative_draft``.
        """
        cdef int32_t c_last = int32(last, "last")
        cdef int32_t c_n_max = self.n_max if n_max is None else int32(n_max, "n_max")
        cdef int32_t i
        cdef int32_t[::1] view
        cdef int code
        self._hold()
        try:
            self.require()
            if not 0 <= c_last < self.target.n_vocab:
                raise errors.InvalidArgumentError(
                    f"token {c_last} is not in the vocabulary: ids go from 0 to {self.target.n_vocab - 1}"
                )
            if self.has_context:
                self.context.begin_raw()
            with nogil:
                code = self.draft_into(c_last, c_n_max)
            if self.has_context:
                self.context.raise_for(code, "llama_decode")
            array = np.empty(self.result.size(), np.int32)
            view = array
            for i in range(<int32_t> view.shape[0]):
                view[i] = self.result[i]
            return array
        finally:
            self._let_go()

    def accept(self, last, accepted=()):
        """Go on behind the last token, and behind those tokens of the draft that were accepted.

        Args:
            last: The token that :meth:`draft` was called with.
            accepted: How the text went on so far as the draft had it; the token that comes next is not among these.

        Raises:
            InvalidArgumentError: The draft did not begin so.

        Wraps ``common_speculative_accept``.
        """
        tokens = self.target.model.vocab.as_tokens(accepted)
        cdef int32_t c_last = int32(last, "last")
        cdef int32_t token, n = 0
        self._hold()
        try:
            self.require()
            for token in tokens:
                if n >= <int32_t> self.result.size() or self.result[n] != token:
                    raise errors.InvalidArgumentError(f"token {n} of the draft was another one than {token}")
                n += 1
            self.push(c_last)
            for token in tokens:
                self.push(token)
            self.judge(n)
        finally:
            self._let_go()

    def observe(self, tokens, position):
        """Let "draft-mtp" see what the target has just computed for a text. Other types need not see it.

        It drafts from this, so it has to see every token of its text.

        Args:
            tokens: The first tokens of the target's last batch: ids, shape (n,).
            position: Of the first one in the text. What was seen from there on is forgotten.

        Raises:
            InvalidArgumentError: Tokens before these were not seen, or there are more than a batch has.
            NoOutputError: The target has computed nothing yet.

        Wraps ``common_speculative_process``.
        """
        cdef int32_t c_position = int32(position, "position")
        cdef int32_t n
        cdef int code
        cdef float * features
        cdef const int32_t[::1] view = np.ascontiguousarray(self.target.model.vocab.as_tokens(tokens), np.int32)
        n = <int32_t> view.shape[0]
        self._hold()
        try:
            self.require()
            if not self.reads_features or n == 0:
                return
            if n > min(self.target.n_batch_, self.context.n_batch_):
                raise errors.InvalidArgumentError(
                    f"{n} tokens cannot be of one batch: n_batch is {min(self.target.n_batch_, self.context.n_batch_)}"
                )
            if not 0 <= c_position <= self.n_held:
                raise errors.InvalidArgumentError(
                    f"position {c_position} is out of range: of the text {self.n_held} tokens were seen so far"
                )
            with nogil:
                features = ext.llama_get_embeddings_nextn_ith(self.target.ptr, n - 1)
            if features == NULL:
                error.fail(errors.NoOutputError, "the target has computed nothing yet that could be seen")
            with nogil:
                code = self.show(&view[0], n, c_position)
            self.context.raise_for(code, "llama_process")
        finally:
            self._let_go()

    # ---- for the step loop

    cdef int start(self, const int32_t[::1] tokens) except -1:
        cdef int32_t i, n = <int32_t> tokens.shape[0]
        cdef int32_t common = 0
        self.n_kept = min(self.n_kept, <int32_t> self.history.size())
        while common < n and common < self.n_kept and tokens[common] == self.history[common]:
            common += 1
        if common < self.n_kept and self.has_context and self.context.model.n_swa:
            common = 0  # what the window has let go cannot be brought back
        self.n_kept = common
        self.history.clear()
        for i in range(n):
            self.history.push_back(tokens[i])
        self.open = False
        self.result.clear()
        if not self.has_context and "ngram-mod" not in self.types:
            # They go on where the last text was; the same text is to get the same drafts each time.
            self.make()
        with nogil:
            spec.common_speculative_begin(self.ptr, 0, self.history)
        return 0

    cdef void push(self, int32_t token) noexcept nogil:
        self.history.push_back(token)

    cdef int draft_into(self, int32_t last, int32_t n_max) except -99 nogil:
        cdef spec.common_speculative_draft_params * params
        cdef int code
        cdef size_t i
        self.judge(0)
        self.result.clear()
        if n_max < 1:
            return 0
        if self.has_context:
            code = self.catch_up()
            if code != 0:
                self.context.stop.take_request()
                return 0 if code == 1 else code  # no room in its memory: no draft
            self.context.stop.begin(False)
            self.context.decodes += 1
            self.context.n_outputs = 0
        guard.begin_native()
        if self.has_context:
            self.context.lock_pool()
        try:
            params = &spec.common_speculative_get_draft_params(self.ptr, 0)
            params.drafting = True
            params.n_max = min(n_max, self.n_max)
            params.pos0 = <int32_t> self.history.size()
            params.id_last = last
            params.prompt = &self.history
            params.result = &self.result
            spec.common_speculative_draft(self.ptr)
        finally:
            guard.end_native()
            if self.has_context:
                self.context.unlock_pool()
                self.n_held = lib.llama_memory_seq_pos_max(lib.llama_get_memory(self.context.ptr), 0) + 1
        # A draft model may have a few tokens more than the model.
        for i in range(self.result.size()):
            if not 0 <= self.result[i] < self.target.n_vocab:
                self.result.resize(i)
                break
        if <int32_t> self.result.size() > n_max:
            self.result.resize(n_max)
        self.open = self.result.size() > 0
        return 0

    cdef int judge(self, int32_t accepted) except -1 nogil:
        """The last draft was accepted so far; `history` has these tokens already."""
        if self.open:
            self.open = False
            spec.common_speculative_accept(self.ptr, 0, <uint16_t> accepted)
            if self.has_context and not self.reads_features:
                # The draft context has computed the last token and the draft, the last one of it perhaps not.
                self.n_kept = min(self.n_held, <int32_t> self.history.size())
        return 0

    cdef int cut(self) except -1 nogil:
        """Let the draft context forget all but the first n_kept tokens of the text, or more where it must."""
        cdef lib.llama_memory_t memory = lib.llama_get_memory(self.context.ptr)
        # What it was shown is the text, up to where it drafted itself.
        self.n_kept = self.n_held if self.reads_features else min(self.n_kept, self.n_held)
        self.n_kept = min(self.n_kept, <int32_t> self.history.size())
        if self.n_held <= self.n_kept:
            return 0
        if self.goes_back and remove_range(self.context.ptr, 0, self.n_kept, -1):
            self.n_held = self.n_kept
        elif not self.goes_back and 0 <= self.checkpoint.n <= self.n_kept and self.checkpoint.restore(0):
            self.n_held = self.n_kept = self.checkpoint.n
        else:
            lib.llama_memory_clear(memory, False)
            self.n_held = self.n_kept = 0
        return 0

    cdef int catch_up(self) except -99 nogil:
        """Compute what the draft context lacks of the text before the last token."""
        cdef int32_t i, n, first, size = <int32_t> self.history.size()
        cdef int code = 0
        cdef int32_t zero = 0
        cdef vector[int32_t] pos
        cdef vector[int32_t] n_seq_id
        cdef vector[int32_t *] seq_ids
        cdef vector[int8_t] output
        cdef lib.llama_batch batch
        self.cut()
        if self.reads_features or self.n_held == size:
            if not self.goes_back and self.n_held == size:
                self.checkpoint.save(0, size)
            return 0
        while self.n_held < size:
            first = self.n_held
            n = min(self.context.n_batch_, size - first)
            pos.resize(n)
            n_seq_id.assign(n, 1)
            seq_ids.assign(n, &zero)
            output.assign(n, 0)
            for i in range(n):
                pos[i] = first + i
            batch.n_tokens = n
            batch.token = self.history.data() + first
            batch.embd = NULL
            batch.pos = pos.data()
            batch.n_seq_id = n_seq_id.data()
            batch.seq_id = seq_ids.data()
            batch.logits = output.data()
            code = self.context.decode_unchecked(batch, 0, False)
            self.n_held = lib.llama_memory_seq_pos_max(lib.llama_get_memory(self.context.ptr), 0) + 1
            self.n_kept = min(self.n_held, size)
            if code != 0:
                return code
        if not self.goes_back:
            self.checkpoint.save(0, size)
        return 0

    cdef int show(self, const int32_t * tokens, int32_t n, int32_t position) except -99 nogil:
        cdef int32_t i
        if not self.reads_features:
            return 0
        # What it drafted with its own features is computed again with those of the target.
        if self.n_held > position:
            lib.llama_memory_seq_rm(lib.llama_get_memory(self.context.ptr), 0, position, -1)
        self.batch.clear()
        for i in range(n):
            self.batch.add(tokens[i], position + i, 0, True)
        self.context.stop.begin(False)
        self.context.lock_pool()
        try:
            spec.common_speculative_process(self.ptr, self.batch[0])
        finally:
            self.context.unlock_pool()
        self.n_held = self.n_kept = lib.llama_memory_seq_pos_max(lib.llama_get_memory(self.context.ptr), 0) + 1
        return 0

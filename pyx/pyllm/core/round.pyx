"""Many steps of many texts without the GIL: each gets one token a step, until something happens to one of them."""

from libc.stdint cimport int32_t, int64_t

from pyllm import errors
from pyllm.core.introspection import not_pickled, signature
from pyllm.core.arguments cimport int32, number
from pyllm.core.context cimport Context
from pyllm.core.rows cimport Row, begin_row, check_rows, choose_row, end_row, fail_row
from pyllm.core.sampler cimport Sampler
from pyllm.core.vocab cimport Vocab
from pyllm.includes cimport ggml
from pyllm.includes cimport llama as lib


cdef class Flag:
    """Something that one thread sets and another one sees, without a lock and without the GIL."""

    __reduce__ = not_pickled("it is shared with C code of this process; make another one there")

    def set(self):
        """Set it."""
        self.c.set()

    def clear(self):
        """Take it back."""
        self.c.clear()

    def __bool__(self):
        return self.c.is_set()


cdef class Round:
    """Texts that are generated together. Each has a token that is chosen and not computed yet.

    Args:
        context: Where they are computed. Nobody else decodes with it meanwhile.
        rows: The texts (list of Row), each with a sequence of its own and at least one token.
        seq_ids: Their sequences.
        positions: Where the newest token of each stands in its sequence.
        limits: How many tokens each may have.
        stop: Ends :meth:`run` before the next step.
        bells: Descriptors of pipes that do not block; after each step but one that ends :meth:`run` because of a text,
            a byte is written to each.

    Raises:
        InvalidArgumentError: The lists have different lengths, or something is there twice or out of range; or a pipe
            blocks.
    """

    __reduce__ = not_pickled("it runs in its context; make it again from its arguments")
    __signature__ = signature

    def __cinit__(
        self, Context context not None, list rows not None, seq_ids, positions, limits, *, stop=None, bells=()
    ):
        cdef int32_t i, n = <int32_t> len(rows)
        rows = list(rows)
        check_rows(rows)
        self.context, self.rows_ = context, tuple(rows)
        self.stop = Flag() if stop is None else stop
        for values, name in ((seq_ids, "seq_ids"), (positions, "positions"), (limits, "limits")):
            if len(values) != n:
                raise errors.InvalidArgumentError(f"{n} rows go with as many {name}, not with {len(values)}")
        if n < 1 or n > context.n_batch_:
            raise errors.InvalidArgumentError(f"a round has from 1 to n_batch={context.n_batch_} rows, not {n}")
        if len(set(seq_ids)) != n:
            raise errors.InvalidArgumentError("each row needs a sequence of its own")
        for i in range(n):
            seq = int32(seq_ids[i], "a sequence id")
            if not 0 <= seq < context.n_seq_max_:
                raise errors.InvalidArgumentError(
                    f"sequence id {seq} is out of range: the context has n_seq_max={context.n_seq_max_}"
                )
            pos = int32(positions[i], "a position")
            if pos < 0:
                raise errors.InvalidArgumentError(f"positions start at 0, not {pos}")
            if (<Row> rows[i]).tokens_.size() < 1:
                raise errors.InvalidArgumentError("each row needs a token that is computed first")
            self.seq_ids.push_back(seq)
            self.positions.push_back(pos)
            self.limits.push_back(int32(limits[i], "a limit"))
            self.n_computed.push_back(0)
        for fd in bells:
            self.fds.push_back(int32(fd, "a descriptor"))
            if can_block(self.fds.back()):
                raise errors.InvalidArgumentError(
                    f"writing to descriptor {fd} could block: call os.set_blocking({fd}, False) first"
                )
        self.tokens_in.resize(n)
        self.n_seq_ids_in.assign(n, 1)
        self.outputs_in.assign(n, 1)
        for i in range(n):
            self.seq_ids_in.push_back(&self.seq_ids[i])

    @property
    def rows(self):
        """The texts (list of Row)."""
        return list(self.rows_)

    def run(self, n_steps, ms=100.0):
        """Compute a token of each text and choose the next one, again and again.

        It ends when a text has ended, has all of its tokens, or has failed, which its ``error`` says; then, too, each
        text has got what this step gave it. From then on it does nothing: make a new one of the texts that go on.

        Args:
            n_steps: Most steps.
            ms: No step begins so many milliseconds after the first one began.

        Returns:
            int: How many steps were computed, in this call; also where it raises, in ``n_steps``.

        Raises:
            InvalidArgumentError: A text has no token to compute, because choosing one has failed.
            PyllmError: All that :meth:`pyllm.core.context.Context.decode` raises, about a step that was not computed.

        Wraps ``llama_decode`` and ``llama_sampler_sample``.
        """
        cdef Context context = self.context
        cdef int32_t c_n_steps = int32(n_steps, "n_steps")
        cdef double c_ms = min(number(ms, "ms", 0), 1e12)
        cdef int code = 0
        cdef Row row
        cdef list roots = []
        context.acquire()
        try:
            self.n_steps = 0
            context.require()
            if context.n_samplers:
                raise errors.InvalidArgumentError(
                    "rows have samplers of their own: take those of the context away, with set_sampler(seq_id, None)"
                )
            self.vocab = (<Vocab> context.model.vocab).require()
            context._check_call(<int32_t> len(self.rows_), False)
            self.todo.clear()
            self.over = self.has_ended()
            if self.over:
                return 0
            try:
                for row in self.rows_:
                    roots.append((row.sampler, row.sampler.begin()))
                    self.todo.push_back(begin_row(row, <int32_t> self.todo.size()))
                self.next_row = self.todo.size()
                context.prepare(<int32_t> self.todo.size())
                while True:
                    try:
                        with nogil:
                            code = self.go(c_n_steps, c_ms)
                        context.raise_for(code, "llama_decode")
                        break
                    except Exception as cause:
                        if self.next_row >= self.todo.size():
                            raise  # it was not computed
                        fail_row(self.rows_[self.next_row], cause)
                        self.next_row += 1
                        self.over = True
            finally:
                context.in_call = False
                for sampler, root in roots:
                    (<Sampler> sampler).finish(root)
                for index in range(<int32_t> self.todo.size()):
                    end_row(self.rows_[index], &self.todo[index])
            return self.n_steps
        finally:
            context.release()

    cdef bint has_ended(self) except -1:
        """Whether one of the texts needs no more tokens."""
        cdef Row row
        cdef size_t i
        cdef bint ended = False
        for i in range(self.limits.size()):
            row = self.rows_[i]
            ended = ended or row.finish_reason is not None or <int64_t> row.tokens_.size() >= self.limits[i]
        for i in range(self.limits.size()):
            row = self.rows_[i]
            if not ended and row.tokens_.size() <= self.n_computed[i]:
                raise errors.InvalidArgumentError(
                    f"row {i} has no token to compute, because choosing one has failed: choose it with sample_rows(), "
                    "or make a Round of the others"
                )
        return ended

    cdef int go(self, int32_t n_steps, double ms) except -99 nogil:
        cdef int64_t until = ggml.ggml_time_us() + <int64_t> (1000 * ms)
        cdef size_t i
        cdef int code
        while True:
            if self.next_row >= self.todo.size():
                if self.over or self.n_steps >= n_steps or self.stop.c.is_set() or ggml.ggml_time_us() >= until:
                    return 0
                code = self.compute()
                if code != 0:
                    return code
            # A sampler written in Python must not decode with the context, or close it.
            self.context.in_call = True
            while self.next_row < self.todo.size():
                i = self.next_row
                choose_row(self.context.ptr, self.vocab, &self.todo[i])
                if self.todo[i].ended or <int32_t> self.todo[i].tokens.size() >= self.limits[i]:
                    self.over = True
                self.next_row += 1
            self.context.in_call = False
            if not self.over:
                for i in range(self.fds.size()):
                    ring(self.fds[i])

    cdef int compute(self) except -99 nogil:
        cdef size_t i
        cdef int code
        cdef lib.llama_batch batch
        for i in range(self.todo.size()):
            self.tokens_in[i] = self.todo[i].tokens.back()
        batch.n_tokens = <int32_t> self.todo.size()
        batch.token = self.tokens_in.data()
        batch.embd = NULL
        batch.pos = self.positions.data()
        batch.n_seq_id = self.n_seq_ids_in.data()
        batch.seq_id = self.seq_ids_in.data()
        batch.logits = self.outputs_in.data()
        code = self.context.decode_unchecked(batch, batch.n_tokens, False)
        if code != 0:
            return code
        for i in range(self.todo.size()):
            self.positions[i] += 1
            self.n_computed[i] = self.todo[i].tokens.size()
        self.n_steps += 1
        self.next_row = 0
        return 0

"""Batches whose entries can have a token id, an embedding, or both (wraps ``llama_batch_ext``)."""

cimport cython
from libc.stdint cimport int8_t, int32_t

import numpy as np

from pyllm import errors
from pyllm.core cimport error, guard
from pyllm.core.batch cimport Batch
from pyllm.core.context cimport Context
from pyllm.includes cimport llama as lib

cdef enum:
    TOKENS = 1
    EMBEDDINGS = 2
    MAX_POS_PER_EMBD = 4


@cython.no_gc_clear
cdef class BatchExt:
    """Input for ``Context.process``: like :class:`pyllm.core.batch.Batch`, with token and embedding in one entry.

    Models that draft several tokens take both: the token that was chosen, and a hidden state. For everything else
    Batch does the same and is filled faster.

    Args:
        context: The context that will compute it. The batch keeps it alive.

    Example:
        >>> batch = BatchExt(ctx).add([1, 15043, 3186])
        >>> ctx.process(batch)

    Wraps ``llama_batch_ext_init``.
    """

    def __cinit__(self, Context context not None):
        self.ptr = NULL
        self.context = context
        self.next_pos = {}
        self.sequences = []
        context.acquire()
        try:
            self.ptr = lib.llama_batch_ext_init(context.require())
        finally:
            context.release()
        error.not_null(self.ptr, "llama_batch_ext_init", errors.OutOfMemoryError)

    def __dealloc__(self):
        if self.ptr != NULL:
            lib.llama_batch_ext_free(self.ptr)
            self.ptr = NULL

    cdef lib.llama_batch_ext * require(self) except NULL:
        # It points to the memory of its context.
        self.context.require()
        return self.ptr

    def add(self, tokens=None, *, pos=None, seq_ids=None, outputs="last", embeddings=None):
        """Append entries.

        Args:
            tokens: Token ids, shape (n,).
            pos: Positions, shape (n,); for embeddings without tokens of an M-RoPE model shape (4, n). None: each
                sequence goes on where the batch, or else the memory of the context, ends.
            seq_ids: As in ``Batch.from_arrays``.
            outputs: For which of these entries logits (and embeddings) are wanted: "last", "all", "none", or
                booleans of shape (n,).
            embeddings: float32 input embeddings, shape (n, n_embd_inp): instead of tokens, or beside them.

        Returns:
            BatchExt: This batch.

        Raises:
            InvalidBatchError: Shapes or numbers that do not fit, too many entries for ``n_batch``, or entries with
                other contents than those that are there.
            ClosedError: The context was closed.

        Nothing is added when it raises. Wraps ``llama_batch_ext_add_token``, ``_add_embd``, ``_add_seq``,
        ``_set_embd_token``, ``_set_pos`` and ``_set_output_logits``.
        """
        cdef Context context = self.context
        cdef Batch checked = Batch.from_arrays(
            tokens, pos=pos, seq_ids=seq_ids, outputs=outputs, embeddings=embeddings if tokens is None else None
        )
        cdef int32_t n = checked.c.n_tokens
        cdef int32_t content = EMBEDDINGS if tokens is None else TOKENS
        rows = None
        if embeddings is not None:
            rows = np.ascontiguousarray(embeddings, dtype=np.float32)
            if tokens is not None:
                content |= EMBEDDINGS
                if rows.shape != (n, context.n_embd_inp):
                    raise errors.InvalidBatchError(
                        f"embeddings of shape {rows.shape} do not go with {n} tokens of a model that takes "
                        f"embeddings of {context.n_embd_inp}"
                    )
        context.acquire()
        try:
            self.require()
            if n > context.n_batch_ - self.n_tokens:
                raise errors.InvalidBatchError(
                    f"{n} more entries do not fit: the context has n_batch={context.n_batch_} and the batch holds "
                    f"{self.n_tokens}"
                )
            if self.content and content != self.content:
                raise errors.InvalidBatchError(
                    f"all entries of a batch have the same contents: these are {_contents(content)}, those before "
                    f"are {_contents(self.content)}"
                )
            checked.validate(context.n_vocab, context.n_embd_inp, context.n_seq_max_, context.n_batch_)
            stride = context.n_pos_per_embd if tokens is None else 1
            if pos is not None and checked.pos_stride != stride:
                raise errors.InvalidBatchError(
                    f"the model takes {stride} position(s) for each entry, not {checked.pos_stride}"
                )
            memberships = checked.seq_ids if seq_ids is not None else [(0,)] * n
            if pos is None:
                positions = self._positions(memberships, stride)
            else:
                positions = np.ascontiguousarray((<object> checked).pos.reshape(stride, n).T)
            width = max([len(members) for members in memberships])
            sequences = np.full((n, width), -1, np.int32)
            for i, members in enumerate(memberships):
                sequences[i, :len(members)] = members
            flags = checked.outputs
            self.fill(checked.tokens, rows, positions, sequences, flags.view(np.int8), n)
            self.content = content
            for i, members in enumerate(memberships):
                for member in members:
                    self.next_pos[member] = max(self.next_pos.get(member, 0), int(positions[i].max()) + 1)
            self.sequences += [members for members, flag in zip(memberships, flags) if flag]
            self.n_tokens += n
            self.n_outputs += int(flags.sum())
        finally:
            context.release()
        return self

    def _positions(self, memberships, int32_t stride):
        """The next position of each entry's first sequence, in all dimensions of the position."""
        cdef lib.llama_memory_t memory = lib.llama_get_memory(self.context.ptr)
        following = dict(self.next_pos)
        positions = np.empty((len(memberships), stride), np.int32)
        for i, members in enumerate(memberships):
            for member in members:
                if member not in following:
                    last = -1 if memory == NULL else lib.llama_memory_seq_pos_max(memory, member)
                    following[member] = last + 1
            position = following[members[0]]
            positions[i] = position
            for member in members:
                following[member] = position + 1
        return positions

    @cython.boundscheck(False)
    cdef int fill(
        self, object ids, object rows, object positions, object sequences, object flags, int32_t n
    ) except -1:
        cdef const int32_t[::1] tokens
        cdef const float[:, ::1] embeddings
        cdef const int32_t[:, ::1] pos = positions
        cdef const int32_t[:, ::1] seqs = sequences
        cdef const int8_t[::1] out = flags
        cdef const int32_t * token = NULL
        cdef lib.llama_embd embd
        cdef bint has_embd = rows is not None
        cdef bint ok = True
        cdef int32_t i, j
        cdef int32_t index = 0
        cdef int32_t width = <int32_t> seqs.shape[1]
        embd.data = NULL
        embd.n_rows = 1
        embd.n_embd = 0
        if ids is not None:
            tokens = ids
            token = &tokens[0]
        if has_embd:
            embeddings = rows
            embd.n_embd = <size_t> embeddings.shape[1]
        with nogil:
            guard.enter()
            for i in range(n):
                if has_embd:
                    embd.data = &embeddings[i, 0]
                if token != NULL:
                    index = lib.llama_batch_ext_add_token(self.ptr, seqs[i, 0], token[i])
                    if index >= 0 and has_embd:
                        ok = lib.llama_batch_ext_set_embd_token(self.ptr, index, embd)
                else:
                    index = lib.llama_batch_ext_add_embd(self.ptr, seqs[i, 0], embd)
                if index < 0 or not ok:
                    break
                for j in range(1, width):
                    if seqs[i, j] >= 0:
                        ok = ok and lib.llama_batch_ext_add_seq(self.ptr, index, seqs[i, j])
                ok = ok and lib.llama_batch_ext_set_pos(self.ptr, index, &pos[i, 0])
                ok = ok and lib.llama_batch_ext_set_output_logits(self.ptr, index, out[i] != 0)
                if not ok:
                    break
        if index < 0 or not ok:
            # Everything was checked before: this is a limit of llama.cpp that we do not know. Half of it is there.
            self.clear()
            error.fail(errors.InvalidBatchError, f"llama.cpp refused entry {i} (code {index}); the batch is empty now")
        self.wanted.insert(self.wanted.end(), &out[0], &out[0] + n)
        return 0

    def clear(self):
        """Forget all entries. Wraps ``llama_batch_ext_clear``."""
        self.context.acquire()
        try:
            lib.llama_batch_ext_clear(self.ptr)
            self.n_tokens = 0
            self.n_outputs = 0
            self.content = 0
            self.next_pos = {}
            self.sequences = []
            self.wanted.clear()
        finally:
            self.context.release()
        return self

    def __len__(self):
        return self.n_tokens

    def __repr__(self):
        return f"<BatchExt: {self.n_tokens} entries ({_contents(self.content)}), {self.n_outputs} outputs>"


cdef int process_batch(Context context, BatchExt batch, bint encode) except -1:
    cdef int code
    context.acquire()
    try:
        context.require()
        if batch.context is not context:
            raise errors.InvalidBatchError("this BatchExt was made for another context; make one with BatchExt(ctx)")
        if batch.n_tokens == 0:
            raise errors.InvalidBatchError("the batch is empty: add() something first")
        context._check_call(batch.n_tokens, encode)
        context.prepare(batch.n_tokens if context.outputs_all(encode) else batch.n_outputs)
        if context.n_samplers:
            context.raw_logits = any(
                [member not in context.samplers_ for members in batch.sequences for member in members]
            )
        with nogil:
            code = context.compute(
                NULL, batch.ptr, batch.wanted.data(), batch.n_tokens, batch.n_outputs, encode
            )
        return context.raise_for(code, "llama_process")
    finally:
        context.release()


cdef str _contents(int32_t content):
    return {0: "none", TOKENS: "tokens", EMBEDDINGS: "embeddings"}.get(content, "tokens with embeddings")

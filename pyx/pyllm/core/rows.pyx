"""Rows of one decode, each with the text it belongs to: sample, accept, test for the end, detokenise, all in one go."""

cimport cython
from libc.stdint cimport int32_t
from libcpp.string cimport string
from libcpp.vector cimport vector

from pyllm import errors
from pyllm.core.introspection import not_pickled, signature
from pyllm.core cimport error
from pyllm.core.arguments cimport int32
from pyllm.core.batch cimport Batch
from pyllm.core.choose cimport choose
from pyllm.core.context cimport Context
from pyllm.core.sampler cimport Sampler, explain
from pyllm.core.text_stream cimport TextStream
from pyllm.core.vocab cimport Vocab
from pyllm.includes cimport llama as lib


@cython.no_gc_clear
cdef class Row:
    """One of many texts that are generated at once: what selects its tokens, and what they are so far.

    Args:
        sampler: What selects the tokens; no other row may have it.
        stop: Stop strings.
        special: Write control tokens as text: True for all, or the ids of those to write.
    """

    __reduce__ = not_pickled("it holds memory of a sampler; make it again from its arguments")
    __signature__ = signature

    def __cinit__(self, Sampler sampler not None, *, stop=(), special=False):
        self.sampler = sampler
        self.stream = TextStream(stop)
        if isinstance(special, bool):
            self.special = special
        else:
            for token in special:
                self.shown.push_back(int32(token, "a token of special"))

    @property
    def n_generated(self):
        """How many tokens were generated so far (int)."""
        return self.tokens_.size()

    def tokens_from(self, start):
        """The tokens from index `start` on (tuple of int), as :attr:`tokens`."""
        cdef int32_t c_start = int32(start, "start")
        return tuple(self.tokens_.copy_from(max(c_start, 0)))

    @property
    def tokens(self):
        """The tokens so far (list of int). The one that ended the text is not among them."""
        return self.tokens_.copy()


def sample_rows(Context context not None, list rows not None, list indices not None):
    """Choose a token for each of some rows of the last decode.

    An error in one row, of a sampler written in Python say, is kept in its ``error`` and concerns no other row.

    Args:
        context: Where the logits are. What was written into ``context.logits`` counts.
        rows: The texts (list of Row).
        indices: For each the index in the batch whose logits it is chosen from.

    Returns:
        list: The token of each row (int), or None where its text has ended or its sampler has failed.

    Raises:
        NoOutputError: There are no logits at an index; nothing was chosen.
        InvalidArgumentError: A row is there twice.

    Wraps ``llama_sampler_sample``.
    """
    _check(rows, indices)
    context.acquire()
    try:
        context.require()
        for index in indices:
            c_index = int32(index, "an index")
            if context.n_outputs == 0 or lib.llama_get_logits_ith(context.ptr, c_index) == NULL:
                error.fail(errors.NoOutputError, f"there are no logits at index {c_index} of the last batch")
        context.sync_shadow()
        return _choose_all(context, None, rows, indices)
    finally:
        context.release()


def decode_rows(Context context not None, Batch batch not None, list rows not None, list indices not None):
    """Compute a batch, and choose a token for each of some rows of it: both in one go, without the GIL.

    What is wrong with the rows or their samplers is told before anything is computed. An error while a token is chosen
    is kept in the ``error`` of its row.

    Args:
        context: Where to compute.
        batch: The tokens.
        rows: The texts (list of Row).
        indices: For each the index in the batch whose logits it is chosen from; the batch asks for these.

    Returns:
        list: As for :func:`sample_rows`.

    Raises:
        NoOutputError: The batch asks for no logits at an index.
        InvalidArgumentError: A row is there twice.
        PyllmError: All that :meth:`pyllm.core.context.Context.decode` raises; then nothing was chosen.

    Wraps ``llama_decode`` and ``llama_sampler_sample``.
    """
    cdef int32_t c_index
    _check(rows, indices)
    context.acquire()
    try:
        context.require()
        for index in indices:
            c_index = int32(index, "an index")
            if not (0 <= c_index < batch.c.n_tokens and batch.output[c_index]):
                raise errors.NoOutputError(f"the batch asks for no logits at index {c_index}")
        return _choose_all(context, batch, rows, indices)
    finally:
        context.release()


cdef int _check(list rows, list indices) except -1:
    if len(rows) != len(indices):
        raise errors.InvalidArgumentError(f"{len(rows)} rows go with as many indices, not with {len(indices)}")
    return check_rows(rows)


cdef int check_rows(list rows) except -1:
    for row in rows:
        if not isinstance(row, Row):
            raise TypeError(f"rows must be Row objects, not {type(row).__name__}")
    if len(set(rows)) != len(rows) or len({(<Row> row).sampler.root() for row in rows}) != len(rows):
        raise errors.InvalidArgumentError(
            "a token can be chosen once for each text, and each needs a sampler of its own; something is there twice"
        )
    return 0


cdef one_row begin_row(Row row, int32_t index) except *:
    cdef one_row one
    row.error = None
    one.sampler = row.sampler.ptr
    one.within = row.sampler.within()
    one.stream = &row.stream.c
    one.tokens = &row.tokens_
    one.shown = &row.shown
    one.special = row.special
    one.index = index
    one.token = -1
    one.ended = False
    return one


cdef int fail_row(Row row, object cause) except -1:
    is_ours = isinstance(cause, (errors.BackendAssertError, errors.BackendError))
    row.error = explain(cause) if is_ours else cause
    return 0


cdef int end_row(Row row, one_row * one) except -1:
    if one.ended:
        row.finish_reason = "stop"
    return 0


cdef list _choose_all(Context context, Batch batch, list rows, list indices):
    """Choose a token for each row; where there is a batch it is computed first. The caller holds the context."""
    cdef vector[one_row] todo
    cdef Row row
    cdef size_t next_row = 0
    cdef int code = 0
    cdef int32_t n_outputs = 0
    cdef bint computed = batch is None
    cdef Vocab owner = context.model.vocab
    cdef const lib.llama_vocab * vocab = owner.require()
    cdef list roots = []
    cdef list found = []
    rows = list(rows)  # the caller's can change meanwhile
    try:
        for row, index in zip(rows, indices):
            roots.append((row.sampler, row.sampler.begin()))
            todo.push_back(begin_row(row, index))
        if batch is not None:
            n_outputs = context.ready_for(batch, False)
        while not computed or next_row < todo.size():
            try:
                with nogil:
                    if not computed:
                        code = context.decode_unchecked(batch.c, n_outputs, False)
                        computed = True
                    if code == 0:
                        # A sampler written in Python must not decode with the context, or close it.
                        context.in_call = True
                        _run(context.ptr, vocab, todo, &next_row)
                if code != 0:
                    context.raise_for(code, "llama_decode")
                error.raise_stashed()
            except Exception as cause:
                if code != 0 or not computed or next_row >= todo.size():
                    raise
                fail_row(rows[next_row], cause)
            next_row += 1
        if batch is not None:
            context.raise_for(0, "llama_decode")
    finally:
        context.in_call = False
        for sampler, root in roots:
            (<Sampler> sampler).finish(root)
        for index in range(<int32_t> todo.size()):
            end_row(rows[index], &todo[index])
    for index in range(len(rows)):
        found.append(todo[index].token if todo[index].token >= 0 else None)
    return found


cdef int _run(
    lib.llama_context * context, const lib.llama_vocab * vocab, vector[one_row] & todo, size_t * next_row
) except -99 nogil:
    """Go through the rows from `next_row` on; where one throws, `next_row` says which."""
    while next_row[0] < todo.size():
        choose_row(context, vocab, &todo[next_row[0]])
        next_row[0] += 1
    return 0


cdef int choose_row(lib.llama_context * context, const lib.llama_vocab * vocab, one_row * row) except -99 nogil:
    cdef int32_t token = choose(row.sampler, context, row.index, row.within[0])
    cdef string piece
    cdef int32_t n
    cdef size_t i
    cdef bint special = row.special
    if lib.llama_vocab_is_eog(vocab, token):
        row.ended = True
        return 0
    row.token = token
    row.tokens.push_back(token)
    for i in range(row.shown.size()):
        special = special or row.shown[0][i] == token
    piece.resize(64)
    n = lib.llama_token_to_piece(vocab, token, <char *> piece.data(), 64, 0, special)
    if n < 0:
        piece.resize(-n)
        n = lib.llama_token_to_piece(vocab, token, <char *> piece.data(), -n, 0, special)
    row.ended = row.stream.append(piece.data(), n)
    return 0

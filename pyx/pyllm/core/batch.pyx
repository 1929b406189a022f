"""Tokens (or embeddings) to decode together (wraps ``llama_batch``)."""

from numbers import Integral

from libc.limits cimport INT_MAX
from libc.stdint cimport int8_t, int32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

from pyllm import errors
from pyllm.core.introspection import signature
from pyllm.core.arguments cimport int32

# Far more than any context takes in one decode; a typing error must not fill the machine's memory.
cdef enum:
    MAX_TOKENS = 1 << 24


cdef class Batch:
    """Input for ``Context.decode`` and ``Context.encode``: tokens of one or many sequences.

    A batch made with :meth:`from_arrays` is filled in C. One made with the constructor is filled token by token
    with :meth:`add` or a sequence at a time with :meth:`add_sequence`, and used again after :meth:`clear`.

    Args:
        n_tokens: How many tokens fit.
        n_seq_max: How many sequences a single token can belong to.

    Example:
        >>> batch = Batch.from_arrays([1, 15043, 3186])
        >>> len(batch), batch.n_outputs
        (3, 1)
    """

    __signature__ = signature

    def __cinit__(self, n_tokens=512, *, n_seq_max=1):
        cdef int32_t c_n_tokens = int32(n_tokens, "n_tokens")
        cdef int32_t c_n_seq_max = int32(n_seq_max, "n_seq_max")
        if c_n_tokens < 1:
            raise errors.InvalidBatchError(f"n_tokens must be at least 1, not {c_n_tokens}")
        if c_n_seq_max < 1:
            raise errors.InvalidBatchError(f"n_seq_max must be at least 1, not {c_n_seq_max}")
        if c_n_tokens > MAX_TOKENS or <long long> c_n_tokens * c_n_seq_max > MAX_TOKENS:
            raise errors.InvalidBatchError(
                f"a batch holds up to {MAX_TOKENS} tokens times sequences, not {c_n_tokens} x {c_n_seq_max}"
            )
        self.allocate(c_n_tokens, c_n_seq_max, 0, 1)

    cdef int allocate(self, int32_t capacity, int32_t n_seq_max, int32_t n_embd, int32_t pos_stride) except -1:
        cdef int32_t i
        self.free_arrays()
        self.capacity = capacity
        self.n_seq_max = n_seq_max
        self.n_embd = n_embd
        self.pos_stride = pos_stride
        if n_embd:
            self.embd = <float *> calloc(<size_t> capacity * n_embd, sizeof(float))
        else:
            self.token = <int32_t *> calloc(capacity, sizeof(int32_t))
        self.pos = <int32_t *> calloc(<size_t> capacity * pos_stride, sizeof(int32_t))
        self.n_seq_id = <int32_t *> calloc(capacity, sizeof(int32_t))
        self.seq_id = <int32_t **> calloc(capacity + 1, sizeof(int32_t *))
        self.seq_storage = <int32_t *> calloc(<size_t> capacity * n_seq_max, sizeof(int32_t))
        self.output = <int8_t *> calloc(capacity, sizeof(int8_t))
        if (
            (self.token == NULL and self.embd == NULL) or self.pos == NULL or self.n_seq_id == NULL
            or self.seq_id == NULL or self.seq_storage == NULL or self.output == NULL
        ):
            raise MemoryError(f"no memory for a batch of {capacity} tokens")
        for i in range(capacity):
            self.seq_id[i] = self.seq_storage + <size_t> i * n_seq_max
        self.c.token = self.token
        self.c.embd = self.embd
        self.c.pos = self.pos
        self.c.n_seq_id = self.n_seq_id
        self.c.seq_id = self.seq_id
        self.c.logits = self.output
        self.c.n_tokens = 0
        self.n_outputs = 0
        return 0

    cdef void free_arrays(self) noexcept:
        free(self.token)
        free(self.embd)
        free(self.pos)
        free(self.n_seq_id)
        free(self.seq_id)
        free(self.seq_storage)
        free(self.output)
        self.token = NULL
        self.embd = NULL
        self.pos = NULL
        self.n_seq_id = NULL
        self.seq_id = NULL
        self.seq_storage = NULL
        self.output = NULL

    def __dealloc__(self):
        self.free_arrays()

    @staticmethod
    def from_arrays(tokens=None, *, pos=None, seq_ids=None, outputs="last", embeddings=None):
        """Make a batch from arrays.

        Args:
            tokens: Token ids, shape (n,); any integer dtype or sequence of int.
            pos: Positions, shape (n,). None: each sequence goes on where the memory of the context ends. For
                embeddings of an M-RoPE model shape (4, n).
            seq_ids: None (all tokens are of sequence 0), an int, shape (n,), or shape (n, k) with -1 as filling
                where a token belongs to fewer than k sequences.
            outputs: For which tokens logits (and embeddings) are wanted: "last", "all", "none", or booleans of
                shape (n,).
            embeddings: Instead of tokens: float32 input embeddings, shape (n, n_embd_inp).

        Returns:
            Batch: A new batch of n tokens.

        Raises:
            InvalidBatchError: Shapes that do not fit, nothing to decode, numbers that are no int32.
        """
        cdef Batch self = Batch.__new__(Batch, 1)
        if (tokens is None) == (embeddings is None):
            raise errors.InvalidBatchError("give either tokens or embeddings")
        if tokens is not None:
            data = _integers(tokens, "tokens", (1,))
            n, n_embd = data.shape[0], 0
        else:
            data = np.asarray(embeddings)
            if data.dtype.kind not in "fiu":
                raise errors.InvalidBatchError(f"embeddings must be numbers, not {data.dtype}")
            data = np.ascontiguousarray(data, dtype=np.float32)
            if data.ndim != 2:
                raise errors.InvalidBatchError(f"embeddings must have shape (n, n_embd), not {data.shape}")
            n, n_embd = data.shape
            if n_embd < 1:
                raise errors.InvalidBatchError(f"embeddings of shape {data.shape} hold nothing")
        if n < 1 or n > MAX_TOKENS:
            raise errors.InvalidBatchError(
                f"a batch needs at least 1 token and at most {MAX_TOKENS}, and this one has {n}"
            )

        positions = None if pos is None else _integers(pos, "pos", (1, 2))
        pos_stride = 1
        if positions is not None:
            if positions.ndim == 2:
                if tokens is not None:
                    raise errors.InvalidBatchError("pos of two dimensions goes with embeddings only")
                pos_stride = positions.shape[0]
            if positions.shape[positions.ndim - 1] != n:
                raise errors.InvalidBatchError(f"pos has shape {positions.shape} for {n} tokens")
            if positions.size and positions.min() < 0:
                raise errors.InvalidBatchError(f"positions start at 0, and one is {positions.min()}")

        sequences = None
        if seq_ids is not None:
            sequences = _integers([seq_ids] * n if isinstance(seq_ids, Integral) else seq_ids, "seq_ids", (1, 2))
            if sequences.ndim == 1:
                sequences = sequences.reshape(-1, 1)
            if sequences.shape[0] != n or sequences.shape[1] < 1:
                raise errors.InvalidBatchError(f"seq_ids has shape {sequences.shape} for {n} tokens")
            if (sequences[:, 0] < 0).any():
                raise errors.InvalidBatchError("every token needs a sequence id >= 0 in the first place")

        self.allocate(n, sequences.shape[1] if sequences is not None else 1, n_embd, pos_stride)
        self.fill(data, positions, sequences, _output_flags(outputs, n))
        return self

    cdef int fill(self, data, positions, sequences, flags) except -1:
        cdef int32_t n = <int32_t> data.shape[0]
        cdef int32_t i, j, k
        cdef const int32_t[::1] tokens
        cdef const float[:, ::1] rows
        cdef const int32_t[::1] flat
        cdef const int32_t[:, ::1] seqs
        cdef const int8_t[::1] out = flags
        if n and self.n_embd:
            rows = data
            memcpy(self.embd, &rows[0, 0], <size_t> n * self.n_embd * sizeof(float))
        elif n:
            tokens = data
            memcpy(self.token, &tokens[0], <size_t> n * sizeof(int32_t))
        if positions is None:
            self.c.pos = NULL
        elif n:
            flat = positions.reshape(-1)
            memcpy(self.pos, &flat[0], <size_t> flat.shape[0] * sizeof(int32_t))
        if sequences is None:
            self.c.n_seq_id = NULL
            self.c.seq_id = NULL
            for i in range(n):
                self.n_seq_id[i] = 1
        else:
            seqs = sequences
            for i in range(n):
                k = 0
                for j in range(seqs.shape[1]):
                    if seqs[i, j] >= 0:
                        self.seq_id[i][k] = seqs[i, j]
                        k += 1
                self.n_seq_id[i] = k
        self.n_outputs = 0
        for i in range(n):
            self.output[i] = out[i]
            self.n_outputs += out[i]
        self.c.n_tokens = n
        return 0

    def clear(self):
        """Forget all tokens; the memory is kept for the next ones."""
        self.c.n_tokens = 0
        self.n_outputs = 0
        return self

    def add(self, token, pos, seq_ids=(0,), *, bint output=False):
        """Append one token.

        Args:
            token: Its id.
            pos: Its position in its sequences.
            seq_ids: An int or several: the sequences it belongs to.
            output: Whether logits (and embeddings) are wanted for it.

        Returns:
            int: Its index in the batch, for ``Context.logits_ith``.

        Raises:
            InvalidBatchError: The batch is full, or made by :meth:`from_arrays` without positions.
        """
        cdef int32_t c_token = int32(token, "token")
        cdef int32_t c_pos = int32(pos, "pos")
        cdef int32_t i = self.c.n_tokens
        sequences = (seq_ids,) if isinstance(seq_ids, Integral) else tuple(seq_ids)
        if self.n_embd or self.c.pos == NULL or self.c.seq_id == NULL:
            raise errors.InvalidBatchError("add() needs a batch made with Batch(n_tokens)")
        if i >= self.capacity:
            raise errors.InvalidBatchError(f"the batch is full: it was made for {self.capacity} tokens")
        if not 1 <= len(sequences) <= self.n_seq_max:
            raise errors.InvalidBatchError(
                f"a token belongs to 1 to {self.n_seq_max} sequences (n_seq_max) here, not {len(sequences)}"
            )
        if c_pos < 0:
            raise errors.InvalidBatchError(f"positions start at 0, not {c_pos}")
        cdef int32_t j = 0
        for sequence in sequences:
            self.seq_id[i][j] = int32(sequence, "a sequence id")
            if self.seq_id[i][j] < 0:
                raise errors.InvalidBatchError(f"sequence ids start at 0, not {sequence}")
            j += 1
        self.token[i] = c_token
        self.pos[i] = c_pos
        self.n_seq_id[i] = j
        self.output[i] = output
        self.n_outputs += output
        self.c.n_tokens = i + 1
        return i

    def add_sequence(self, tokens, pos=0, seq_id=0, *, outputs="last"):
        """Append tokens of one sequence at consecutive positions, filled in C.

        Args:
            tokens: Token ids, shape (n,).
            pos: Position of the first one.
            seq_id: The sequence.
            outputs: As in :meth:`from_arrays`.

        Returns:
            range: Their indices in the batch.
        """
        cdef int32_t c_pos = int32(pos, "pos")
        cdef int32_t c_seq_id = int32(seq_id, "seq_id")
        ids = _integers(tokens, "tokens", (1,))
        cdef int32_t n = <int32_t> len(ids)
        cdef int32_t start = self.c.n_tokens
        cdef int32_t i
        if self.n_embd or self.c.pos == NULL or self.c.seq_id == NULL:
            raise errors.InvalidBatchError("add_sequence() needs a batch made with Batch(n_tokens)")
        if n > self.capacity - start:
            raise errors.InvalidBatchError(
                f"{n} more tokens do not fit: the batch was made for {self.capacity} and has {start}"
            )
        if c_pos < 0 or c_seq_id < 0 or c_pos > INT_MAX - n:
            raise errors.InvalidBatchError(f"pos and seq_id start at 0, not {c_pos} and {c_seq_id}")
        cdef const int32_t[::1] view = ids
        cdef const int8_t[::1] flags = _output_flags(outputs, n)
        for i in range(n):
            self.token[start + i] = view[i]
            self.pos[start + i] = c_pos + i
            self.n_seq_id[start + i] = 1
            self.seq_id[start + i][0] = c_seq_id
            self.output[start + i] = flags[i]
            self.n_outputs += flags[i]
        self.c.n_tokens = start + n
        return range(start, start + n)

    def __reduce__(self):
        cdef int32_t n = self.c.n_tokens
        cdef float[:, ::1] rows
        sequences = None
        if self.n_embd:
            data = np.empty((n, self.n_embd), np.float32)
            rows = data
            if n:
                memcpy(&rows[0, 0], self.embd, <size_t> n * self.n_embd * sizeof(float))
        else:
            data = _copy(self.token, n)
        if self.c.seq_id != NULL:
            sequences = np.full((n, self.n_seq_max), -1, np.int32)
            for i, ids in enumerate(self.seq_ids):
                sequences[i, :len(ids)] = ids
        sizes = (self.capacity, self.n_seq_max, self.n_embd, self.pos_stride)
        content = (data, (<object> self).pos, sequences, self.outputs.view(np.int8))
        return _filled_again, (type(self), sizes, content), getattr(self, "__dict__", None)

    def __len__(self):
        return self.c.n_tokens

    def __repr__(self):
        what = f"embeddings of {self.n_embd}" if self.n_embd else "tokens"
        return f"<Batch: {self.c.n_tokens} {what}, {self.n_outputs} outputs>"

    @property
    def tokens(self):
        """A copy of the token ids: int32, shape (n,); None for a batch of embeddings."""
        return None if self.n_embd else _copy(self.token, self.c.n_tokens)

    @property
    def pos(self):
        """A copy of the positions: int32, shape (n,); None where the context tracks them."""
        return None if self.c.pos == NULL else _copy(self.pos, self.c.n_tokens * self.pos_stride)

    @property
    def seq_ids(self):
        """The sequences of each token (list of tuple of int)."""
        cdef int32_t i, j
        result = []
        for i in range(self.c.n_tokens):
            result.append(tuple([self.seq_id[i][j] for j in range(self.n_seq_id[i])]))
        return result

    @property
    def outputs(self):
        """A copy of the output flags: bool, shape (n,)."""
        return np.array([self.output[i] != 0 for i in range(self.c.n_tokens)], bool)

    cdef int validate(self, int32_t n_tokens_vocab, int32_t n_embd, int32_t n_seq_max, int32_t n_batch) except -1:
        cdef int32_t n = self.c.n_tokens
        cdef int32_t i, j, token, seq
        if n < 1:
            raise errors.InvalidBatchError("the batch is empty")
        if n > n_batch:
            raise errors.InvalidBatchError(
                f"the batch has {n} tokens and the context takes n_batch={n_batch} at a time; "
                "split it, or make the context with a larger n_batch"
            )
        if self.n_embd and self.n_embd != n_embd:
            raise errors.InvalidBatchError(
                f"the embeddings have {self.n_embd} numbers and the model takes {n_embd} (Model.n_embd_inp)"
            )
        for i in range(n):
            if not self.n_embd:
                token = self.token[i]
                if token < 0 or token >= n_tokens_vocab:
                    raise errors.InvalidBatchError(
                        f"token {token} at index {i} is not in the vocabulary: ids go from 0 to {n_tokens_vocab - 1}"
                    )
            for j in range(self.n_seq_id[i]):
                seq = self.seq_id[i][j]
                if seq < 0 or seq >= n_seq_max:
                    raise errors.InvalidBatchError(
                        f"sequence id {seq} at index {i} is out of range: the context has n_seq_max={n_seq_max}"
                    )
        return 0


def _filled_again(cls, sizes, content):
    cdef Batch self = cls.__new__(cls, 1)
    cdef int32_t capacity, n_seq_max, n_embd, pos_stride
    capacity, n_seq_max, n_embd, pos_stride = sizes
    data, positions, sequences, flags = content
    self.allocate(capacity, n_seq_max, n_embd, pos_stride)
    self.fill(data, positions, sequences, flags)
    return self


cdef object _integers(values, str name, tuple dimensions):
    """`values` as a C-contiguous int32 array, or an error that names it."""
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int32)
    if array.dtype.kind not in "iu" or array.ndim not in dimensions:
        raise errors.InvalidBatchError(
            f"{name} must be integers in {' or '.join(map(str, dimensions))} dimension(s), "
            f"not {array.dtype} of shape {array.shape}"
        )
    if array.dtype != np.int32 and array.size and (array.min() < -(2**31) or array.max() >= 2**31):
        raise errors.InvalidBatchError(f"{name} has numbers that do not fit in 32 bits")
    return np.ascontiguousarray(array, dtype=np.int32)


cdef object _output_flags(outputs, int32_t n):
    flags = np.zeros(n, np.int8)
    if isinstance(outputs, str):
        if outputs == "last":
            flags[-1:] = 1
        elif outputs == "all":
            flags[:] = 1
        elif outputs != "none":
            raise errors.InvalidBatchError(f"outputs={outputs!r} is not one of 'last', 'all', 'none'")
        return flags
    array = np.asarray(outputs)
    if array.shape != (n,) or array.dtype.kind not in "biu":
        raise errors.InvalidBatchError(f"outputs has shape {array.shape} and dtype {array.dtype} for {n} tokens")
    flags[:] = array != 0
    return flags


cdef object _copy(const int32_t * values, int32_t n):
    array = np.empty(n, np.int32)
    cdef int32_t[::1] view = array
    if n:
        memcpy(&view[0], values, <size_t> n * sizeof(int32_t))
    return array

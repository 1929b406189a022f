"""Arithmetic on rows of logits, in C and without the GIL.

All functions take float32, C-contiguous, shape (n_vocab,) for one row or (n, n_vocab) for many: NumPy arrays,
``Context.logits``, memoryviews and whatever else exports such a buffer. Nothing is copied or converted; an array of
another kind is an InvalidArgumentError. Sums are made in double precision.

A token at minus infinity cannot be. Where a row has no other token, all its log probabilities are minus infinity and
its entropy is 0. NaN makes the results of its row NaN.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from libc.stdint cimport int32_t

import operator

import numpy as np

from pyllm.errors import InvalidArgumentError
from pyllm.core.arguments cimport int32
from pyllm.core.outputs cimport plain


cdef extern from "kernels.hpp" namespace "pyllm" nogil:
    double row_logsumexp(const float * row, size_t n) noexcept
    void row_log_softmax(const float * row, float * out, size_t n) noexcept
    double row_entropy(const float * row, size_t n) noexcept
    double row_token_logprob(const float * row, size_t n, size_t token) noexcept
    int32_t row_rank(const float * row, size_t n, size_t token) noexcept
    void row_keep_top_k(float * row, size_t n, size_t k) except +
    void row_top_k_logprobs(const float * row, size_t n, size_t k, int32_t * ids, float * logprobs) except +
    void row_apply_bitmask(float * row, size_t n, const int32_t * words, size_t n_words) noexcept


cdef struct Rows:
    Py_buffer buffer
    float * data
    Py_ssize_t n            # 1 for an array of one dimension
    Py_ssize_t n_vocab


cdef str describe(value):
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape is None:
        return type(value).__name__
    return f"{dtype} of shape {tuple(shape)}"


cdef int open_buffer(object value, Py_buffer * buffer, str name, bytes formats, str wanted, bint writable) except -1:
    """Get a C-contiguous buffer of 4-byte elements in one or two dimensions; undone with PyBuffer_Release."""
    if not PyObject_CheckBuffer(value):
        raise InvalidArgumentError(f"{name} must be {wanted}, not {describe(value)}")
    PyObject_GetBuffer(value, buffer, PyBUF_STRIDES | PyBUF_FORMAT)
    cdef Py_ssize_t expected = 4
    cdef Py_ssize_t i
    cdef char kind
    try:
        # "f" or "=f"; a format of another byte order begins with ">".
        kind = buffer.format[0] if buffer.format != NULL else 0
        if kind == b"=" or kind == b"@" or kind == b"<":
            kind = buffer.format[1]
        if buffer.itemsize != 4 or kind == 0 or kind not in formats or not 1 <= buffer.ndim <= 2:
            raise InvalidArgumentError(f"{name} must be {wanted}, not {describe(value)}")
        for i in range(buffer.ndim - 1, -1, -1):
            if buffer.shape[i] > 1 and buffer.strides[i] != expected:
                raise InvalidArgumentError(
                    f"{name} must be C-contiguous, and this array of shape {tuple(value.shape)} has strides "
                    f"{tuple(value.strides)}; make a copy with np.ascontiguousarray"
                )
            expected *= buffer.shape[i]
        if writable and buffer.readonly:
            raise InvalidArgumentError(f"{name} is changed in place, and this array is read-only")
    except BaseException:
        PyBuffer_Release(buffer)
        raise
    return 0


cdef int open_rows(object logits, Rows * rows, bint writable=False, str name="logits") except -1:
    """Get the rows of an array; undone with PyBuffer_Release(&rows.buffer)."""
    open_buffer(
        plain(logits), &rows.buffer, name, b"f", "a float32 array of shape (n_vocab,) or (n, n_vocab)", writable
    )
    rows.data = <float *> rows.buffer.buf
    rows.n = 1 if rows.buffer.ndim == 1 else rows.buffer.shape[0]
    rows.n_vocab = rows.buffer.shape[rows.buffer.ndim - 1]
    if rows.n_vocab < 1 or rows.n_vocab > 0x7FFFFFFF:
        PyBuffer_Release(&rows.buffer)
        raise InvalidArgumentError(f"{name} must have from 1 to 2^31 - 1 columns, not {rows.n_vocab}")
    return 0


cdef object shape_of(Rows * rows):
    if rows.buffer.ndim == 1:
        return (rows.n_vocab,)
    return (rows.n, rows.n_vocab)


cdef object new_result(Rows * rows, dtype, columns=None):
    """An array with an element, or `columns` of them, for each row; always of two dimensions at least."""
    return np.empty((rows.n, columns or 1), dtype)


cdef object finish_result(Rows * rows, result):
    """The result as the caller gave the rows: a number for one, an array for many."""
    return result[0, 0].item() if rows.buffer.ndim == 1 else result[:, 0]


cdef Py_ssize_t check_k(k, Rows * rows, bint at_most_n_vocab) except -1:
    cdef Py_ssize_t c_k = int32(k, "k")
    if c_k < 1 or (at_most_n_vocab and c_k > rows.n_vocab):
        raise InvalidArgumentError(
            f"k must be from 1 to n_vocab={rows.n_vocab}, not {k}" if at_most_n_vocab
            else f"k must be at least 1, not {k}"
        )
    return c_k


cdef object check_tokens(tokens, Rows * rows):
    """One token id for each row: int32, shape (n,)."""
    array = np.asarray(tokens)
    if array.dtype.kind not in "iu" or array.shape != ((rows.n,) if rows.buffer.ndim == 2 else ()):
        raise InvalidArgumentError(
            f"tokens must be {rows.n} integers, one for each row of the logits, not {describe(array)}"
            if rows.buffer.ndim == 2 else f"the token of one row of logits must be an integer, not {describe(array)}"
        )
    if rows.n and not 0 <= array.min() <= array.max() < rows.n_vocab:
        raise InvalidArgumentError(
            f"token ids must be from 0 to {rows.n_vocab - 1}, and these go from {array.min()} to {array.max()}"
        )
    return np.ascontiguousarray(array.reshape(rows.n), dtype=np.int32)


def log_softmax(logits, out=None):
    """The log probabilities of all tokens.

    Args:
        logits: float32, shape (n_vocab,) or (n, n_vocab).
        out: Where to write them: float32 of the same shape, for example the logits themselves. None: a new array.

    Returns:
        numpy.ndarray: float32, of the same shape; `out` where it was given.

    Raises:
        InvalidArgumentError: An array has another dtype, shape or order.
    """
    cdef Rows rows
    cdef Rows target
    cdef Py_ssize_t i
    open_rows(logits, &rows)
    try:
        if out is None:
            out = np.empty(shape_of(&rows), np.float32)
        open_rows(out, &target, True, "out")
        try:
            if shape_of(&target) != shape_of(&rows):
                raise InvalidArgumentError(
                    f"out must have the shape of the logits, {shape_of(&rows)}, not {shape_of(&target)}"
                )
            with nogil:
                for i in range(rows.n):
                    row_log_softmax(
                        rows.data + i * rows.n_vocab, target.data + i * rows.n_vocab, rows.n_vocab
                    )
        finally:
            PyBuffer_Release(&target.buffer)
    finally:
        PyBuffer_Release(&rows.buffer)
    return out


def logsumexp(logits):
    """The logarithm of the sum of the exponentials of each row: what log_softmax subtracts.

    Args:
        logits: float32, shape (n_vocab,) or (n, n_vocab).

    Returns:
        float | numpy.ndarray: A float for one row, else float64 of shape (n,).

    Raises:
        InvalidArgumentError: The array has another dtype, shape or order.
    """
    cdef Rows rows
    cdef Py_ssize_t i
    cdef double[:, ::1] view
    open_rows(logits, &rows)
    try:
        result = new_result(&rows, np.float64)
        view = result
        with nogil:
            for i in range(rows.n):
                view[i, 0] = row_logsumexp(rows.data + i * rows.n_vocab, rows.n_vocab)
        return finish_result(&rows, result)
    finally:
        PyBuffer_Release(&rows.buffer)


def entropy(logits):
    """The entropy of the distribution of each row, in nats.

    Args:
        logits: float32, shape (n_vocab,) or (n, n_vocab).

    Returns:
        float | numpy.ndarray: A float for one row, else float64 of shape (n,).

    Raises:
        InvalidArgumentError: The array has another dtype, shape or order.
    """
    cdef Rows rows
    cdef Py_ssize_t i
    cdef double[:, ::1] view
    open_rows(logits, &rows)
    try:
        result = new_result(&rows, np.float64)
        view = result
        with nogil:
            for i in range(rows.n):
                view[i, 0] = row_entropy(rows.data + i * rows.n_vocab, rows.n_vocab)
        return finish_result(&rows, result)
    finally:
        PyBuffer_Release(&rows.buffer)


def token_logprobs(logits, tokens):
    """The log probability of one token in each row.

    Args:
        logits: float32, shape (n_vocab,) or (n, n_vocab).
        tokens: An id for one row; for many, integers of shape (n,).

    Returns:
        float | numpy.ndarray: A float for one row, else float64 of shape (n,).

    Raises:
        InvalidArgumentError: The array has another dtype, shape or order, or an id is out of range.
    """
    cdef Rows rows
    cdef Py_ssize_t i
    cdef double[:, ::1] view
    cdef const int32_t[::1] ids
    open_rows(logits, &rows)
    try:
        ids = check_tokens(tokens, &rows)
        result = new_result(&rows, np.float64)
        view = result
        with nogil:
            for i in range(rows.n):
                view[i, 0] = row_token_logprob(rows.data + i * rows.n_vocab, rows.n_vocab, ids[i])
        return finish_result(&rows, result)
    finally:
        PyBuffer_Release(&rows.buffer)


def token_ranks(logits, tokens):
    """How many tokens of each row come before one token: 0 is the most likely.

    Of equal logits the lower id comes first, as for ``numpy.argmax``.

    Args:
        logits: float32, shape (n_vocab,) or (n, n_vocab).
        tokens: An id for one row; for many, integers of shape (n,).

    Returns:
        int | numpy.ndarray: An int for one row, else int32 of shape (n,).

    Raises:
        InvalidArgumentError: The array has another dtype, shape or order, or an id is out of range.
    """
    cdef Rows rows
    cdef Py_ssize_t i
    cdef int32_t[:, ::1] view
    cdef const int32_t[::1] ids
    open_rows(logits, &rows)
    try:
        ids = check_tokens(tokens, &rows)
        result = new_result(&rows, np.int32)
        view = result
        with nogil:
            for i in range(rows.n):
                view[i, 0] = row_rank(rows.data + i * rows.n_vocab, rows.n_vocab, ids[i])
        return finish_result(&rows, result)
    finally:
        PyBuffer_Release(&rows.buffer)


def top_k_logprobs(logits, k):
    """The k most likely tokens of each row and their log probabilities, the most likely first.

    Of equal logits the lower id comes first.

    Args:
        logits: float32, shape (n_vocab,) or (n, n_vocab).
        k: From 1 to n_vocab.

    Returns:
        tuple: Arrays ``(ids, logprobs)``, int32 and float32, of shape (k,) for one row, else (n, k).

    Raises:
        InvalidArgumentError: The array has another dtype, shape or order, or k is out of range.
    """
    cdef Rows rows
    cdef Py_ssize_t i, c_k
    cdef int32_t[:, ::1] ids_view
    cdef float[:, ::1] logprobs_view
    open_rows(logits, &rows)
    try:
        c_k = check_k(k, &rows, True)
        ids = new_result(&rows, np.int32, c_k)
        logprobs = new_result(&rows, np.float32, c_k)
        ids_view = ids
        logprobs_view = logprobs
        with nogil:
            for i in range(rows.n):
                row_top_k_logprobs(
                    rows.data + i * rows.n_vocab, rows.n_vocab, c_k, &ids_view[i, 0], &logprobs_view[i, 0]
                )
        return (ids[0], logprobs[0]) if rows.buffer.ndim == 1 else (ids, logprobs)
    finally:
        PyBuffer_Release(&rows.buffer)


def keep_top_k(logits, k):
    """Set all but the k largest logits of each row to minus infinity, in place.

    Of equal logits those with the lower ids stay, so that it is never more than k.

    Args:
        logits: float32, writable, shape (n_vocab,) or (n, n_vocab).
        k: At least 1; n_vocab or more changes nothing.

    Raises:
        InvalidArgumentError: The array has another dtype, shape or order or is read-only, or k is out of range.
    """
    cdef Rows rows
    cdef Py_ssize_t i, c_k
    open_rows(logits, &rows, True)
    try:
        c_k = check_k(k, &rows, False)
        with nogil:
            for i in range(rows.n):
                row_keep_top_k(rows.data + i * rows.n_vocab, rows.n_vocab, c_k)
    finally:
        PyBuffer_Release(&rows.buffer)


def apply_token_bitmask(logits, bitmask):
    """Set the logits of forbidden tokens to minus infinity, in place.

    Bit j of word i stands for token 32 i + j; 1 allows it. Tokens past the end of the mask are forbidden.
    llguidance, xgrammar and outlines-core fill such masks.

    Args:
        logits: float32, writable, shape (n_vocab,) or (n, n_vocab).
        bitmask: int32, shape (n_words,), which then holds for every row, or (n, n_words); n_words is at most
            ceil(n_vocab / 32). See :func:`allocate_token_bitmask`.

    Raises:
        InvalidArgumentError: An array has another dtype, shape or order, or the logits are read-only.
    """
    cdef Rows rows
    cdef Py_buffer mask
    cdef const int32_t * words
    cdef Py_ssize_t i, n_words, step
    open_rows(logits, &rows, True)
    try:
        open_buffer(
            bitmask, &mask, "the bitmask", b"il", "an int32 array of shape (n_words,) or (n, n_words)", False
        )
        try:
            n_words = mask.shape[mask.ndim - 1]
            if n_words > (rows.n_vocab + 31) // 32:
                raise InvalidArgumentError(
                    f"the bitmask has {n_words} words for {32 * n_words} tokens, and the logits are of "
                    f"{rows.n_vocab}, which need {(rows.n_vocab + 31) // 32}; is it for another vocabulary?"
                )
            if mask.ndim == 2 and mask.shape[0] != rows.n:
                raise InvalidArgumentError(
                    f"the bitmask has {mask.shape[0]} rows and the logits have {rows.n}; they must be as many"
                )
            words = <const int32_t *> mask.buf
            step = n_words if mask.ndim == 2 else 0
            with nogil:
                for i in range(rows.n):
                    row_apply_bitmask(rows.data + i * rows.n_vocab, rows.n_vocab, words + i * step, n_words)
        finally:
            PyBuffer_Release(&mask)
    finally:
        PyBuffer_Release(&rows.buffer)


def allocate_token_bitmask(n, n_vocab):
    """A bitmask that allows every token.

    Args:
        n: Rows, at least 0.
        n_vocab: Tokens, at least 1; take the model's own number, ``len(vocab)``.

    Returns:
        numpy.ndarray: int32, shape (n, ceil(n_vocab / 32)), all bits 1.
    """
    n, n_vocab = operator.index(n), operator.index(n_vocab)
    if n < 0 or n_vocab < 1:
        raise InvalidArgumentError(f"a bitmask has n >= 0 rows for n_vocab >= 1 tokens, not n={n}, n_vocab={n_vocab}")
    return np.full((n, (n_vocab + 31) // 32), -1, np.int32)

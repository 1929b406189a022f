"""The file of log-probabilities that ``llama-perplexity --kl-divergence-base`` writes and reads.

The layout, little-endian: the letters ``_logits_``; n_ctx, n_vocab, n_chunks as int32; the tokens of all windows as
int32; and for each predicted token a row of float32 scale, float32 minimum and n_vocab (rounded up to even) uint16,
which stand for ``scale * number + minimum``. What is 16 below the best logit, or more, is cut off there.
"""

from __future__ import annotations

import os
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import InvalidArgumentError, PyllmError
from pyllm.eval.contexts import Scorable, Text, model_of, scoring_context, tokens_of
from pyllm.eval.perplexity import Progress
from pyllm.eval.rows import Logits, RowWorkers
from pyllm.eval.windows import Windows, check_context, context_for

MAGIC = b"_logits_"
_HEADER = struct.Struct("<8siii")
_LEVELS = np.float32(65535)
# Log-probabilities from here on down are taken for zero, as llama.cpp does.
CUT = np.float32(-16)
# Rows quantized at once: what this takes in memory stays small.
_ROWS = 16


class LogitsFileError(PyllmError, ValueError):
    """A file of log-probabilities is malformed, or belongs to another model."""


def row_width(n_vocab: int) -> int:
    """uint16 numbers of a row."""
    return 2 * ((n_vocab + 1) // 2) + 4


class LogitsFile:
    """A file of log-probabilities, mapped into memory; nothing is read before it is needed.

    Args:
        path: The file.

    Attributes:
        windows: The text, cut into windows.
        n_vocab: Size of the vocabulary.

    Raises:
        LogitsFileError: It is no such file, or its end is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        size = os.path.getsize(self.path)
        with open(self.path, "rb") as file:
            head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or head[:8] != MAGIC:
            raise LogitsFileError(f"{self.path!r} does not begin with {MAGIC.decode()!r} and is no file of logits")
        _, n_ctx, n_vocab, n_chunks = _HEADER.unpack(head)
        if n_ctx < 4 or n_vocab < 1 or n_chunks < 1:
            raise LogitsFileError(
                f"{self.path!r} says n_ctx={n_ctx}, n_vocab={n_vocab}, n_chunks={n_chunks}, which cannot be"
            )
        n_rows = n_chunks * (n_ctx - 1 - n_ctx // 2)
        needed = _HEADER.size + 4 * n_ctx * n_chunks + 2 * n_rows * row_width(n_vocab)
        if size != needed:
            raise LogitsFileError(
                f"{self.path!r} has {size} bytes, and with n_ctx={n_ctx}, n_vocab={n_vocab}, n_chunks={n_chunks} "
                f"it should have {needed}"
            )
        tokens = np.fromfile(self.path, "<i4", n_ctx * n_chunks, offset=_HEADER.size)
        if tokens.min() < 0 or tokens.max() >= n_vocab:
            raise LogitsFileError(f"{self.path!r} holds token {tokens.max()}, and ids go from 0 to {n_vocab - 1}")
        self.windows = Windows(tokens.astype(np.int32).reshape(n_chunks, n_ctx))
        self.n_vocab = n_vocab
        self._rows: NDArray[np.uint16] = np.memmap(
            self.path, "<u2", "r", _HEADER.size + 4 * len(tokens), (n_rows, row_width(n_vocab))
        )

    def __len__(self) -> int:
        """Number of rows: of predicted tokens."""
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<LogitsFile {self.path!r}: {len(self)} rows of {self.n_vocab}>"

    def log_probs(self, start: int, end: int) -> Logits:
        """Log-probabilities of some rows: float32, shape (end - start, n_vocab)."""
        rows = np.asarray(self._rows[start:end])
        scale_and_minimum = np.ascontiguousarray(rows[:, :4]).view("<f4")
        values = rows[:, 4 : 4 + self.n_vocab].astype(np.float32)
        values *= scale_and_minimum[:, :1]
        values += scale_and_minimum[:, 1:]
        return values


def write_header(file: BinaryIO, windows: Windows, n_vocab: int) -> None:
    """Write what comes before the rows."""
    file.write(_HEADER.pack(MAGIC, windows.n_ctx, n_vocab, windows.n_chunks))
    file.write(windows.tokens.astype("<i4").tobytes())


def quantize(logits: Logits, log_sums: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Rows of the file from rows of logits.

    Args:
        logits: float32, shape (n, n_vocab).
        log_sums: log(sum(exp(row))) of each row, shape (n,).

    Returns:
        NDArray: uint16, shape (n, row_width(n_vocab)).
    """
    best = logits.max(axis=1)
    worst = np.maximum(logits.min(axis=1), best + CUT)
    scale = (best - worst) / _LEVELS
    result = np.zeros((len(logits), row_width(logits.shape[1])), "<u2")
    minimum = (worst - log_sums).astype(np.float32)
    result[:, :4] = np.stack((scale, minimum), axis=1).astype("<f4").view("<u2")
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
    levels = logits - worst[:, None]
    np.maximum(levels, 0, out=levels)  # also what was -inf
    levels *= inverse[:, None]
    result[:, 4 : 4 + logits.shape[1]] = np.rint(levels, out=levels)
    return result


def save_logits(
    path: str | os.PathLike[str],
    llm: Scorable,
    text: Text,
    *,
    n_ctx: int = 512,
    n_batch: int = 2048,
    n_chunks: int | None = None,
    parse_special: bool = False,
    progress: Progress | None = None,
    **context_arguments: Any,
) -> LogitsFile:
    """Write a model's log-probabilities of a text to a file, as ``llama-perplexity --kl-divergence-base`` does.

    The file takes about ``n_vocab`` bytes for each token of the text. To compare two models without one, see
    :func:`pyllm.eval.kl`.

    Args:
        path: Where to; an existing file is replaced.
        llm: As for :func:`pyllm.eval.perplexity`, and so the other arguments.
        text: Text, or token ids.
        n_ctx: Tokens of a window.
        n_batch: Tokens computed at once.
        n_chunks: Stop after so many windows.
        parse_special: Whether texts such as ``<|im_start|>`` are control tokens.
        progress: Called with the tokens done and all of them after each batch.
        **context_arguments: Arguments of :class:`pyllm.core.context.Context`.

    Returns:
        LogitsFile: The file, opened.

    Raises:
        InvalidArgumentError: As for :func:`pyllm.eval.perplexity`.
    """
    tokens = tokens_of(model_of(llm).vocab, text, parse_special=parse_special)
    windows = Windows.of(tokens, n_ctx, n_chunks)
    size, suited = context_for(n_ctx, n_batch)
    with (
        scoring_context(llm, size, context_arguments, **suited, kv_unified=False) as context,
        RowWorkers(context.n_threads_batch) as workers,
    ):
        check_context(context, windows)
        with open(path, "wb") as file:
            write_header(file, windows, context.n_vocab)
            for _, end in windows.decode(context, n_batch):
                _write_rows(file, np.asarray(context.logits), workers)
                if progress is not None:
                    progress(end, windows.n_predicted)
    return LogitsFile(path)


def _write_rows(file: BinaryIO, logits: Logits, workers: RowWorkers) -> None:
    for a in range(0, len(logits), _ROWS):
        rows = logits[a : a + _ROWS]
        file.write(quantize(rows, workers.logsumexp(rows)).tobytes())


def check_vocabulary(file: LogitsFile, n_vocab: int) -> None:
    """Refuse a file of another vocabulary.

    Raises:
        InvalidArgumentError: The sizes differ.
    """
    if file.n_vocab != n_vocab:
        raise InvalidArgumentError(
            f"{file.path!r} was made with a vocabulary of {file.n_vocab} tokens, and this model has {n_vocab}"
        )

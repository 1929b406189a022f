"""Perplexity, as llama-perplexity measures it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.context import Context
from pyllm.eval.contexts import Scorable, Text, model_of, scoring_context, tokens_of
from pyllm.eval.rows import RowWorkers
from pyllm.eval.windows import Windows, check_context, context_for

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True, eq=False)
class Perplexity:
    """How well a model foretells a text.

    Attributes:
        ppl: exp of the mean negative log-probability of a token.
        stderr: Its standard error.
        nll: The mean negative log-probability, in nats.
        nll_stderr: Its standard error.
        n_tokens: Predicted tokens.
        n_chunks: Windows.
        n_ctx: Tokens of a window.
        token_nll: Negative log-probability of each predicted token, in the order of the text: float32, shape
            (n_tokens,); every ``n_tokens // n_chunks`` of them are of one window.
    """

    ppl: float
    stderr: float
    nll: float
    nll_stderr: float
    n_tokens: int
    n_chunks: int
    n_ctx: int
    token_nll: NDArray[np.float32]


def mean_and_error(values: NDArray[Any]) -> tuple[float, float]:
    """Mean, and its standard error as llama.cpp estimates it; 0 for fewer than two values."""
    mean = float(values.mean(dtype=np.float64))
    variance = float(np.square(values, dtype=np.float64).mean()) - mean * mean
    return mean, math.sqrt(variance / (len(values) - 1)) if len(values) > 1 and variance > 0 else 0.0


def perplexity(
    llm: Scorable,
    text: Text,
    *,
    n_ctx: int = 512,
    n_batch: int = 2048,
    n_chunks: int | None = None,
    parse_special: bool = False,
    progress: Progress | None = None,
    **context_arguments: Any,
) -> Perplexity:
    """Perplexity of a text, with the windows of llama-perplexity, so that its numbers can be compared.

    The text is cut into windows of n_ctx tokens, and what does not fill a window is dropped. Tokens in the second
    half of each window are predicted. The first token of each gives way to BOS, if the model begins texts with it.
    llama-perplexity drops the newline at the end of its file; drop it too to compare.

    Args:
        llm: A Llama or a Model, for which a context like that of llama-perplexity is made, or a Context.
        text: Text, or token ids.
        n_ctx: Tokens of a window.
        n_batch: Tokens computed at once: ``n_batch // n_ctx`` windows, or a part of one.
        n_chunks: Stop after so many windows.
        parse_special: Whether texts such as ``<|im_start|>`` are control tokens; for llama-perplexity they are not.
        progress: Called with the tokens done and all of them after each batch.
        **context_arguments: Arguments of :class:`pyllm.core.context.Context`, e.g. ``n_threads=4``.

    Returns:
        Perplexity: Mean, error, and the numbers of each token.

    Raises:
        InvalidArgumentError: The text does not fill a window; the model is an encoder; a number is out of range.
    """
    tokens = tokens_of(model_of(llm).vocab, text, parse_special=parse_special)
    windows = Windows.of(tokens, n_ctx, n_chunks)
    size, suited = context_for(n_ctx, n_batch)
    nll = np.empty(windows.n_predicted, np.float64)
    predicted = windows.predicted
    with (
        scoring_context(llm, size, context_arguments, **suited, kv_unified=False) as context,
        RowWorkers(context.n_threads_batch) as workers,
    ):
        check_context(context, windows)
        for start, end in windows.decode(context, n_batch):
            _read(context, workers, predicted[start:end], nll[start:end])
            if progress is not None:
                progress(end, windows.n_predicted)
    mean, error = mean_and_error(nll)
    ppl = math.exp(mean)
    return Perplexity(
        ppl, ppl * error, mean, error, len(nll), windows.n_chunks, n_ctx, nll.astype(np.float32)
    )  # fmt: skip


def _read(context: Context, workers: RowWorkers, predicted: NDArray[np.int32], nll: NDArray[np.float64]) -> None:
    # In a function of its own, so that the array is gone before the next decode.
    logits = np.asarray(context.logits)
    nll[:] = workers.logsumexp(logits) - logits[np.arange(len(logits)), predicted]

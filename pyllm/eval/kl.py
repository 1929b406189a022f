"""How far a model's probabilities are from those of another: Kullback-Leibler divergence and what goes with it."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core import kernels
from pyllm.core.context import Context
from pyllm.errors import InvalidArgumentError
from pyllm.eval.contexts import Scorable, Text, model_of, scoring_context, tokens_of
from pyllm.eval.kl_file import CUT, LogitsFile, check_vocabulary
from pyllm.eval.perplexity import Progress, mean_and_error
from pyllm.eval.rows import Logits, RowWorkers
from pyllm.eval.windows import Windows, check_context, context_for

PERCENTILES = (0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
# Rows compared at once by a thread: their float32 copies stay in its cache, or near.
_ROWS = 4


@dataclass(frozen=True, slots=True, eq=False)
class KL:
    """Two models compared token by token; "error" is a standard error throughout.

    The change Δp is the probability of the token of the text, other minus base.

    Attributes:
        mean: Mean of D(base ‖ other) over the predicted tokens, in nats.
        mean_error: Its error.
        median: The median.
        maximum: The largest.
        minimum: The smallest.
        percentiles: Percent → divergence, for 0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99 and 99.9.
        same_top: Share of tokens for which both have the same favourite.
        same_top_error: Its error.
        delta_p_mean: Mean of Δp.
        delta_p_mean_error: Its error.
        delta_p_rms: Root of the mean square of Δp.
        delta_p_rms_error: Its error.
        delta_p_percentiles: Percent → Δp.
        ppl: Perplexity of the other model.
        ppl_error: Its error.
        ppl_base: Perplexity of the base.
        ppl_base_error: Its error.
        log_ppl_ratio: ln(ppl / ppl_base).
        log_ppl_ratio_error: Its error, in which what both have in common is taken into account.
        n_tokens: Predicted tokens.
        divergences: Of each token, in the order of the text: float32, shape (n_tokens,).
        delta_p: … its change: float32, shape (n_tokens,).
    """

    mean: float
    mean_error: float
    median: float
    maximum: float
    minimum: float
    percentiles: dict[float, float]
    same_top: float
    same_top_error: float
    delta_p_mean: float
    delta_p_mean_error: float
    delta_p_rms: float
    delta_p_rms_error: float
    delta_p_percentiles: dict[float, float]
    ppl: float
    ppl_error: float
    ppl_base: float
    ppl_base_error: float
    log_ppl_ratio: float
    log_ppl_ratio_error: float
    n_tokens: int
    divergences: NDArray[np.float32]
    delta_p: NDArray[np.float32]


class _Tokens:
    """What is noted of each token while the models run."""

    def __init__(self, n: int) -> None:
        self.divergence = np.empty(n, np.float64)
        self.nll = np.empty(n, np.float64)
        self.nll_base = np.empty(n, np.float64)
        self.same = np.empty(n, np.bool_)

    def statistics(self) -> KL:
        n = len(self.same)
        mean, mean_error = mean_and_error(self.divergence)
        change = np.exp(-self.nll) - np.exp(-self.nll_base)
        change_mean, change_error = mean_and_error(change)
        square, square_error = mean_and_error(np.square(change))
        rms = math.sqrt(square)
        nll, nll_error = mean_and_error(self.nll)
        base, base_error = mean_and_error(self.nll_base)
        common = float((self.nll * self.nll_base).mean()) - nll * base
        ratio_variance = nll_error**2 + base_error**2 - 2 * common / max(1, n - 1)
        same = float(self.same.mean())
        return KL(
            mean=mean,
            mean_error=mean_error,
            median=float(np.median(self.divergence)),
            maximum=float(self.divergence.max()),
            minimum=float(self.divergence.min()),
            percentiles=_percentiles(self.divergence),
            same_top=same,
            same_top_error=math.sqrt(same * (1 - same) / (n - 1)) if n > 1 else 0.0,
            delta_p_mean=change_mean,
            delta_p_mean_error=change_error,
            delta_p_rms=rms,
            delta_p_rms_error=0.5 * square_error / rms if rms else 0.0,
            delta_p_percentiles=_percentiles(change),
            ppl=math.exp(nll),
            ppl_error=math.exp(nll) * nll_error,
            ppl_base=math.exp(base),
            ppl_base_error=math.exp(base) * base_error,
            log_ppl_ratio=nll - base,
            log_ppl_ratio_error=math.sqrt(max(0.0, ratio_variance)),
            n_tokens=n,
            divergences=self.divergence.astype(np.float32),
            delta_p=change.astype(np.float32),
        )


def _percentiles(values: NDArray[np.float64]) -> dict[float, float]:
    return dict(zip(PERCENTILES, np.percentile(values, PERCENTILES).tolist(), strict=True))


def kl(
    base: Scorable | LogitsFile,
    other: Scorable,
    text: Text | None = None,
    *,
    n_ctx: int = 512,
    n_batch: int = 2048,
    n_chunks: int | None = None,
    parse_special: bool = False,
    progress: Progress | None = None,
    **context_arguments: Any,
) -> KL:
    """Compare a model (a quantized one, say) with a base: on the same text, with llama-perplexity's windows.

    Both run side by side, and the logits of a batch are compared where llama.cpp wrote them: no file is needed, and
    no more memory than two contexts. With a :class:`pyllm.eval.LogitsFile` for a base, its text is read, and
    probabilities below e^-16 count as zero, as in ``llama-perplexity --kl-divergence``.

    Args:
        base: A Llama, a Model, a Context, or a file with the log-probabilities of the base.
        other: What is compared with it; it must have the same vocabulary.
        text: Text, or token ids; None if the base is a file.
        n_ctx: Tokens of a window; a file brings its own.
        n_batch: Tokens computed at once.
        n_chunks: Stop after so many windows.
        parse_special: Whether texts such as ``<|im_start|>`` are control tokens; for llama-perplexity they are not.
        progress: Called with the tokens done and all of them after each batch.
        **context_arguments: Arguments of :class:`pyllm.core.context.Context`, for both, e.g. ``n_threads=4``.

    Returns:
        KL: Statistics, and the numbers of each token.

    Raises:
        InvalidArgumentError: The vocabularies differ; text and file are both given, or neither; the text does not
            fill a window; a model is an encoder.
    """
    n_vocab = model_of(other).n_vocab
    if isinstance(base, LogitsFile):
        if text is not None:
            raise InvalidArgumentError("the text is in the file already: leave it out")
        check_vocabulary(base, n_vocab)
        windows = base.windows
        if n_chunks is not None:
            windows = Windows.of(windows.tokens.reshape(-1), windows.n_ctx, n_chunks)
    else:
        if text is None:
            raise InvalidArgumentError("a text is needed, unless the base is a LogitsFile")
        if base is other and isinstance(base, Context):
            raise InvalidArgumentError("one Context cannot be both: give its model, or make a second one")
        if model_of(base).n_vocab != n_vocab:
            raise InvalidArgumentError(
                f"the base has a vocabulary of {model_of(base).n_vocab} tokens and the other model {n_vocab}"
            )
        tokens = tokens_of(model_of(base).vocab, text, parse_special=parse_special)
        windows = Windows.of(tokens, n_ctx, n_chunks)

    size, suited = context_for(windows.n_ctx, n_batch)
    predicted, found = windows.predicted, _Tokens(windows.n_predicted)
    with ExitStack() as stack:
        contexts = []
        for llm in (other,) if isinstance(base, LogitsFile) else (other, base):
            arguments = {} if isinstance(llm, Context) else context_arguments
            context = stack.enter_context(scoring_context(llm, size, arguments, **suited, kv_unified=False))
            check_context(context, windows)
            contexts.append(context)
        # Two contexts of the caller may differ in what they take at once; together they go in step.
        step = min(n_batch, *(context.n_batch for context in contexts))
        if step >= windows.n_ctx:
            step = min(step, windows.n_ctx * min(context.n_seq_max for context in contexts))
        workers = stack.enter_context(RowWorkers(contexts[0].n_threads_batch))
        for parts in zip(*(windows.decode(context, step) for context in contexts), strict=True):
            start, end = parts[0]
            source = base if isinstance(base, LogitsFile) else contexts[1]
            _compare(source, contexts[0], workers, predicted, found, start, end)
            if progress is not None:
                progress(end, windows.n_predicted)
    return found.statistics()


def _compare(
    source: LogitsFile | Context,
    other: Context,
    workers: RowWorkers,
    predicted: NDArray[np.int32],
    found: _Tokens,
    start: int,
    end: int,
) -> None:
    # In a function of its own, so that the arrays are gone before the next decode.
    logits = np.asarray(other.logits)
    of_base = None if isinstance(source, LogitsFile) else np.asarray(source.logits)

    def part(first: int, last: int) -> None:
        for a in range(first, last, _ROWS):
            b = min(a + _ROWS, last)
            rows = slice(start + a, start + b)
            base = (
                source.log_probs(start + a, start + b)
                if isinstance(source, LogitsFile)
                else kernels.log_softmax(of_base[a:b])  # type: ignore[index]
            )
            _compare_rows(base, kernels.log_softmax(logits[a:b]), predicted[rows], found, rows, of_base is None)

    workers.run(part, end - start)


def _compare_rows(
    base: Logits, other: Logits, predicted: NDArray[np.int32], found: _Tokens, rows: slice, cut: bool
) -> None:
    """Note the tokens of some rows of log-probabilities; both arrays are overwritten."""
    each = np.arange(len(base))
    found.nll_base[rows], found.nll[rows] = -base[each, predicted], -other[each, predicted]
    found.same[rows] = base.argmax(axis=1) == other.argmax(axis=1)
    p = np.exp(base)
    # Tokens without probability count nothing: 0 * (-inf) would be no number.
    p[base <= CUT if cut else base == -np.inf] = 0
    with np.errstate(invalid="ignore"):
        np.subtract(base, other, out=base)
    base[p == 0] = 0
    base *= p
    found.divergence[rows] = base.sum(axis=1, dtype=np.float64)

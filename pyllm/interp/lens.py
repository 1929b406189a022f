"""The logit lens: what the model would say if it stopped after a layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError
from pyllm.interp.names import NoActivationError
from pyllm.interp.runner import Interp
from pyllm.interp.values import Array, as_layers

Ids = Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, repr=False)
class LogitLens:
    """The next token as each layer sees it.

    Attributes:
        tokens: The token ids of the text, int32, shape (pos,).
        layers: The layers, shape (layers,).
        positions: The positions that were looked at, int32, shape (n,).
        top_tokens: The most likely next tokens, int32, shape (layers, n, k), the best first.
        top_logprobs: Their log-probabilities, float32, shape (layers, n, k).
        entropy: Entropy of the prediction in nats, float32, shape (layers, n).
        target_logprobs: Log-probability of the token that follows in the text, float32, shape (layers, n); NaN after
            the last token.
        target_ranks: Its rank, 0 for the most likely one, int32, shape (layers, n); -1 after the last token.
        logits: All logits, float32, shape (layers, n, n_vocab), if they were to be kept, else None.
        vocab: What turns the tokens into text.
    """

    tokens: NDArray[np.int32]
    layers: tuple[int, ...]
    positions: NDArray[np.int32]
    top_tokens: NDArray[np.int32]
    top_logprobs: Array
    entropy: Array
    target_logprobs: Array
    target_ranks: NDArray[np.int32]
    logits: Array | None
    vocab: Vocab

    def __repr__(self) -> str:
        return f"<LogitLens: {len(self.layers)} layers, {len(self.positions)} of {len(self.tokens)} tokens>"

    def _repr_html_(self) -> str:
        from pyllm.viz import html  # only here: needed in notebooks alone

        return html.lens_table(self)._repr_html_()


def logit_lens(
    lab: Interp,
    text: str | bytes | Ids,
    layers: int | Iterable[int] | None = None,
    *,
    positions: Sequence[int] | None = None,
    top: int = 5,
    keep_logits: bool = False,
) -> LogitLens:
    """Apply the final norm and the output matrix to the residual stream after each layer.

    The model itself does that: the residuals are put in place of what its last layer gives, many in one decode, so
    that norms, scales, caps and quantized weights are its own. After the last layer the logits are the model's.

    Args:
        lab: The model.
        text: Text or token ids.
        layers: Which layers; None means all.
        positions: Which positions, negative ones counting from the end; None means all.
        top: How many of the most likely tokens to keep.
        keep_logits: Keep all logits too: layers * positions * n_vocab * 4 bytes.

    Returns:
        LogitLens: What was found.

    Raises:
        InvalidArgumentError: A layer or position does not exist, or there are none.
        NoActivationError: The model's graph does not name the outputs of its layers.
    """
    n_layer, n_vocab = lab.model.n_layer, lab.model.n_vocab
    if not 1 <= top <= n_vocab:
        raise InvalidArgumentError(f"top must be from 1 to {n_vocab}, not {top}")
    ids = lab.tokenize_array(text)
    wanted = tuple(range(n_layer)) if layers is None else tuple(_layer(i, n_layer) for i in as_layers(layers))
    if not wanted:
        raise InvalidArgumentError(f"layers are some of 0 to {n_layer - 1}; there are none")
    last = f"blocks.{n_layer - 1}.hook_resid_post"
    if not lab.context.has_memory:
        raise NoActivationError("an embedding model has no output matrix, and no lens")
    cache = lab.capture(ids, [f"blocks.{layer}.hook_resid_post" for layer in wanted], positions=positions)
    rows = np.concatenate([cache["resid_post", layer] for layer in wanted])
    n = len(cache.positions)

    following = np.full(n, -1, np.int64)
    has_next = cache.positions + 1 < len(ids)
    following[has_next] = ids[cache.positions[has_next] + 1]
    targets = np.tile(following, len(wanted))

    result = _Result(len(rows), top, n_vocab, keep_logits)
    step = lab.context.n_ubatch
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        result.add(start, _decode_rows(lab, last, part), targets[start : start + step])
    shape = (len(wanted), n)
    return LogitLens(
        ids, wanted, cache.positions, result.top_tokens.reshape(*shape, top), result.top_logprobs.reshape(*shape, top),
        result.entropy.reshape(shape), result.target_logprobs.reshape(shape), result.target_ranks.reshape(shape),
        None if result.logits is None else result.logits.reshape(*shape, n_vocab), lab.vocab,
    )  # fmt: skip


def _layer(layer: int, n_layer: int) -> int:
    if not -n_layer <= layer < n_layer:
        raise InvalidArgumentError(f"layers go from 0 to {n_layer - 1}, not {layer}")
    return layer % n_layer


def _decode_rows(lab: Interp, name: str, rows: Array) -> Array:
    """The logits that belong to residual streams before the final norm."""
    # Which tokens are decoded does not matter: their rows are replaced. A single one may have another graph.
    padded = rows if len(rows) > 1 else np.repeat(rows, 2, axis=0)
    ids = np.zeros(len(padded), np.int32)
    logits: Array = lab.run_with_hooks(ids, [(name, lambda values, hook: padded)])
    return logits[: len(rows)]


class _Result:
    """What is kept of the logits."""

    def __init__(self, n: int, top: int, n_vocab: int, keep_logits: bool) -> None:
        self.top_tokens = np.empty((n, top), np.int32)
        self.top_logprobs = np.empty((n, top), np.float32)
        self.entropy = np.empty(n, np.float32)
        self.target_logprobs = np.full(n, np.nan, np.float32)
        self.target_ranks = np.full(n, -1, np.int32)
        self.logits = np.empty((n, n_vocab), np.float32) if keep_logits else None

    def add(self, start: int, logits: Array, targets: NDArray[np.int64]) -> None:
        top = self.top_tokens.shape[1]
        for i, row in enumerate(logits, start):
            scores = row - row.max()
            total = np.exp(scores).sum(dtype=np.float64)
            logprobs = scores - np.float32(np.log(total))
            best = np.argpartition(-logprobs, top - 1)[:top]
            best = best[np.argsort(-logprobs[best], kind="stable")]
            self.top_tokens[i], self.top_logprobs[i] = best, logprobs[best]
            probabilities = np.exp(logprobs)
            self.entropy[i] = -np.sum(np.where(probabilities > 0, probabilities * logprobs, 0))
            target = targets[i - start]
            if target >= 0:
                self.target_logprobs[i] = logprobs[target]
                self.target_ranks[i] = np.count_nonzero(row > row[target])
        if self.logits is not None:
            self.logits[start : start + len(logits)] = logits


__all__ = ["LogitLens", "logit_lens"]

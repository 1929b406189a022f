"""What pictures are made of: scored texts and the likeliest tokens, in a form that HTML and matplotlib share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllm.core.kernels import entropy, top_k_logprobs
from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError
from pyllm.viz.pieces import label
from pyllm.viz.scales import LN2


class ScoredText(Protocol):
    """What a text that can be shown has; :class:`pyllm.eval.types.TokenLogprobs` does."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """int32, shape (n,)."""

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """float32, shape (n,); NaN where there was no forecast."""

    @property
    def ranks(self) -> NDArray[np.int32]:
        """int32, shape (n,); 0 is the likeliest, -1 where there was no forecast."""

    @property
    def entropy(self) -> NDArray[np.float32]:
        """float32, shape (n,), in nats."""

    @property
    def top_tokens(self) -> NDArray[np.int32]:
        """int32, shape (n, k), the likeliest first."""

    @property
    def top_logprobs(self) -> NDArray[np.float32]:
        """float32, shape (n, k)."""

    @property
    def vocab(self) -> Vocab:
        """What turns the tokens into text."""


def check_shown(value: object, protocol: type, source: str) -> None:
    """Refuse what cannot be shown.

    Args:
        value: What shall be shown.
        protocol: What it must have.
        source: What gives such objects.

    Raises:
        InvalidArgumentError: It has not.
    """
    missing = [name for name in vars(protocol) if not name.startswith("_") and not hasattr(value, name)]
    if missing:
        raise InvalidArgumentError(f"this shows what {source} gives, and {type(value).__name__} has no {missing[0]}")


@dataclass(frozen=True, slots=True)
class Top:
    """The likeliest tokens of one row.

    Attributes:
        tokens: What to write and the log-probability, the likeliest first; tokens that are forbidden are left out.
        entropy: Of the row, in nats; NaN where the row is no distribution.
        note: What is wrong with the row, or an empty string.
    """

    tokens: list[tuple[str, float]]
    entropy: float
    note: str = ""


def top_of(tokens: NDArray[np.int32], logprobs: NDArray[np.float32], vocab: Vocab) -> list[tuple[str, float]]:
    """Labels and log-probabilities of tokens; what is impossible or missing is left out.

    Args:
        tokens: int32, shape (k,).
        logprobs: float32, shape (k,).
        vocab: What the tokens are.
    """
    return [
        (label(vocab.token_to_piece(token)), logprob)
        for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True)
        if token >= 0 and logprob > -math.inf
    ]


def as_rows(logits: ArrayLike, vocab: Vocab) -> NDArray[np.float32]:
    """One row or several as a float32 matrix; nothing is copied that is one already.

    Raises:
        InvalidArgumentError: The columns are not those of the vocabulary.
    """
    rows: NDArray[Any] = np.asarray(logits)
    if rows.ndim not in (1, 2) or rows.shape[-1] != len(vocab):
        raise InvalidArgumentError(
            f"logits have shape ({len(vocab)},) or (n, {len(vocab)}), a column for each token, not {rows.shape}"
        )
    return np.atleast_2d(np.ascontiguousarray(rows, np.float32))


def top_of_rows(rows: NDArray[np.float32], vocab: Vocab, k: int) -> list[Top]:
    """The k likeliest tokens of each row of logits.

    Args:
        rows: float32, shape (n, n_vocab), C-contiguous.
        vocab: What the columns are.
        k: How many, from 1; at most all there are.

    Raises:
        InvalidArgumentError: k is less than 1.
    """
    if k < 1:
        raise InvalidArgumentError(f"k must be at least 1, not {k}")
    tops = []
    for row in rows:
        if np.isnan(row).any():
            tops.append(Top([], math.nan, "not a number"))
        elif not (row > -np.inf).any():
            tops.append(Top([], math.nan, "all tokens are forbidden"))
        else:
            tokens, logprobs = top_k_logprobs(row, min(k, len(row)))
            tops.append(Top(top_of(tokens.reshape(-1), logprobs.reshape(-1), vocab), float(np.squeeze(entropy(row)))))
    return tops


def summary(scored: ScoredText) -> str:
    """A text's figures, in a line."""
    known = scored.logprobs[~np.isnan(scored.logprobs)].astype(np.float64)
    n = len(scored.tokens)
    text = f"{n} token{'s' if n != 1 else ''}"
    if len(known):
        text += f" · {-known.mean() / LN2:.2f} bits per token · perplexity {math.exp(-known.mean()):.4g}"
    return text


class LensTable(Protocol):
    """What a logit lens that can be shown has; :class:`pyllm.interp.LogitLens` does."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """int32, shape (pos,)."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Shape (layers,)."""

    @property
    def positions(self) -> NDArray[np.int32]:
        """int32, shape (n,)."""

    @property
    def top_tokens(self) -> NDArray[np.int32]:
        """int32, shape (layers, n, k), the likeliest first."""

    @property
    def top_logprobs(self) -> NDArray[np.float32]:
        """float32, shape (layers, n, k)."""

    @property
    def target_logprobs(self) -> NDArray[np.float32]:
        """float32, shape (layers, n); NaN where nothing follows."""

    @property
    def target_ranks(self) -> NDArray[np.int32]:
        """int32, shape (layers, n); -1 where nothing follows."""

    @property
    def vocab(self) -> Vocab:
        """What turns the tokens into text."""


def lens_rows(lens: LensTable, layers: Sequence[int] | None) -> list[int]:
    """Indices of the layers of a lens, the last layer first.

    Args:
        lens: The lens.
        layers: Which layers; None means all.

    Raises:
        InvalidArgumentError: The lens has no such layer, or none was asked for.
    """
    check_shown(lens, LensTable, "pyllm.interp.logit_lens")
    chosen = lens.layers if layers is None else layers
    for layer in chosen:
        if layer not in lens.layers:
            raise InvalidArgumentError(f"this lens has the layers {', '.join(map(str, lens.layers))}, not {layer}")
    if not chosen:
        raise InvalidArgumentError("a lens table needs at least one layer")
    return [lens.layers.index(layer) for layer in sorted(set(chosen), reverse=True)]


class Point(Protocol):
    """What is known of an activation; :class:`pyllm.interp.HookPoint` is one."""

    @property
    def layer(self) -> int | None:
        """The layer, or None where it belongs to none."""

    @property
    def axis(self) -> int | None:
        """The dimension of the positions, or None."""


class Activations(Protocol):
    """What a cache that can be shown has; :class:`pyllm.interp.ActivationCache` does."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """int32, shape (pos,)."""

    @property
    def positions(self) -> NDArray[np.int32]:
        """int32, shape (n,)."""

    @property
    def points(self) -> Mapping[str, Any]:
        """A :class:`Point` for each name."""

    def __getitem__(self, name: str, /) -> NDArray[np.float32]:
        """The values."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One activation in all layers that have it.

    Attributes:
        name: Its name, with * for the layer.
        names: Its names, layer by layer.
        layers: The layers; None for one that belongs to no layer.
        shape: Shape of the values in one layer.
        rms: Root mean square of the values of each layer, shape (layers,).
    """

    name: str
    names: list[str]
    layers: list[int | None]
    shape: tuple[int, ...]
    rms: NDArray[np.float64]


def general_name(name: str) -> str:
    """A name without its layer.

    >>> general_name("blocks.3.attn.hook_z"), general_name("l_out-3"), general_name("hook_embed")
    ('blocks.*.attn.hook_z', 'l_out-*', 'hook_embed')
    """
    return re.sub(r"-\d+(?=#|$| )", "-*", re.sub(r"^blocks\.\d+\.", "blocks.*.", name))


def profiles(cache: Activations) -> list[Profile]:
    """What a cache holds, one entry for each kind of activation, in the order of the cache."""
    check_shown(cache, Activations, "pyllm.interp.Interp.run_with_cache")
    groups: dict[str, list[str]] = {}
    for name in cache.points:
        groups.setdefault(general_name(name), []).append(name)
    return [
        Profile(
            general,
            names,
            [cache.points[name].layer for name in names],
            cache[names[0]].shape,
            np.array([_rms(cache[name], None) for name in names], np.float64),
        )
        for general, names in groups.items()
    ]


def rms_by_position(cache: Activations, name: str) -> tuple[Profile, NDArray[np.float64]]:
    """Root mean square of one activation at each layer and position.

    Args:
        cache: The cache.
        name: A name in general, or its end: "blocks.*.hook_resid_post", "resid_post".

    Returns:
        tuple: The profile, and float64 of shape (layers, n).

    Raises:
        InvalidArgumentError: The cache holds nothing of that name, or it has no positions.
    """
    found = profiles(cache)
    profile = next((p for p in found if p.name == name or p.name.endswith(f"hook_{name}")), None)
    if profile is None:
        raise InvalidArgumentError(f"there is no {name!r} in the cache; it has {', '.join(p.name for p in found)}")
    axes = {cache.points[each].axis for each in profile.names}
    if None in axes:
        raise InvalidArgumentError(f"{name!r} has no dimension of positions")
    return profile, np.stack([_rms(cache[each], cache.points[each].axis) for each in profile.names])


def _rms(values: NDArray[np.float32], axis: int | None) -> NDArray[np.float64]:
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    finite = np.where(np.isfinite(values), values, 0).astype(np.float64)  # attention scores hold -inf
    result: NDArray[np.float64] = np.sqrt(np.mean(finite * finite, axis=others))
    return result


__all__ = [
    "Activations", "LensTable", "Point", "Profile", "ScoredText", "Top", "as_rows", "check_shown",
    "general_name", "lens_rows",
    "profiles", "rms_by_position", "summary", "top_of", "top_of_rows",
]  # fmt: skip

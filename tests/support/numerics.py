"""Settings with which results are exact, and reference formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# One thread, and a KV cache that rounds nothing: otherwise the size of a batch changes the last digits of logits, and
# with them the choice between two tokens that are almost equally likely.
EXACT: dict[str, Any] = {"n_threads": 1, "type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled"}


def log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Log probabilities along the last axis."""
    wide = np.asarray(logits, dtype=np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Probabilities along the last axis."""
    return np.asarray(np.exp(log_softmax(logits)))


def cosine(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Cosines between rows of `a` and rows of `b`, row by row."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.asarray((a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)))

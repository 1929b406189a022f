"""What is done to vectors when they are there: cut to fewer dimensions, normalised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import EmbeddingError, InvalidArgumentError

Normalize = bool | int | Literal["euclidean", "taxicab", "max_absolute"]

_NAMES = {"euclidean": 2, "taxicab": 1, "max_absolute": 0}
# The largest absolute value becomes this one, as in llama.cpp: it fits 16 bits.
_MAX_ABSOLUTE = 32760.0


def norm_of(normalize: Normalize) -> int | None:
    """The number by which llama.cpp knows a norm; None: vectors stay as they are.

    Raises:
        InvalidArgumentError: There is no such norm.
    """
    if isinstance(normalize, (bool, np.bool_)):
        return 2 if normalize else None
    if isinstance(normalize, str) and normalize in _NAMES:
        return _NAMES[normalize]
    if isinstance(normalize, (int, np.integer)) and -1 <= normalize <= 100:
        return None if normalize == -1 else int(normalize)
    raise InvalidArgumentError(
        f"normalize={normalize!r} is neither True, False, {', '.join(map(repr, _NAMES))}, nor the p of a p-norm",
        param="normalize",
    )


def check_dimensions(dimensions: int | None, n_embd: int) -> int:
    """How many dimensions are kept.

    Raises:
        InvalidArgumentError: The vectors do not have so many.
    """
    if dimensions is None:
        return n_embd
    if isinstance(dimensions, bool) or not isinstance(dimensions, (int, np.integer)):
        raise InvalidArgumentError(f"dimensions must be an integer, not {dimensions!r}", param="dimensions")
    if not 1 <= dimensions <= n_embd:
        raise InvalidArgumentError(
            f"dimensions must be from 1 to n_embd={n_embd}, not {dimensions}", param="dimensions"
        )
    return int(dimensions)


def normalized(vectors: NDArray[np.float32], norm: int | None, name: Callable[[int], str]) -> NDArray[np.float32]:
    """Divide each vector by its norm.

    Args:
        vectors: float32, shape (n, n_embd).
        norm: See :func:`norm_of`.
        name: What to call the owner of a row in messages.

    Returns:
        NDArray: float32, C-contiguous, the same shape.

    Raises:
        EmbeddingError: A vector is not finite, or is zero and is to be normalised.
    """
    _check(
        np.isfinite(vectors).all(axis=1),
        name,
        "is not finite: the weights are damaged, or 16 bits are too few for them",
    )
    if norm is None or len(vectors) == 0:
        return np.ascontiguousarray(vectors)
    absolute = np.abs(vectors.astype(np.float64))
    # Relative to the largest value, so that no power over- or underflows.
    largest = absolute.max(axis=1, keepdims=True)
    _check(largest[:, 0] > 0, name, "is zero: it has no direction and cannot be normalised; normalize=False gives it")
    if norm == 0:
        divisor = largest / _MAX_ABSOLUTE
    else:
        divisor = largest * ((absolute / largest) ** norm).sum(axis=1, keepdims=True) ** (1.0 / norm)
    result: NDArray[np.float32] = (vectors / divisor).astype(np.float32)
    return result


def _check(good: Any, name: Callable[[int], str], problem: str) -> None:
    if not good.all():
        raise EmbeddingError(f"the vector of {name(int(np.argmin(good)))} {problem}")

"""From tensors of a graph to activations, and back: shapes, heads, keys that are there, the scale of scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllm.errors import InvalidArgumentError
from pyllm.interp.names import HookPoint

Array = NDArray[np.float32]


def from_tensor(point: HookPoint, raw: Array, past: int) -> Array:
    """The activations at a point.

    Args:
        point: The point.
        raw: The values of its tensor, of four dimensions.
        past: Tokens of the sequence that were decoded before these.
    """
    if point.kind == "rows":
        return raw.reshape(-1, int(point.shape[1]))
    if point.kind == "heads":
        return raw.reshape(-1, int(point.shape[1]), int(point.shape[2]))
    if point.kind == "raw":
        return raw.reshape(raw.shape[4 - len(point.shape) :])
    # The cache has more cells than keys. It was empty before, so that the cell of a key is its position.
    n_keys = past + raw.shape[2]
    values = raw[0, :, :, :n_keys]
    return values * np.float32(point.scale) if point.kind == "scores" else values.copy()


def to_tensor(point: HookPoint, answer: ArrayLike, given: Array, raw: Array) -> Array:
    """The values of a tensor after a hook.

    Args:
        point: The point.
        answer: What the hook made of the activations.
        given: The activations that it was given, as they were.
        raw: The values of the tensor.

    Raises:
        InvalidArgumentError: The shape has changed, or these are no numbers.
    """
    values: NDArray[Any] = np.asarray(answer)
    if values.shape != given.shape:
        raise InvalidArgumentError(
            f"the hook on {point.name!r} must return an array of shape {given.shape}, not {values.shape}"
        )
    if values.dtype.kind not in "fiub":
        raise InvalidArgumentError(f"the hook on {point.name!r} must return numbers, not {values.dtype}")
    values = values.astype(np.float32, copy=False)
    if point.kind not in ("pattern", "scores"):
        return values.reshape(raw.shape)
    result = raw.copy()
    cells = result[0, :, :, : given.shape[2]]
    if point.kind == "scores":
        # What was not touched is not rounded.
        cells[...] = np.where(values == given, cells, values / np.float32(point.scale))
    else:
        cells[...] = values
    return result


def as_layers(layers: int | Iterable[int]) -> list[int]:
    """One layer or several, as a list.

    Raises:
        InvalidArgumentError: These are no integers.
    """
    found = [layers] if isinstance(layers, (int, np.integer)) else list(layers) if np.iterable(layers) else [layers]
    if not all(isinstance(layer, (int, np.integer)) and not isinstance(layer, bool) for layer in found):
        raise InvalidArgumentError(f"layers must be one integer or several, not {layers!r}")
    return [int(layer) for layer in found]


def join(point: HookPoint, parts: list[Array]) -> Array:
    """One array from those of consecutive parts of a text."""
    if len(parts) == 1:
        return parts[0]
    if point.axis is None:
        return parts[-1]
    if point.kind in ("pattern", "scores"):
        n_keys = parts[-1].shape[2]
        filling = 0.0 if point.kind == "pattern" else -np.inf
        parts = [np.pad(part, ((0, 0), (0, 0), (0, n_keys - part.shape[2])), constant_values=filling) for part in parts]
    return np.concatenate(parts, axis=point.axis)


__all__ = ["Array", "as_layers", "from_tensor", "join", "to_tensor"]

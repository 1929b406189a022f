"""How texts are computed when their activations are asked for: one by one, side by side, or by inputs of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllm.core.batch import Batch
from pyllm.core.capture import LAYER_INPUT_ARCHITECTURES, Capture
from pyllm.core.context import Context
from pyllm.errors import ContextError
from pyllm.interp.names import HookPoint, Layout, NoActivationError
from pyllm.interp.values import Array, from_tensor, join, to_tensor


@dataclass(frozen=True, slots=True)
class Hook:
    """What a hook function is told beside the values.

    Attributes:
        name: The name of the hook point.
        layer: Its layer, or None.
        tokens: The token ids whose activations these are, int32, shape (pos,).
        positions: Their positions in the text, int32, shape (pos,).
        index: Which text it is, where several were given.
    """

    name: str
    layer: int | None
    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    index: int


HookFunction = Callable[[Array, Hook], ArrayLike | None]


class Passes:
    """The ways through a model, for the context of an :class:`pyllm.interp.Interp`. Nothing is checked here.

    Args:
        context: A context made with ``capture=True``.
        layout: The layout of the graph of so many tokens.
    """

    def __init__(self, context: Context, layout: Callable[[int], Layout]) -> None:
        self.context = context
        self.capture = Capture(context)
        self.layout = layout

    def clear(self) -> None:
        """Forget what was decoded before; an encoder remembers nothing."""
        if self.context.has_memory:
            self.context.memory.clear(data=False)

    # ---- one text

    def one(
        self,
        ids: NDArray[np.int32],
        points: list[HookPoint],
        hooks: list[tuple[HookPoint, HookFunction]],
        keep_logits: bool,
        index: int,
    ) -> tuple[Array | None, dict[str, Array]]:
        """One text, with hooks: its outputs, if they are to be kept, and its activations by name."""
        self.clear()
        return self.go_on(ids, 0, points, hooks, keep_logits, index)

    def go_on(
        self,
        ids: NDArray[np.int32],
        past: int,
        points: list[HookPoint],
        hooks: list[tuple[HookPoint, HookFunction]],
        keep_logits: bool = False,
        index: int = 0,
    ) -> tuple[Array | None, dict[str, Array]]:
        """As :meth:`one`, behind `past` tokens that were computed before."""
        parts: dict[str, list[Array]] = {point.name: [] for point in points}
        logits: list[Array] = []
        n_ubatch = self.context.n_ubatch
        read = list({point.tensor for point in points})
        for start in range(0, len(ids), n_ubatch):
            part = ids[start : start + n_ubatch]
            first = past + start
            positions = np.arange(first, first + len(part), dtype=np.int32)
            batch = Batch.from_arrays(part, pos=positions, seq_ids=0, outputs="all")
            functions = [
                (point.tensor, _wrap(point, function, Hook(point.name, point.layer, part, positions, index)))
                for point, function in hooks
            ]
            values, order = self.capture.decode(batch, read, functions)
            _check_order(order, part)
            for point in points:
                parts[point.name].append(from_tensor(point, _there(values, point), first))
            if keep_logits:
                logits.append(self._outputs())
        joined = {point.name: join(point, parts[point.name]) for point in points}
        return (np.concatenate(logits) if len(logits) > 1 else logits[0]) if keep_logits else None, joined

    def _outputs(self) -> Array:
        rows = self.context.embeddings if not self.context.has_memory else self.context.logits
        return rows.copy()

    # ---- several texts at once

    def can_go_together(
        self,
        points: list[list[HookPoint]],
        hooks: list[list[tuple[HookPoint, HookFunction]]],
        texts: list[NDArray[np.int32]],
    ) -> bool:
        """Whether rows of several texts can be told apart afterwards."""
        return (
            not any(hooks)
            and not (self.context.model.is_recurrent or self.context.model.is_hybrid)
            and self.context.has_memory
            and all(len(ids) > 1 for ids in texts)
            and all(point.axis is not None and point.kind in ("raw", "rows", "heads") for point in points[0])
            and all("kq" not in point.tensor[0] for point in points[0])
        )

    def together(
        self, texts: list[NDArray[np.int32]], points: list[HookPoint], keep_logits: bool
    ) -> list[tuple[Array | None, dict[str, Array]]]:
        """Several texts, as many at once as the context has sequences; the results in their order."""
        results: list[Any] = [None] * len(texts)
        # Longest first: sequences end from the back, and the ids of those that go on have no gaps.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        n = self.context.n_seq_max
        for first in range(0, len(order), n):
            group = order[first : first + n]
            for i, result in zip(group, self._group([texts[i] for i in group], points, keep_logits), strict=True):
                results[i] = result
        return results

    def _group(
        self, texts: list[NDArray[np.int32]], points: list[HookPoint], keep_logits: bool
    ) -> Iterator[tuple[Array | None, dict[str, Array]]]:
        """Rectangles of tokens, sequence after sequence: however llama.cpp splits a batch, these it leaves in order."""
        self.clear()
        parts: list[dict[str, list[Array]]] = [{point.name: [] for point in points} for _ in texts]
        logits: list[list[Array]] = [[] for _ in texts]
        read = list({point.tensor for point in points})
        for start, width, count in _rectangles([len(ids) for ids in texts], self.context.n_ubatch):
            tokens = np.concatenate([ids[start : start + width] for ids in texts[:count]])
            positions = np.tile(np.arange(start, start + width, dtype=np.int32), count)
            sequences = np.repeat(np.arange(count, dtype=np.int32), width)
            batch = Batch.from_arrays(tokens, pos=positions, seq_ids=sequences, outputs="all")
            values, order = self.capture.decode(batch, read)
            _check_order(order, tokens)
            rows = self._outputs() if keep_logits else None
            for k in range(count):
                mine = slice(k * width, (k + 1) * width)
                for point in points:
                    part = np.take(_there(values, point), range(mine.start, mine.stop), point.tensor_axis)
                    parts[k][point.name].append(from_tensor(point, part, start))
                if rows is not None:
                    logits[k].append(rows[mine])
        for k in range(len(texts)):
            joined = {point.name: join(point, parts[k][point.name]) for point in points}
            yield (np.concatenate(logits[k]) if keep_logits else None, joined)

    # ---- the fast path

    def layer_inputs(
        self, texts: list[NDArray[np.int32]], points: list[list[HookPoint]], keep_logits: bool
    ) -> list[tuple[Array | None, dict[str, Array]]] | None:
        """The results, where all that is asked for are inputs of layers and llama.cpp hands those out."""
        if self.context.model.metadata.get("general.architecture") not in LAYER_INPUT_ARCHITECTURES:
            return None
        layers = []
        inputs = {
            point.tensor: layer
            for layer in range(self.context.model.n_layer)
            if (point := self.layout(3).points.get(f"blocks.{layer}.hook_resid_pre"))
        }
        for of_text in points:
            found = {point.name: inputs.get(point.tensor) for point in of_text if point.kind == "rows"}
            if not of_text or len(found) < len(of_text) or None in found.values():
                return None
            layers.append(found)
        results: list[tuple[Array | None, dict[str, Array]]] = []
        for ids, wanted in zip(texts, layers, strict=True):
            self.clear()
            batch = Batch.from_arrays(ids, pos=np.arange(len(ids)), seq_ids=0, outputs="all" if keep_logits else "last")
            values = self.capture.layer_inputs(batch, {layer for layer in wanted.values() if layer is not None})
            named = {name: values[layer] for name, layer in wanted.items() if layer is not None}
            results.append((self._outputs() if keep_logits else None, named))
        return results


def _wrap(point: HookPoint, function: HookFunction, hook: Hook) -> Callable[[Array], ArrayLike | None]:
    """A function on the values of the tensor, from one on the activations."""
    if not callable(function):
        raise TypeError(f"a hook must be callable, not {function!r}")
    past = int(hook.positions[0])

    def on_tensor(raw: Array) -> ArrayLike | None:
        values = from_tensor(point, raw, past)
        given = values.copy()
        answer = function(values, hook)
        if answer is None:
            # Nothing was returned: what counts is whether it was edited in place.
            if np.array_equal(values, given, equal_nan=True):
                return None
            answer = values
        return to_tensor(point, answer, given, raw)

    return on_tensor


def _there(values: dict[tuple[str, int], Array], point: HookPoint) -> Array:
    if point.tensor not in values:
        raise NoActivationError(f"{point.name!r} is in some graphs of this model, and was not in this one")
    return values[point.tensor]


def _check_order(order: NDArray[np.int32] | None, tokens: NDArray[np.int32]) -> None:
    if order is not None and not np.array_equal(order, tokens):
        raise ContextError("llama.cpp computed the tokens in another order than they were given")


def _rectangles(lengths: list[int], n_ubatch: int) -> Iterator[tuple[int, int, int]]:
    """Cut sequences, longest first, into (start, width, sequences): equally long parts of the first sequences."""
    start = 0
    while start < lengths[0]:
        count = sum(length > start for length in lengths)
        width = min(lengths[count - 1] - start, n_ubatch // count)
        yield start, width, count
        start += width


__all__ = ["Hook", "HookFunction", "Passes"]

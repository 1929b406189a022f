"""The names of activations: TransformerLens' names, and which tensor of llama.cpp's graph each one is.

llama.cpp names its tensors while it builds a graph ("l_out-3"), differently from one architecture to the next, and
sometimes gives one name to several tensors on the way. So a :class:`Layout` is made from what a graph was seen to
compute, and every name is looked up in it.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pyllm.core.capture import Node
from pyllm.errors import InvalidArgumentError, NoActivationError

Kind = Literal["raw", "rows", "heads", "pattern", "scores"]
Names = str | Iterable[str] | Callable[[str], bool] | None

#: What the residual stream starts with, the latest first: after scaling, norms and position embeddings.
_INPUTS = ("inpL", "inp_scaled", "inp_norm-0", "inp_norm", "inp_embd", "embd")

#: The hidden units of an MLP after the activation function.
_MLP_POST = (
    "ffn_gate_par", "ffn_swiglu", "ffn_geglu", "ffn_reglu", "ffn_swiglu_oai", "ffn_swiglu_limited", "ffn_act",
    "ffn_gelu", "ffn_silu", "ffn_sqr(relu)", "ffn_relu",
)  # fmt: skip

_ATTENTION = re.compile(r"hook_(pattern|attn_scores)$|^kq(_soft_max)?-\d+$")


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A place where activations can be read and changed.

    Attributes:
        name: Its name, e.g. "blocks.3.hook_resid_post" or "l_out-3".
        layer: The layer, or None where it belongs to none.
        tensor: The tensor of llama.cpp's graph behind it: (name, occurrence).
        kind: How the values are laid out: "rows" (pos, n), "heads" (pos, heads, d_head), "pattern" and "scores"
            (heads, query, key), "raw" as the graph has them, with the last dimension the contiguous one.
        shape: The dimensions, "pos" and "key" where they depend on the text.
        axis: The dimension of the positions, or None.
        tensor_axis: That dimension of the tensor, counted from the end.
        scale: Factor from the tensor to the values, for "scores".
        type: Data type of the tensor; the values are float32 in any case.
    """

    name: str
    layer: int | None
    tensor: tuple[str, int]
    kind: Kind
    shape: tuple[int | str, ...]
    axis: int | None
    tensor_axis: int | None
    scale: float = 1.0
    type: str = "f32"


def layer_of(name: str) -> int | None:
    """The layer that a name speaks of: 3 for "blocks.3.hook_resid_post" and for "l_out-3"."""
    match = re.match(r"blocks\.(\d+)\.", name) or re.search(r"-(\d+)(?:#\d+)?(?: \(.*)?$", name)
    return int(match[1]) if match else None


class Layout:
    """The hook points of a graph.

    Args:
        nodes: What a graph of some tokens computes.
        others: The same for another number of tokens; the dimension that differs is that of the positions.
        n_tokens: The number of tokens of `nodes`.
        n_layer: Layers of the model.
        flash_attention: Whether attention is fused, so that there are no patterns.
    """

    def __init__(
        self, nodes: Sequence[Node], others: Sequence[Node], n_tokens: int, n_layer: int, flash_attention: bool
    ) -> None:
        self.n_layer = n_layer
        self.flash_attention = flash_attention
        self._nodes = list(nodes)
        self._n_tokens = n_tokens
        self._index = {(node.name, node.occurrence): i for i, node in enumerate(self._nodes)}
        self._count: dict[str, int] = {}
        for node in self._nodes:
            self._count[node.name] = node.occurrence + 1
        self._others = {(node.name, node.occurrence): node.shape for node in others}
        self.raw: dict[str, HookPoint] = {}
        for node in self._nodes:
            point = self._raw_point(node)
            self.raw[point.name] = point
        self.points: dict[str, HookPoint] = {}
        self._aliases: dict[str, str] = {}
        self._find_points()

    # ---- from nodes to points

    def _axis(self, node: Node) -> int | None:
        """The dimension of the tokens: the one that differs between graphs of different length."""
        other = self._others.get((node.name, node.occurrence), node.shape)
        axes = [i for i in range(4) if node.shape[i] != other[i]]
        if axes == [2, 3] and node.name.startswith("kq"):
            return 2  # without a cache there are as many keys as queries
        return axes[0] if len(axes) == 1 and node.shape[axes[0]] == self._n_tokens else None

    def _raw_point(self, node: Node) -> HookPoint:
        last = node.occurrence == self._count[node.name] - 1
        name = node.name if last else f"{node.name}#{node.occurrence}"
        axis = tensor_axis = self._axis(node)
        # Leading dimensions of 1 mean nothing, unless it is the one token of a text.
        first = min([i for i in range(4) if node.shape[i] != 1 or i == axis], default=3)
        shape: list[int | str] = list(node.shape[first:])
        if axis is not None:
            axis -= first
            shape[axis] = "pos"
        if tensor_axis is not None:
            tensor_axis -= 4
        key = (node.name, node.occurrence)
        return HookPoint(name, layer_of(node.name), key, "raw", tuple(shape), axis, tensor_axis, 1.0, node.type)

    def _node(self, *names: str) -> Node | None:
        """The first of a name, for the first name that there is."""
        for name in names:
            if (name, 0) in self._index:
                return self._nodes[self._index[name, 0]]
        return None

    def _last(self, name: str, rope: bool) -> Node | None:
        """The last of a name that is computed by RoPE, or the last before that."""
        found = [
            self._nodes[self._index[name, i]]
            for i in range(self._count.get(name, 0))
            if (self._nodes[self._index[name, i]].op == "ROPE") == rope
        ]
        return found[-1] if found else None

    def _add(
        self, name: str, node: Node | None, kind: Kind = "rows", heads: int | None = None, scale: float = 1.0
    ) -> None:
        n = self._n_tokens
        if node is None:
            return
        size, tensor_axis = math.prod(node.shape), self._axis(node)
        if size == 0 or tensor_axis is None:
            return
        shape: tuple[int | str, ...]
        axis = 0
        if kind == "rows":
            shape = ("pos", size // n)
        elif kind == "heads":
            heads = heads or node.shape[2]
            shape = ("pos", heads, size // n // heads)
        else:
            shape = (node.shape[1], "pos", "key")
            axis = 1
        key = (node.name, node.occurrence)
        self.points[name] = HookPoint(name, layer_of(name), key, kind, shape, axis, tensor_axis - 4, scale, node.type)

    def _find_points(self) -> None:
        start = self._node(*_INPUTS)
        self._add("hook_embed", self._node("inp_scaled", "embd", "inp_embd"))
        before = start
        for i in range(self.n_layer):
            block = f"blocks.{i}"
            after = self._node(f"l_out-{i}")
            self._add(f"{block}.hook_resid_pre", before)
            if before is not None:
                self._aliases[f"{block}.hook_in"] = f"{block}.hook_resid_pre"
            self._add(f"{block}.ln1.hook_normalized", self._node(f"attn_norm-{i}"))
            self._find_attention(i, block)
            middle = self._node(f"sa_out-{i}", f"ffn_inp-{i}")
            if after is not None:
                self._add(f"{block}.hook_resid_mid", middle)
            self._add(f"{block}.ln2.hook_normalized", self._node(f"ffn_norm-{i}"))
            gate = self._node(f"ffn_gate_b-{i}", f"ffn_gate-{i}")
            up = self._node(f"ffn_up_b-{i}", f"ffn_up-{i}")
            self._add(f"{block}.mlp.hook_pre", gate or up)
            if gate is not None:
                self._add(f"{block}.mlp.hook_pre_linear", up)
            self._add(f"{block}.mlp.hook_post", self._node(*(f"{name}-{i}" for name in _MLP_POST)))
            self._add(f"{block}.hook_mlp_out", self._node(f"ffn_post_norm-{i}", f"ffn_moe_out-{i}", f"ffn_out-{i}"))
            self._add(f"{block}.hook_resid_post", after)
            if after is not None:
                self._aliases[f"{block}.hook_out"] = f"{block}.hook_resid_post"
            before = after
        self._add("ln_final.hook_normalized", self._node("result_norm"))

    def _find_attention(self, i: int, block: str) -> None:
        heads = {}
        for letter in "QKV":
            plain, rotated = self._last(f"{letter}cur-{i}", False), self._last(f"{letter}cur-{i}", True)
            known = rotated or plain
            if known is not None and self._axis(known) == 1:
                heads[letter] = known.shape[2]
            if letter in heads or (letter == "V" and "K" in heads):
                self._add(f"{block}.attn.hook_{letter.lower()}", plain, "heads", heads.get(letter, heads.get("K")))
                self._add(f"{block}.attn.hook_rot_{letter.lower()}", rotated, "heads")
        weighted = self._node(f"kqv_out-{i}")
        if weighted is not None and "Q" in heads:
            self._add(f"{block}.attn.hook_z", weighted, "heads", heads["Q"])
        softmax = self._node(f"kq_soft_max-{i}")
        if softmax is not None and self._axis(softmax) == 2 and softmax.shape[0] == 1:
            self._add(f"{block}.attn.hook_attn_scores", self._node(f"kq-{i}"), "scores", scale=softmax.param)
            self._add(f"{block}.attn.hook_pattern", softmax, "pattern")
        self._add(f"{block}.hook_attn_out", self._attention_output(i))

    def _attention_output(self, i: int) -> Node | None:
        """What attention adds to the residual stream. Some graphs do not name it: it is the last before the sum."""
        named = self._node(f"attn_post_norm-{i}", f"attn_out-{i}")
        if named is not None:
            return named
        begin, end = self._index.get((f"kqv_out-{i}", 0)), self._index.get((f"ffn_inp-{i}", 0))
        if begin is None or end is None or not begin < end or self._nodes[end].op != "ADD":
            return None
        between = self._nodes[begin:end]
        if any(node.op.endswith("NORM") for node in between):
            return None  # that sum is another one
        found = [node for node in between if node.op in ("MUL_MAT", "ADD", "MUL")]
        return found[-1] if found else None

    # ---- from names to points

    def find(self, name: str) -> HookPoint:
        """The point of that name.

        Raises:
            NoActivationError: There is none; the message says why, or names the nearest ones.
        """
        canonical = self._aliases.get(name, name)
        point = self.points.get(canonical) or self.raw.get(canonical)
        if point is None:
            raise NoActivationError(self._why_not(name))
        if canonical != name:
            return HookPoint(name, *(getattr(point, field) for field in HookPoint.__slots__[1:]))
        return point

    def _why_not(self, name: str) -> str:
        if self.flash_attention and _ATTENTION.search(name):
            return (
                f"{name!r} does not exist under flash attention, which never forms the attention matrix; "
                "open the model with flash_attn=False"
            )
        layer = layer_of(name)
        if layer is not None and layer >= self.n_layer:
            return f"{name!r}: layers go from 0 to {self.n_layer - 1}, not {layer}"
        known = [*self.points, *self._aliases, *self.raw]
        near = difflib.get_close_matches(name, known, 3)
        hint = f"; near it are {', '.join(map(repr, near))}" if near else ""
        return f"the graph of this model has no {name!r}{hint}; names() and tensors() list what there is"

    def select(self, names: Names, layers: Iterable[int] | int | None = None) -> list[HookPoint]:
        """The points that names, globs, a list of them or a filter mean; None means all of TransformerLens' names.

        Args:
            names: A name, a glob ("blocks.*.hook_resid_post"), several, or a function from a name to a bool. Globs
                and functions are tried on TransformerLens' names, and on llama.cpp's where none of those matches.
            layers: Keep those of these layers; negative numbers count from the end.

        Raises:
            NoActivationError: A name or glob means nothing, or nothing is left.
        """
        wanted = None if layers is None else self._layers(layers)
        found: dict[str, HookPoint] = {}
        for point in self._matching(names):
            if wanted is None or point.layer in wanted:
                found[point.name] = point
        if not found:
            raise NoActivationError(f"nothing matches {names!r} in layers {layers!r}")
        return list(found.values())

    def _layers(self, layers: Iterable[int] | int) -> set[int]:
        one = isinstance(layers, str) or not isinstance(layers, Iterable)
        numbers: list[Any] = [layers] if one else list(layers)  # type: ignore[arg-type]
        for number in numbers:
            if not isinstance(number, (int, np.integer)):
                raise InvalidArgumentError(f"layers are integers, not {number!r}")
            if not -self.n_layer <= number < self.n_layer:
                raise InvalidArgumentError(f"layers go from 0 to {self.n_layer - 1}, not {number}")
        return {int(number) % self.n_layer for number in numbers}

    def _matching(self, names: Names) -> Iterator[HookPoint]:
        if names is None:
            yield from self.points.values()
        elif isinstance(names, str):
            if re.search(r"[*?\[]", names):
                pattern = re.compile(fnmatch.translate(names))
                found = list(self._filtered(lambda name: pattern.match(name) is not None))
                if not found:
                    raise NoActivationError(self._why_not(names))
                yield from found
            else:
                yield self.find(names)
        elif callable(names):
            yield from self._filtered(names)
        elif not isinstance(names, Iterable):
            raise InvalidArgumentError(f"names are a name, a glob, a list of these or a function, not {names!r}")
        else:
            for name in names:
                yield from self._matching(name)

    def _filtered(self, function: Callable[[str], bool]) -> Iterator[HookPoint]:
        found = [self.find(name) for name in (*self.points, *self._aliases) if function(name)]
        # An alias is only wanted where its first name was not.
        tensors = set()
        for point in found:
            if point.tensor not in tensors or point.name in self.points:
                yield point
            tensors.add(point.tensor)
        if not found:
            yield from (point for point in self.raw.values() if function(point.name))


__all__ = ["HookPoint", "Layout", "Names", "NoActivationError", "layer_of"]

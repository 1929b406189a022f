"""Steering vectors: directions in the residual stream, trained from pairs of texts and added while a model runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllm.core.context import Context
from pyllm.core.gguf import GGUFReader, GGUFWriter
from pyllm.errors import GGUFError, InvalidArgumentError
from pyllm.interp.runner import Hook, HookFunction, Interp
from pyllm.interp.values import Array, as_layers

Ids = Sequence[int] | NDArray[np.integer[Any]]
Text = str | bytes | Ids

# llama.cpp adds control vectors after layers, and leaves out the first layer.
_FIRST_LAYER = 1


class SteeringVector:
    """A direction for each of some layers, added to the residual stream after that layer.

    What llama.cpp calls a control vector. Layer 0 has none there: its files and its adapter begin with layer 1.

    Args:
        directions: Vectors by layer, each of shape (n_embd,).
        model_hint: Architecture of the model it was made for; written to files.

    Raises:
        InvalidArgumentError: There are none, or they differ in size.
    """

    def __init__(self, directions: Mapping[int, ArrayLike], model_hint: str = "") -> None:
        self.directions: dict[int, Array] = {}
        for layer, values in sorted(directions.items()):
            vector = np.array(values, dtype=np.float32)
            if vector.ndim != 1 or layer < _FIRST_LAYER or not np.isfinite(vector).all():
                raise InvalidArgumentError(
                    f"a direction is a vector of finite numbers for a layer from {_FIRST_LAYER} on; that of layer "
                    f"{layer} has shape {vector.shape}"
                )
            self.directions[int(layer)] = vector
        if not self.directions:
            raise InvalidArgumentError("a steering vector needs a direction for at least one layer")
        sizes = {vector.size for vector in self.directions.values()}
        if len(sizes) != 1:
            raise InvalidArgumentError(f"a steering vector needs directions of one size, not of {sorted(sizes)}")
        self.n_embd = sizes.pop()
        self.model_hint = model_hint

    @property
    def layers(self) -> list[int]:
        """The layers that have a direction."""
        return list(self.directions)

    def __repr__(self) -> str:
        return f"<SteeringVector: {len(self.directions)} layers of {self.n_embd}>"

    def __mul__(self, factor: float) -> SteeringVector:
        return SteeringVector({layer: v * np.float32(factor) for layer, v in self.directions.items()}, self.model_hint)

    __rmul__ = __mul__

    def __add__(self, other: SteeringVector) -> SteeringVector:
        total = dict(self.directions)
        for layer, vector in other.directions.items():
            if other.n_embd != self.n_embd:
                raise InvalidArgumentError(f"vectors of {self.n_embd} and {other.n_embd} numbers cannot be added")
            total[layer] = total[layer] + vector if layer in total else vector
        return SteeringVector(total, self.model_hint)

    # ---- training

    @staticmethod
    def train(
        lab: Interp,
        positive: Sequence[Text],
        negative: Sequence[Text],
        *,
        method: Literal["mean", "pca"] = "mean",
        layers: int | Iterable[int] | None = None,
        position: int = -1,
    ) -> SteeringVector:
        """Find the directions from pairs of texts that differ in one respect.

        Args:
            lab: The model.
            positive: Texts that have what is wanted.
            negative: As many texts that do not, each the counterpart of one of the others.
            method: "mean": the mean difference, as long as that difference is. "pca": the first principal component of
                the differences around zero, of length 1, pointing to the positive side.
            layers: Which layers; None means all but the first.
            position: The position that is compared; -1 is the last token.

        Raises:
            InvalidArgumentError: The numbers of texts differ, there is no text, or a layer has no vector.
        """
        if isinstance(positive, (str, bytes)) or isinstance(negative, (str, bytes)):
            raise InvalidArgumentError("positive and negative are lists of texts, not one text each")
        if len(positive) != len(negative) or not positive:
            raise InvalidArgumentError(
                f"positive and negative texts come in pairs, and these are {len(positive)} and {len(negative)}"
            )
        if method not in ("mean", "pca"):
            raise InvalidArgumentError(f"method={method!r} is not one of 'mean', 'pca'")
        n_layer = lab.model.n_layer
        wanted = list(range(_FIRST_LAYER, n_layer)) if layers is None else as_layers(layers)
        if not wanted or not all(_FIRST_LAYER <= i < n_layer for i in wanted):
            raise InvalidArgumentError(f"layers are some of {_FIRST_LAYER} to {n_layer - 1}, not {wanted}")
        names = [f"blocks.{layer}.hook_resid_post" for layer in wanted]
        sides = [
            [
                np.stack([cache[name][0] for name in names])
                for cache in lab.capture(list(texts), names, positions=position)
            ]
            for texts in (positive, negative)
        ]
        differences = np.stack(sides[0]) - np.stack(sides[1])
        find = _mean if method == "mean" else _principal
        directions = {layer: find(differences[:, i]) for i, layer in enumerate(wanted)}
        return SteeringVector(directions, lab.model.metadata.get("general.architecture", ""))

    # ---- files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the GGUF file that llama.cpp's programs read with ``--control-vector``."""
        writer = GGUFWriter()
        writer.add("general.architecture", "controlvector")
        writer.add("controlvector.model_hint", self.model_hint)
        writer.add("controlvector.layer_count", len(self.directions), "int32")
        for layer, vector in self.directions.items():
            writer.add_tensor(f"direction.{layer}", vector)
        writer.write(path)
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SteeringVector:
        """Read a GGUF control vector, of llama-cvector-generator, repeng or :meth:`save`.

        Raises:
            GGUFError: The file is none.
        """
        with GGUFReader(path) as reader:
            directions: dict[int, Array] = {}
            for info in reader.tensors:
                match = re.fullmatch(r"direction\.(\d+)", info.name)
                layer = int(match[1]) if match else 0
                if layer < _FIRST_LAYER or info.type.lower() != "f32" or len(info.shape) != 1:
                    raise GGUFError(
                        f"{os.fspath(path)!r} is no control vector: {info.name!r} is {info.type} of shape "
                        f"{info.shape}, and must be direction.N, N >= 1, a float32 vector"
                    )
                directions[layer] = np.array(reader.tensor(info.name), dtype=np.float32)
            if not directions:
                raise GGUFError(f"{os.fspath(path)!r} is no control vector: it has no tensors direction.N")
            return SteeringVector(directions, str(reader.metadata.get("controlvector.model_hint", "")))

    # ---- use

    def matrix(self, n_layer: int, scale: float = 1.0) -> Array:
        """All directions as llama.cpp takes them: float32, shape (n_layer - 1, n_embd), from layer 1 on.

        Raises:
            InvalidArgumentError: There is a direction for a layer that the model does not have.
        """
        if max(self.directions) >= n_layer:
            raise InvalidArgumentError(
                f"the vector has a direction for layer {max(self.directions)}, and the model {n_layer} layers"
            )
        values = np.zeros((n_layer - _FIRST_LAYER, self.n_embd), np.float32)
        for layer, vector in self.directions.items():
            values[layer - _FIRST_LAYER] = vector * np.float32(scale)
        return values

    def apply(self, context: Context, scale: float = 1.0, *, layers: int | Iterable[int] | None = None) -> None:
        """Steer everything that a context computes from now on, at no cost worth mentioning.

        A context has one control vector: this replaces what was there. :meth:`remove` ends it.

        Args:
            context: The context; ``llama.context`` of a :class:`pyllm.Llama`.
            scale: Factor for all directions; negative ones steer away.
            layers: Only these layers; None means all that have a direction.

        Raises:
            InvalidArgumentError: The vector is for a model of another size.
        """
        model = context.model
        if self.n_embd != model.n_embd:
            raise InvalidArgumentError(
                f"the vector has {self.n_embd} numbers and the model needs n_embd={model.n_embd}"
            )
        chosen = self if layers is None else self._of(layers)
        values = chosen.matrix(model.n_layer, scale)
        context.set_control_vector(values, chosen.layers[0], chosen.layers[-1])

    @staticmethod
    def remove(context: Context) -> None:
        """Take the control vector of a context away."""
        context.set_control_vector(None)

    def hooks(
        self, scale: float = 1.0, *, layers: int | Iterable[int] | None = None, positions: Iterable[int] | None = None
    ) -> list[tuple[str, HookFunction]]:
        """Hooks that do the same in an :class:`pyllm.interp.Interp`, also at some positions only.

        Args:
            scale: Factor for all directions.
            layers: Only these layers.
            positions: Only these positions of the text, from 0; None means all.

        Raises:
            InvalidArgumentError: There is no direction for a layer; or a position is negative.

        Example:
            >>> lab.run_with_hooks("Hello", vector.hooks(4.0, positions=[0]))
        """
        chosen = self if layers is None else self._of(layers)
        wanted = None if positions is None else list(positions)
        if wanted is not None and not all(isinstance(i, (int, np.integer)) and i >= 0 for i in wanted):
            raise InvalidArgumentError(f"positions are counted from 0, for a hook sees parts of a text; not {wanted}")
        return [
            (f"blocks.{layer}.hook_resid_post", _Adder(vector * np.float32(scale), wanted))
            for layer, vector in chosen.directions.items()
        ]

    def _of(self, layers: int | Iterable[int]) -> SteeringVector:
        wanted = set(as_layers(layers))
        missing = wanted - set(self.directions)
        if missing or not wanted:
            raise InvalidArgumentError(f"there are directions for layers {self.layers}, not for {sorted(missing)}")
        return SteeringVector({layer: self.directions[layer] for layer in wanted}, self.model_hint)


class _Adder:
    """A hook that adds a vector to rows."""

    def __init__(self, vector: Array, positions: list[int] | None) -> None:
        self.vector = vector
        self.positions = positions

    def __call__(self, values: Array, hook: Hook) -> None:
        if values.shape[-1] != len(self.vector):
            raise InvalidArgumentError(f"the vector has {len(self.vector)} numbers and the model {values.shape[-1]}")
        rows = slice(None) if self.positions is None else np.isin(hook.positions, self.positions)
        values[rows] += self.vector


def _mean(differences: Array) -> Array:
    mean: Array = differences.mean(axis=0)
    return mean


def _principal(differences: Array) -> Array:
    """The direction with the largest sum of squares, turned so that the differences point along it on average."""
    _, _, components = np.linalg.svd(differences.astype(np.float64), full_matrices=False)
    direction: Array = components[0].astype(np.float32)
    return -direction if (differences @ direction).mean() < 0 else direction


__all__ = ["SteeringVector"]

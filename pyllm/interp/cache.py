"""What was captured: activations by name."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import InvalidArgumentError
from pyllm.extras import missing
from pyllm.interp.names import HookPoint, NoActivationError
from pyllm.interp.values import Array

_SHORT = ("blocks.{}.hook_{}", "blocks.{}.attn.hook_{}", "blocks.{}.mlp.hook_{}")


def _renamed(match: re.Match[str]) -> str:
    return {"in": "hook_resid_pre", "out": "hook_resid_post"}[match[1]]


class ActivationCache(Mapping[str, Array]):
    """Activations of one sequence by name; float32 arrays of their own, never views on memory of llama.cpp.

    ``cache["blocks.3.hook_resid_post"]`` or, shorter, ``cache["resid_post", 3]``.

    Attributes:
        tokens: The token ids, int32, shape (pos,).
        positions: The positions whose rows the arrays have, int32.
        points: The hook points by name.
    """

    def __init__(
        self,
        values: Mapping[str, Array],
        points: Mapping[str, HookPoint],
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
    ) -> None:
        self._values = dict(values)
        self.points = dict(points)
        self.tokens = tokens
        self.positions = positions

    def __getitem__(self, key: str | tuple[str, int]) -> Array:
        if isinstance(key, tuple) and len(key) == 2:
            return self._values[self._long_name(*key)]
        # The names of TransformerLens 3 for what goes into a block and comes out of it.
        known = re.sub(r"hook_(in|out)$", _renamed, key) if isinstance(key, str) and key not in self._values else key
        if known not in self._values:
            near = difflib.get_close_matches(str(key), self._values, 3) or list(self._values)[:3]
            raise NoActivationError(
                f"{key!r} was not captured; among the {len(self)} that were are {', '.join(near) or 'none'}"
            )
        return self._values[known]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<ActivationCache: {len(self)} activations of {len(self.tokens)} tokens, {self.nbytes / 2**20:.1f} MiB>"

    def _repr_html_(self) -> str:
        from pyllm.viz import html  # only here: needed in notebooks alone

        return html.activations(self)._repr_html_()

    def _long_name(self, short: str, layer: int) -> str:
        for form in _SHORT:
            if form.format(layer, short) in self._values:
                return form.format(layer, short)
        raise NoActivationError(
            f"{short!r} of layer {layer} was not captured; there is something of layers {self.layers or 'none'}"
        )

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(values.nbytes for values in self._values.values())

    @property
    def layers(self) -> list[int]:
        """The layers of which there is something."""
        return sorted({point.layer for point in self.points.values() if point.layer is not None})

    def stack(self, short: str) -> Array:
        """One activation of all layers, e.g. "resid_post": shape (layers, ...), in the order of :attr:`layers`."""
        found = []
        for layer in self.layers:
            try:
                found.append(self[short, layer])
            except NoActivationError:
                continue
        if not found:
            raise NoActivationError(f"{short!r} was not captured in any layer")
        return np.stack(found)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to a ``.npz`` or ``.safetensors`` file; tokens and positions go with it.

        Raises:
            MissingDependencyError: The file is to be safetensors, and that package is not there.
        """
        target = Path(path)
        arrays: dict[str, NDArray[Any]] = {**self._values, "tokens": self.tokens, "positions": self.positions}
        if target.suffix == ".npz":
            np.savez(target, **arrays)  # type: ignore[arg-type]
        elif target.suffix == ".safetensors":
            save_safetensors(target, arrays)
        else:
            raise InvalidArgumentError(f"a cache is written to .npz or .safetensors, not to {target.name!r}")
        return target


def save_safetensors(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays with the safetensors package.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise missing("safetensors files need safetensors", extra="interp") from error
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path)


__all__ = ["ActivationCache", "save_safetensors"]

"""LoRA adapters of a Llama: loaded once, put to use and taken out between calls."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from pyllm.core.adapter import LoraAdapter
from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.errors import AdapterError, InvalidArgumentError

if TYPE_CHECKING:
    from pyllm.completion.host import CallLock

AdapterPath: TypeAlias = str | os.PathLike[str]
Lora: TypeAlias = (
    AdapterPath
    | tuple[AdapterPath, float]
    | Sequence[AdapterPath | tuple[AdapterPath, float]]
    | Mapping[AdapterPath, float]
)
"""Adapters: a path, a path and a scale, several of these, or a dict of path to scale."""


class LoraMethods:
    """The methods of a Llama for LoRA adapters."""

    model: Model
    context: Context
    _calls: CallLock
    _loras: dict[str, LoraAdapter]

    @property
    def lora(self) -> dict[str, float]:
        """The adapters in use: scale by path."""
        return {adapter.path: scale for adapter, scale in self.context.adapters}

    def set_lora(self, lora: Lora | None) -> None:
        """Use these adapters from the next call on, and no others.

        What was loaded stays loaded, so that switching costs nothing the second time. What the KV cache has of earlier
        calls was computed with other weights, and is not used.

        Args:
            lora: A path, or whatever else :func:`pyllm.hub.resolve` takes; a pair of it and a scale; a list of these;
                or a dict of path to scale. None or an empty one: no adapter. A scale of 0 is none either.

        Raises:
            ModelNotFoundError: There is no such file.
            AdapterError: It is no LoRA adapter, or not one for this model. The adapters in use stay as they were.
            InvalidArgumentError: A scale is no number.
        """
        with self._calls.held():
            wanted: dict[LoraAdapter, float] = {}
            for path, scale in lora_pairs(lora):
                adapter = self._load_lora(path)
                if adapter in wanted:
                    raise AdapterError(f"{adapter.path!r} is there twice; add up the scales")
                if scale:
                    wanted[adapter] = scale
            self.context.set_adapters(wanted)

    def _load_lora(self, path: AdapterPath) -> LoraAdapter:
        from pyllm import hub

        file = hub.resolve(path)
        key = os.path.realpath(file)
        adapter = self._loras.get(key)
        if adapter is None or adapter.closed:
            adapter = self._loras[key] = LoraAdapter(self.model, file)
        return adapter

    def _close_loras(self) -> None:
        for adapter in self._loras.values():
            adapter.close()
        self._loras.clear()


def lora_pairs(lora: Lora | None) -> list[tuple[AdapterPath, float]]:
    """Adapters as pairs of path and scale, however they were given.

    Raises:
        InvalidArgumentError: They are given in none of the ways.
    """
    if lora is None:
        return []
    if isinstance(lora, Mapping):
        items: list[Any] = list(lora.items())
    elif isinstance(lora, str | os.PathLike) or _is_pair(lora):
        items = [lora]
    elif isinstance(lora, Sequence):
        items = list(lora)
    else:
        raise _not_lora(lora)
    pairs = [(item, 1.0) if isinstance(item, str | os.PathLike) else item for item in items]
    for pair in pairs:
        if not _is_pair(pair):
            raise _not_lora(pair)
    return [(path, float(scale)) for path, scale in pairs]


def _is_pair(item: object) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str | os.PathLike)
        and isinstance(item[1], int | float)
        and not isinstance(item[1], bool)
    )


def _not_lora(item: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"lora takes a path, a pair of path and scale, a list of these, or a dict of path to scale, not {item!r}"
    )

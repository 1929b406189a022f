"""The LoRA adapters of an engine: each is loaded once, and every request names its own set of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeAlias

from pyllm.core.adapter import LoraAdapter
from pyllm.core.model import Model
from pyllm.errors import AdapterError, InvalidArgumentError
from pyllm.lora import AdapterPath, Lora, lora_pairs

AdapterSet: TypeAlias = tuple[tuple[LoraAdapter, float], ...]
"""Adapters and scales, none of them 0, in the order in which they were loaded: equal for what computes the same."""

Load: TypeAlias = Callable[[Callable[[], LoraAdapter]], LoraAdapter]

_LARGEST = 3.0e38  # a float32 holds it


class Adapters:
    """What was loaded stays loaded until the engine is closed.

    Args:
        model: The model they are for.
        lora: Those that are loaded now, with the scales that requests get which name none; 0: it is only loaded.

    Raises:
        ModelNotFoundError: There is no such file.
        AdapterError: It is no LoRA adapter, or not one for this model.
        InvalidArgumentError: A scale is no number that can be used.
    """

    def __init__(self, model: Model, lora: Lora | None = None) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._loaded: dict[str, LoraAdapter] = {}  # by their real paths
        # How one is loaded. llama.cpp keeps a list of them in the model, which nobody may read meanwhile.
        self.load: Load = lambda load: load()
        self._default: AdapterSet = () if lora is None else self.chosen(lora)

    def chosen(self, lora: Lora | None) -> AdapterSet:
        """The set that a request asks for; what is not loaded yet is loaded.

        Args:
            lora: As for :meth:`pyllm.Llama.set_lora`; besides, an adapter that is loaded can be named by the name of
                its file, with or without ".gguf". None: the set of those that name none.

        Raises:
            ModelNotFoundError: There is no such file.
            AdapterError: It is no LoRA adapter, or not one for this model; or one is there twice.
            InvalidArgumentError: A scale is no number that can be used, or there are two of that name.
        """
        if lora is None:
            return self._default
        scales: dict[LoraAdapter, float] = {}
        for path, scale in _pairs(lora):
            adapter = self._find(path)
            if adapter in scales:
                raise AdapterError(f"{adapter.path!r} is there twice; add up the scales")
            scales[adapter] = scale
        return self.ordered(tuple(scales.items()))

    def ordered(self, adapters: AdapterSet) -> AdapterSet:
        """A set is the same in whatever order it was named, and without those whose scale is 0."""
        scales = dict(adapters)
        return tuple((one, scales[one]) for one in self.loaded if scales.get(one))

    def of_files(self, described: object) -> AdapterSet:
        """Adapters that a file speaks of, by the names of their files and scales; empty where one is not loaded."""
        by_name = {os.path.basename(one.path): one for one in self.loaded}
        try:
            return tuple((by_name[name], float(scale)) for name, scale in described)  # type: ignore[attr-defined]
        except (KeyError, TypeError, ValueError):
            return ()

    def set_default(self, lora: Lora | None) -> None:
        """From now on this is the set of requests that name none."""
        self._default = () if lora is None else self.chosen(lora)

    @property
    def loaded(self) -> list[LoraAdapter]:
        """All that are loaded, in the order in which they were."""
        return list(self._loaded.values())

    @property
    def scales(self) -> dict[str, float]:
        """All that are loaded, in the order in which they were: by path the scale for requests that name none."""
        default = dict(self._default)
        return {adapter.path: default.get(adapter, 0.0) for adapter in self.loaded}

    def close(self) -> None:
        """Free them."""
        with self._lock:
            for adapter in self._loaded.values():
                adapter.close()

    def _find(self, path: AdapterPath) -> LoraAdapter:
        from pyllm import hub

        found = self._named(os.fspath(path))
        if found is not None:
            return found
        file = hub.resolve(path)
        key = os.path.realpath(file)
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = self.load(lambda: LoraAdapter(self._model, file))
            return self._loaded[key]

    def _named(self, name: str) -> LoraAdapter | None:
        same = next((one for one in self.loaded if one.path == name), None)
        if same is not None:
            return same
        if os.path.basename(name) != name or os.path.exists(name):
            return None
        names = (name, f"{name}.gguf")
        found = [adapter for key, adapter in list(self._loaded.items()) if os.path.basename(key) in names]
        if len(found) > 1:
            paths = ", ".join(repr(adapter.path) for adapter in found)
            raise InvalidArgumentError(f"there are several adapters {name!r}, name one by its path: {paths}")
        return found[0] if found else None


def _pairs(lora: Lora) -> list[tuple[AdapterPath, float]]:
    try:
        pairs = lora_pairs(lora)
    except OverflowError as error:
        raise InvalidArgumentError(
            f"the scale of an adapter must be a number of at most {_LARGEST:g}: {error}"
        ) from None
    for path, scale in pairs:
        if not abs(scale) <= _LARGEST:  # NaN is not either
            raise InvalidArgumentError(
                f"the scale of the adapter {os.fspath(path)!r} must be a number of at most {_LARGEST:g}, not {scale!r}"
            )
    return pairs


class AdapterMethods:
    """The methods of an engine for LoRA adapters."""

    _adapters: Adapters

    @property
    def adapters(self) -> list[LoraAdapter]:
        """All adapters that are loaded, in the order in which they were; the engine closes them."""
        return self._adapters.loaded

    @property
    def lora(self) -> dict[str, float]:
        """All adapters that are loaded, in the order in which they were: scale by path.

        The scales are those of requests that name no adapters; with 0 an adapter is loaded, and they go without it.
        """
        return self._adapters.scales

    def set_lora(self, lora: Lora | None) -> None:
        """Compute requests that name no adapters with these; those that were handed in before stay as they were.

        Args:
            lora: As for :meth:`pyllm.Llama.set_lora`, or names of files of adapters that are loaded. None: no adapter.

        Raises:
            ModelNotFoundError: There is no such file.
            AdapterError: It is no LoRA adapter, or not one for this model. Nothing has changed then.
            InvalidArgumentError: A scale is no number that can be used.
        """
        self._adapters.set_default(lora)

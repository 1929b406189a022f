"""llama.cpp's objects, one class each: models, contexts, batches, samplers, with NumPy arrays and no policy.

The classes of daily use can be imported from here, `from pyllm.core import Batch, Context, Model`, and each is loaded
when it is first asked for. All others are in the module of their subject.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyllm.core.adapter import LoraAdapter
    from pyllm.core.batch import Batch
    from pyllm.core.capture import Capture
    from pyllm.core.chat import ChatTemplates
    from pyllm.core.context import Context
    from pyllm.core.generation import Generation
    from pyllm.core.gguf import GGUFReader, GGUFWriter
    from pyllm.core.model import Model
    from pyllm.core.sampler import Chain, Sampler
    from pyllm.core.speculative import Drafter
    from pyllm.core.threadpool import ThreadPool
    from pyllm.core.training import Trainer
    from pyllm.core.vocab import Vocab

if find_spec("pyllm.core.error") is None:
    raise ImportError(
        f"pyllm is imported from {__file__.removesuffix('__init__.py')}, which holds its sources and nothing compiled. "
        "Start Python in another folder to use the installed pyllm, or build this one: make build"
    )

if sys.platform == "win32":
    import os
    from pathlib import Path

    # Windows knows no rpaths: the folder of the libraries is named before the first extension is loaded.
    os.add_dll_directory(str(Path(__file__).resolve().parent.parent / "lib"))

_MODULES = {
    "Batch": "batch",
    "Capture": "capture",
    "Chain": "sampler",
    "ChatTemplates": "chat",
    "Context": "context",
    "Drafter": "speculative",
    "GGUFReader": "gguf",
    "GGUFWriter": "gguf",
    "Generation": "generation",
    "LoraAdapter": "adapter",
    "Model": "model",
    "Sampler": "sampler",
    "ThreadPool": "threadpool",
    "Trainer": "training",
    "Vocab": "vocab",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pyllm.core' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"pyllm.core.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


__all__ = [
    "Batch",
    "Capture",
    "Chain",
    "ChatTemplates",
    "Context",
    "Drafter",
    "GGUFReader",
    "GGUFWriter",
    "Generation",
    "LoraAdapter",
    "Model",
    "Sampler",
    "ThreadPool",
    "Trainer",
    "Vocab",
]

"""llama.cpp as a Python library.

    >>> from pyllm import Llama
    >>> llm = Llama("smollm2")
    >>> llm("The capital of France is", max_tokens=8, temperature=0).text
    ' Paris.'

Three storeys, each usable by itself: :class:`Llama` for applications, :mod:`pyllm.core` for everything in
``llama.h`` with NumPy arrays, and the shipped ``.pxd`` files and headers for other packages.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyllm.version import __version__

if TYPE_CHECKING:
    from pyllm import errors
    from pyllm.chat.types import ChatChunk, ChatCompletion, Message
    from pyllm.core.batch import Batch
    from pyllm.core.context import Context
    from pyllm.core.generation import Generation
    from pyllm.core.model import Model
    from pyllm.core.sampler import Chain
    from pyllm.core.vocab import Vocab
    from pyllm.errors import PyllmError
    from pyllm.linking import build_info, get_include, get_libraries, get_library_dir
    from pyllm.llama import Llama
    from pyllm.params import ContextParams, ModelParams, SamplingParams
    from pyllm.types import Chunk, Completion, Timings, Usage

# Loaded when they are first asked for, so that `import pyllm` costs next to nothing.
_MODULES = {
    "Llama": "pyllm.llama",
    "Model": "pyllm.core.model",
    "Context": "pyllm.core.context",
    "Batch": "pyllm.core.batch",
    "Vocab": "pyllm.core.vocab",
    "Chain": "pyllm.core.sampler",
    "Generation": "pyllm.core.generation",
    "ModelParams": "pyllm.params",
    "ContextParams": "pyllm.params",
    "SamplingParams": "pyllm.params",
    "Completion": "pyllm.types",
    "Chunk": "pyllm.types",
    "Usage": "pyllm.types",
    "ChatChunk": "pyllm.chat.types",
    "ChatCompletion": "pyllm.chat.types",
    "Message": "pyllm.chat.types",
    "Timings": "pyllm.types",
    "PyllmError": "pyllm.errors",
    "_C_API": "pyllm.core.c_api",
    "build_info": "pyllm.linking",
    "get_include": "pyllm.linking",
    "get_libraries": "pyllm.linking",
    "get_library_dir": "pyllm.linking",
}
_SUBMODULES = {
    "compat",
    "core",
    "engine",
    "enums",
    "errors",
    "eval",
    "hub",
    "interp",
    "memory",
    "processors",
    "sampling",
    "viz",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"pyllm.{name}")
    else:
        raise AttributeError(f"module 'pyllm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_SUBMODULES} - {"_C_API"})


__all__ = [
    "Batch",
    "Chain",
    "ChatChunk",
    "ChatCompletion",
    "Chunk",
    "Completion",
    "Context",
    "ContextParams",
    "Generation",
    "Llama",
    "Message",
    "Model",
    "ModelParams",
    "PyllmError",
    "SamplingParams",
    "Timings",
    "Usage",
    "Vocab",
    "__version__",
    "build_info",
    "errors",
    "get_include",
    "get_libraries",
    "get_library_dir",
]

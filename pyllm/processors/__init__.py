"""Logits processors: Python that edits the logits before a token is sampled.

A processor is a function ``processor(ids, logits) -> None | array``: `ids` are all tokens of one sequence so far, the
prompt included, int32, shape (n,), read-only; `logits` float32, shape (n_vocab,), is llama.cpp's own memory and edited
in place, or an array of the same shape is returned. A processor that has a method ``reset()`` is reset when a new text
begins; one that keeps state serves one sequence at a time.

- :mod:`pyllm.processors.adapters`: processors written for transformers, llama-cpp-python and vLLM.
- :mod:`pyllm.processors.llguidance`, :mod:`~pyllm.processors.xgrammar`, :mod:`~pyllm.processors.outlines`: bitmasks of
  allowed tokens from these libraries, as processors or as members of a chain.
- :mod:`pyllm.processors.in_chain`: a processor as a member of a chain of samplers.
"""

from __future__ import annotations

from pyllm.core.python_sampler import Bitmask, Candidates, PythonSampler
from pyllm.processors.adapters import from_hf, from_llama_cpp, from_vllm
from pyllm.processors.base import LogitsProcessor, as_processors, process, reset
from pyllm.processors.bitmask import BitmaskSource
from pyllm.processors.in_chain import ProcessorSampler
from pyllm.processors.llguidance import LLGuidance
from pyllm.processors.outlines import OutlinesCore
from pyllm.processors.xgrammar import XGrammar

__all__ = [
    "Bitmask",
    "BitmaskSource",
    "Candidates",
    "LLGuidance",
    "LogitsProcessor",
    "OutlinesCore",
    "ProcessorSampler",
    "PythonSampler",
    "XGrammar",
    "as_processors",
    "from_hf",
    "from_llama_cpp",
    "from_vllm",
    "process",
    "reset",
]

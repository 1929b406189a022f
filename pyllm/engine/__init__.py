"""Many requests on one context: continuous batching, shared prefixes, preemption.

    >>> from pyllm.engine import Engine
    >>> with Engine("smollm2", n_parallel=8) as engine:
    ...     completions = engine.generate(["One,", "Two,", "Three,"], max_tokens=16)

From the request to the token: :mod:`~pyllm.engine.engine` takes requests in and has the thread,
:mod:`~pyllm.engine.core` makes the steps, :mod:`~pyllm.engine.scheduler` decides about a step and touches nothing,
:mod:`~pyllm.engine.kv_cache` manages the KV cache, and :mod:`~pyllm.engine.model_runner` decodes and samples.
"""

from __future__ import annotations

from pyllm.engine.async_engine import AsyncEngine
from pyllm.engine.core import EngineCore
from pyllm.engine.engine import Engine, QueueFullError
from pyllm.engine.metrics import Metrics
from pyllm.engine.request import Request
from pyllm.engine.sequence import Sequence, SequenceStatus
from pyllm.engine.slots import SlotBusyError, SlotInfo

__all__ = [
    "AsyncEngine",
    "Engine",
    "EngineCore",
    "Metrics",
    "QueueFullError",
    "Request",
    "Sequence",
    "SequenceStatus",
    "SlotBusyError",
    "SlotInfo",
]

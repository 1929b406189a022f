"""Many requests on one context: continuous batching, shared prefixes, preemption.

    >>> from pyllm.engine import Engine
    >>> with Engine("smollm2", n_parallel=8) as engine:
    ...     completions = engine.generate(["One,", "Two,", "Three,"], max_tokens=16)

From the request to the token: :mod:`~pyllm.engine.engine` takes requests in and owns the thread,
:mod:`~pyllm.engine.scheduler` decides about a step and touches nothing, :mod:`~pyllm.engine.cache` keeps count of the
KV cache, and :mod:`~pyllm.engine.runner` decodes and samples.
"""

from __future__ import annotations

from pyllm.engine.async_engine import AsyncEngine
from pyllm.engine.engine import Engine, QueueFullError
from pyllm.engine.job import Job
from pyllm.engine.metrics import Metrics
from pyllm.engine.slots import Slot, SlotBusyError

__all__ = ["AsyncEngine", "Engine", "Job", "Metrics", "QueueFullError", "Slot", "SlotBusyError"]

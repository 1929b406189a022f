"""How much memory a model takes, before it is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pyllm.core.breakdown import BufferMemory, memory_breakdown
from pyllm.core.context import Context
from pyllm.core.model import Model


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that a model would take.

    Attributes:
        model: Weights.
        context: KV cache or recurrent state, and outputs.
        compute: Room for intermediate results.
        n_ctx: The size of context that this is for, in tokens.
        buffers: The same by kind of buffer.
    """

    model: int
    context: int
    compute: int
    n_ctx: int
    buffers: tuple[BufferMemory, ...]

    @property
    def total(self) -> int:
        """All of it."""
        return self.model + self.context + self.compute


def estimate(path: str | os.PathLike[str], *, n_ctx: int = 0, **context_arguments: Any) -> MemoryEstimate:
    """Ask llama.cpp how much memory a model would take; no weights are read.

    Args:
        path: A GGUF file.
        n_ctx: Size of the context in tokens; 0 takes the length the model was trained with.
        **context_arguments: Other arguments of :class:`pyllm.core.context.Context`, e.g. ``type_k="q8_0"``.

    Returns:
        MemoryEstimate: Its numbers are those of llama.cpp's own allocator, simulated.

    Raises:
        ModelLoadError: The file cannot be loaded.
        ContextError: No such context is possible.
    """
    with Model(path, no_alloc=True) as model, Context(model, n_ctx=n_ctx, **context_arguments) as context:
        buffers = tuple(memory_breakdown(context))
        return MemoryEstimate(
            model=sum(buffer.model for buffer in buffers),
            context=sum(buffer.context for buffer in buffers),
            compute=sum(buffer.compute for buffer in buffers),
            n_ctx=context.n_ctx,
            buffers=buffers,
        )

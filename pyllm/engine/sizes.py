"""How large the context of an engine is, which can be asked before there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyllm.core.model import Model
from pyllm.errors import InvalidArgumentError
from pyllm.params import ContextParams

MAX_SEQUENCES = 256
DEFAULT_N_CTX = 4096


def context_params(
    n_ctx: int | None, n_parallel: int, unified: bool, n_batch: int, of_context: Mapping[str, Any]
) -> ContextParams:
    """How the context of an engine is made.

    Args:
        n_ctx: Its size in tokens, or None where :func:`default_n_ctx` chooses it.
        n_parallel: Texts that are computed at once.
        unified: Whether texts share one cache.
        n_batch: Tokens of one step.
        of_context: Other arguments of :class:`pyllm.core.context.Context`.

    Raises:
        InvalidArgumentError: They say what the engine decides itself.
    """
    for name in ("n_seq_max", "swa_full"):
        if of_context.get(name) is not None:
            raise InvalidArgumentError(f"the engine sets {name} itself, from n_parallel")
    # Idle sequences keep prompts for later; in a unified cache they take no room but cells.
    n_sequences = min(MAX_SEQUENCES, 2 * n_parallel + 8) if unified else n_parallel
    own = ContextParams(n_ctx=n_ctx, n_seq_max=n_sequences, kv_unified=unified, swa_full=True, n_batch=n_batch)
    return replace(own, **{name: value for name, value in of_context.items() if value is not None})


def default_n_ctx(model: Model, n_parallel: int) -> int:
    """The length that a model was trained with, at most 4096 tokens, for each of several texts."""
    return n_parallel * min(model.n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)

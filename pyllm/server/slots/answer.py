"""What a slot is in llama-server's words."""

from __future__ import annotations

from typing import Any

from pyllm.engine import Engine
from pyllm.engine.slots import SlotInfo
from pyllm.server.native.answer import described as described_sampling


def described(engine: Engine, slot: SlotInfo, show: bool) -> dict[str, Any]:
    """A slot as JSON.

    Args:
        engine: Its engine.
        slot: What is in it.
        show: Whether the texts are told.
    """
    result: dict[str, Any] = {
        "id": slot.id,
        "n_ctx": engine.context.n_ctx_seq,
        "speculative": False,
        "is_processing": slot.running,
    }
    request = slot.request
    if request is None:
        return result
    answer = engine.detokenize(slot.ids[slot.n_prompt :])
    n_predict = -1 if request.max_tokens is None else request.max_tokens
    result |= {
        "speculative": request.speculation is not None,
        "id_task": slot.task,
        "n_prompt_tokens": len(slot.ids),
        "n_prompt_tokens_processed": slot.n_read,
        "n_prompt_tokens_cache": slot.n_cached,
        "params": described_sampling(request.params, seed=request.seed, n_predict=n_predict)
        | {"lora": loras(engine, slot)},
        "next_token": [
            {
                "has_next_token": slot.running,
                "has_new_line": "\n" in answer,
                # What a text that has ended had left is no concern of the next one.
                "n_remain": -1 if n_predict < 0 or not slot.running else max(0, n_predict - slot.n_generated),
                "n_decoded": slot.n_generated if slot.running else 0,
            }
        ],
    }
    if show:
        result |= {"prompt": engine.detokenize(slot.ids[: slot.n_prompt]), "generated": answer}
    return result


def loras(engine: Engine, slot: SlotInfo) -> list[dict[str, Any]]:
    """The adapters that the text of a slot is computed with."""
    numbers = {adapter: i for i, adapter in enumerate(engine.adapters)}
    return [{"id": numbers[adapter], "scale": scale} for adapter, scale in slot.adapters]

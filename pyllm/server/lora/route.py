"""``/lora-adapters``."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.core.adapter import LoraAdapter
from pyllm.server.errors import json_response
from pyllm.server.limits import read_value
from pyllm.server.lora.protocol import lora_pairs
from pyllm.server.state import state_of


async def adapters(request: Request) -> Response:
    """All adapters, with the scales of requests that name none; or set these.

    An adapter that is not named gets the scale 0. Requests that are here already keep theirs.
    """
    state = state_of(request)
    engine = state.engine
    if request.method != "POST":
        scales = engine.lora
        return json_response([_described(i, one, scales[one.path]) for i, one in enumerate(engine.adapters)])
    body = await read_value(request, state.settings)
    pairs = lora_pairs(body, [one.path for one in engine.adapters], name="")
    await asyncio.to_thread(engine.set_lora, pairs)
    return json_response({"success": True})


def _described(number: int, adapter: LoraAdapter, scale: float) -> dict[str, Any]:
    result: dict[str, Any] = {
        "id": number,
        "path": adapter.path,
        "scale": scale,
        "task_name": adapter.meta("adapter.lora.task_name") or "",
        "prompt_prefix": adapter.meta("adapter.lora.prompt_prefix") or "",
    }
    tokens = adapter.alora_tokens
    if tokens:
        pieces = (adapter.model.vocab.token_to_piece(token) for token in tokens)
        result |= {
            "alora_invocation_string": b"".join(pieces).decode("utf-8", "replace"),
            "alora_invocation_tokens": tokens,
        }
    return result


ROUTES = [Route("/lora-adapters", adapters, methods=["GET", "POST"])]

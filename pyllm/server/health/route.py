"""``/health``, ``/ready``, ``/props`` and ``/metrics``."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.core.vocab import Vocab
from pyllm.params import SamplingParams
from pyllm.server.errors import json_response, unavailable
from pyllm.server.metrics import CONTENT_TYPE
from pyllm.server.state import ServerState, state_of
from pyllm.version import __version__


async def health(request: Request) -> Response:
    """The process is there; that holds while it ends, too."""
    state = state_of(request)
    if state.ready or state.draining:
        return json_response({"status": "ok"})
    # An engine that has ended by itself takes nothing any more: whoever watches over the process starts it again.
    raise unavailable("the engine has stopped", state.settings.retry_after)


async def ready(request: Request) -> Response:
    """A request that is sent now will be taken."""
    state_of(request).check_ready()
    return json_response({"status": "ready"})


async def props(request: Request) -> Response:
    """What is being served."""
    return json_response(await asyncio.to_thread(_props, state_of(request)))


async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(state_of(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _props(state: ServerState) -> dict[str, Any]:
    model, params = state.model, SamplingParams()
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "mirostat")
    result: dict[str, Any] = {
        "model_alias": state.alias,
        "model_path": model.path,
        "modalities": {"vision": False, "video": False, "audio": False},
        "endpoint_slots": False,
        "endpoint_props": False,
        "endpoint_metrics": state.settings.metrics,
        "bos_token": _token(model.vocab, model.vocab.bos),
        "eos_token": _token(model.vocab, model.vocab.eos),
        "build_info": f"pyllm {__version__}",
        "is_sleeping": False,
    }
    if state.generates:
        from pyllm.chat.request import template_store

        engine = state.engine
        templates = template_store(engine).get(state.settings.chat_template)  # type: ignore[arg-type]  # an engine has all that it asks a Llama for
        result["total_slots"] = engine.n_parallel
        result["default_generation_settings"] = {
            "n_ctx": engine.context.n_ctx_seq,
            "params": {name: getattr(params, name) for name in names},
        }
        result["chat_template"] = templates.source
        result["chat_template_caps"] = templates.caps
    return result


def _token(vocab: Vocab, token: int | None) -> str:
    return "" if token is None else vocab.token_to_piece(token).decode("utf-8", "replace")


ROUTES = [
    Route("/health", health),
    Route("/v1/health", health),
    Route("/ready", ready),
    Route("/props", props),
]
METRICS = Route("/metrics", metrics)

"""``/health``, ``/ready``, ``/props`` and ``/metrics``."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.core.vocab import Vocab
from pyllm.params import SamplingParams
from pyllm.server.errors import APIError, json_response, unavailable
from pyllm.server.limits import read_json
from pyllm.server.metrics import CONTENT_TYPE
from pyllm.server.native.answer import RANDOM_SEED, described
from pyllm.server.state import ServerState, state_of
from pyllm.server.version import build_info


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


async def set_props(request: Request) -> Response:
    """Change what is being served: where that is allowed, there is nothing to change yet."""
    state = state_of(request)
    await read_json(request, state.settings)
    if not state.settings.props:
        message = "this server does not take new properties: start it with --props"
        raise APIError(501, message, code="unsupported")
    return json_response({"success": True})


async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    state = state_of(request)
    headers = {"Content-Type": CONTENT_TYPE, "Process-Start-Time-Unix": str(state.created)}
    return Response(state.metrics.text(), headers=headers)


def _props(state: ServerState) -> dict[str, Any]:
    model, settings = state.model, state.settings
    params = SamplingParams(**settings.sampling)
    result: dict[str, Any] = {
        "model_alias": state.alias,
        "model_ftype": model.ftype,
        "model_path": model.path,
        "modalities": {"vision": False, "video": False, "audio": False},
        "endpoint_slots": state.settings.slots,
        "endpoint_props": settings.props,
        "endpoint_metrics": settings.metrics,
        "ui": settings.page,
        "ui_settings": {},
        "bos_token": _token(model.vocab, model.vocab.bos),
        "eos_token": _token(model.vocab, model.vocab.eos),
        "build_info": build_info(),
        "is_sleeping": False,
        "cors_proxy_enabled": False,
    }
    if state.generates:
        from pyllm.chat.request import template_store

        engine = state.engine
        templates = template_store(engine).get(state.settings.chat_template)
        result["total_slots"] = engine.n_parallel
        result["default_generation_settings"] = {
            "n_ctx": engine.context.n_ctx_seq,
            "params": described(
                params,
                seed=RANDOM_SEED if params.seed is None else params.seed,
                n_predict=-1 if settings.max_tokens is None else settings.max_tokens,
            ),
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
    Route("/props", set_props, methods=["POST"]),
]
METRICS = Route("/metrics", metrics)

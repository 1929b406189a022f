"""``/v1/models``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.server.errors import APIError, json_response
from pyllm.server.state import ServerState, state_of


async def list_models(request: Request) -> Response:
    """All models."""
    return json_response({"object": "list", "data": [_model(state_of(request))]})


async def get_model(request: Request) -> Response:
    """One model."""
    state = state_of(request)
    name = request.path_params["name"]
    if name != state.alias:
        raise APIError(404, f"there is no model {name!r} here; there is {state.alias!r}", code="model_not_found")
    return json_response(_model(state))


def _model(state: ServerState) -> dict[str, Any]:
    model = state.model
    meta = {
        "n_vocab": model.n_vocab,
        "n_ctx_train": model.n_ctx_train,
        "n_embd": model.n_embd,
        "n_params": model.n_params,
        "size": model.size,
    }
    if state.generates and state.ready:
        meta["n_ctx"] = state.engine.context.n_ctx_seq
    return {"id": state.alias, "object": "model", "created": state.created, "owned_by": "pyllm", "meta": meta}


ROUTES = [
    Route("/v1/models", list_models),
    Route("/models", list_models),
    Route("/v1/models/{name:path}", get_model),
]

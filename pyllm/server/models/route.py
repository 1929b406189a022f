"""``/v1/models``, and ``/models/load`` and ``/models/unload`` where there are several."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.server.errors import APIError, json_response
from pyllm.server.fields import Fields
from pyllm.server.limits import read_json
from pyllm.server.models.entry import Entry
from pyllm.server.models.pool import Models
from pyllm.server.settings import Settings
from pyllm.server.state import ServerState


async def list_models(request: Request) -> Response:
    """All models."""
    return json_response({"object": "list", "data": list(_models(request).values())})


async def get_model(request: Request) -> Response:
    """One model."""
    name, models = request.path_params["name"], _models(request)
    state = request.app.state.pyllm
    if isinstance(state, ServerState) and name in state.settings.aliases:
        name = state.alias
    if name not in models:
        known = f"there {'is' if len(models) == 1 else 'are'} {', '.join(map(repr, models))}"
        raise APIError(404, f"there is no model {name!r} here; {known}", code="model_not_found")
    return json_response(models[name])


async def load(request: Request) -> Response:
    """Begin to load a model."""
    models: Models = request.app.state.pyllm
    models.load(await _named(request, models))
    return json_response({"success": True})


async def unload(request: Request) -> Response:
    """Begin to unload a model on which nothing runs."""
    models: Models = request.app.state.pyllm
    models.unload(await _named(request, models))
    return json_response({"success": True})


async def _named(request: Request, models: Models) -> str:
    fields = Fields(await read_json(request, models.settings))
    fields.need("model")
    return fields.text("model") or ""


def _models(request: Request) -> dict[str, dict[str, Any]]:
    """All models, by name."""
    state: ServerState | Models = request.app.state.pyllm
    if isinstance(state, ServerState):
        found = _model(state.alias, state, state.created) | _capabilities(state) | _tags(state.settings)
        if state.settings.aliases:
            found["aliases"] = [state.alias, *state.settings.aliases]
        return {state.alias: found}
    return {name: _entry(entry, state.created) for name, entry in state.entries.items()}


def _entry(entry: Entry, created: int) -> dict[str, Any]:
    status: dict[str, Any] = {"value": entry.status}
    if entry.status == "loading":
        status["progress"] = round(entry.progress, 3)
    if entry.error is not None:
        status["failed"] = True
    loaded = entry.state if entry.status == "loaded" else None
    known = {"status": status, "memory": entry.n_bytes} | _tags(entry.spec.settings)
    return _model(entry.name, loaded, created) | known | _capabilities(entry)


def _tags(settings: Settings) -> dict[str, Any]:
    return {"tags": list(settings.tags)} if settings.tags else {}


def _capabilities(served: ServerState | Entry) -> dict[str, Any]:
    """What can be asked of a model, loaded or not, in the words of llama-server and Ollama."""
    offered = {"completion": served.generates, "embedding": served.embeds}
    return {"capabilities": [name for name, there in offered.items() if there]}


def _model(name: str, state: ServerState | None, created: int) -> dict[str, Any]:
    result: dict[str, Any] = {"id": name, "object": "model", "created": created, "owned_by": "pyllm"}
    if state is None:
        return result
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
    return result | {"meta": meta}


ROUTES = [
    Route("/v1/models", list_models),
    Route("/models", list_models),
    Route("/v1/models/{name:path}", get_model),
]
MANAGING = [
    Route("/models/load", load, methods=["POST"]),
    Route("/models/unload", unload, methods=["POST"]),
]

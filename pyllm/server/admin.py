"""The server itself: whether it takes requests, what it serves, its numbers, its models, and its OpenAPI document."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response

from pyllm.core.vocab import Vocab
from pyllm.params import SamplingParams
from pyllm.server.auth import PUBLIC
from pyllm.server.errors import APIError, json_response, unavailable
from pyllm.server.limits import read_json
from pyllm.server.metrics import CONTENT_TYPE
from pyllm.server.native_answer import RANDOM_SEED, described
from pyllm.server.openapi import Success, get, make_document, post
from pyllm.server.pool import ManagedModel, Models
from pyllm.server.settings import Settings
from pyllm.server.state import ServerState, build_info, state_of
from pyllm.server.wire import Wire, about, decode


class Status(Wire):
    """That the server is there."""

    status: str


class Props(Wire):
    """Properties of the server and its model."""

    model_alias: str
    model_path: str
    build_info: str
    endpoint_metrics: bool


class Model(Wire):
    """A model that can be asked."""

    id: str
    object: Annotated[str, about("", const="model")]
    created: int
    owned_by: str
    capabilities: Annotated[list[str], about("", items={"enum": ["completion", "embedding"]})]


class ModelList(Wire):
    """All models."""

    object: Annotated[str, about("", const="list")]
    data: list[Model]


class ModelName(Wire):
    """The name of a model."""

    model: str


class Document(Wire):
    """An OpenAPI document."""

    openapi: str
    paths: dict[str, Any]


async def health(request: Request) -> Response:
    """The process is there; that holds while it ends, too."""
    state = state_of(request)
    if state.ready or state.draining:
        return json_response({"status": "ok"})
    # An engine that has ended by itself takes nothing any more: the supervisor of the process has to restart it.
    raise unavailable("the engine has stopped", state.settings.retry_after)


async def ready(request: Request) -> Response:
    """A request that is sent now will be taken."""
    state_of(request).check_ready()
    return json_response({"status": "ready"})


async def props(request: Request) -> Response:
    """Properties of the server and its model."""
    return json_response(await asyncio.to_thread(_props, state_of(request)))


async def set_props(request: Request) -> Response:
    """Change properties: where --props allows that, there is none to change yet."""
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


# ---- models


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
    return decode(ModelName, await read_json(request, models.settings)).model


def _models(request: Request) -> dict[str, dict[str, Any]]:
    """All models, by name."""
    state: ServerState | Models = request.app.state.pyllm
    if isinstance(state, ServerState):
        found = _model(state.alias, state, state.created) | _capabilities(state) | _tags(state.settings)
        if state.settings.aliases:
            found["aliases"] = [state.alias, *state.settings.aliases]
        return {state.alias: found}
    return {name: _entry(entry, state.created) for name, entry in state.entries.items()}


def _entry(entry: ManagedModel, created: int) -> dict[str, Any]:
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


def _capabilities(served: ServerState | ManagedModel) -> dict[str, Any]:
    """Capabilities of a model, loaded or not, by the names of llama-server and Ollama."""
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


async def openapi(request: Request) -> Response:
    """This description of the server, for programs."""
    settings = state_of(request).settings
    document = make_document(
        request.app.routes, keys=bool(settings.api_keys), prefix=settings.api_prefix, public=PUBLIC
    )
    return json_response(document)


_HEALTH: dict[str, Any] = {"gives": Status, "refuses": (503,)}
ROUTES = [
    get("/health", health, **_HEALTH),
    get("/v1/health", health, **_HEALTH),
    get("/ready", ready, **_HEALTH),
    get("/props", props, gives=Props, refuses=(503,)),
    post("/props", set_props, gives=Success, refuses=(501,)),
    get("/v1/models", list_models, gives=ModelList),
    get("/models", list_models, gives=ModelList),
    get("/v1/models/{name:path}", get_model, gives=Model, refuses=(404,)),
    get("/openapi.json", openapi, gives=Document),
]
METRICS = get("/metrics", metrics, media="text/plain")
# Where there are several models.
MANAGING = [
    post("/models/load", load, takes=ModelName, gives=Success, refuses=(404, 503)),
    post("/models/unload", unload, takes=ModelName, gives=Success, refuses=(404, 409)),
]

"""Endpoints that declare their types, and the OpenAPI document made from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.routing import BaseRoute, Route

from pyllm.server.wire import Schema, Wire
from pyllm.version import __version__

JSON = "application/json"
# Status codes of errors: of a request that has a body, of one that has texts generated, and of one for vectors.
BODY = (400, 408, 413, 415)
GENERATES = (429, 501, 503)
EMBEDS = (429, 503)

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]
_TEMPLATE = "#/components/schemas/{name}"


class ErrorDetails(Wire):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Wire):
    """An error in the shape of OpenAI's API."""

    error: ErrorDetails


class Success(Wire):
    """That it was done."""

    success: bool


@dataclass(frozen=True, kw_only=True)
class Operation:
    """The description of an endpoint.

    Attributes:
        tag: The group it belongs to.
        takes: The type of its request; None: it has none.
        gives: The type of its answer; None: text, or what is not described.
        media: The media type of its answer.
        streams: Whether it can answer with server-sent events, too.
        error: The type of its own errors.
        refuses: Status codes of errors it can have, beside those that all requests of its kind can have.
        cached: Whether it may answer that a browser has it already.
        query: The fields of its query.
        refers: Types whose schemas its request refers to by their names.
    """

    tag: str = "server"
    takes: Any = None
    gives: Any = None
    media: str = JSON
    streams: bool = False
    error: type[Wire] = Error
    refuses: tuple[int, ...] = ()
    cached: bool = False
    query: Mapping[str, Schema] = field(default_factory=dict)
    refers: tuple[type[Wire], ...] = ()


class Endpoint(Route):
    """A route with the types of its request and its answer.

    Args:
        path: Its path.
        endpoint: Its handler.
        methods: Its methods.
        **operation: Fields of :class:`Operation`.
    """

    def __init__(
        self, path: str, endpoint: Callable[..., Any], *, methods: Collection[str] = ("GET",), **operation: Any
    ) -> None:
        super().__init__(path, endpoint, methods=list(methods))
        self.operation = Operation(**operation)


def get(path: str, endpoint: Callable[..., Any], **operation: Any) -> Endpoint:
    """An endpoint that is read; see :class:`Endpoint`."""
    return Endpoint(path, endpoint, **operation)


def post(path: str, endpoint: Callable[..., Any], **operation: Any) -> Endpoint:
    """An endpoint that takes an object or another JSON value; see :class:`Endpoint`."""
    return Endpoint(path, endpoint, methods=("POST",), **operation)


def make_document(
    routes: Iterable[BaseRoute], *, keys: bool, prefix: str = "", public: Collection[str] = ()
) -> dict[str, Any]:
    """Describe an application.

    Args:
        routes: Its routes.
        keys: Whether it asks for a key.
        prefix: What all paths begin with.
        public: Paths that need no key.

    Returns:
        dict: An OpenAPI document of version 3.1.
    """
    found = [route for route in routes if isinstance(route, Route)]
    refer, schemas = _schemas([getattr(route, "operation", Operation()) for route in found])
    paths: dict[str, Any] = {}
    for route in found:
        path = plain_path(route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            secured = None if not keys else path not in public
            described = _operation(route, path, method, secured, refer)
            described["operationId"] = f"{method} {path}".lower()
            paths.setdefault(path, {})[method.lower()] = described
    components: dict[str, Any] = {"schemas": schemas}
    if keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    description = "Texts of a language model: OpenAI's, Anthropic's and llama-server's endpoints."
    return {
        "openapi": "3.1.0",
        "info": {"title": "pyllm", "version": __version__, "description": description},
        "servers": [{"url": prefix or "/"}],
        "paths": paths,
        "components": components,
    }


def plain_path(path: str) -> str:
    """The path of a route as OpenAPI writes it: without the kinds of its parameters."""
    return _PARAMETER.sub(r"{\1}", path)


def _schemas(operations: Iterable[Operation]) -> tuple[Callable[[Any], Schema], dict[str, Schema]]:
    """A function from types to schemas, and the schemas of all structs by name."""
    types: list[Any] = []
    for operation in operations:
        for one in (operation.takes, operation.gives, operation.error, *operation.refers):
            if one is not None and one not in types:
                types.append(one)
    schemas, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)

    def refer(kind: Any) -> Schema:
        schema: Schema = _plain(schemas[types.index(kind)])
        return schema

    return refer, {name: _plain(schema) for name, schema in components.items()}


def _plain(schema: Any) -> Any:
    """A schema without the defaults that are null, empty lists of required fields, and class names."""
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    empty: dict[str, Any] = {"default": None, "required": []}
    if len(schema.get("anyOf", ())) == 2 and schema["anyOf"][1] == {"type": "null"}:
        one, rest = schema["anyOf"][0], {key: value for key, value in schema.items() if key != "anyOf"}
        if isinstance(one.get("type"), str) and "enum" not in one and "const" not in one:
            schema = {**one, "type": [one["type"], "null"], **rest}
    return {
        key: {name: _plain(one) for name, one in value.items()} if key == "properties" else _plain(value)
        for key, value in schema.items()
        if not (key in empty and value == empty[key]) and not (key == "title" and isinstance(value, str))
    }


def _operation(
    route: Route, path: str, method: str, secured: bool | None, refer: Callable[[Any], Schema]
) -> dict[str, Any]:
    operation: Operation = getattr(route, "operation", Operation())
    result: dict[str, Any] = {
        "summary": (route.endpoint.__doc__ or path).strip().split("\n")[0],
        "tags": [operation.tag],
        "responses": _responses(operation, method, bool(secured), refer),
    }
    names = _PARAMETER.findall(route.path)
    parameters = [(name, "path", {"type": "string", "minLength": 1}) for name in names]
    parameters += [(name, "query", dict(schema)) for name, schema in operation.query.items()]
    if parameters:
        result["parameters"] = [
            {"name": name, "in": where, "required": True, "schema": schema} for name, where, schema in parameters
        ]
    if method == "POST":
        schema = {"type": "object"} if operation.takes is None else refer(operation.takes)
        result["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if secured is not None:
        result["security"] = _SECURITY if secured else []
    return result


def _responses(operation: Operation, method: str, secured: bool, refer: Callable[[Any], Schema]) -> dict[str, Any]:
    schema = {} if operation.media != JSON or operation.gives is None else {"schema": refer(operation.gives)}
    content: dict[str, Any] = {operation.media: schema}
    if operation.streams:
        content["text/event-stream"] = {}
    headers = {"X-Request-Id": {"schema": {"type": "string"}}}
    result: dict[str, Any] = {"200": {"description": "The answer.", "headers": headers, "content": content}}
    if operation.cached:
        result["304"] = {"description": "It is what the client has already."}
    codes = {*operation.refuses, 500, *(BODY if method == "POST" else ()), *((401,) if secured else ())}
    for code in sorted(codes):
        error: dict[str, Any] = {
            "description": HTTPStatus(code).phrase,
            "content": {JSON: {"schema": refer(operation.error)}},
        }
        if code in (429, 503):
            error["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds to wait."}}
        result[str(code)] = error
    return result

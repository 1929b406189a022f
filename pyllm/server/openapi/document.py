"""The OpenAPI document of an application, made from its routes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from starlette.routing import BaseRoute, Route

from pyllm.server.auth import PUBLIC
from pyllm.server.openapi import answers, requests
from pyllm.server.openapi.kinds import Schema, refer
from pyllm.server.openapi.operations import BODY, JSON, Operation, operation_of
from pyllm.version import __version__

# What nobody has described yet.
_UNKNOWN = Operation(tag="server")
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]


def make_document(routes: Iterable[BaseRoute], *, keys: bool, prefix: str = "") -> dict[str, Any]:
    """Describe an application.

    Args:
        routes: Its routes.
        keys: Whether it asks for a key.
        prefix: What all paths begin with.

    Returns:
        dict: An OpenAPI document of version 3.1.
    """
    paths: dict[str, Any] = {}
    for route in routes:
        if not isinstance(route, Route):
            continue
        path = plain_path(route.path)
        methods = sorted((route.methods or set()) - {"HEAD"})
        for method in methods:
            described = _operation(route, path, method, keys)
            described["operationId"] = f"{method} {path}".lower()
            paths.setdefault(path, {})[method.lower()] = described
    schemas: dict[str, Schema] = {**answers.SHARED, **requests.SHARED}
    components: dict[str, Any] = {"schemas": schemas}
    if keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    about = "Texts of a language model: OpenAI's, Anthropic's and llama-server's endpoints."
    return {
        "openapi": "3.1.0",
        "info": {"title": "pyllm", "version": __version__, "description": about},
        "servers": [{"url": prefix or "/"}],
        "paths": paths,
        "components": components,
    }


def plain_path(path: str) -> str:
    """The path of a route as OpenAPI writes it: without the kinds of its parameters."""
    return _PARAMETER.sub(r"{\1}", path)


def _operation(route: Route, path: str, method: str, keys: bool) -> dict[str, Any]:
    operation = operation_of(method, path) or _UNKNOWN
    result: dict[str, Any] = {
        "summary": (route.endpoint.__doc__ or path).strip().split("\n")[0],
        "tags": [operation.tag],
        "responses": _responses(operation, method, keys and path not in PUBLIC),
    }
    names = _PARAMETER.findall(route.path)
    parameters = [(name, "path", {"type": "string", "minLength": 1}) for name in names]
    parameters += [(name, "query", schema) for name, schema in operation.query.items()]
    if parameters:
        result["parameters"] = [
            {"name": name, "in": where, "required": True, "schema": schema} for name, where, schema in parameters
        ]
    if method == "POST":
        schema = {"type": "object"} if operation.takes is None else operation.takes
        result["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if keys:
        result["security"] = [] if path in PUBLIC else _SECURITY
    return result


def _responses(operation: Operation, method: str, keys: bool) -> dict[str, Any]:
    schema = {} if operation.media != JSON or operation.gives is None else {"schema": operation.gives}
    content: dict[str, Any] = {operation.media: schema}
    if operation.streams:
        content["text/event-stream"] = {}
    headers = {"X-Request-Id": {"schema": {"type": "string"}}}
    result: dict[str, Any] = {"200": {"description": "The answer.", "headers": headers, "content": content}}
    if operation.cached:
        result["304"] = {"description": "It is what the client has already."}
    codes = {*operation.refuses, 500, *(BODY if method == "POST" else ()), *((401,) if keys else ())}
    for code in sorted(codes):
        error: dict[str, Any] = {
            "description": HTTPStatus(code).phrase,
            "content": {JSON: {"schema": refer(operation.error)}},
        }
        if code in (429, 503):
            error["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds to wait."}}
        result[str(code)] = error
    return result

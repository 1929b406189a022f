"""The OpenAPI document says what the server does: every route, what is taken and what refused, answers as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route
from support.servers import Served

from pyllm import Llama, Model
from pyllm.server.admin import MANAGING
from pyllm.server.openapi import Endpoint, make_document, plain_path

CHAT = [{"role": "user", "content": "the cat"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
FORM = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
# A request of each kind for each path that takes one, and what it is answered with.
REQUESTS: list[tuple[str, dict[str, Any], int]] = [
    ("/v1/completions", {"prompt": "the", "max_tokens": 2, "logprobs": 3, "n": 2}, 200),
    ("/v1/completions", {"prompt": [[5, 6], "the"], "max_tokens": 2, "echo": True, "seed": 3}, 200),
    ("/v1/completions", {"prompt": "the", "max_tokens": 2, "stream": True}, 200),
    ("/v1/completions", {"prompt": "the", "top_p": 2}, 400),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 2, "logprobs": True, "top_logprobs": 2}, 200),
    ("/v1/chat/completions", {"messages": CHAT, "tools": [TOOL], "tool_choice": "required", "max_tokens": 60}, 200),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 60, "json_schema": FORM}, 200),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 2, "stream": True}, 200),
    ("/v1/chat/completions", {"messages": []}, 400),
    ("/v1/responses", {"input": "the cat", "max_output_tokens": 2}, 200),
    ("/v1/responses", {"input": [{"role": "user", "content": "x"}], "max_output_tokens": 2, "stream": True}, 200),
    ("/v1/responses", {"input": 5}, 400),
    ("/v1/messages", {"messages": CHAT, "max_tokens": 2}, 200),
    ("/v1/messages", {"messages": CHAT, "max_tokens": 2, "stream": True}, 200),
    ("/v1/messages", {"messages": CHAT}, 400),
    ("/v1/messages/count_tokens", {"messages": CHAT}, 200),
    ("/v1/messages/count_tokens", {"messages": "x"}, 400),
    ("/v1/embeddings", {"input": ["the", "cat"]}, 200),
    ("/v1/embeddings", {"input": [5, 6], "encoding_format": "base64"}, 200),
    ("/v1/embeddings", {"input": {}}, 400),
    ("/embedding", {"content": [5, "the"]}, 200),
    ("/embedding", {}, 400),
    ("/v1/rerank", {"query": "the", "documents": []}, 400),
    ("/completion", {"prompt": "the", "n_predict": 2, "n_probs": 2}, 200),
    ("/completion", {"prompt": ["the", {"prompt_string": "cat"}], "n_predict": 2, "stop": [""]}, 200),
    ("/completion", {"prompt": "the", "n_predict": 2, "stream": True}, 200),
    ("/completion", {"prompt": "the", "n_predict": 1, "response_fields": ["content", "timings/prompt_n"]}, 200),
    ("/completion", {"prompt": {}}, 400),
    ("/infill", {"input_prefix": "the"}, 400),
    ("/lora-adapters", [], 200),
    ("/lora-adapters", {}, 400),
    ("/v1/chat/completions/input_tokens", {"messages": CHAT}, 200),
    ("/v1/responses/input_tokens", {"input": "the"}, 200),
    ("/tokenize", {"content": "the cat"}, 200),
    ("/tokenize", {"content": "the cat", "with_pieces": True}, 200),
    ("/tokenize", {}, 400),
    ("/detokenize", {"tokens": [5, 6]}, 200),
    ("/detokenize", {"tokens": [-1]}, 400),
    ("/apply-template", {"messages": CHAT}, 200),
    ("/apply-template", {"messages": 5}, 400),
]


@pytest.fixture(scope="module")
def described(start: Callable[..., Served], shared_engine: Any, tiny_model: Model) -> Iterator[tuple[Served, Any]]:
    """A server that does everything, and its document."""
    with Llama(tiny_model, n_ctx=256, n_threads=1) as embedder:
        server = start(shared_engine, embedder=embedder, metrics=True, alias="tiny")
        yield server, server.get("/openapi.json").json()
        server.stop()


def check(document: Any, path: str, method: str, response: Any) -> None:
    """An answer is one that the document knows."""
    operation = document["paths"][path][method]
    known = operation["responses"][str(response.status_code)]
    kind = response.headers["content-type"].split(";")[0]
    assert kind in known["content"], (path, kind)
    schema = known["content"][kind].get("schema", {})
    value = response.json() if kind == "application/json" else response.text
    validator(document, schema).validate(value)


def validator(document: Any, schema: Any) -> Any:
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]})


def schemas(value: Any) -> Iterator[Any]:
    """All schemas of a document."""
    if isinstance(value, dict):
        for key, child in value.items():
            if key == "schema":
                yield child
            elif key == "schemas":
                yield from child.values()
            yield from schemas(child)
    elif isinstance(value, list):
        for child in value:
            yield from schemas(child)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


def test_every_route_is_described(described) -> None:
    server, document = described
    routes = [route for route in server.runner.config.loaded_app.app.routes if isinstance(route, Route)]
    found = {(method, plain_path(route.path)) for route in routes for method in (route.methods or set()) - {"HEAD"}}
    for route in routes:
        assert isinstance(route, Endpoint), f"{route.path} does not say what it takes and gives"
    listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert listed == found


def test_the_document_is_one(described) -> None:
    _, document = described
    assert document["openapi"].startswith("3.1.")
    found = list(schemas(document))
    assert len(found) > 50
    for schema in found:
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names)
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert {"200", "500"} <= set(operation["responses"])


@pytest.mark.parametrize(("path", "body", "status"), REQUESTS)
def test_requests_and_answers_are_as_described(described, path: str, body: dict[str, Any], status: int) -> None:
    server, document = described
    response = server.post(path, body)
    assert response.status_code == status, response.text
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert validator(document, schema).is_valid(body) == (status == 200)
    check(document, path, "post", response)


def test_what_takes_no_body_is_as_described(described) -> None:
    server, document = described
    for path, methods in document["paths"].items():
        if "get" in methods and "{" not in path:
            check(document, path, "get", server.get(path))
    check(document, "/v1/models/{name}", "get", server.get("/v1/models/tiny"))
    check(document, "/v1/models/{name}", "get", server.get("/v1/models/other"))


def test_every_path_that_takes_something_is_tried(described) -> None:
    _, document = described
    tried = {path for path, _, status in REQUESTS if status == 200}
    others = {"/chat/completions", "/responses", "/completions", "/embeddings"}
    others |= {"/chat/completions/input_tokens", "/responses/input_tokens"}
    # They need a reranker, a model with tokens for the middle, or a flag.
    others |= {"/rerank", "/reranking", "/v1/rerank", "/v1/reranking", "/infill", "/props", "/slots/{slot}"}
    assert {path for path, methods in document["paths"].items() if "post" in methods} - others == tried


def test_keys(start: Callable[..., Served], engine: Any) -> None:
    server = start(engine, api_keys=("key",))
    assert server.get("/openapi.json").status_code == 401
    document = server.get("/openapi.json", headers={"x-api-key": "key"}).json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    assert document["paths"]["/health"]["get"]["security"] == []
    asked = document["paths"]["/v1/completions"]["post"]
    assert asked["security"] == [{"bearer": []}, {"header": []}]
    check(document, "/v1/completions", "post", server.post("/v1/completions", {"prompt": "x"}))


def test_routes_that_only_some_servers_have() -> None:
    for route in MANAGING:
        assert route.operation.takes and route.operation.gives


def test_paths_that_begin_with_something(start: Callable[..., Served], engine: Any) -> None:
    server = start(engine, api_prefix="/llm")
    assert server.get("/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]


def test_a_route_without_a_description() -> None:
    async def new(request: Any) -> Any:
        """Do something new."""

    document = make_document([Route("/new/{id:int}/{rest:path}", new, methods=["POST"])], keys=False)
    described = document["paths"]["/new/{id}/{rest}"]["post"]
    assert described["summary"] == "Do something new."
    assert [parameter["name"] for parameter in described["parameters"]] == ["id", "rest"]

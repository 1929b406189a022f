"""What each endpoint takes and gives, by its path. A path that is missing here is described in general words."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyllm.server.openapi import answers, requests
from pyllm.server.openapi.kinds import Schema, refer
from pyllm.server.page.files import FILES

JSON = "application/json"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What an endpoint takes and gives.

    Attributes:
        tag: The group it belongs to.
        takes: The schema of its request; None: it has none.
        gives: The schema of its answer; None: text, or what is not described.
        media: The type of its answer.
        streams: Whether it can answer with server-sent events, too.
        error: The name of the schema of its own errors.
        refuses: Status codes of errors it can have, beside those that all requests of its kind can have.
        cached: Whether it may answer that a browser has it already.
        query: The fields of its query.
    """

    tag: str
    takes: Schema | None = None
    gives: Schema | None = None
    media: str = JSON
    streams: bool = False
    error: str = "Error"
    refuses: tuple[int, ...] = ()
    cached: bool = False
    query: dict[str, Schema] = field(default_factory=dict)


_PAGE = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "woff2": "font/woff2"}

# Status codes of errors: of a request that has a body, of one that has texts generated, and of one for vectors.
BODY = (400, 408, 413, 415)
GENERATES = (429, 501, 503)
EMBEDS = (429, 503)

_ACTION: dict[str, Schema] = {"action": {"enum": ["save", "restore", "erase"]}}
_HEALTH = Operation(tag="server", gives=answers.STATUS, refuses=(503,))
_MODELS = Operation(tag="server", gives=answers.MODELS)
_EMBEDDINGS = Operation(tag="vectors", takes=requests.EMBEDDINGS, gives=answers.EMBEDDINGS, refuses=EMBEDS)
_NATIVE_EMBEDDINGS = Operation(
    tag="vectors", takes=requests.NATIVE_EMBEDDINGS, gives=answers.NATIVE_EMBEDDINGS, refuses=EMBEDS
)
_RERANK = Operation(tag="vectors", takes=requests.RERANK, gives=answers.RERANK, refuses=EMBEDS)
_CHAT = Operation(tag="chats", takes=requests.CHAT, gives=answers.CHAT, streams=True, refuses=GENERATES)
_RESPONSE = Operation(tag="chats", takes=requests.RESPONSE, gives=answers.RESPONSE, streams=True, refuses=GENERATES)
_COUNT_CHAT = Operation(tag="chats", takes=requests.CHAT, gives=answers.COUNT, refuses=(501, 503))
_COUNT_RESPONSE = Operation(tag="chats", takes=requests.RESPONSE, gives=answers.COUNT, refuses=(501, 503))
_NATIVE = Operation(tag="texts", takes=requests.NATIVE, gives=answers.NATIVE_ANY, streams=True, refuses=GENERATES)
_INFILL = Operation(tag="texts", takes=requests.INFILL, gives=answers.NATIVE_ANY, streams=True, refuses=GENERATES)

# By path, or by method and path where two methods differ.
OPERATIONS: dict[str, Operation] = {
    "/health": _HEALTH,
    "/v1/health": _HEALTH,
    "/ready": _HEALTH,
    "/slots": Operation(tag="server", gives=answers.SLOTS, refuses=(501, 503)),
    "/slots/{slot}": Operation(
        tag="server", takes=requests.SLOT_FILE, gives=answers.SLOT_ACTION, refuses=(501, 503), query=_ACTION
    ),
    "/lora-adapters": Operation(tag="server", takes=requests.ADAPTERS, gives=answers.ADAPTERS, refuses=(501, 503)),
    "/props": Operation(tag="server", gives=answers.PROPS, refuses=(503,)),
    "POST /props": Operation(tag="server", takes=requests.PROPS, gives=answers.SUCCESS, refuses=(501,)),
    "/metrics": Operation(tag="server", media="text/plain"),
    "/openapi.json": Operation(tag="server", gives=answers.DOCUMENT),
    "/models": _MODELS,
    "/v1/models": _MODELS,
    "/models/load": Operation(tag="server", takes=requests.MODEL, gives=answers.SUCCESS, refuses=(404, 503)),
    "/models/unload": Operation(tag="server", takes=requests.MODEL, gives=answers.SUCCESS, refuses=(404, 409)),
    "/v1/models/{name}": Operation(tag="server", gives=refer("Model"), refuses=(404,)),
    "/tokenize": Operation(tag="tokens", takes=requests.TOKENIZE, gives=answers.TOKENIZE),
    "/detokenize": Operation(tag="tokens", takes=requests.DETOKENIZE, gives=answers.DETOKENIZE),
    "/tokenizer_info": Operation(tag="tokens", gives=answers.TOKENIZER),
    "/apply-template": Operation(tag="tokens", takes=requests.CHAT, gives=answers.TEMPLATE, refuses=(501, 503)),
    "/v1/completions": Operation(
        tag="texts", takes=requests.COMPLETION, gives=answers.COMPLETION, streams=True, refuses=GENERATES
    ),
    "/completion": _NATIVE,
    "/completions": _NATIVE,
    "/infill": _INFILL,
    "/v1/chat/completions": _CHAT,
    "/chat/completions": _CHAT,
    "/v1/chat/completions/input_tokens": _COUNT_CHAT,
    "/chat/completions/input_tokens": _COUNT_CHAT,
    "/v1/responses": _RESPONSE,
    "/responses": _RESPONSE,
    "/v1/responses/input_tokens": _COUNT_RESPONSE,
    "/responses/input_tokens": _COUNT_RESPONSE,
    "/v1/messages": Operation(
        tag="chats",
        takes=requests.MESSAGES,
        gives=answers.MESSAGE,
        streams=True,
        error="AnthropicError",
        refuses=GENERATES,
    ),
    "/v1/messages/count_tokens": Operation(
        tag="chats", takes=requests.COUNT, gives=answers.COUNT, error="AnthropicError", refuses=(501, 503)
    ),
    "/v1/embeddings": _EMBEDDINGS,
    "/embedding": _NATIVE_EMBEDDINGS,
    "/embeddings": _NATIVE_EMBEDDINGS,
    "/v1/rerank": _RERANK,
    "/v1/reranking": _RERANK,
    "/rerank": _RERANK,
    "/reranking": _RERANK,
    **{file.path: Operation(tag="page", media=_PAGE[file.name.rpartition(".")[2]], cached=True) for file in FILES},
}


def operation_of(method: str, path: str) -> Operation | None:
    """What is known of a method and a path."""
    return OPERATIONS.get(f"{method} {path}") or OPERATIONS.get(path)

"""Vectors of texts, and documents ranked for a query: ``/v1/embeddings``, ``/v1/rerank`` and their other names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pyllm.embedding.asks import Ask, counted, ranks_ask, response_ask, vectors_ask
from pyllm.embedding.embedder import Embedder
from pyllm.embedding.methods import EmbeddingMethods
from pyllm.embedding.types import RerankResult
from pyllm.engine import Engine
from pyllm.enums import PoolingType
from pyllm.errors import EmbeddingError, InvalidArgumentError, TextTooLongError
from pyllm.server.errors import TOO_LONG, APIError, as_api_error, invalid, json_response
from pyllm.server.limits import read_json
from pyllm.server.log import note
from pyllm.server.openapi import EMBEDS, post
from pyllm.server.prompts import NATIVE_PROMPT, check_mixed, own_tokens
from pyllm.server.sse import until_gone
from pyllm.server.state import ServerState, state_of
from pyllm.server.wire import Schema, Wire, about, at_least, decode, expected_error, within

T = TypeVar("T")

_MOST_TEXTS = 2048
_EUCLIDEAN = 2
_LARGEST_NORM = 100
# Of TEI, Jina and Ollama: true and false; of Cohere and NIM: words.
_TRUNCATES = {True: True, False: False, "END": True, "NONE": False}
_STRING: Schema = {"type": "string"}

Truncate = Annotated[
    Any,
    about(
        "Whether the beginning of a text stands for all of it where that is too long.",
        enum=[True, False, "END", "NONE", "end", "none", None],
    ),
]


class InputFields(Wire, kw_only=True):
    """The texts of a request for vectors, and how long they may be."""

    model: Annotated[str | None, about("The name of the model.")] = None
    input: Annotated[Any, NATIVE_PROMPT] = None
    content: Annotated[Any, NATIVE_PROMPT] = None
    truncate: Truncate = None
    truncate_prompt_tokens: (
        Annotated[int, at_least(-1, "So many tokens of each text are read; -1: as many as the model can read.")] | None
    ) = None


class EmbeddingRequest(InputFields, kw_only=True):
    """A request for vectors; in llama-server's shape where it has content and no input."""

    encoding_format: Annotated[
        str | None, about("", expected="'float' or 'base64'", enum=["float", "base64", None])
    ] = None
    dimensions: Annotated[int, at_least(1, "So many numbers of each vector.")] | None = None
    embd_normalize: (
        Annotated[int, within(-1, _LARGEST_NORM, "In llama-server's shape: the norm to divide by; -1: none.")] | None
    ) = None


class NativeEmbeddingRequest(InputFields, kw_only=True):
    """A request for vectors in llama-server's shape."""

    embd_normalize: (
        Annotated[int, within(-1, _LARGEST_NORM, "The norm by which vectors are divided; -1: none.")] | None
    ) = None


_DOCUMENTS = about(
    "The texts to order.",
    type="array",
    items={"anyOf": [_STRING, {"type": "object", "properties": {"text": _STRING}, "required": ["text"]}]},
    minItems=1,
)


class RerankRequest(Wire, kw_only=True):
    """A request for ranks."""

    model: Annotated[str | None, about("The name of the model.")] = None
    query: str
    documents: Annotated[Any, _DOCUMENTS] = None
    texts: Annotated[Any, _DOCUMENTS] = None
    top_n: Annotated[int, at_least(1, "Answer so many.")] | None = None
    truncate: Truncate = None
    return_documents: Annotated[bool | None, about("Whether the texts are answered too.")] = None
    return_text: Annotated[
        bool | None, about("The same where they are sent as texts, which is answered in the shape of TEI.")
    ] = None

    @property
    def field(self) -> str:
        """The field that has the documents; texts is TEI's name."""
        return "texts" if self.documents is None and self.texts is not None else "documents"

    def where(self, index: int) -> str:
        """The path of a document in the request."""
        return f"{self.field}[{index}]"

    def read_documents(self) -> list[str]:
        """The texts to order.

        Raises:
            APIError: There are none, too many, or something else.
        """
        name, documents = self.field, getattr(self, self.field)
        if documents is None:
            raise invalid(name, f"{name} is missing")
        if not isinstance(documents, list) or not documents or len(documents) > _MOST_TEXTS:
            raise expected_error(name, f"a list of 1 to {_MOST_TEXTS} texts", documents)
        # Jina's clients send objects with a text.
        texts: list[Any] = [one.get("text") if isinstance(one, dict) else one for one in documents]
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise invalid(f"{name}[{i}]", f"{name}[{i}] must be text")
        return texts


class Embedding(Wire):
    """The vector of a text: numbers, or their bytes in base64."""

    object: Annotated[str, about("", const="embedding")]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Wire):
    """Counts of tokens."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Wire):
    """Vectors in OpenAI's shape."""

    object: Annotated[str, about("", const="list")]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class NativeEmbedding(Wire):
    """In llama-server's shape: one vector of a text, or one for each of its tokens."""

    index: int
    embedding: list[list[float]]


class RankedDocument(Wire):
    """A document and how well it answers the query."""

    index: int
    relevance_score: float


class Ranks(Wire):
    """Documents in their order, in Jina's shape."""

    object: Annotated[str, about("", const="list")]
    model: str
    usage: EmbeddingUsage
    results: list[RankedDocument]


class TEIRank(Wire):
    """A document and how well it answers the query, in TEI's shape."""

    index: int
    score: float
    text: str | UnsetType = UNSET


class Inputs:
    """The texts of a request for vectors, and how long they may be.

    Args:
        fields: The request.

    Attributes:
        field: The field that has them.
        texts: Texts, or lists of token ids and texts.
        truncates: Whether the beginning of a text stands for all of it where that is too long.
        most: Tokens at which texts end. None: where the model cannot read on.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, fields: InputFields) -> None:
        self.field = "content" if fields.input is None and fields.content is not None else "input"
        value = getattr(fields, self.field)
        if value is None:
            raise invalid(self.field, f"{self.field} is missing")
        self._several = isinstance(value, list) and not (value and type(value[0]) is int)
        if not self._several:
            value = [value]
        if not 1 <= len(value) <= _MOST_TEXTS:
            expected = f"a text, token ids, or a list of 1 to {_MOST_TEXTS} of these"
            raise expected_error(self.field, expected, getattr(fields, self.field))
        self.texts = [_content(one, self.where(i)) for i, one in enumerate(value)]
        self.truncates = _truncates(fields.truncate)
        self.most = fields.truncate_prompt_tokens
        if self.most == 0:
            expected = "at least 1, or -1 for as many as the model can read"
            raise expected_error("truncate_prompt_tokens", expected, self.most)
        if self.most is not None:
            if self.truncates is False:
                raise invalid("truncate", "truncate must not be false where truncate_prompt_tokens is given")
            self.truncates = True
            self.most = None if self.most < 0 else self.most

    def where(self, index: int) -> str:
        """The path of a text in the request."""
        return f"{self.field}[{index}]" if self._several else self.field

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`pyllm.embedding.asks.vectors_ask`."""
        overflow = "truncate" if self.truncates else "error"
        return {"overflow": overflow, "most": self.most, "name": self.where, "blank": True}


async def embeddings(request: Request) -> Response:
    """Vectors of texts, in OpenAI's shape."""
    state = state_of(request)
    embedder = state.embedder
    asked = decode(EmbeddingRequest, await read_json(request, state.settings))
    if asked.input is None and asked.content is not None:
        return await _native(request, state, embedder, asked)
    inputs = Inputs(asked)
    shape: dict[str, Any] = {"encoding_format": asked.encoding_format or "float"}
    if shape["encoding_format"] not in ("float", "base64"):
        raise expected_error("encoding_format", "'float' or 'base64'", asked.encoding_format)
    if asked.dimensions is not None:
        shape["dimensions"] = asked.dimensions

    def make(made: Embedder) -> Ask[dict[str, Any]]:
        if _pooling(made, state) == PoolingType.NONE:
            message = (
                f"the model {state.alias!r} gives a vector for each token, for which OpenAI's API has no shape: "
                "ask /embeddings, or start the server with another --pooling"
            )
            raise APIError(400, message, param="model", code="unsupported", kind="not_supported_error")
        found = response_ask(made, _read(made, inputs), state.alias, **inputs.arguments, **shape)
        # Thousands of numbers become text in the thread that finished the vectors.
        return Ask(found.texts, found.pooling, lambda vectors: found.finish(vectors).to_dict())

    answer = await _computed(request, state, embedder, make, inputs.field, inputs.where)
    note(request, prompt_tokens=answer["usage"]["prompt_tokens"])
    return await asyncio.to_thread(json_response, answer)


async def native_embeddings(request: Request) -> Response:
    """Vectors of texts, in llama-server's shape."""
    state = state_of(request)
    embedder = state.embedder
    asked = decode(NativeEmbeddingRequest, await read_json(request, state.settings))
    return await _native(request, state, embedder, asked)


async def rerank(request: Request) -> Response:
    """Documents by how well they answer a query."""
    state = state_of(request)
    embedder = state.embedder
    asked = decode(RerankRequest, await read_json(request, state.settings))
    if not asked.query:
        raise invalid("query", "query is empty: there is nothing to rank for")
    documents, overflow = asked.read_documents(), "truncate" if _truncates(asked.truncate) else "error"
    arguments: dict[str, Any] = {"return_documents": bool(asked.return_documents), "overflow": overflow}
    if asked.top_n is not None:
        arguments["top_n"] = asked.top_n

    def make(made: Embedder) -> Ask[tuple[list[RerankResult], int]]:
        if not made.is_reranker:
            message = f"the model {state.alias!r} gives no scores: /v1/rerank needs a reranker"
            raise APIError(400, message, param="model", code="unsupported", kind="not_supported_error")
        return counted(ranks_ask(made, asked.query, documents, **arguments))

    found, n_tokens = await _computed(request, state, embedder, make, asked.field, asked.where)
    note(request, prompt_tokens=n_tokens)
    if asked.texts is not None:
        return json_response(
            [
                {"index": one.index, "score": one.relevance_score}
                | ({"text": documents[one.index]} if asked.return_text else {})
                for one in found
            ]
        )
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    results = [result.to_dict() for result in found]
    return json_response({"object": "list", "model": state.alias, "usage": usage, "results": results})


async def _native(
    request: Request, state: ServerState, embedder: EmbeddingMethods, asked: EmbeddingRequest | NativeEmbeddingRequest
) -> Response:
    inputs = Inputs(asked)
    norm = _EUCLIDEAN if asked.embd_normalize is None else asked.embd_normalize

    def make(made: Embedder) -> Ask[tuple[list[dict[str, Any]], int]]:
        # Vectors of tokens stay as they are.
        raw = _pooling(made, state) == PoolingType.NONE
        texts = _read(made, inputs, any_ids=True)
        found = vectors_ask(made, texts, normalize=False if raw else norm, **inputs.arguments)

        def finish(vectors: Any) -> tuple[list[dict[str, Any]], int]:
            rows, n_tokens, _ = found.finish(vectors)
            nested = [row.tolist() if raw else [row.tolist()] for row in rows]
            return [{"index": i, "embedding": row} for i, row in enumerate(nested)], n_tokens

        return Ask(found.texts, found.pooling, finish)

    answer, n_tokens = await _computed(request, state, embedder, make, inputs.field, inputs.where)
    note(request, prompt_tokens=n_tokens)
    return await asyncio.to_thread(json_response, answer)


def _pooling(asked: Embedder, state: ServerState) -> PoolingType:
    """How the model makes one vector of those of tokens."""
    try:
        return asked.pooling(None)
    except InvalidArgumentError:
        if not asked.is_reranker:
            raise
        message = f"the model {state.alias!r} is a reranker, which scores documents for a query: ask /v1/rerank"
        raise APIError(400, message, param="model", code="unsupported", kind="not_supported_error") from None


def _read(asked: Embedder, inputs: Inputs, *, any_ids: bool = False) -> list[str | list[int]]:
    """The texts of a request: texts, and token ids of the model's own."""
    if inputs.most is not None and inputs.most > asked.limit:
        message = f"truncate_prompt_tokens={inputs.most} is more than the {asked.limit} tokens that the model can read"
        raise invalid("truncate_prompt_tokens", message)
    return [own_tokens(asked.model.vocab, one, inputs.where(i), any_ids=any_ids) for i, one in enumerate(inputs.texts)]


async def _computed(
    request: Request,
    state: ServerState,
    embedder: EmbeddingMethods,
    make: Callable[[Embedder], Ask[T]],
    param: str,
    where: Callable[[int], str],
) -> T:
    """Have something computed for a client that waits for it."""

    async def work() -> T:
        # An engine has its own queue; others compute in threads, which must not all be taken.
        gate = contextlib.nullcontext() if isinstance(embedder, Engine) else state.embedding
        async with gate:
            return await embedder.acompute(make)

    state.computing += 1
    try:
        return await until_gone(request, work())
    except TextTooLongError as error:
        raise _text_too_long(error, where, state.alias) from error
    except EmbeddingError as error:
        # The rest of the message is for callers in Python.
        raise invalid(param, error.message.partition("; ")[0]) from error
    except Exception as error:
        raise as_api_error(error, param=param, retry_after=state.settings.retry_after) from error
    finally:
        state.computing -= 1


def _truncates(value: Any) -> bool | None:
    if value is None:
        return None
    key = value.upper() if isinstance(value, str) else value
    if not isinstance(key, (bool, str)) or key not in _TRUNCATES:
        raise expected_error("truncate", 'true, false, "END" or "NONE"', value)
    return _TRUNCATES[key]


def _content(value: Any, name: str) -> Any:
    """A text, or a list of token ids and texts; in an object, or in parts, as in messages of a chat."""
    if isinstance(value, dict):
        if value.get("multimodal_data"):
            raise invalid(name, f"{name}.multimodal_data: this server takes texts only")
        key = "content" if "content" in value else "prompt_string"
        name, value = f"{name}.{key}", value.get(key)
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            texts = [part.get("text") if part.get("type") == "text" else None for part in value]
            if any(not isinstance(text, str) for text in texts):
                raise invalid(name, f"{name} must be text: this server takes nothing else")
            value = "".join(map(str, texts))
    if isinstance(value, list) and not value:
        raise invalid(name, f"{name} is an empty list: there is nothing to embed")
    return check_mixed(value, name, "a text, or a list of token ids and texts")


def _text_too_long(error: TextTooLongError, where: Callable[[int], str], name: str) -> APIError:
    """The error for a text with more tokens than the model can read at once.

    Args:
        error: The error.
        where: The name of a text: what of the request it is.
        name: What the model is called.
    """
    limit = f"and {name!r} reads at most {error.limit} at once"
    if error.index is None:
        param, rest = "query", f"{limit}, with a document: shorten it"
    else:
        param = where(error.index)
        rest = f'{limit}: split it, or send "truncate": true to have only its beginning read'
    return APIError(
        400,
        f"{param} is too large: it has {error.n_tokens} tokens, {rest}",
        param=param,
        code=TOO_LONG,
        kind="exceed_context_size_error",
        numbers={"n_prompt_tokens": error.n_tokens, "n_ctx": error.limit},
    )


# One of the two is there, which a struct cannot say.
_INPUT_OR_CONTENT = Meta(extra_json_schema={"anyOf": [{"required": ["input"]}, {"required": ["content"]}]})
_DOCUMENTS_OR_TEXTS = Meta(extra_json_schema={"anyOf": [{"required": ["documents"]}, {"required": ["texts"]}]})
_EMBEDDINGS: dict[str, Any] = {
    "tag": "vectors",
    "takes": Annotated[EmbeddingRequest, _INPUT_OR_CONTENT],
    "gives": Embeddings | list[NativeEmbedding],
    "refuses": EMBEDS,
}
_NATIVE: dict[str, Any] = {
    "tag": "vectors",
    "takes": Annotated[NativeEmbeddingRequest, _INPUT_OR_CONTENT],
    "gives": list[NativeEmbedding],
    "refuses": EMBEDS,
}
_RERANK: dict[str, Any] = {
    "tag": "vectors",
    "takes": Annotated[RerankRequest, _DOCUMENTS_OR_TEXTS],
    "gives": Ranks | list[TEIRank],
    "refuses": EMBEDS,
}
ROUTES = [
    post("/v1/embeddings", embeddings, **_EMBEDDINGS),
    post("/embedding", native_embeddings, **_NATIVE),
    post("/embeddings", native_embeddings, **_NATIVE),
    post("/v1/rerank", rerank, **_RERANK),
    post("/v1/reranking", rerank, **_RERANK),
    post("/rerank", rerank, **_RERANK),
    post("/reranking", rerank, **_RERANK),
]

"""``/v1/embeddings``, ``/embedding``, ``/v1/rerank`` and their other names. Clients that go away end their requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.embedding.asks import Ask, counted, ranks_ask, response_ask, vectors_ask
from pyllm.embedding.embedder import Embedder
from pyllm.embedding.methods import EmbeddingMethods
from pyllm.embedding.types import RerankResult
from pyllm.engine import Engine
from pyllm.enums import PoolingType
from pyllm.errors import EmbeddingError, InvalidArgumentError, TextTooLongError
from pyllm.server.embeddings.foreign import own_tokens
from pyllm.server.embeddings.protocol import EmbeddingAsk, Inputs, NativeEmbeddingAsk, RerankAsk, text_too_long
from pyllm.server.errors import APIError, as_api_error, invalid, json_response
from pyllm.server.limits import read_json
from pyllm.server.log import note
from pyllm.server.sse import until_gone
from pyllm.server.state import ServerState, state_of

T = TypeVar("T")


async def embeddings(request: Request) -> Response:
    """Vectors of texts, in OpenAI's shape."""
    state = state_of(request)
    embedder = state.embedder
    body = await read_json(request, state.settings)
    if body.get("input") is None and body.get("content") is not None:
        return await _native(request, state, embedder, body)
    ask = EmbeddingAsk(body)

    def make(asked: Embedder) -> Ask[dict[str, Any]]:
        if _pooling(asked, state) == PoolingType.NONE:
            message = (
                f"the model {state.alias!r} gives a vector for each token, for which OpenAI's API has no shape: "
                "ask /embeddings, or start the server with another --pooling"
            )
            raise APIError(400, message, param="model", code="unsupported", kind="not_supported_error")
        inputs = _read(asked, ask.inputs)
        found = response_ask(asked, inputs, state.alias, **ask.inputs.arguments, **ask.arguments)
        # Thousands of numbers become text: that is done where the vectors are finished.
        return Ask(found.texts, found.pooling, lambda vectors: found.finish(vectors).to_dict())

    answer = await _computed(request, state, embedder, make, ask.inputs.field, ask.inputs.where)
    note(request, prompt_tokens=answer["usage"]["prompt_tokens"])
    return await asyncio.to_thread(json_response, answer)


async def native_embeddings(request: Request) -> Response:
    """Vectors of texts, in llama-server's shape."""
    state = state_of(request)
    embedder = state.embedder
    return await _native(request, state, embedder, await read_json(request, state.settings))


async def rerank(request: Request) -> Response:
    """Documents by how well they answer a query."""
    state = state_of(request)
    embedder = state.embedder
    ask = RerankAsk(await read_json(request, state.settings))

    def make(asked: Embedder) -> Ask[tuple[list[RerankResult], int]]:
        if not asked.is_reranker:
            message = f"the model {state.alias!r} gives no scores: /v1/rerank needs a reranker"
            raise APIError(400, message, param="model", code="unsupported", kind="not_supported_error")
        return counted(ranks_ask(asked, ask.query, ask.documents, **ask.arguments))

    found, n_tokens = await _computed(request, state, embedder, make, ask.field, ask.where)
    note(request, prompt_tokens=n_tokens)
    if ask.tei:
        return json_response(
            [
                {"index": one.index, "score": one.relevance_score}
                | ({"text": ask.documents[one.index]} if ask.return_text else {})
                for one in found
            ]
        )
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    results = [result.to_dict() for result in found]
    return json_response({"object": "list", "model": state.alias, "usage": usage, "results": results})


async def _native(request: Request, state: ServerState, embedder: EmbeddingMethods, body: dict[str, Any]) -> Response:
    ask = NativeEmbeddingAsk(body)

    def make(asked: Embedder) -> Ask[tuple[list[dict[str, Any]], int]]:
        # Vectors of tokens stay as they are.
        raw = _pooling(asked, state) == PoolingType.NONE
        inputs = _read(asked, ask.inputs, any_ids=True)
        found = vectors_ask(asked, inputs, normalize=False if raw else ask.normalize, **ask.inputs.arguments)

        def finish(vectors: Any) -> tuple[list[dict[str, Any]], int]:
            rows, n_tokens, _ = found.finish(vectors)
            nested = [row.tolist() if raw else [row.tolist()] for row in rows]
            return [{"index": i, "embedding": row} for i, row in enumerate(nested)], n_tokens

        return Ask(found.texts, found.pooling, finish)

    answer, n_tokens = await _computed(request, state, embedder, make, ask.inputs.field, ask.inputs.where)
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
        raise text_too_long(error, where, state.alias) from error
    except EmbeddingError as error:
        # What stands behind the first part is for callers in Python.
        raise invalid(param, error.message.partition("; ")[0]) from error
    except Exception as error:
        raise as_api_error(error, param=param, retry_after=state.settings.retry_after) from error
    finally:
        state.computing -= 1


ROUTES = [
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/embedding", native_embeddings, methods=["POST"]),
    Route("/embeddings", native_embeddings, methods=["POST"]),
    Route("/v1/rerank", rerank, methods=["POST"]),
    Route("/v1/reranking", rerank, methods=["POST"]),
    Route("/rerank", rerank, methods=["POST"]),
    Route("/reranking", rerank, methods=["POST"]),
]

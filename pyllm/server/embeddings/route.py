"""``/v1/embeddings`` and ``/v1/rerank``. They are computed in a thread; a client that goes away ends that, too."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.embedding.methods import EmbeddingMethods
from pyllm.embedding.types import EmbeddingResponse, RerankResult
from pyllm.server.embeddings.protocol import EmbeddingAsk, RerankAsk
from pyllm.server.errors import as_api_error, json_response
from pyllm.server.limits import read_json
from pyllm.server.log import note
from pyllm.server.sse import until_gone
from pyllm.server.state import ServerState, state_of


async def embeddings(request: Request) -> Response:
    """Vectors of texts."""
    state = state_of(request)
    embedder = state.embedder
    ask = EmbeddingAsk(await read_json(request, state.settings))
    try:
        found = await until_gone(request, _vectors(state, embedder, ask))
    except Exception as error:
        raise as_api_error(error, param="input", retry_after=state.settings.retry_after) from error
    note(request, prompt_tokens=found.usage.prompt_tokens)
    # Thousands of numbers become text: not in the loop that serves the streams.
    return await asyncio.to_thread(lambda: json_response(found.to_dict()))


async def rerank(request: Request) -> Response:
    """Documents by how well they answer a query."""
    state = state_of(request)
    embedder = state.embedder
    ask = RerankAsk(await read_json(request, state.settings))
    try:
        found = await until_gone(request, _ranks(state, embedder, ask))
    except Exception as error:
        raise as_api_error(error, param="documents", retry_after=state.settings.retry_after) from error
    results = [result.to_dict() for result in found]
    return json_response({"object": "list", "model": state.alias, "results": results})


async def _vectors(state: ServerState, embedder: EmbeddingMethods, ask: EmbeddingAsk) -> EmbeddingResponse:
    async with state.embedding:
        return await embedder.acreate_embedding(ask.inputs, model=state.alias, **ask.arguments)


async def _ranks(state: ServerState, embedder: EmbeddingMethods, ask: RerankAsk) -> list[RerankResult]:
    async with state.embedding:
        return await embedder.arerank(ask.query, ask.documents, **ask.arguments)


ROUTES = [
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/v1/rerank", rerank, methods=["POST"]),
    Route("/rerank", rerank, methods=["POST"]),
    Route("/reranking", rerank, methods=["POST"]),
]

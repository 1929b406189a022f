"""``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.server.errors import as_api_error
from pyllm.server.limits import read_json
from pyllm.server.messages.protocol import MessageAsk
from pyllm.server.messages.serving import count, serve
from pyllm.server.sse import until_gone
from pyllm.server.state import state_of


async def messages(request: Request) -> Response:
    """Answer a chat."""
    state = state_of(request)
    try:
        ask = MessageAsk(await read_json(request, state.settings), state.settings, state.sizes)
        return await until_gone(request, serve(request, state, ask))
    except Exception as error:
        return as_api_error(error, retry_after=state.settings.retry_after).response(request.scope)


async def count_tokens(request: Request) -> Response:
    """Count the tokens of a chat."""
    state = state_of(request)
    try:
        ask = MessageAsk(await read_json(request, state.settings), state.settings, state.sizes, counts=True)
        return await until_gone(request, count(state, ask))
    except Exception as error:
        return as_api_error(error, retry_after=state.settings.retry_after).response(request.scope)


ROUTES = [
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]

"""``/v1/responses``, and how many tokens one is asked with."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.server.chat.serving import count
from pyllm.server.limits import read_json
from pyllm.server.responses.protocol import ResponseAsk
from pyllm.server.responses.serving import serve
from pyllm.server.sse import until_gone
from pyllm.server.state import state_of


async def responses(request: Request) -> Response:
    """Answer a chat."""
    state = state_of(request)
    ask = ResponseAsk(await read_json(request, state.settings), state.settings, state.sizes)
    return await until_gone(request, serve(request, state, ask))


async def input_tokens(request: Request) -> Response:
    """Count the tokens of a chat."""
    state = state_of(request)
    ask = ResponseAsk(await read_json(request, state.settings), state.settings, state.sizes)
    return await until_gone(request, count(state, ask.messages, ask.arguments))


ROUTES = [
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/responses", responses, methods=["POST"]),
    Route("/v1/responses/input_tokens", input_tokens, methods=["POST"]),
    Route("/responses/input_tokens", input_tokens, methods=["POST"]),
]

"""``/v1/chat/completions``, and how many tokens a chat has."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.server.chat.protocol import ChatAsk
from pyllm.server.chat.serving import count, serve
from pyllm.server.limits import read_json
from pyllm.server.sse import until_gone
from pyllm.server.state import state_of


async def chat_completions(request: Request) -> Response:
    """Answer a chat."""
    state = state_of(request)
    ask = ChatAsk(await read_json(request, state.settings), state.settings, state.sizes)
    return await until_gone(request, serve(request, state, ask))


async def input_tokens(request: Request) -> Response:
    """Count the tokens of a chat."""
    state = state_of(request)
    ask = ChatAsk(await read_json(request, state.settings), state.settings, state.sizes)
    return await until_gone(request, count(state, ask.messages, ask.arguments))


ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/chat/completions/input_tokens", input_tokens, methods=["POST"]),
    Route("/chat/completions/input_tokens", input_tokens, methods=["POST"]),
]

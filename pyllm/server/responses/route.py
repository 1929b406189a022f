"""``/v1/responses``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

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


ROUTES = [Route("/v1/responses", responses, methods=["POST"])]

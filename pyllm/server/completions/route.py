"""``/v1/completions``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.server.completions.protocol import CompletionAsk
from pyllm.server.completions.serving import serve
from pyllm.server.limits import read_json
from pyllm.server.sse import until_gone
from pyllm.server.state import state_of


async def completions(request: Request) -> Response:
    """Go on with texts."""
    state = state_of(request)
    ask = CompletionAsk(await read_json(request, state.settings), state.settings, state.sizes)
    return await until_gone(request, serve(request, state, ask))


ROUTES = [Route("/v1/completions", completions, methods=["POST"])]

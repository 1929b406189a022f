"""``/completion``, ``/completions`` and ``/infill``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.server.fields import Fields
from pyllm.server.limits import read_json
from pyllm.server.native.infill import Infill, check_model
from pyllm.server.native.prompts import read_prompts
from pyllm.server.native.protocol import NativeAsk
from pyllm.server.native.serving import serve
from pyllm.server.sse import until_gone
from pyllm.server.state import state_of


async def completion(request: Request) -> Response:
    """Go on with texts."""
    state = state_of(request)
    body = await read_json(request, state.settings)
    prompts = read_prompts(Fields(body))
    ask = NativeAsk(body, state.settings, state.sizes, state.model.vocab)
    return await until_gone(request, serve(request, state, ask, prompts))


async def infill(request: Request) -> Response:
    """Write what belongs between two texts."""
    state = state_of(request)
    engine, body = state.engine, await read_json(request, state.settings)
    check_model(engine.vocab)
    wanted = Infill.read(Fields(body))
    ask = NativeAsk(body, state.settings, state.sizes, engine.vocab)
    n_ctx = engine.context.n_ctx_seq
    ids = wanted.ids(
        engine.vocab,
        # Something has to be left for the middle.
        n_batch=min(engine.context.n_batch, 3 * n_ctx // 4),
        n_ctx=n_ctx,
        n_predict=state.settings.max_tokens or 0,
        suffix_first=state.settings.spm_infill,
    )
    return await until_gone(request, serve(request, state, ask, [ids]))


ROUTES = [
    Route("/completion", completion, methods=["POST"]),
    Route("/completions", completion, methods=["POST"]),
    Route("/infill", infill, methods=["POST"]),
]

"""``/openapi.json``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.server.errors import json_response
from pyllm.server.openapi.document import make_document
from pyllm.server.state import state_of


async def openapi(request: Request) -> Response:
    """This description of the server, for programs."""
    settings = state_of(request).settings
    document = make_document(request.app.routes, keys=bool(settings.api_keys), prefix=settings.api_prefix)
    return json_response(document)


ROUTES = [Route("/openapi.json", openapi)]

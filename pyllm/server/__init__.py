"""An HTTP server that clients of OpenAI's API, and of llama-server, can talk to; needs the extra ``serve``.

    >>> from pyllm.engine import Engine
    >>> from pyllm.server import Settings, make_app
    >>> app = make_app(Engine("smollm2"), Settings(api_keys=("secret",)))

``app`` is an ASGI application for any server; ``pyllm serve`` runs it with uvicorn. Each endpoint has a folder:
``protocol`` reads what a request says, ``serving`` has the engine do it, ``route`` is its place in the application.
"""

from __future__ import annotations

from pyllm.server.app import make_app
from pyllm.server.errors import APIError
from pyllm.server.settings import Settings

__all__ = ["APIError", "Settings", "make_app"]

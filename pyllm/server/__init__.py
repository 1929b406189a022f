"""An HTTP server that clients of OpenAI's API, and of llama-server, can talk to; needs the extra ``serve``.

    >>> from pyllm.engine import Engine
    >>> from pyllm.server import Settings, make_app
    >>> app = make_app(Engine("smollm2"), Settings(api_keys=("secret",)))

``app`` is an ASGI application for any server; ``pyllm serve`` runs it with uvicorn. Each API is a module: its wire
types, which :mod:`pyllm.server.wire` decodes and describes; the conversion to what the engine takes; handlers and
routes.
"""

from __future__ import annotations

from pyllm.server.app import make_app
from pyllm.server.errors import APIError
from pyllm.server.settings import Settings

__all__ = ["APIError", "Settings", "make_app"]

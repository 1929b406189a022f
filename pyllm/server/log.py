"""A line of the log for each request, for people or for programs."""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyllm.server.auth import PUBLIC
from pyllm.server.errors import CLIENT_GONE, REQUEST_ID, as_api_error, speaks_anthropic
from pyllm.server.state import ServerState

if TYPE_CHECKING:
    from pyllm.server.pool import Models

_log = logging.getLogger("pyllm.server.access")
_KEY = "pyllm_log"
# Characters of a reason: a client has a say in it.
_MOST_REASON = 300


class LogMiddleware:
    """Logs each request when it has ended, counts it, and names it in ``X-Request-Id`` (Anthropic: ``request-id``).

    Args:
        app: What requests pass to.
        state: The server's.
    """

    def __init__(self, app: ASGIApp, state: ServerState | Models) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        details: dict[str, Any] = {}
        scope[_KEY] = details
        scope[REQUEST_ID] = request_id = f"req_{uuid.uuid4().hex}"
        names = ("X-Request-Id", "request-id") if speaks_anthropic(scope) else ("X-Request-Id",)

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                for name in names:
                    MutableHeaders(scope=message)[name] = request_id
            elif status >= 400 and "error" not in details and message.get("body"):
                details["error"] = _reason(message["body"])
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception as error:
            # A response that has begun cannot become another one.
            if status:
                raise
            await as_api_error(error).response(scope)(scope, receive, note)
        finally:
            # Only paths that exist: a label for each path that clients make up would fill the memory.
            path = scope["path"] if "endpoint" in scope and not scope.get("path_params") else "other"
            self.state.metrics.http_requests.labels(path, str(status or CLIENT_GONE)).inc()
            line = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status or CLIENT_GONE,
                "ms": round(1000 * (time.perf_counter() - started), 1),
                **details,
            }
            # What asks every second whether the server is there would fill the log.
            level = logging.DEBUG if scope["path"] in (*PUBLIC, "/metrics") else logging.INFO
            _log.log(level, "%s %s %s", line["method"], line["path"], line["status"], extra={"fields": line})


def _reason(body: bytes) -> str:
    """What the body of an error says, in any of the APIs' shapes."""
    try:
        found = json.loads(body)
    except ValueError:
        found = body.decode("utf-8", "replace")
    error = found.get("error", found) if isinstance(found, dict) else found
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:_MOST_REASON]


def note(request: Request, **details: Any) -> None:
    """Add something to the line of a request."""
    request.scope.setdefault(_KEY, {}).update(details)


class TextFormatter(logging.Formatter):
    """Lines for people: ``12:00:00 INFO POST /v1/completions 200 ms=12.3 …``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = dict(getattr(record, "fields", {}))
        for name in ("method", "path", "status"):
            fields.pop(name, None)
        rest = "".join(f" {name}={_shown(value)}" for name, value in fields.items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {record.levelname} {_one_line(record.getMessage())}{_one_line(rest)}"
        return text if record.exc_info is None else f"{text}\n{self.formatException(record.exc_info)}"


class JSONFormatter(logging.Formatter):
    """One JSON object in each line, with ``time``, ``level``, ``logger``, ``message`` and what is known besides."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up_log(*, as_json: bool, verbose: bool = False, file: Path | None = None, stderr: bool = True) -> None:
    """Write the log of the server to stderr; for programs, not for libraries.

    Args:
        as_json: Write JSON.
        verbose: Write also what is asked every second, and what uvicorn says.
        file: Write there, too.
        stderr: Write to stderr.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)] if stderr else [logging.NullHandler()]
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(JSONFormatter() if as_json else TextFormatter())
    for name, level in (("pyllm.server", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = handlers
        logger.setLevel(logging.DEBUG if verbose else level)
        logger.propagate = False


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and " " in value else str(value)


def _one_line(text: str) -> str:
    # Paths are what a client says: they must not look like other lines.
    return text.translate({code: f"\\x{code:02x}" for code in (*range(32), 127)})

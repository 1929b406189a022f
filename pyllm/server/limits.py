"""How much a client may send, and how long it may take to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from pyllm.server.errors import APIError, invalid
from pyllm.server.settings import Settings

# Where the object of a request is kept, when it was read to choose a model.
READ = "pyllm_read"
# Deeper JSON is not for models but for stacks.
_MOST_DEPTH = 200
_SMALL = 1 << 18


async def read_json(request: Request, settings: Settings) -> dict[str, Any]:
    """The JSON object that a request holds.

    Raises:
        APIError: It is too large (413), too slow (408), compressed (415), or no JSON object (400).
    """
    if READ in request.scope:
        return request.scope[READ]  # type: ignore[no-any-return]
    found = await read_value(request, settings)
    if not isinstance(found, dict):
        raise invalid(None, f"the body must be a JSON object, not {type(found).__name__}")
    return found


async def read_value(request: Request, settings: Settings) -> Any:
    """The JSON that a request holds, whatever it is.

    Raises:
        APIError: It is too large (413), too slow (408), compressed (415), or no JSON (400).
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise APIError(415, f"send the body as it is: content-encoding {encoding!r} is not read here")
    try:
        body = await asyncio.wait_for(_body(request, settings.max_body_bytes), settings.timeout)
    except TimeoutError:
        raise APIError(408, f"the request was not here after {settings.timeout:g} seconds") from None
    except ClientDisconnect:
        raise APIError(400, "the client went away before its request was here") from None
    try:
        # What is large takes a while, in which the loop shall go on.
        found, depth = _parsed(body) if len(body) < _SMALL else await asyncio.to_thread(_parsed, body)
    except (ValueError, RecursionError) as error:
        raise invalid(None, f"the body is not JSON: {error}") from None
    if depth > _MOST_DEPTH:
        raise invalid(None, f"the body has {depth} levels of arrays and objects; at most {_MOST_DEPTH} are read")
    return found


async def _body(request: Request, most: int) -> bytes:
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > most:
        raise _too_large(most)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


def _parsed(body: bytes) -> tuple[Any, int]:
    found = json.loads(body, parse_constant=_no_constant)
    return found, _depth(found)


def _too_large(most: int) -> APIError:
    # What is still on its way is not read: the connection cannot be used again.
    return APIError(
        413, f"the body is larger than {most} bytes", code="body_too_large", headers={"Connection": "close"}
    )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        level = [
            child
            for one in level
            if isinstance(one, (dict, list))
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        depth += bool(level)
    return depth

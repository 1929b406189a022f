"""How much a client may send, and how long it may take to."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from pyllm.server.errors import APIError, invalid
from pyllm.server.settings import Settings

# Where the object of a request is kept, when it was read to choose a model.
READ = "pyllm_read"
# Deeper JSON is not for models but for stacks.
_MOST_DEPTH = 200
# Smaller bodies are parsed in the event loop: that takes at most a few milliseconds.
_SMALL = 1 << 16
# Larger ones in one thread, one after another.
_parser = ThreadPoolExecutor(1, "pyllm json")
_NAMES = {list: "an array", str: "a text", bool: "true or false", int: "a number", float: "a number"}


async def read_json(request: Request, settings: Settings) -> dict[str, Any]:
    """The JSON object that a request holds.

    Raises:
        APIError: It is too large (413), too slow (408), compressed (415), or no JSON object (400).
    """
    if READ in request.scope:
        return request.scope[READ]  # type: ignore[no-any-return]
    found = await read_value(request, settings)
    if not isinstance(found, dict):
        raise invalid(None, f"the body must be a JSON object, not {_NAMES.get(type(found), 'null')}")
    return found


async def read_value(request: Request, settings: Settings) -> Any:
    """The JSON value in the body of a request.

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
        if len(body) < _SMALL:
            found, depth = _parsed(body)
        else:
            found, depth = await asyncio.get_running_loop().run_in_executor(_parser, _parsed, body)
    except RecursionError:
        depth = None
    except ValueError as error:
        raise invalid(None, _explained(error)) from None
    if depth is None or depth > _MOST_DEPTH:
        raise invalid(None, f"the body has too many levels of arrays and objects; at most {_MOST_DEPTH} are read")
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
    """What a body holds, and a bound on its depth."""
    n_containers = body.count(b"[") + body.count(b"{")
    found = _quickly_parsed(body) if len(body) >= _SMALL else None
    if found is None:
        found = _decoder().decode(body.decode(json.detect_encoding(body)).removeprefix("\ufeff"))
    return found, n_containers if n_containers <= _MOST_DEPTH else _depth(found)


def _quickly_parsed(body: bytes) -> Any:
    """What a body holds; None where the usual parser has to look, which takes more JSON and explains what is wrong.

    Parsers in C hold the GIL from beginning to end, and running streams wait for them. This one needs a fraction of the
    time, of which the collector of garbage would take the larger part where there are many arrays.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    finally:
        if collects:
            gc.enable()


@functools.cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_constant=_no_constant)


def _explained(error: ValueError) -> str:
    """What is wrong with a body."""
    if isinstance(error, json.JSONDecodeError):
        what = error.msg[:1].lower() + error.msg[1:]
        return f"the body is not JSON: {what} at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"the body is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}"
    if isinstance(error, _ConstantError):
        return f"the body is not JSON: {error}"
    return "the body is not JSON: a number in it has too many digits"


class _ConstantError(ValueError):
    """NaN or an infinity, which Python's parser would take."""


def _too_large(most: int) -> APIError:
    # What is still on its way is not read: the connection cannot be used again.
    return APIError(
        413, f"the body is larger than {most} bytes", code="body_too_large", headers={"Connection": "close"}
    )


def _no_constant(name: str) -> float:
    raise _ConstantError(f"{name} is no number of JSON")


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

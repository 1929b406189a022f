"""Errors as clients get them: in the shape of the API that they speak, with the parameter that was wrong."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from pyllm.engine import QueueFullError
from pyllm.errors import (
    ChatTemplateError,
    ClosedError,
    EmbeddingError,
    GrammarError,
    InvalidArgumentError,
    PromptTooLongError,
    PyllmError,
    TokenizeError,
    UnknownArgumentError,
)

# Where a request finds the name that its line in the log has.
REQUEST_ID = "pyllm_request_id"
# OpenAI's code for what has more tokens than there is room for.
TOO_LONG = "context_length_exceeded"
# For the log only; nginx's number.
CLIENT_GONE = 499

_log = logging.getLogger("pyllm.server")

# Errors of the request; all others are the server's.
_THEIRS = (
    InvalidArgumentError,
    UnknownArgumentError,
    GrammarError,
    ChatTemplateError,
    TokenizeError,
    EmbeddingError,
    UnicodeError,
)
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# What Python calls differently than JSON does, outside of quotation marks and of advice such as name=False.
_PYTHON = re.compile(
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[\[\]{}]|a Python function or (?={)|"""
    r"(?<![=\w])(?:None|True|False|a dict|dicts?|tuples?)\b"
)
_JSON_WORDS = {
    "a Python function or ": "",
    "None": "null",
    "True": "true",
    "False": "false",
    "a dict": "an object",
    "dict": "object",
    "dicts": "objects",
    "tuple": "array",
    "tuples": "arrays",
}


class APIError(Exception):
    """An error as the client gets it.

    Args:
        status: The HTTP status.
        message: What was wrong, and what would be right.
        param: The name of the parameter that was wrong.
        code: A word for programs.
        kind: OpenAI's name for this sort of error. None: the one that fits the status.
        headers: Headers of the response.
        numbers: Numbers for programs, by their names.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: dict[str, str] | None = None,
        numbers: dict[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = _in_words_of_json(message)
        self.param = param
        self.code = code
        self.kind = kind or _kind(status)
        self.headers = headers or {}
        self.numbers = numbers or {}

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error | self.numbers}

    def to_anthropic(self, scope: Scope) -> dict[str, Any]:
        """In the shape of Anthropic's API.

        Args:
            scope: The request, whose name in the log is in the answer.
        """
        message = self.message
        if self.code == TOO_LONG and "n_ctx" in self.numbers:
            # Programs that shorten their chat by themselves look for these words.
            n_prompt, n_ctx = self.numbers["n_prompt_tokens"], self.numbers["n_ctx"]
            message = f"prompt is too long: {n_prompt} tokens > {n_ctx} maximum; {message}"
        kind = _ANTHROPIC_KINDS.get(self.status) or ("invalid_request_error" if self.status < 500 else "api_error")
        answer: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
        return answer | ({"request_id": scope[REQUEST_ID]} if REQUEST_ID in scope else {})

    def response(self, scope: Scope) -> Response:
        """As a response to a request, in the shape of the API that it speaks."""
        shaped = self.to_anthropic(scope) if speaks_anthropic(scope) else self.to_dict()
        return json_response(shaped, self.status, self.headers)


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request is one to Anthropic's API: by its path, or by the header that this API has alone."""
    path: str = scope["path"]
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return True
    return any(name == b"anthropic-version" for name, _ in scope.get("headers", ()))


def invalid(param: str | None, message: str, *, code: str | None = None) -> APIError:
    """A parameter is wrong."""
    return APIError(400, message, param=param, code=code)


def too_long(n_prompt: int, n_ctx: int, param: str | None) -> APIError:
    """A prompt does not fit: with OpenAI's code, and llama-server's type and numbers."""
    return APIError(
        400,
        f"the prompt has {n_prompt} tokens, which exceeds the available context size of {n_ctx} tokens; shorten it, "
        "or start the server with a larger -c",
        param=param,
        code=TOO_LONG,
        kind="exceed_context_size_error",
        numbers={"n_prompt_tokens": n_prompt, "n_ctx": n_ctx},
    )


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of JSON."""
    return Response(to_json(content), status, headers, "application/json")


def to_json(content: Any) -> bytes:
    """JSON without blanks. Numbers that JSON lacks, such as the log-probability of what cannot be, become -9999."""
    try:
        return _dumps(content)
    except ValueError:
        return _dumps(_finite(content))


def as_api_error(error: BaseException, *, param: str | None = None, retry_after: int = 5) -> APIError:
    """The error that a client gets for an exception.

    Args:
        error: The exception.
        param: The parameter it came from, where the exception names none.
        retry_after: Seconds after which to come again when the queue is full.
    """
    if isinstance(error, APIError):
        return error
    if isinstance(error, QueueFullError):
        message = f"{_text(error)}; try again later"
        return APIError(429, message, code="queue_full", headers={"Retry-After": str(retry_after)})
    if isinstance(error, ClosedError):
        return unavailable("the server is shutting down", retry_after)
    if isinstance(error, _THEIRS):
        text = _text(error)
        if isinstance(error, GrammarError):
            return invalid("grammar", text)
        if isinstance(error, PromptTooLongError):
            return too_long(error.n_tokens, error.n_ctx, param)
        return invalid(getattr(error, "param", None) or param, text)
    _log.error("a request failed", exc_info=(type(error), error, error.__traceback__))
    # Details of the server's own errors are for the log only.
    kind = type(error).__name__ if isinstance(error, PyllmError) else "internal error"
    return APIError(500, f"the server could not do that ({kind}); its log says more", code="internal_error")


def unavailable(message: str, retry_after: int) -> APIError:
    """No request is served now (503)."""
    return APIError(503, message, code="unavailable", headers={"Retry-After": str(retry_after)})


async def on_api_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of all exceptions that endpoints raise."""
    return as_api_error(error).response(request.scope)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of what its routes refuse."""
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        message = f"there is no {request.url.path} here"
    elif error.status_code == 405:
        message = f"{request.url.path} takes no {request.method}"
    return APIError(error.status_code, message, headers=dict(error.headers or {})).response(request.scope)


HANDLERS: dict[Any, Callable[..., Any]] = {
    APIError: on_api_error,
    PyllmError: on_api_error,
    HTTPException: on_http_error,
}


def _in_words_of_json(text: str) -> str:
    """A message of the library, for clients that may know no Python."""
    depth = 0

    def in_json(match: re.Match[str]) -> str:
        nonlocal depth
        found = match[0]
        depth += (found in ("{", "[")) - (found in ("}", "]") and depth > 0)
        if depth and found[0] == "'":  # of an object or an array; other quotation marks belong to the sentence
            return '"' + found[1:-1].replace('"', '\\"') + '"'
        return _JSON_WORDS.get(found, found)

    return _PYTHON.sub(in_json, text)


def _kind(status: int) -> str:
    if status in (401, 403):
        return "authentication_error"
    if status == 404:
        return "not_found_error"
    if status == 429:
        return "rate_limit_error"
    if status == 501:
        return "not_supported_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _text(error: BaseException) -> str:
    if isinstance(error, PyllmError):
        return error.message  # str() of the error has llama.cpp's log below it
    return str(error.args[0]) if error.args else type(error).__name__


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _dumps(content: Any) -> bytes:
    return _JSON.encode(content).encode("utf-8", "replace")


def _finite(content: Any) -> Any:
    if isinstance(content, float) and content - content != 0:
        return -9999.0 if content < 0 else 9999.0 if content > 0 else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, (list, tuple)) else content

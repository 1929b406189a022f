"""Settings of the operator of a server."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyllm.chat.templates import check_template
from pyllm.errors import InvalidArgumentError
from pyllm.params import SamplingParams
from pyllm.processors.base import LogitsProcessor


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a server.

    Attributes:
        alias: The name of the model in answers. None: the name of its file.
        aliases: Further names of the model, which requests may use.
        tags: What ``/v1/models`` says about the model, for clients to choose by.
        api_keys: Requests need one of these keys. Empty: they need none.
        metrics: Whether there is ``/metrics``.
        timeout: Seconds that a client may take to send its request, and to take a piece of an answer.
        ping_interval: Seconds without an event after which a stream sends a comment, so that proxies keep it open.
            0: never.
        max_body_bytes: Most bytes of a request.
        head_timeout: Seconds that a connection may stay without a request; the head of one has to be here by then.
        max_connections: Most connections at once; more are told to come again.
        max_tokens: Most tokens of a text. None: as many as the context holds.
        retry_after: Seconds after which a client is told to come again when the queue is full.
        drain_timeout: Seconds that running requests have to end when the server is told to stop.
        allowed_hosts: Names under which the server may be asked, beside addresses and "localhost"; ".example.org" is
            all below it, "*" any. None: any, but where the server is bound to this machine and has no key, only the
            names that it is bound to.
        cors_origins: Web pages from these origins may ask, such as "https://example.org"; "localhost" is
            every page of this machine, "*" is every page.
        cors_methods: Methods that these pages may use.
        cors_headers: Headers that they may send; "*" is any.
        cors_credentials: Whether browsers send cookies and the like along.
        chat_template: Another chat template than that of the model; Jinja source, or
            a name that llama.cpp knows, such as "llama3".
        chat: Arguments of chat completions where a request has none, such as ``reasoning_format``.
        api_prefix: What all paths begin with, such as "/llm".
        page: Whether there is a page for people at ``/``.
        props: Whether ``/props`` takes POST.
        sampling: Parameters of sampling where a request names none: fields of :class:`pyllm.SamplingParams`.
        slots: Whether there is ``/slots``.
        slot_prompts: Whether ``/slots`` shows the texts of running requests.
        slot_save_path: The folder where ``/slots/{id}`` saves what slots hold. None: it does not.
        verbose: Whether answers have ``__verbose``, with the prompt and the settings as they were.
        logits_processors: Functions that make the logits processors of each text; see
            :func:`pyllm.processors.named.named_processor`.
        spm_infill: Put the suffix before the prefix when ``/infill`` is asked, for models that were trained so.

    Raises:
        InvalidArgumentError: A value is out of range.
        ChatTemplateError: The chat template cannot be read.
    """

    alias: str | None = None
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    metrics: bool = False
    timeout: float = 3600
    ping_interval: float = 30
    max_body_bytes: int = 32 << 20
    head_timeout: float = 30
    max_connections: int = 1000
    max_tokens: int | None = None
    retry_after: int = 5
    drain_timeout: float = 30
    allowed_hosts: tuple[str, ...] | None = None
    cors_origins: tuple[str, ...] = ()
    cors_methods: tuple[str, ...] = ("GET", "POST", "DELETE", "OPTIONS")
    cors_headers: tuple[str, ...] = ("*",)
    cors_credentials: bool = False
    chat_template: str | None = None
    chat: Mapping[str, Any] = field(default_factory=dict)
    api_prefix: str = ""
    page: bool = True
    props: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    logits_processors: tuple[Callable[[], LogitsProcessor], ...] = ()
    spm_infill: bool = False
    verbose: bool = False
    slots: bool = True
    slot_prompts: bool = False
    slot_save_path: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.api_keys, str):
            raise InvalidArgumentError("api_keys must be several texts, not one: write (key,)")
        for key in self.api_keys:
            if not key or key != key.strip() or not key.isascii() or not key.isprintable():
                raise InvalidArgumentError("an API key must be printable ASCII characters without blanks around them")
        for name in ("timeout", "max_body_bytes", "head_timeout", "max_connections", "retry_after"):
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(f"{name} must be greater than 0, not {getattr(self, name)!r}")
        for name in ("ping_interval", "drain_timeout"):
            if not getattr(self, name) >= 0:
                raise InvalidArgumentError(f"{name} must be at least 0, not {getattr(self, name)!r}")
        SamplingParams(**self.sampling)  # its errors are raised now
        if self.chat_template is not None:
            check_template(self.chat_template)
        if self.api_prefix and (self.api_prefix[0] != "/" or self.api_prefix[-1] == "/"):
            raise InvalidArgumentError(f"api_prefix must begin with a slash and not end with one: {self.api_prefix!r}")
        if self.slot_save_path is not None and not os.path.isdir(self.slot_save_path):
            raise InvalidArgumentError(f"slot_save_path must be a folder that is there, not {self.slot_save_path!r}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidArgumentError(f"max_tokens must be at least 1, or None, not {self.max_tokens!r}")

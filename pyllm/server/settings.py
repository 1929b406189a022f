"""What the one who runs a server decides."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from pyllm.errors import InvalidArgumentError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a server.

    Attributes:
        alias: The name of the model in answers. None: the name of its file.
        api_keys: Whoever sends one of these may ask. None of them: everybody may.
        metrics: Whether there is ``/metrics``.
        timeout: Seconds that a client may take to send its request, and to take a piece of an answer.
        ping_interval: Seconds without anything to send after which a stream sends a comment, so that nobody on the
            way takes it for dead. 0: never.
        max_body_bytes: Most bytes of a request.
        max_tokens: Most tokens of a text. None: as many as the context holds.
        retry_after: Seconds after which a client is told to come again when the queue is full.
        drain_timeout: Seconds that running requests have to end when the server is told to stop.
        cors_origins: Web pages from these origins may ask, such as "https://example.org"; "*" is every page.
        chat_template: Another chat template than that of the model; Jinja source, or "chatml".

    Raises:
        InvalidArgumentError: A value is out of range.
    """

    alias: str | None = None
    api_keys: tuple[str, ...] = ()
    metrics: bool = False
    timeout: float = 3600
    ping_interval: float = 30
    max_body_bytes: int = 32 << 20
    max_tokens: int | None = None
    retry_after: int = 5
    drain_timeout: float = 30
    cors_origins: tuple[str, ...] = ()
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.api_keys, str):
            raise InvalidArgumentError("api_keys must be several texts, not one: write (key,)")
        for key in self.api_keys:
            if not key or key != key.strip() or not key.isascii() or not key.isprintable():
                raise InvalidArgumentError("an API key must be printable ASCII characters without blanks around them")
        for name, low in (("timeout", 0), ("max_body_bytes", 0), ("retry_after", 0)):
            if not getattr(self, name) > low:
                raise InvalidArgumentError(f"{name} must be greater than {low}, not {getattr(self, name)!r}")
        for name in ("ping_interval", "drain_timeout"):
            if not getattr(self, name) >= 0:
                raise InvalidArgumentError(f"{name} must be at least 0, not {getattr(self, name)!r}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidArgumentError(f"max_tokens must be at least 1, or None, not {self.max_tokens!r}")


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server at this address."""
    if host.lower() == "localhost" or host.endswith(".sock"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

"""Flags of ``pyllm serve``: how it is reached, where it writes, and how it chats."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

_HTTP = "HTTP and log"
_CHAT = "Chat"


def _http(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_HTTP, **settings)


def _chat(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_CHAT, **settings)


@dataclass(frozen=True, kw_only=True)
class HTTPOptions:
    """How the server is reached, and where it writes."""

    api_prefix: Annotated[
        str | None,
        _http("--api-prefix", envvar="LLAMA_ARG_API_PREFIX", metavar="PATH", help="All paths begin with this."),
    ] = None
    ssl_key_file: Annotated[
        Path | None,
        _http("--ssl-key-file", envvar="LLAMA_ARG_SSL_KEY_FILE", metavar="FILE", help="A private key, PEM."),
    ] = None
    ssl_cert_file: Annotated[
        Path | None,
        _http("--ssl-cert-file", envvar="LLAMA_ARG_SSL_CERT_FILE", metavar="FILE", help="Its certificate, PEM: HTTPS."),
    ] = None
    reuse_port: Annotated[
        bool, _http("--reuse-port", envvar="LLAMA_ARG_REUSE_PORT", help="Let other processes listen at the same port.")
    ] = False
    allowed_hosts: Annotated[
        str | None,
        _http(
            "--allowed-hosts",
            envvar="PYLLM_ALLOWED_HOSTS",
            metavar="NAMES",
            help="Names in requests' Host header beside localhost and addresses; several: with commas; .example.org: "
            "all below it; * is any. Default: any, but only --host's own on loopback without a key.",
        ),
    ] = None
    cors_origins: Annotated[
        str | None,
        _http(
            "--cors-origins",
            envvar="LLAMA_ARG_CORS_ORIGINS",
            metavar="ORIGINS",
            help="Web pages from there may ask; several: with commas; localhost: all of this machine; * is all.",
        ),
    ] = None
    cors_methods: Annotated[
        str | None,
        _http(
            "--cors-methods",
            envvar="LLAMA_ARG_CORS_METHODS",
            metavar="METHODS",
            help="Methods that they may use. Default: GET, POST, DELETE, OPTIONS.",
        ),
    ] = None
    cors_headers: Annotated[
        str | None,
        _http(
            "--cors-headers",
            envvar="LLAMA_ARG_CORS_HEADERS",
            metavar="HEADERS",
            help="Headers that they may send. Default: *.",
        ),
    ] = None
    cors_credentials: Annotated[
        bool,
        _http(
            "--cors-credentials/--no-cors-credentials",
            envvar="LLAMA_ARG_CORS_CREDENTIALS",
            help="Let browsers send cookies along.",
        ),
    ] = False
    log_file: Annotated[
        Path | None, _http("--log-file", envvar="LLAMA_ARG_LOG_FILE", metavar="FILE", help="Log there, too.")
    ] = None
    log_disable: Annotated[bool, _http("--log-disable", help="Log nothing on stderr.")] = False

    def config(self) -> dict[str, Any]:
        """Settings of uvicorn."""
        if (self.ssl_key_file is None) != (self.ssl_cert_file is None):
            raise typer.BadParameter("HTTPS needs both --ssl-key-file and --ssl-cert-file")
        result: dict[str, Any] = {}
        for name, path in (("ssl_keyfile", self.ssl_key_file), ("ssl_certfile", self.ssl_cert_file)):
            if path is not None:
                if not path.is_file():
                    raise typer.BadParameter(f"there is no file {path}")
                result[name] = str(path)
        return result

    def settings(self) -> dict[str, Any]:
        """Fields of :class:`pyllm.server.Settings`; what was not given is not among them."""
        values: dict[str, Any] = {
            "allowed_hosts": _names(self.allowed_hosts),
            "cors_origins": _names(self.cors_origins),
            "cors_methods": _names(self.cors_methods),
            "cors_headers": _names(self.cors_headers),
        }
        given = {name: value for name, value in values.items() if value is not None}
        return given | {"cors_credentials": self.cors_credentials, "api_prefix": self.prefix()}

    def prefix(self) -> str:
        """What all paths begin with, or nothing."""
        prefix = (self.api_prefix or "").rstrip("/")
        if prefix and not prefix.startswith("/"):
            raise typer.BadParameter(f"--api-prefix must begin with a slash, not {prefix!r}")
        return prefix


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(one.strip() for one in text.split(",") if one.strip())


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What chats are made with where a request says nothing."""

    reasoning_format: Annotated[
        str | None,
        _chat("--reasoning-format", envvar="LLAMA_ARG_THINK", help="Where thoughts go: auto, none, deepseek."),
    ] = None
    reasoning: Annotated[
        str | None, _chat("--reasoning", "-rea", envvar="LLAMA_ARG_REASONING", help="Let models think: on, off, auto.")
    ] = None
    reasoning_effort: Annotated[
        str | None, _chat("--reasoning-effort", envvar="LLAMA_ARG_REASONING_EFFORT", help="How much, for the template.")
    ] = None
    reasoning_budget: Annotated[
        int | None,
        _chat("--reasoning-budget", envvar="LLAMA_ARG_THINK_BUDGET", min=-1, help="Most tokens of thoughts; -1: any."),
    ] = None
    chat_template_kwargs: Annotated[
        str | None,
        _chat(
            "--chat-template-kwargs",
            envvar="LLAMA_ARG_CHAT_TEMPLATE_KWARGS",
            metavar="JSON",
            help="Variables for the template.",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Arguments of a chat completion; what was not given is not among them."""
        result: dict[str, Any] = {}
        if self.reasoning_format is not None:
            result["reasoning_format"] = self.reasoning_format
        if self.reasoning not in (None, "on", "off", "auto"):
            raise typer.BadParameter(f"--reasoning takes on, off or auto, not {self.reasoning!r}")
        if self.reasoning in ("on", "off"):
            result["enable_thinking"] = self.reasoning == "on"
        if self.reasoning_budget is not None and self.reasoning_budget >= 0:
            result["reasoning_budget"] = self.reasoning_budget
        kwargs = self._kwargs()
        if self.reasoning_effort not in (None, "default"):
            kwargs = {"reasoning_effort": self.reasoning_effort, **kwargs}
        if kwargs:
            result["chat_template_kwargs"] = kwargs
        return result

    def _kwargs(self) -> dict[str, Any]:
        if self.chat_template_kwargs is None:
            return {}
        try:
            found = json.loads(self.chat_template_kwargs)
        except ValueError as error:
            raise typer.BadParameter(f"--chat-template-kwargs is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise typer.BadParameter(f"--chat-template-kwargs must be a JSON object, not {self.chat_template_kwargs!r}")
        return found

"""Flags of ``pyllm serve``: those of the server itself, and those of each model that it serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pyllm.cli.options import read_text
from pyllm.cli.serve_models import parse_bytes

# The verbosity of llama-server from which on it logs what pyllm does under --verbose.
_VERBOSE = 4
SERVER_PANEL = "Server"
_LIMITS = "Limits"
_SEVERAL = "Several models"


def _server(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=SERVER_PANEL, **settings)


def _several(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_SEVERAL, **settings)


def _limit(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_LIMITS, **settings)


def _show_version(wanted: bool) -> None:
    if wanted:
        from pyllm.version import __version__

        print(f"pyllm {__version__}")
        raise typer.Exit


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of the server itself. The table of a model in a config file has none of them."""

    models_max: Annotated[
        int, _several("--models-max", envvar="LLAMA_ARG_MODELS_MAX", min=0, help="Models in memory at once; 0: any.")
    ] = 4
    models_dir: Annotated[
        Path | None,
        _several("--models-dir", envvar="LLAMA_ARG_MODELS_DIR", metavar="FOLDER", help="All models in this folder."),
    ] = None
    models_autoload: Annotated[
        bool,
        _several(
            "--models-autoload/--no-models-autoload",
            envvar="LLAMA_ARG_MODELS_AUTOLOAD",
            help="Whether requests load their models.",
        ),
    ] = True
    memory_budget: Annotated[
        str | None,
        _several("--memory-budget", metavar="SIZE", help="Memory of all models, such as 8GiB. Default: what is free."),
    ] = None
    model_timeout: Annotated[
        float, _several("--model-timeout", min=1, help="Seconds that a request waits for its model to be loaded.")
    ] = 300
    alias: Annotated[
        str | None,
        _server(
            "--alias",
            "-a",
            envvar="LLAMA_ARG_ALIAS",
            help="The name of the model in answers; further ones, with commas, name it in requests. Default: its alias "
            "or reference, or the name of its file.",
        ),
    ] = None
    host: Annotated[
        str,
        _server(
            "--host",
            envvar="LLAMA_ARG_HOST",
            help="The address to listen at; several: with commas; or a path that ends in .sock.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, _server("--port", envvar="LLAMA_ARG_PORT", min=0, max=65535, help="The port; 0: one that is free.")
    ] = 8080
    api_key: Annotated[
        list[str] | None,
        _server("--api-key", envvar="LLAMA_API_KEY", metavar="KEY", help="Who sends it may ask; several: with commas."),
    ] = None
    api_key_file: Annotated[
        Path | None,
        _server("--api-key-file", envvar="LLAMA_ARG_API_KEY_FILE", metavar="FILE", help="A file with a key per line."),
    ] = None
    metrics: Annotated[
        bool, _server("--metrics", envvar="LLAMA_ARG_ENDPOINT_METRICS", help="Serve /metrics for Prometheus.")
    ] = False
    page: Annotated[
        bool, _server("--ui/--no-ui", "--webui/--no-webui", envvar="LLAMA_ARG_UI", help="Serve a page for people at /.")
    ] = True
    props: Annotated[bool, _server("--props", envvar="LLAMA_ARG_ENDPOINT_PROPS", help="Let /props take POST.")] = False
    slots: Annotated[
        bool, _server("--slots/--no-slots", envvar="LLAMA_ARG_ENDPOINT_SLOTS", help="Tell at /slots what is computed.")
    ] = True
    slot_save_path: Annotated[
        Path | None, _server("--slot-save-path", metavar="FOLDER", help="Where /slots/{id} saves what slots hold.")
    ] = None
    log_json: Annotated[
        bool, _server("--log-jsonl/--no-log-jsonl", envvar="LLAMA_ARG_LOG_JSONL", help="Log one JSON object per line.")
    ] = False
    max_connections: Annotated[int, _limit("--max-connections", min=1, help="Most connections at once; then 503.")] = (
        1000
    )
    head_timeout: Annotated[
        float, _limit("--head-timeout", min=0.1, help="Seconds that a connection may stay without a request.")
    ] = 30
    max_body: Annotated[int, _limit("--max-body", min=1, help="Most bytes of a request.")] = 32 << 20
    timeout: Annotated[
        float, _limit("--timeout", "-to", envvar="LLAMA_ARG_TIMEOUT", min=1, help="Seconds to read or write something.")
    ] = 3600
    sse_ping_interval: Annotated[
        float,
        _limit("--sse-ping-interval", envvar="LLAMA_ARG_SSE_PING_INTERVAL", help="Seconds between signs of life."),
    ] = 30
    shutdown_timeout: Annotated[
        float, _limit("--shutdown-timeout", min=0, help="Seconds that running requests have when it is told to stop.")
    ] = 30
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download a missing model without asking.")] = False
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", "--log-verbose", help="Show llama.cpp's log on stderr, and __verbose in answers."
        ),
    ] = False
    verbosity: Annotated[
        int,
        typer.Option(
            "--verbosity",
            "-lv",
            "--log-verbosity",
            envvar="LLAMA_ARG_LOG_VERBOSITY",
            help="llama-server's number: from 4 on as --verbose.",
        ),
    ] = 3
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False

    @property
    def tells_all(self) -> bool:
        """Whether the server shows llama.cpp's log, and answers have ``__verbose``."""
        return self.verbose or self.verbosity >= _VERBOSE

    def names(self) -> list[str]:
        """The names of the model."""
        return _items(self.alias)

    def hosts(self) -> list[str]:
        """The addresses to listen at."""
        hosts = _items(self.host)
        if not hosts:
            raise typer.BadParameter("--host is empty: give an address, such as 127.0.0.1")
        return hosts

    def settings(self) -> dict[str, Any]:
        """Fields of :class:`pyllm.server.Settings`."""
        return {
            "api_keys": _keys(self.api_key or [], self.api_key_file),
            "metrics": self.metrics,
            "timeout": self.timeout,
            "ping_interval": max(0.0, self.sse_ping_interval),
            "max_body_bytes": self.max_body,
            "max_connections": self.max_connections,
            "head_timeout": self.head_timeout,
            "drain_timeout": self.shutdown_timeout,
            "verbose": self.tells_all,
            "page": self.page,
            "props": self.props,
            "slots": self.slots,
            "slot_save_path": None if self.slot_save_path is None else str(self.slot_save_path),
        }

    def pool(self) -> dict[str, Any]:
        """Arguments of :class:`pyllm.server.pool.Models`."""
        return {
            "n_bytes": None if self.memory_budget is None else parse_bytes(self.memory_budget, "--memory-budget"),
            "n_models": self.models_max or None,
            "autoload": self.models_autoload,
            "timeout": self.model_timeout,
        }


@dataclass(frozen=True, kw_only=True)
class ServedModelOptions:
    """Options of a served model. The table of a model in a config file may have them."""

    tags: Annotated[
        str | None,
        _server("--tags", envvar="LLAMA_ARG_TAGS", help="Tags of the model in /v1/models; several: with commas."),
    ] = None
    embeddings: Annotated[
        bool,
        _server("--embedding", "--embeddings", envvar="LLAMA_ARG_EMBEDDINGS", help="Serve vectors of texts as well."),
    ] = False
    chat_template: Annotated[
        str | None,
        _server(
            "--chat-template",
            envvar="LLAMA_ARG_CHAT_TEMPLATE",
            help="Another chat template: Jinja, or a name that llama.cpp knows.",
        ),
    ] = None
    chat_template_file: Annotated[
        Path | None,
        _server("--chat-template-file", envvar="LLAMA_ARG_CHAT_TEMPLATE_FILE", metavar="FILE", help="Its file."),
    ] = None
    logits_processor: Annotated[
        list[str] | None,
        _server(
            "--logits-processor",
            metavar="MODULE:NAME",
            help="A logits processor in Python for each text; several: run in this order.",
        ),
    ] = None
    spm_infill: Annotated[bool, _server("--spm-infill", help="For /infill, put the suffix before the prefix.")] = False
    slot_prompts: Annotated[
        bool, _server("--slot-prompts", envvar="LLAMA_SERVER_SLOTS_DEBUG", help="Tell the texts there, too.")
    ] = False
    lora_init_without_apply: Annotated[
        bool, _server("--lora-init-without-apply", help="Load adapters, and use them only where it is asked for.")
    ] = False
    parallel: Annotated[
        int, _limit("--parallel", "-np", envvar="LLAMA_ARG_N_PARALLEL", min=1, help="Texts computed at once.")
    ] = 8
    predict: Annotated[
        int,
        _limit(
            "--predict",
            "-n",
            "--n-predict",
            envvar="LLAMA_ARG_N_PREDICT",
            min=-1,
            help="Most tokens of a text.",
        ),
    ] = -1
    cache_prompt: Annotated[
        bool,
        _limit(
            "--cache-prompt/--no-cache-prompt", envvar="LLAMA_ARG_CACHE_PROMPT", help="Share what prompts have alike."
        ),
    ] = True
    cache_ram: Annotated[
        int | None,
        _limit(
            "--cache-ram",
            "-cram",
            envvar="LLAMA_ARG_CACHE_RAM",
            min=-1,
            metavar="MiB",
            help="Host memory for texts that had to leave the KV cache; 0: none, -1: any. Default: 1/8 of the free.",
        ),
    ] = None
    kv_unified: Annotated[
        bool,
        _limit(
            "--kv-unified/--no-kv-unified",
            "-kvu/-no-kvu",
            envvar="LLAMA_ARG_KV_UNIFIED",
            help="One KV cache, which any text may fill; else each has its part.",
        ),
    ] = False
    target_ms: Annotated[
        float | None, _limit("--target-ms", min=0, help="How long running texts may wait while prompts are read.")
    ] = None
    max_queued: Annotated[int | None, _limit("--max-queued", min=0, help="Most requests that wait; then 429.")] = 256
    max_queued_tokens: Annotated[
        int | None, _limit("--max-queued-tokens", min=0, help="Most tokens of prompts that wait; then 429.")
    ] = None

    def settings(self) -> dict[str, Any]:
        """Fields of :class:`pyllm.server.Settings`."""
        from pyllm.processors.named import named_processor

        template = self.chat_template
        if self.chat_template_file is not None:
            template = read_text(self.chat_template_file, "--chat-template-file")
        return {
            "max_tokens": None if self.predict == -1 else self.predict,
            "chat_template": template,
            "logits_processors": tuple(named_processor(name) for name in self.logits_processor or []),
            "spm_infill": self.spm_infill,
            "slot_prompts": self.slot_prompts,
            "tags": tuple(_items(self.tags)),
        }

    def engine(self) -> dict[str, Any]:
        """Arguments of :class:`pyllm.engine.Engine`; what was not given is not among them."""
        result: dict[str, Any] = {
            "n_parallel": self.parallel,
            "target_ms": self.target_ms or None,
            "max_queued": self.max_queued,
            "max_queued_tokens": self.max_queued_tokens,
            "cache_prompt": self.cache_prompt,
            "kv_unified": self.kv_unified,
        }
        if self.cache_ram is not None:
            result["host_cache_bytes"] = 1 << 62 if self.cache_ram < 0 else self.cache_ram << 20
        return result


def _items(text: str | None) -> list[str]:
    """The items of a list with commas, without empty ones."""
    return [one.strip() for one in (text or "").split(",") if one.strip()]


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    texts = [key for text in given for key in text.split(",")]
    if file is not None:
        texts += [line for line in read_text(file, "--api-key-file").splitlines() if not line.startswith("#")]
    keys = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not keys and (given or file is not None):
        # An empty list of keys must not open the server to all.
        where = "--api-key" if file is None else f"--api-key-file: {file}"
        raise typer.BadParameter(f"{where} has no key in it; leave it out if no key is needed")
    return keys

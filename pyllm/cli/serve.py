"""``pyllm serve``."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyllm.cli.config import use_config
from pyllm.cli.http_options import ChatOptions, HTTPOptions
from pyllm.cli.llama_server_flags import AcceptedOptions
from pyllm.cli.loading_options import LoadingOptions
from pyllm.cli.models import find_companions, find_model
from pyllm.cli.options import ModelOptions, SamplingOptions, read_text, sampling_variables, with_options
from pyllm.cli.output import note, set_verbose
from pyllm.cli.serve_models import FetchOptions, WantedModel, parse_bytes, wanted_models
from pyllm.cli.speculation import SpeculationOptions
from pyllm.extras import install_command

if TYPE_CHECKING:
    from socket import socket

    from pyllm.server import Settings
    from pyllm.server.loader import ModelSpec
    from pyllm.server.pool import Models

# The verbosity of llama-server from which on it logs what pyllm does under --verbose.
_VERBOSE = 4
_SERVER = "Server"
_LIMITS = "Limits"
_SEVERAL = "Several models"


def _server(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_SERVER, **settings)


def _several(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_SEVERAL, **settings)


def _limit(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_LIMITS, **settings)


# What of a model's flags llama-server reads from the environment, too.
_VARIABLES: dict[str, str | list[str]] = {
    "ctx_size": "LLAMA_ARG_CTX_SIZE",
    "batch_size": "LLAMA_ARG_BATCH",
    "ubatch_size": "LLAMA_ARG_UBATCH",
    "threads": "LLAMA_ARG_THREADS",
    "gpu_layers": "LLAMA_ARG_N_GPU_LAYERS",
    "cache_type_k": "LLAMA_ARG_CACHE_TYPE_K",
    "cache_type_v": "LLAMA_ARG_CACHE_TYPE_V",
    "flash_attn": "LLAMA_ARG_FLASH_ATTN",
    "model_draft": ["LLAMA_ARG_SPEC_DRAFT_MODEL", "LLAMA_ARG_SPEC_DRAFT_HF_REPO"],
    **sampling_variables(),
}


def _show_version(wanted: bool) -> None:
    if wanted:
        from pyllm.version import __version__

        print(f"pyllm {__version__}")
        raise typer.Exit


def _read_config(ctx: typer.Context, value: Path | None) -> Path | None:
    return use_config(ctx, value, serve)


@partial(with_options, variables=_VARIABLES)
def serve(
    ctx: typer.Context,
    named: Annotated[str | None, typer.Argument(metavar="MODEL", help="A GGUF file or an alias.")] = None,
    model: Annotated[
        list[str] | None,
        _server(
            "--model",
            "-m",
            "--hf-repo",
            "-hf",
            "-hfr",
            metavar="[NAME=]MODEL",
            help="The same, by its flag; several: each with a name.",
        ),
    ] = None,
    *,
    config: Annotated[
        Path | None,
        _server(
            "--config",
            envvar="PYLLM_CONFIG",
            metavar="FILE",
            is_eager=True,
            callback=_read_config,
            help="A TOML or YAML file with flags and models.",
        ),
    ] = None,
    models_max: Annotated[
        int, _several("--models-max", envvar="LLAMA_ARG_MODELS_MAX", min=0, help="Models in memory at once; 0: any.")
    ] = 4,
    models_dir: Annotated[
        Path | None,
        _several("--models-dir", envvar="LLAMA_ARG_MODELS_DIR", metavar="FOLDER", help="All models in this folder."),
    ] = None,
    models_autoload: Annotated[
        bool,
        _several(
            "--models-autoload/--no-models-autoload",
            envvar="LLAMA_ARG_MODELS_AUTOLOAD",
            help="Whether requests load their models.",
        ),
    ] = True,
    memory_budget: Annotated[
        str | None,
        _several("--memory-budget", metavar="SIZE", help="Memory of all models, such as 8GiB. Default: what is free."),
    ] = None,
    model_timeout: Annotated[
        float, _several("--model-timeout", min=1, help="Seconds that a request waits for its model to be loaded.")
    ] = 300,
    alias: Annotated[
        str | None,
        _server(
            "--alias",
            "-a",
            envvar="LLAMA_ARG_ALIAS",
            help="The name of the model in answers; further ones, with commas, name it in requests. Default: its alias "
            "or reference, or the name of its file.",
        ),
    ] = None,
    tags: Annotated[
        str | None,
        _server("--tags", envvar="LLAMA_ARG_TAGS", help="Tags of the model in /v1/models; several: with commas."),
    ] = None,
    host: Annotated[
        str,
        _server(
            "--host",
            envvar="LLAMA_ARG_HOST",
            help="The address to listen at; several: with commas; or a path that ends in .sock.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, _server("--port", envvar="LLAMA_ARG_PORT", min=0, max=65535, help="The port; 0: one that is free.")
    ] = 8080,
    api_key: Annotated[
        list[str] | None,
        _server("--api-key", envvar="LLAMA_API_KEY", metavar="KEY", help="Who sends it may ask; several: with commas."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        _server("--api-key-file", envvar="LLAMA_ARG_API_KEY_FILE", metavar="FILE", help="A file with a key per line."),
    ] = None,
    metrics: Annotated[
        bool, _server("--metrics", envvar="LLAMA_ARG_ENDPOINT_METRICS", help="Serve /metrics for Prometheus.")
    ] = False,
    embeddings: Annotated[
        bool,
        _server("--embedding", "--embeddings", envvar="LLAMA_ARG_EMBEDDINGS", help="Serve vectors of texts as well."),
    ] = False,
    chat_template: Annotated[
        str | None,
        _server(
            "--chat-template",
            envvar="LLAMA_ARG_CHAT_TEMPLATE",
            help="Another chat template: Jinja, or a name that llama.cpp knows.",
        ),
    ] = None,
    chat_template_file: Annotated[
        Path | None,
        _server("--chat-template-file", envvar="LLAMA_ARG_CHAT_TEMPLATE_FILE", metavar="FILE", help="Its file."),
    ] = None,
    logits_processor: Annotated[
        list[str] | None,
        _server(
            "--logits-processor",
            metavar="MODULE:NAME",
            help="A logits processor in Python for each text; several: run in this order.",
        ),
    ] = None,
    page: Annotated[
        bool, _server("--ui/--no-ui", "--webui/--no-webui", envvar="LLAMA_ARG_UI", help="Serve a page for people at /.")
    ] = True,
    props: Annotated[bool, _server("--props", envvar="LLAMA_ARG_ENDPOINT_PROPS", help="Let /props take POST.")] = False,
    spm_infill: Annotated[bool, _server("--spm-infill", help="For /infill, put the suffix before the prefix.")] = False,
    slots: Annotated[
        bool, _server("--slots/--no-slots", envvar="LLAMA_ARG_ENDPOINT_SLOTS", help="Tell at /slots what is computed.")
    ] = True,
    slot_prompts: Annotated[
        bool, _server("--slot-prompts", envvar="LLAMA_SERVER_SLOTS_DEBUG", help="Tell the texts there, too.")
    ] = False,
    slot_save_path: Annotated[
        Path | None, _server("--slot-save-path", metavar="FOLDER", help="Where /slots/{id} saves what slots hold.")
    ] = None,
    lora_init_without_apply: Annotated[
        bool, _server("--lora-init-without-apply", help="Load adapters, and use them only where it is asked for.")
    ] = False,
    log_json: Annotated[
        bool, _server("--log-jsonl/--no-log-jsonl", envvar="LLAMA_ARG_LOG_JSONL", help="Log one JSON object per line.")
    ] = False,
    parallel: Annotated[
        int, _limit("--parallel", "-np", envvar="LLAMA_ARG_N_PARALLEL", min=1, help="Texts computed at once.")
    ] = 8,
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
    ] = -1,
    cache_prompt: Annotated[
        bool,
        _limit(
            "--cache-prompt/--no-cache-prompt", envvar="LLAMA_ARG_CACHE_PROMPT", help="Share what prompts have alike."
        ),
    ] = True,
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
    ] = None,
    kv_unified: Annotated[
        bool,
        _limit(
            "--kv-unified/--no-kv-unified",
            "-kvu/-no-kvu",
            envvar="LLAMA_ARG_KV_UNIFIED",
            help="One KV cache, which any text may fill; else each has its part.",
        ),
    ] = False,
    target_ms: Annotated[
        float | None, _limit("--target-ms", min=0, help="How long running texts may wait while prompts are read.")
    ] = None,
    max_queued: Annotated[int | None, _limit("--max-queued", min=0, help="Most requests that wait; then 429.")] = 256,
    max_queued_tokens: Annotated[
        int | None, _limit("--max-queued-tokens", min=0, help="Most tokens of prompts that wait; then 429.")
    ] = None,
    max_connections: Annotated[
        int, _limit("--max-connections", min=1, help="Most connections at once; then 503.")
    ] = 1000,
    head_timeout: Annotated[
        float, _limit("--head-timeout", min=0.1, help="Seconds that a connection may stay without a request.")
    ] = 30,
    max_body: Annotated[int, _limit("--max-body", min=1, help="Most bytes of a request.")] = 32 << 20,
    timeout: Annotated[
        float, _limit("--timeout", "-to", envvar="LLAMA_ARG_TIMEOUT", min=1, help="Seconds to read or write something.")
    ] = 3600,
    sse_ping_interval: Annotated[
        float,
        _limit("--sse-ping-interval", envvar="LLAMA_ARG_SSE_PING_INTERVAL", help="Seconds between signs of life."),
    ] = 30,
    shutdown_timeout: Annotated[
        float, _limit("--shutdown-timeout", min=0, help="Seconds that running requests have when it is told to stop.")
    ] = 30,
    model_options: ModelOptions,
    loading: LoadingOptions,
    http: HTTPOptions,
    fetch: FetchOptions,
    chat: ChatOptions,
    accepted: AcceptedOptions,
    speculation: SpeculationOptions,
    sampling: SamplingOptions,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download a missing model without asking.")] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", "--log-verbose", help="Show llama.cpp's log on stderr, and __verbose in answers."
        ),
    ] = False,
    verbosity: Annotated[
        int,
        typer.Option(
            "--verbosity",
            "-lv",
            "--log-verbosity",
            envvar="LLAMA_ARG_LOG_VERBOSITY",
            help="llama-server's number: from 4 on as --verbose.",
        ),
    ] = 3,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    """Serve a model over HTTP, as OpenAI's API and llama-server do.

    Flags and environment variables are named as those of llama-server. SIGTERM lets running requests end.
    """
    verbose = verbose or verbosity >= _VERBOSE
    values = {name: value for name, value in locals().items() if name != "ctx"}
    set_verbose(verbose)
    try:
        import pyllm.server.run as running
        from pyllm.server.log import set_up_log
    except ModuleNotFoundError as error:
        note(f"error: the server needs {error.name}: {install_command(extra='serve')}")
        raise typer.Exit(1) from error
    from pyllm.server import make_app
    from pyllm.server.loader import serve_model

    warnings = accepted.check()
    fetch.apply()
    config_of_http = http.config()
    hosts = [one for one in (part.strip() for part in host.split(",")) if one]
    if not hosts:
        raise typer.BadParameter("--host is empty: give an address, such as 127.0.0.1")
    wanted = wanted_models(ctx, named, model, models_dir)
    if not wanted.several:
        default = wanted.models[0].default_name
        values["alias"] = _names(alias) or ([default] if default else [])
    settings = _settings(SimpleNamespace(**values))
    log = partial(set_up_log, as_json=log_json, verbose=verbose, file=http.log_file, stderr=not http.log_disable)
    with ExitStack() as stack:
        if wanted.several:
            specs = [_spec(one, SimpleNamespace(**one.over(values))) for one in wanted.models]
            log()
            sockets = _bound(stack, hosts, port, reuse_port=http.reuse_port)
            app = make_app(models=_loaded(stack, specs, settings, SimpleNamespace(**values)))
        else:
            spec = _spec(wanted.models[0], SimpleNamespace(**values))
            log()
            sockets = _bound(stack, hosts, port, reuse_port=http.reuse_port)
            served = serve_model(spec)
            stack.callback(served.close)
            app = make_app(served.engine, settings, embedder=served.embedder)
        for warning in warnings:
            logging.getLogger("pyllm.server").warning("%s", warning)
        running.Runner(app, host=hosts, port=port, sockets=sockets, **config_of_http).run()


def _bound(stack: ExitStack, hosts: list[str], port: int, *, reuse_port: bool) -> list[socket] | None:
    """The sockets to listen at: before a model is loaded, which can take minutes. None for a Unix socket."""
    from pyllm.server.run import ListenError, bind

    if any(host.endswith(".sock") for host in hosts):
        return None
    try:
        sockets = bind(hosts, port, reuse_port=reuse_port)
    except ListenError as error:
        logging.getLogger("pyllm.server").error("%s", error.message)
        raise typer.Exit(1) from error
    for one in sockets:
        stack.callback(one.close)
    return sockets


def _settings(v: Any) -> Settings:
    """The settings that flags give."""
    from pyllm.processors.named import named_processor
    from pyllm.server import Settings

    aliases: list[str] = [] if v.alias is None else v.alias
    template = v.chat_template
    if v.chat_template_file is not None:
        template = read_text(v.chat_template_file, "--chat-template-file")
    return Settings(
        alias=aliases[0] if aliases else None,
        aliases=tuple(aliases[1:]),
        tags=tuple(_names(v.tags)),
        api_keys=_keys(v.api_key or [], v.api_key_file),
        metrics=v.metrics,
        timeout=v.timeout,
        ping_interval=max(0.0, v.sse_ping_interval),
        max_body_bytes=v.max_body,
        max_connections=v.max_connections,
        head_timeout=v.head_timeout,
        max_tokens=None if v.predict == -1 else v.predict,
        drain_timeout=v.shutdown_timeout,
        chat_template=template,
        chat=v.chat.arguments(),
        **v.http.settings(),
        verbose=v.verbose,
        page=v.page,
        props=v.props,
        sampling=v.sampling.arguments(),
        logits_processors=tuple(named_processor(name) for name in v.logits_processor or []),
        spm_infill=v.spm_infill,
        slots=v.slots,
        slot_prompts=v.slot_prompts,
        slot_save_path=None if v.slot_save_path is None else str(v.slot_save_path),
    )


def _spec(model: WantedModel, v: Any) -> ModelSpec:
    """How a model is loaded and served, by the flags and by its table in the config file."""
    from pyllm.server.loader import ModelSpec

    path = find_model(v.fetch.file_of(model.reference), yes=v.yes)
    arguments = v.model_options.arguments() | v.loading.arguments()
    if arguments.get("n_ctx") == 0:
        del arguments["n_ctx"]
    engine_arguments = {
        "n_parallel": v.parallel,
        "target_ms": v.target_ms or None,
        "max_queued": v.max_queued,
        "max_queued_tokens": v.max_queued_tokens,
        "cache_prompt": v.cache_prompt,
        "kv_unified": v.kv_unified,
    }
    adapters = find_companions({"lora": arguments.pop("lora", [])}, yes=v.yes)["lora"]
    if adapters:
        engine_arguments["lora"] = [(file, 0.0 if v.lora_init_without_apply else scale) for file, scale in adapters]
    if v.cache_ram is not None:
        engine_arguments["host_cache_bytes"] = 1 << 62 if v.cache_ram < 0 else v.cache_ram << 20
    draft = arguments.pop("draft", None)
    engine_arguments |= v.speculation.arguments(has_draft=draft is not None) | (
        {} if draft is None else {"draft": draft}
    )
    return ModelSpec(
        name=model.name or next(iter(v.alias or ()), path.name),
        path=path,
        arguments=arguments,
        engine=engine_arguments,
        embeddings=v.embeddings,
        settings=_settings(v),
        load=model.load,
    )


def _loaded(stack: ExitStack, specs: list[ModelSpec], settings: Settings, v: Any) -> Models:
    """Several models, those loaded that are to be there at the start."""
    from pyllm.server.pool import Models

    n_bytes = None if v.memory_budget is None else parse_bytes(v.memory_budget, "--memory-budget")
    models = Models(
        specs,
        settings,
        n_bytes=n_bytes,
        n_models=v.models_max or None,
        autoload=v.models_autoload,
        timeout=v.model_timeout,
    )
    stack.callback(models.close)
    models.load_at_start()
    return models


def _names(text: str | None) -> list[str]:
    return [one.strip() for one in (text or "").split(",") if one.strip()]


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    texts = [key for text in given for key in text.split(",")]
    if file is not None:
        texts += [line for line in read_text(file, "--api-key-file").splitlines() if not line.startswith("#")]
    keys = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not keys and (given or file is not None):
        # Whoever wanted keys does not want a server for everybody.
        where = "--api-key" if file is None else f"--api-key-file: {file}"
        raise typer.BadParameter(f"{where} has no key in it; leave it out if nobody needs one")
    return keys

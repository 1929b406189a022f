"""``pyllm serve``."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyllm.cli.config import use_config
from pyllm.cli.http_options import ChatOptions, HTTPOptions
from pyllm.cli.llama_server_flags import AcceptedOptions
from pyllm.cli.loading_options import LoadingOptions
from pyllm.cli.models import find_companions, find_model
from pyllm.cli.options import ModelOptions, SamplingOptions, sampling_variables, with_options
from pyllm.cli.output import note, set_verbose
from pyllm.cli.serve_models import FetchOptions, WantedModel, wanted_models
from pyllm.cli.server_options import SERVER_PANEL, ServedModelOptions, ServerOptions
from pyllm.cli.speculation import SpeculationOptions
from pyllm.extras import install_command

if TYPE_CHECKING:
    from socket import socket

    from pyllm.server import Settings
    from pyllm.server.loader import ModelSpec
    from pyllm.server.pool import Models

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


# What the table of a model in a config file cannot have.
_OF_SERVER = frozenset(
    ["threads_http", *(one.name for group in (ServerOptions, HTTPOptions, FetchOptions) for one in fields(group))]
)


def _read_config(ctx: typer.Context, value: Path | None) -> Path | None:
    return use_config(ctx, value, serve, refused=_OF_SERVER)


@partial(with_options, variables=_VARIABLES)
def serve(
    ctx: typer.Context,
    named: Annotated[str | None, typer.Argument(metavar="MODEL", help="A GGUF file or an alias.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            "--hf-repo",
            "-hf",
            "-hfr",
            metavar="[NAME=]MODEL",
            help="The same, by its flag; several: each with a name.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar="PYLLM_CONFIG",
            metavar="FILE",
            is_eager=True,
            callback=_read_config,
            help="A TOML or YAML file with flags and models.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    server: ServerOptions,
    served: ServedModelOptions,
    model_options: ModelOptions,
    loading: LoadingOptions,
    http: HTTPOptions,
    fetch: FetchOptions,
    chat: ChatOptions,
    accepted: AcceptedOptions,
    speculation: SpeculationOptions,
    sampling: SamplingOptions,
) -> None:
    """Serve a model over HTTP, as OpenAI's API and llama-server do.

    Flags and environment variables are named as those of llama-server. SIGTERM lets running requests end.
    """
    set_verbose(server.tells_all)
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
    config_of_http, hosts = http.config(), server.hosts()
    groups = _Groups(server, served, model_options, loading, http, fetch, chat, speculation, sampling)
    wanted = wanted_models(ctx, named, model, server.models_dir)
    default = None if wanted.several else wanted.models[0].default_name
    names = server.names() or ([default] if default else [])
    settings = groups.settings(names)
    log = partial(
        set_up_log, as_json=server.log_json, verbose=server.tells_all, file=http.log_file, stderr=not http.log_disable
    )
    with ExitStack() as stack:
        specs = [_spec(one, groups.over(one), names) for one in wanted.models]
        log()
        sockets = _bound(stack, hosts, server.port, reuse_port=http.reuse_port)
        if wanted.several:
            app = make_app(models=_loaded(stack, specs, settings, server))
        else:
            loaded = serve_model(specs[0])
            stack.callback(loaded.close)
            app = make_app(loaded.engine, settings, embedder=loaded.embedder)
        for warning in warnings:
            logging.getLogger("pyllm.server").warning("%s", warning)
        running.Runner(app, host=hosts, port=server.port, sockets=sockets, **config_of_http).run()


@dataclass(frozen=True)
class _Groups:
    """All flags, or those of one model where its table in a config file has others."""

    server: ServerOptions
    served: ServedModelOptions
    model_options: ModelOptions
    loading: LoadingOptions
    http: HTTPOptions
    fetch: FetchOptions
    chat: ChatOptions
    speculation: SpeculationOptions
    sampling: SamplingOptions

    def over(self, model: WantedModel) -> _Groups:
        """The flags with those of the table of a model."""
        return _Groups(**model.over({one.name: getattr(self, one.name) for one in fields(self)}))

    def settings(self, names: list[str]) -> Settings:
        """The settings that flags give."""
        from pyllm.server import Settings

        return Settings(
            alias=names[0] if names else None,
            aliases=tuple(names[1:]),
            chat=self.chat.arguments(),
            sampling=self.sampling.arguments(),
            **self.server.settings(),
            **self.served.settings(),
            **self.http.settings(),
        )


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


def _spec(model: WantedModel, groups: _Groups, names: list[str]) -> ModelSpec:
    """How a model is loaded and served, by the flags and by its table in the config file."""
    from pyllm.server.loader import ModelSpec

    server, served = groups.server, groups.served
    path = find_model(groups.fetch.file_of(model.reference), yes=server.yes)
    arguments = groups.model_options.arguments() | groups.loading.arguments()
    if arguments.get("n_ctx") == 0:
        del arguments["n_ctx"]
    engine = served.engine()
    adapters = find_companions({"lora": arguments.pop("lora", [])}, yes=server.yes)["lora"]
    if adapters:
        engine["lora"] = [(file, 0.0 if served.lora_init_without_apply else scale) for file, scale in adapters]
    draft = arguments.pop("draft", None)
    engine |= groups.speculation.arguments(has_draft=draft is not None) | ({} if draft is None else {"draft": draft})
    return ModelSpec(
        name=model.name or next(iter(names), path.name),
        path=path,
        arguments=arguments,
        engine=engine,
        embeddings=served.embeddings,
        settings=groups.settings(names),
        load=model.load,
    )


def _loaded(stack: ExitStack, specs: list[ModelSpec], settings: Settings, server: ServerOptions) -> Models:
    """Several models, those loaded that are to be there at the start."""
    from pyllm.server.pool import Models

    models = Models(specs, settings, **server.pool())
    stack.callback(models.close)
    models.load_at_start()
    return models

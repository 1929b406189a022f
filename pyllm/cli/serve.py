"""``pyllm serve``."""

from __future__ import annotations

import dataclasses
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from pyllm.cli.models import find_model
from pyllm.cli.options import ModelOptions, read_text, with_options
from pyllm.cli.output import note, set_verbose

_SERVER = "Server"
_LIMITS = "Limits"


def _server(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_SERVER, **settings)


def _limit(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_LIMITS, **settings)


@with_options
def serve(
    named: Annotated[str | None, typer.Argument(metavar="MODEL", help="A GGUF file or an alias.")] = None,
    model: Annotated[
        str | None, _server("--model", "-m", envvar="LLAMA_ARG_MODEL", help="The same, by its flag.")
    ] = None,
    *,
    alias: Annotated[
        str | None, _server("--alias", "-a", envvar="LLAMA_ARG_ALIAS", help="The name of the model in answers.")
    ] = None,
    host: Annotated[
        str, _server("--host", envvar="LLAMA_ARG_HOST", help="The address to listen at, or a path that ends in .sock.")
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
        _server("--chat-template", envvar="LLAMA_ARG_CHAT_TEMPLATE", help="Another chat template; Jinja or chatml."),
    ] = None,
    chat_template_file: Annotated[
        Path | None,
        _server("--chat-template-file", envvar="LLAMA_ARG_CHAT_TEMPLATE_FILE", metavar="FILE", help="Its file."),
    ] = None,
    cors_origins: Annotated[
        str | None,
        _server(
            "--cors-origins",
            envvar="LLAMA_ARG_CORS_ORIGINS",
            metavar="ORIGINS",
            help="Web pages from there may ask; several: with commas; * is all.",
        ),
    ] = None,
    log_json: Annotated[
        bool, _server("--log-jsonl", envvar="LLAMA_ARG_LOG_JSONL", help="Log one JSON object per line.")
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
    target_ms: Annotated[
        float | None, _limit("--target-ms", min=0, help="How long running texts may wait while prompts are read.")
    ] = None,
    max_queued: Annotated[int | None, _limit("--max-queued", min=0, help="Most requests that wait; then 429.")] = 256,
    max_queued_tokens: Annotated[
        int | None, _limit("--max-queued-tokens", min=0, help="Most tokens of prompts that wait; then 429.")
    ] = None,
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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download a missing model without asking.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log on stderr.")] = False,
) -> None:
    """Serve a model over HTTP, as OpenAI's API and llama-server do.

    Flags and environment variables are named as those of llama-server. SIGTERM lets running requests end.
    """
    set_verbose(verbose)
    if model is not None and named is not None:
        raise typer.BadParameter("the model is named twice: as MODEL and by --model")
    try:
        import pyllm.server.run as running
        from pyllm.server.log import set_up_log
    except ModuleNotFoundError as error:
        note(f'error: the server needs {error.name}: pip install "pyllm[serve]"')
        raise typer.Exit(1) from error
    template = chat_template if chat_template_file is None else read_text(chat_template_file, "--chat-template-file")
    from pyllm.server import Settings, make_app

    settings = Settings(
        alias=alias,
        api_keys=_keys(api_key or [], api_key_file),
        metrics=metrics,
        timeout=timeout,
        ping_interval=max(0.0, sse_ping_interval),
        max_body_bytes=max_body,
        max_tokens=None if predict == -1 else predict,
        drain_timeout=shutdown_timeout,
        cors_origins=tuple(one.strip() for one in (cors_origins or "").split(",") if one.strip()),
        chat_template=template,
    )
    path = find_model(model or named or "smollm2", yes=yes)
    set_up_log(as_json=log_json, verbose=verbose)
    arguments = _with_environment(model_options).arguments()
    for flag in ("lora", "draft"):
        if flag in arguments:
            raise typer.BadParameter(f"--{flag}: the server knows no adapters and no draft models yet")
    engine_arguments = {
        "n_parallel": parallel,
        "target_ms": target_ms or None,
        "max_queued": max_queued,
        "max_queued_tokens": max_queued_tokens,
    }
    with ExitStack() as stack:
        app = make_app(**_served(stack, path, arguments, engine_arguments, embeddings), settings=settings)
        running.Runner(app, host=host, port=port).run()


def _served(
    stack: ExitStack, path: Path, arguments: dict[str, Any], engine_arguments: dict[str, Any], embeddings: bool
) -> dict[str, Any]:
    """The engine and the embedder for a model, as arguments of make_app."""
    from pyllm import Llama, Model
    from pyllm.engine import Engine
    from pyllm.params import ContextParams, ModelParams, field_names
    from pyllm.server.embedder import EngineEmbedder

    if arguments.get("n_ctx") == 0:
        del arguments["n_ctx"]
    of_model = {name: value for name, value in arguments.items() if name in field_names(ModelParams)}
    rest = {name: value for name, value in arguments.items() if name not in of_model}
    model = stack.enter_context(Model(path, **of_model))
    if model.has_encoder or not model.has_decoder or _is_embedding_model(model):
        return {"embedder": stack.enter_context(Llama(model, **rest))}
    engine = stack.enter_context(Engine(model, **engine_arguments, **rest))
    if not embeddings:
        return {"engine": engine}
    own = {name: rest[name] for name in ("n_threads", "n_threads_batch", "flash_attn_type") if name in rest}
    embedder = EngineEmbedder(engine, ContextParams(**own))
    stack.callback(embedder.close)
    return {"engine": engine, "embedder": embedder}


def _is_embedding_model(model: Any) -> bool:
    """Whether the file says how vectors of its tokens become one: it was made for that, and not for texts."""
    architecture = model.meta("general.architecture")
    return model.meta(f"{architecture}.pooling_type") not in (None, "0")


# What of a model's flags llama-server reads from the environment, too.
_VARIABLES = {
    "ctx_size": ("LLAMA_ARG_CTX_SIZE", int),
    "batch_size": ("LLAMA_ARG_BATCH", int),
    "ubatch_size": ("LLAMA_ARG_UBATCH", int),
    "threads": ("LLAMA_ARG_THREADS", int),
    "gpu_layers": ("LLAMA_ARG_N_GPU_LAYERS", int),
    "cache_type_k": ("LLAMA_ARG_CACHE_TYPE_K", str),
    "cache_type_v": ("LLAMA_ARG_CACHE_TYPE_V", str),
    "flash_attn": ("LLAMA_ARG_FLASH_ATTN", str),
}


def _with_environment(options: ModelOptions) -> ModelOptions:
    """Flags that were not given, from the environment."""
    found: dict[str, Any] = {}
    for name, (variable, kind) in _VARIABLES.items():
        text = os.environ.get(variable)
        if text and getattr(options, name) is None:
            try:
                found[name] = kind(text)
            except ValueError:
                raise typer.BadParameter(f"{variable} must be an integer, not {text!r}") from None
    return dataclasses.replace(options, **found)


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    texts = [key for text in given for key in text.split(",")]
    if file is not None:
        texts += [line for line in read_text(file, "--api-key-file").splitlines() if not line.startswith("#")]
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))

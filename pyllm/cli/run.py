"""``pyllm run``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyllm.cli.models import find_model
from pyllm.cli.output import set_verbose
from pyllm.hub.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from pyllm import Llama

_DEFAULT_LENGTH = 128
_STDIN = "-"
# llama.cpp takes the largest 32-bit number for "choose one".
_MAX_SEED = 2**32 - 2


def run(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A GGUF file or an alias.", show_default=DEFAULT_MODEL)
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - or nothing reads standard input.")
    ] = None,
    n_predict: Annotated[
        int, typer.Option("--n-predict", "--predict", "-n", min=-1, help="Tokens at most; -1: as many as fit.")
    ] = _DEFAULT_LENGTH,
    temp: Annotated[
        float | None, typer.Option("--temp", min=0, help="Temperature; 0 always takes the likeliest.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Keep the k likeliest tokens; 0 keeps all.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", min=0, max=1, help="Keep the likeliest tokens up to this probability.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option("--min-p", min=0, max=1, help="Keep tokens with this share of the best one's probability."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", "-s", min=0, max=_MAX_SEED, help="Same seed, same text.", show_default="random"),
    ] = None,
    ctx_size: Annotated[int | None, typer.Option("--ctx-size", "-c", min=1, help="Context length in tokens.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="CPU threads.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be repeated.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download a missing model without asking.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log on stderr.")] = False,
) -> None:
    """Continue a text, and print what the model writes.

    A single argument is the model when it is an alias, an existing file or ends in .gguf, and else the prompt.
    Nothing but generated text goes to standard output.
    """
    set_verbose(verbose)
    model, prompt = _split(model, prompt)
    text = _read_prompt(prompt)
    path = find_model(model, yes=yes)
    sampling = {"temperature": temp, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    options: dict[str, Any] = {key: value for key, value in sampling.items() if value is not None}
    options |= {"max_tokens": None if n_predict < 0 else n_predict, "stop": tuple(stop or ())}
    from pyllm import Llama

    with Llama(path, n_ctx=ctx_size, n_threads=threads) as llm:
        if json:
            _print_json(llm, text, options, model=str(path))
        else:
            _stream(llm, text, options)


def _split(model: str | None, prompt: str | None) -> tuple[str, str | None]:
    """Tell the model from the prompt where only one argument is given."""
    from pyllm import hub

    if model is None:
        return DEFAULT_MODEL, None
    if prompt is not None:
        return model, prompt
    if model.lower() in hub.ALIASES or model.endswith(".gguf") or _is_file(model):
        return model, None
    return DEFAULT_MODEL, model


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False  # too long for a path, or with a null character: a prompt


def _read_prompt(prompt: str | None) -> str:
    if prompt is not None and prompt != _STDIN:
        return prompt
    if prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        raise typer.BadParameter("give a prompt, or pipe one in: echo 'Once upon a time' | pyllm run")
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"the prompt on standard input is not UTF-8: {error}") from error
    # The end of the last line belongs to `echo`, not to the prompt; it would change what follows.
    return text.removesuffix("\n").removesuffix("\r")


def _stream(llm: Llama, text: str, options: dict[str, Any]) -> None:
    last = ""
    for chunk in llm.stream(text, **options):
        if chunk.text:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
            last = chunk.text
    if sys.stdout.isatty() and not last.endswith("\n"):
        print()


def _print_json(llm: Llama, text: str, options: dict[str, Any], *, model: str) -> None:
    from json import dumps

    completion = llm(text, **options)
    result = {
        "text": completion.text,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "usage": {**asdict(completion.usage), "total_tokens": completion.usage.total_tokens},
        "timings": {**asdict(completion.timings), "tokens_per_second": completion.timings.tokens_per_second},
        "model": model,
        "seed": completion.seed,
    }
    print(dumps(result, ensure_ascii=False))

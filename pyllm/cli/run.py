"""``pyllm run``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyllm.cli.models import find_model
from pyllm.cli.options import ModelOptions, SamplingOptions, StructureOptions, read_text, with_options
from pyllm.cli.output import set_verbose
from pyllm.hub.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from pyllm import Llama

_DEFAULT_LENGTH = 128
_STDIN = "-"
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


@with_options
def run(
    model_options: ModelOptions,
    sampling: SamplingOptions,
    structure: StructureOptions,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A GGUF file or an alias.", show_default=DEFAULT_MODEL)
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - or nothing reads standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", metavar="FILE", help="A file with the prompt.")] = None,
    n_predict: Annotated[
        int, typer.Option("--n-predict", "--predict", "-n", min=-1, help="Tokens at most; -1: as many as fit.")
    ] = _DEFAULT_LENGTH,
    reverse_prompt: Annotated[
        list[str] | None,
        typer.Option("--reverse-prompt", "-r", help="End after this text; may be repeated."),
    ] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be repeated.")] = None,
    display_prompt: Annotated[
        bool, typer.Option("--display-prompt/--no-display-prompt", help="Print the prompt before the text.")
    ] = False,
    escape: Annotated[
        bool, typer.Option("--escape/--no-escape", "-e", help=r"Read \n, \t, \" and the like in the prompt.")
    ] = False,
    prompt_cache: Annotated[
        Path | None,
        typer.Option("--prompt-cache", metavar="FILE", help="Keep what is computed here, for the next run."),
    ] = None,
    prompt_cache_ro: Annotated[
        bool, typer.Option("--prompt-cache-ro", help="Read the prompt cache, and do not write it.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download a missing model without asking.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log on stderr.")] = False,
) -> None:
    """Continue a text, and print what the model writes.

    A single argument is the model when it is an alias, an existing file or ends in .gguf, and else the prompt.
    Nothing but generated text goes to standard output.
    """
    set_verbose(verbose)
    model, prompt = _split(model, prompt, prompt_is_elsewhere=file is not None)
    text = _read_prompt(prompt, file)
    if escape:
        text = unescape(text)
    reverse = tuple(reverse_prompt or ())
    options = {
        **sampling.arguments(),
        **structure.arguments(),
        "max_tokens": None if n_predict < 0 else n_predict,
        "stop": (*reverse, *(stop or ())),
        "echo": display_prompt,
    }
    arguments = model_options.arguments()
    path = find_model(model, yes=yes)
    if "draft" in arguments:
        arguments["draft"] = find_model(arguments["draft"], yes=yes)
    if prompt_cache is not None:
        options["cache_prompt"] = True
    from pyllm import Llama

    with Llama(path, **arguments) as llm, _cached(llm, prompt_cache, write=not prompt_cache_ro):
        if json:
            _print_json(llm, text, options, reverse, model=str(path))
        else:
            _stream(llm, text, options, reverse)


def unescape(text: str) -> str:
    r"""Read backslash sequences as llama.cpp's programs do: \n, \r, \t, \', \", \\ and \xHH; others stay."""
    parts, i = [], 0
    while i < len(text):
        if text[i] == "\\" and text[i + 1 : i + 2] in _ESCAPES and i + 1 < len(text):
            parts.append(_ESCAPES[text[i + 1]])
            i += 2
        elif text[i : i + 2] == "\\x" and _is_hex(text[i + 2 : i + 4]):
            parts.append(chr(int(text[i + 2 : i + 4], 16)))
            i += 4
        else:
            parts.append(text[i])
            i += 1
    return "".join(parts)


def _is_hex(digits: str) -> bool:
    return len(digits) == 2 and all(digit in "0123456789abcdefABCDEF" for digit in digits)


def _split(model: str | None, prompt: str | None, *, prompt_is_elsewhere: bool) -> tuple[str, str | None]:
    """Tell the model from the prompt where only one argument is given."""
    from pyllm import hub

    if model is None:
        return DEFAULT_MODEL, None
    if prompt is not None or prompt_is_elsewhere:
        return model, prompt
    if (
        model.lower() in hub.ALIASES
        or model.endswith(".gguf")
        or (":" in model and hub.is_reference(model))
        or _is_file(model)
    ):
        return model, None
    return DEFAULT_MODEL, model


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False  # too long for a path, or with a null character: a prompt


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    if file is not None:
        if prompt is not None:
            raise typer.BadParameter("give the prompt as an argument or with --file, not both")
        return read_text(file, "--file")
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


@contextlib.contextmanager
def _cached(llm: Llama, path: Path | None, *, write: bool) -> Iterator[None]:
    """Load what an earlier run has computed, and save it afterwards."""
    if path is not None and path.exists():
        llm.load_state(path)
    yield
    if path is not None and write:
        llm.save_state(path)


def _stream(llm: Llama, text: str, options: dict[str, Any], reverse: tuple[str, ...]) -> None:
    last = ""
    for chunk in llm.stream(text, **options):
        piece = chunk.text
        if chunk.completion is not None:
            piece += _found(chunk.completion.stop, reverse)
        if piece:
            sys.stdout.write(piece)
            sys.stdout.flush()
            last = piece
    if sys.stdout.isatty() and not last.endswith("\n"):
        print()


def _found(stop: str | None, reverse: tuple[str, ...]) -> str:
    """A reverse prompt is shown, as llama.cpp's programs do; another stop string is not."""
    return stop if stop is not None and stop in reverse else ""


def _print_json(llm: Llama, text: str, options: dict[str, Any], reverse: tuple[str, ...], *, model: str) -> None:
    from json import dumps

    completion = llm(text, **options)
    result = {
        "text": completion.text + _found(completion.stop, reverse),
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "usage": {**asdict(completion.usage), "total_tokens": completion.usage.total_tokens},
        "timings": {**asdict(completion.timings), "tokens_per_second": completion.timings.tokens_per_second},
        "model": model,
        "seed": completion.seed,
    }
    print(dumps(result, ensure_ascii=False))

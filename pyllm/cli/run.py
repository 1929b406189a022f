"""``pyllm run``."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyllm.cli.models import MODEL_HELP, find_companions, find_model
from pyllm.cli.options import ModelOptions, SamplingOptions, StructureOptions, read_text, with_options
from pyllm.cli.output import set_verbose
from pyllm.hub.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from pyllm import Llama

_DEFAULT_LENGTH = 128
_STDIN = "-"
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}
_ESCAPE = re.compile(rb"""\\(?:([nrt'"\\])|x([0-9a-fA-F]{2}))""")


@with_options
def run(
    model_options: ModelOptions,
    sampling: SamplingOptions,
    structure: StructureOptions,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=DEFAULT_MODEL),
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

    A single argument is the model when it is an alias, an existing file, ends in .gguf or is a reference like
    owner/repo:Q4_K_M, and else the prompt.
    Nothing but generated text goes to standard output.
    """
    set_verbose(verbose)
    if prompt_cache_ro and prompt_cache is None:
        raise typer.BadParameter("--prompt-cache-ro reads what --prompt-cache names, and nothing is named")
    if prompt_cache is not None and not prompt_cache_ro and not prompt_cache.absolute().parent.is_dir():
        raise typer.BadParameter(f"--prompt-cache: there is no folder {prompt_cache.parent}")
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
    arguments = find_companions(arguments, yes=yes)
    if prompt_cache is not None:
        options["cache_prompt"] = True
    from pyllm import Llama

    with Llama(path, **arguments) as llm, _cached(llm, prompt_cache, write=not prompt_cache_ro):
        if json:
            _print_json(llm, text, options, reverse, model=str(path))
        else:
            _stream(llm, text, options, reverse)


def unescape(text: str) -> str:
    r"""Read backslash sequences as llama.cpp's programs do: \n, \r, \t, \', \", \\ and \xHH; others stay.

    Raises:
        typer.BadParameter: The bytes that \xHH stand for are not UTF-8.
    """

    def byte(match: re.Match[bytes]) -> bytes:
        return bytes([int(match[2], 16)]) if match[2] else _ESCAPES[match[1]]

    data = _ESCAPE.sub(byte, text.encode("utf-8", "surrogateescape"))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"the prompt is not UTF-8 once its escapes are read: {error}") from error


def _split(model: str | None, prompt: str | None, *, prompt_is_elsewhere: bool) -> tuple[str, str | None]:
    """Tell the model from the prompt where only one argument is given."""
    from pyllm import hub

    if model is None:
        return DEFAULT_MODEL, None
    if prompt is not None or prompt_is_elsewhere:
        return model, prompt
    # References have no blanks in them, and almost every prompt has.
    is_reference = not any(map(str.isspace, model)) and hub.is_reference(model)
    if is_reference or model.endswith(".gguf") or os.path.isfile(model):
        return model, None
    return DEFAULT_MODEL, model


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

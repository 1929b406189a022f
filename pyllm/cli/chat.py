"""``pyllm chat``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pyllm.cli.models import MODEL_HELP, find_companions, find_model
from pyllm.cli.options import ModelOptions, SamplingOptions, StructureOptions, read_text, with_options
from pyllm.cli.output import set_verbose
from pyllm.hub.registry import DEFAULT_MODEL

_PANEL = "Conversation"
_SWITCH = {"on": True, "off": False, "auto": None}


def _option(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL, **settings)


@with_options
def chat(
    model_options: ModelOptions,
    sampling: SamplingOptions,
    structure: StructureOptions,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=DEFAULT_MODEL)] = None,
    system_prompt: Annotated[
        str | None, _option("--system-prompt", "-sys", help="What the model is told before everything.")
    ] = None,
    system_prompt_file: Annotated[
        Path | None, _option("--system-prompt-file", "-sysf", metavar="FILE", help="A file with that.")
    ] = None,
    prompt: Annotated[str | None, _option("--prompt", "-p", help="The first message.")] = None,
    single_turn: Annotated[bool, _option("--single-turn", "-st", help="End after one answer.")] = False,
    session: Annotated[
        str | None, _option("--session", metavar="NAME", help="Go on with this conversation, and keep it.")
    ] = None,
    n_predict: Annotated[
        int | None, _option("--n-predict", "--predict", "-n", min=-1, help="Tokens per answer at most.")
    ] = None,
    chat_template: Annotated[
        str | None, _option("--chat-template", help="A Jinja template instead of the model's own.")
    ] = None,
    chat_template_file: Annotated[
        Path | None, _option("--chat-template-file", metavar="FILE", help="A file with one.")
    ] = None,
    chat_template_kwargs: Annotated[
        str | None, _option("--chat-template-kwargs", metavar="JSON", help="Values for the template, as JSON.")
    ] = None,
    reasoning_format: Annotated[
        str | None, _option("--reasoning-format", help="How thinking is told from the answer: auto, none, deepseek.")
    ] = None,
    reasoning: Annotated[
        str | None, _option("--reasoning", "-rea", metavar="on|off|auto", help="Whether the model may think first.")
    ] = None,
    reasoning_budget: Annotated[
        int | None, _option("--reasoning-budget", min=-1, help="Tokens of thinking at most; -1: no limit.")
    ] = None,
    reverse_prompt: Annotated[
        list[str] | None, _option("--reverse-prompt", "-r", help="End an answer before this text; may be repeated.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download a missing model without asking.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log on stderr.")] = False,
) -> None:
    """Talk with a model.

    Ctrl-C stops an answer, Ctrl-D or /exit ends, /help shows what else there is. With standard input from a pipe each
    line is a message, and only answers are printed.
    """
    set_verbose(verbose)
    system = _one_of("--system-prompt", system_prompt, "--system-prompt-file", system_prompt_file)
    template = _one_of("--chat-template", chat_template, "--chat-template-file", chat_template_file)
    settings: dict[str, Any] = {**sampling.arguments(), **structure.arguments()}
    given = {
        "max_tokens": None if n_predict == -1 else n_predict,
        "reasoning_format": reasoning_format,
        "enable_thinking": _switch(reasoning),
        "reasoning_budget": None if reasoning_budget == -1 else reasoning_budget,
        "chat_template_kwargs": None if chat_template_kwargs is None else _json(chat_template_kwargs),
        "stop": tuple(reverse_prompt) if reverse_prompt else None,
    }
    settings |= {name: value for name, value in given.items() if value is not None}
    arguments = model_options.arguments()
    if template is not None:
        arguments["chat_template"] = template
    from pyllm.cli.chat_session import check_name

    if session is not None:
        check_name(session)
    path = find_model(model or DEFAULT_MODEL, yes=yes)
    arguments = find_companions(arguments, yes=yes)

    from pyllm import Llama
    from pyllm.cli.chat_loop import Chat
    from pyllm.cli.chat_screen import open_screen

    # The conversation so far is what the next prompt begins with.
    with Llama(path, cache_prompt=True, **arguments) as llm:
        talk = Chat(llm, open_screen(), model=path.name, system=system, settings=settings, session=session)
        talk.run(prompt, single_turn=single_turn)


def _one_of(flag: str, text: str | None, file_flag: str, path: Path | None) -> str | None:
    if text is not None and path is not None:
        raise typer.BadParameter(f"give only one of {flag} and {file_flag}")
    return read_text(path, file_flag) if path is not None else text


def _switch(text: str | None) -> bool | None:
    if text is None:
        return None
    if text.lower() not in _SWITCH:
        raise typer.BadParameter(f"--reasoning takes on, off or auto, not {text!r}")
    return _SWITCH[text.lower()]


def _json(text: str) -> dict[str, Any]:
    from json import JSONDecodeError, loads

    try:
        value = loads(text)
    except JSONDecodeError as error:
        raise typer.BadParameter(f"--chat-template-kwargs: {text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f"--chat-template-kwargs takes a JSON object, not {text!r}")
    return value

"""The `/` commands of ``pyllm chat``."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyllm.cli.chat_session import Session, session_names, session_path, setting_names
from pyllm.errors import InvalidArgumentError, UnknownArgumentError

if TYPE_CHECKING:
    from pyllm.cli.chat_loop import Chat

_NONE = ("default", "none", "off")
_SWITCHES = ("enable_thinking",)  # of which "off" is a value


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: Its name, with the stroke.
        takes: What follows, for the help.
        help: What it does.
        do: Does it, with the conversation and the rest of the line.
    """

    name: str
    takes: str
    help: str
    do: Callable[[Chat, str], None]


def execute(chat: Chat, line: str) -> None:
    """Do what a line that begins with a stroke says.

    Raises:
        UnknownArgumentError: There is no such command; the message names the nearest one.
    """
    name, _, rest = line.strip().partition(" ")
    command = COMMANDS.get(_ALIASES.get(name.lower(), name.lower()))
    if command is None:
        near = difflib.get_close_matches(name.lower(), list(COMMANDS), n=1)
        hint = f"; did you mean {near[0]}?" if near else "; /help shows those there are"
        raise UnknownArgumentError(f"there is no command {name}{hint}")
    command.do(chat, rest.strip())


def candidates(chat: Chat, line: str) -> Iterable[str]:
    """What the last word of a line could become."""
    if not line.startswith("/") or "\n" in line:
        return []
    name, space, rest = line.partition(" ")
    if not space:
        return [command for command in COMMANDS if command.startswith(name)]
    if " " in rest:
        return []
    choices: Iterable[str] = ()
    if name == "/set":
        choices = setting_names()
    elif name in ("/load", "/save"):
        choices = session_names()
    return [choice for choice in choices if choice.startswith(rest)]


def _help(chat: Chat, rest: str) -> None:
    width = max(len(f"{command.name} {command.takes}") for command in COMMANDS.values())
    lines = [f"{f'{command.name} {command.takes}':{width}}  {command.help}" for command in COMMANDS.values()]
    if chat.screen.is_terminal:
        lines.append('Alt-Enter begins a new line; """ begins and ends a message of several lines.')
    chat.screen.show("\n".join(lines))


def _exit(chat: Chat, rest: str) -> None:
    chat.ended = True


def _reset(chat: Chat, rest: str) -> None:
    chat.session.clear()
    chat.used = 0
    chat.keep()


def _system(chat: Chat, rest: str) -> None:
    if not rest:
        chat.screen.show(chat.session.system or "there is no system prompt")
        return
    chat.session.system = None if rest == "-" else rest
    chat.keep()


def _save(chat: Chat, rest: str) -> None:
    name = rest or chat.name
    if name is None:
        raise InvalidArgumentError("give the conversation a name: /save NAME")
    chat.session.save(session_path(name))
    chat.rename(name)
    chat.screen.show(f"saved as {name}: {chat.path}")


def _load(chat: Chat, rest: str) -> None:
    if not rest:
        raise InvalidArgumentError(f"which one? there are: {', '.join(session_names()) or 'none yet'}")
    path = session_path(rest)
    if not path.exists():
        raise InvalidArgumentError(f"there is no {rest}; there are: {', '.join(session_names()) or 'none yet'}")
    chat.session = Session.load(path)
    chat.rename(rest)
    chat.used = 0
    chat.screen.show(f"loaded {rest}: {chat.session.n_said} messages")


def _sessions(chat: Chat, rest: str) -> None:
    chat.screen.show("\n".join(session_names()) or "none yet")


def _undo(chat: Chat, rest: str) -> None:
    question = chat.session.undo()
    chat.screen.show("there is nothing to take back" if question is None else f"took back: {question}")
    chat.keep()


def _retry(chat: Chat, rest: str) -> None:
    chat.retry()


def _set(chat: Chat, rest: str) -> None:
    if not rest:
        lines = [f"{name} = {json.dumps(value, default=str)}" for name, value in sorted(chat.settings.items())]
        chat.screen.show("\n".join(lines) or "everything is as the model and llama.cpp have it")
        return
    name, _, text = rest.partition(" ")
    if name not in setting_names():
        from pyllm.params import unknown_argument

        raise unknown_argument(name, setting_names(), "/set")
    text = text.strip()
    if not text:
        chat.screen.show(f"{name} = {json.dumps(_value_of(chat, name), default=str)}")
        return
    if text.lower() in _NONE and not (text.lower() == "off" and name in _SWITCHES):
        chat.session.settings.pop(name, None)
        chat.given.pop(name, None)
    else:
        value = _parse(text)
        _check(chat, name, value)
        chat.session.settings[name] = value
    chat.keep()


def _value_of(chat: Chat, name: str) -> Any:
    from pyllm.params import SamplingParams

    defaults = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
    return chat.settings.get(name, defaults.get(name))


def _parse(text: str) -> Any:
    if text.lower() in ("on", "off", "yes", "no"):
        return text.lower() in ("on", "yes")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _check(chat: Chat, name: str, value: Any) -> None:
    """Refuse now what the next answer would be refused for."""
    from pyllm.params import SamplingParams, field_names

    fields = field_names(SamplingParams)
    if name in fields:
        SamplingParams(**{**{key: item for key, item in chat.settings.items() if key in fields}, name: value})
    elif name in ("max_tokens", "reasoning_budget"):
        if isinstance(value, bool) or not isinstance(value, int) or value < -1:
            raise InvalidArgumentError(f"{name} must be a whole number of at least -1, not {value!r}")
    elif name == "enable_thinking" and not isinstance(value, bool):
        raise InvalidArgumentError(f"enable_thinking must be on or off, not {value!r}")


def _stats(chat: Chat, rest: str) -> None:
    lines = [f"answers              {chat.answers}", f"tokens generated     {chat.generated}"]
    if chat.last:
        lines.append("the last answer")
        lines += [f"  {name:20} {value:g}" for name, value in chat.last.items()]
    chat.screen.show("\n".join(lines))


def _tokens(chat: Chat, rest: str) -> None:
    if rest:
        ids = chat.llm.tokenize(rest, add_special=False, parse_special=False)
        pieces = [chat.llm.vocab.token_to_piece(token).decode("utf-8", "backslashreplace") for token in ids]
        listed = ", ".join(f"{token} {piece!r}" for token, piece in zip(ids, pieces, strict=True))
        chat.screen.show(f"{len(ids)}: {listed}")
        return
    chat.screen.show(f"{chat.used} of {chat.llm.context.n_ctx_seq} tokens of the context are in use")


_LIST = (
    Command("/help", "", "show this", _help),
    Command("/exit", "", "end the program", _exit),
    Command("/reset", "", "forget what was said, and keep the system prompt", _reset),
    Command("/system", "[TEXT]", "show or change the system prompt; - removes it", _system),
    Command("/undo", "", "take back the last question and its answer", _undo),
    Command("/retry", "", "answer the last question again", _retry),
    Command("/set", "[NAME [VALUE]]", "show or change a setting, as in /set temperature 0.2", _set),
    Command("/save", "[NAME]", "keep the conversation", _save),
    Command("/load", "NAME", "go on with another conversation", _load),
    Command("/sessions", "", "list the conversations that are kept", _sessions),
    Command("/stats", "", "show how fast it was", _stats),
    Command("/tokens", "[TEXT]", "show how much of the context is used, or the tokens of a text", _tokens),
)
COMMANDS = {command.name: command for command in _LIST}
_ALIASES = {"/quit": "/exit", "/bye": "/exit", "/clear": "/reset", "/?": "/help", "/regen": "/retry"}

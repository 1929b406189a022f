"""What is known of a conversation: held by the Llama, and read and changed through a Conversation."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyllm.completion.overflow import RULES
from pyllm.conversation.text import TextHistory
from pyllm.errors import InvalidArgumentError, StateError

if TYPE_CHECKING:
    from pyllm.chat.types import ChatCompletion
    from pyllm.conversation.file import SavedText


@dataclass(slots=True, eq=False)
class ConversationState:
    """A conversation without its Llama.

    A Conversation holds its Llama, and the Llama holds this, so that neither holds itself: a Llama that nobody has
    any more is freed at once, and not when the garbage is collected.

    Attributes:
        name: Its name.
        overflow: One of :data:`pyllm.completion.overflow.RULES`.
        defaults: Arguments of every turn.
        messages: What was said, as :func:`pyllm.chat.messages.plain_messages` gives it.
        first: The first message behind those of the system that the model is told.
        history: The text, where it is one.
        lock: Held during a turn.
        thread: Who holds it.
        closed: Whether it was closed.
        handle: The Conversation that somebody may have of it.
    """

    name: str
    overflow: str = "error"
    defaults: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    first: int = 0
    history: TextHistory = field(default_factory=TextHistory)
    lock: threading.Lock = field(default_factory=threading.Lock)
    thread: int | None = None
    closed: bool = False
    handle: weakref.ref[Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidArgumentError(f"the name of a conversation must be text, not {self.name!r}")
        check_rule(self.overflow)
        check_arguments(self.defaults)

    def begins_with(self, other: ConversationState) -> None:
        """Take over what another one holds at this moment."""
        self.messages = [dict(message) for message in other.messages]
        self.first = other.first
        self.history = other.history.copy()

    def to_header(self) -> dict[str, Any]:
        """What a file says of it, as plain JSON."""
        return {
            "name": self.name,
            "messages": self.messages,
            "first": self.first,
            "overflow": self.overflow,
            "text": self.history.to_dict(),
        }

    @classmethod
    def from_file(
        cls, path: str, saved: SavedText, name: str | None, defaults: dict[str, Any], n_vocab: int
    ) -> ConversationState:
        """From the header of a file.

        Args:
            path: The file, for messages.
            saved: What it holds.
            name: Its name here; None: the one it had.
            defaults: Arguments of every turn.
            n_vocab: How many tokens the model has.

        Raises:
            StateError: It is not what :meth:`to_header` gives.
        """
        from pyllm.chat.messages import plain_messages  # not before somebody chats

        check_arguments(defaults)
        header = saved.header
        try:
            found, messages, first = header["name"], header["messages"], int(header["first"])
            check_rule(header["overflow"])
            history = TextHistory.from_dict(header["text"], n_vocab)
            messages = plain_messages(messages) if messages != [] else []
            if not isinstance(found, str) or not found:
                raise ValueError(f"{found!r} is no name")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StateError(f"{path!r} is damaged: {error!r} in its header") from None
        made = cls(found if name is None else name, header["overflow"], defaults, messages)
        made.first, made.history = first, history
        return made


def check_rule(overflow: Any) -> None:
    """Raise InvalidArgumentError unless this is one of the rules."""
    if overflow not in RULES:
        raise InvalidArgumentError(f"overflow must be one of {', '.join(map(repr, RULES))}, not {overflow!r}")


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for arguments that a turn cannot have."""
    for name in ("messages", "prompt", "stream", "overflow"):
        if name in arguments:
            raise InvalidArgumentError(f"{name} is not an argument of a turn: the conversation sets it")
    for name in ("n", "best_of"):
        if arguments.get(name) not in (None, 1):
            raise InvalidArgumentError(f"a turn has one answer: {name} must be 1, not {arguments[name]!r}")


def answer_of(completion: ChatCompletion) -> dict[str, Any]:
    """What an answer is remembered as: its message; or its text, where the call of a tool was cut off in it."""
    try:
        for call in completion.tool_calls:
            _ = call.arguments
        return plain(completion.message.to_dict())[0]
    except InvalidArgumentError:
        return {"role": "assistant", "content": completion.choices[0].raw}


def plain(message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """What somebody says, as messages."""
    from pyllm.chat.messages import plain_messages  # not before somebody chats

    if message is None:
        return []
    if isinstance(message, str):
        return [{"role": "user", "content": message}]
    # Objects with role and content count as one message too, as they do in a list.
    several: Any = message if isinstance(message, Sequence) else [message]
    return plain_messages(several)

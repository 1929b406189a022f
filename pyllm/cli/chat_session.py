"""A conversation of ``pyllm chat``: its messages, and the files that keep them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyllm.errors import InvalidArgumentError, ModelLoadError
from pyllm.extras import missing

_FORMAT = "pyllm chat session"
_VERSION = 1

# What `/set` knows beside the sampling parameters.
_OTHER_SETTINGS = (
    "max_tokens",
    "stop",
    "enable_thinking",
    "reasoning_format",
    "reasoning_budget",
    "json_schema",
    "chat_template_kwargs",
)
_NAME = re.compile(r"[\w][\w.-]{0,99}")
_ROLES = ("system", "user", "assistant", "tool")


class SessionError(ModelLoadError):
    """The file of a conversation cannot be read or written."""


@dataclass
class Session:
    """What has been said.

    Attributes:
        messages: As :meth:`pyllm.Llama.create_chat_completion` takes them; the system prompt is the first.
        settings: What `/set` has changed.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> str | None:
        """The system prompt."""
        if self.messages and self.messages[0]["role"] == "system":
            return str(self.messages[0]["content"])
        return None

    @system.setter
    def system(self, text: str | None) -> None:
        if self.system is not None:
            del self.messages[0]
        if text is not None:
            self.messages.insert(0, {"role": "system", "content": text})

    @property
    def n_said(self) -> int:
        """How many messages there are beside the system prompt."""
        return len(self.messages) - (self.system is not None)

    def add(self, role: str, content: str, reasoning: str = "") -> None:
        """Put a message at the end."""
        message = {"role": role, "content": content}
        if reasoning:
            message["reasoning_content"] = reasoning
        self.messages.append(message)

    def clear(self) -> None:
        """Forget all but the system prompt."""
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    def undo(self) -> str | None:
        """Take back the last question and what followed; the question, or None when there is none."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i]["role"] == "user":
                question = str(self.messages[i]["content"])
                del self.messages[i:]
                return question
        return None

    def save(self, path: Path) -> None:
        """Write it to a file, of which there is always the whole old or the whole new one.

        Raises:
            SessionError: It cannot be written.
        """
        text = json.dumps(
            {"format": _FORMAT, "version": _VERSION, "settings": self.settings, "messages": self.messages},
            ensure_ascii=False,
            indent=1,
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # mkstemp makes files that nobody else can read.
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".session-")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(name, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as error:
            raise SessionError(f"cannot save the conversation to {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path) -> Session:
        """Read one from a file.

        Raises:
            SessionError: There is none, or it is something else.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SessionError(f"cannot read the conversation {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise SessionError(f"{path} is not a conversation of pyllm chat: {error}") from error
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise SessionError(f"{path} is not a conversation of pyllm chat")
        if value.get("version") != _VERSION:
            raise SessionError(f"{path} is of version {value.get('version')!r}; this pyllm reads version {_VERSION}")
        messages, settings = value.get("messages"), value.get("settings")
        if not isinstance(messages, list) or not all(map(_is_message, messages)) or not isinstance(settings, dict):
            raise SessionError(f"{path} is damaged: it must hold a list of messages and settings")
        if unknown := sorted(set(settings) - set(setting_names())):
            raise SessionError(f"{path} is damaged: /set knows no {unknown[0]!r}")
        return cls(messages, settings)


def setting_names() -> list[str]:
    """Everything that `/set` can change."""
    from pyllm.params import SamplingParams, field_names

    return sorted([*field_names(SamplingParams), *_OTHER_SETTINGS])


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in _ROLES and isinstance(value.get("content"), str)


def data_dir() -> Path:
    """The folder of conversations and the history of input: ``PYLLM_DATA``, or the user's data folder."""
    if override := os.environ.get("PYLLM_DATA"):
        return Path(override).expanduser()
    try:
        import platformdirs
    except ImportError as error:
        raise missing("pyllm chat needs platformdirs", extra="cli") from error
    return Path(platformdirs.user_data_dir("pyllm", appauthor=False))


def sessions_dir() -> Path:
    """Where conversations are kept."""
    return data_dir() / "sessions"


def check_name(name: str) -> str:
    """The name of a conversation, if it can be one.

    Raises:
        InvalidArgumentError: It could leave the folder, or is empty.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidArgumentError(f"a conversation's name is letters, digits, '_', '-' and '.', not {name!r}")
    return name


def session_path(name: str) -> Path:
    """The file of a conversation."""
    return sessions_dir() / f"{check_name(name)}.json"


def session_names() -> list[str]:
    """The conversations there are."""
    try:
        return sorted(path.stem for path in sessions_dir().glob("*.json") if not path.name.startswith("."))
    except OSError:
        return []

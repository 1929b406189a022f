"""What a Llama can do with conversations, and with the state of its own calls."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pyllm.conversation import file
from pyllm.errors import InvalidArgumentError, StateError

if TYPE_CHECKING:
    from pyllm.completion.cache import PromptCache
    from pyllm.completion.session import CompletionSession
    from pyllm.conversation.conversation import Conversation
    from pyllm.llama import Llama

_making = threading.Lock()


class ConversationMethods:
    """The part of :class:`pyllm.Llama` that is about conversations."""

    _cache: PromptCache
    _conversations: dict[str, Conversation]

    if TYPE_CHECKING:

        def _acquire(self, session: CompletionSession | None) -> None: ...

        def _release(self) -> None: ...

    @property
    def conversations(self) -> dict[str, Conversation]:
        """The conversations that are open, by name: a copy."""
        return dict(self._conversations)

    def conversation(
        self, name: str, *, system: str | None = None, overflow: str | None = None, **defaults: Any
    ) -> Conversation:
        """The conversation of a name; it is begun when there is none.

        Any number of them share the context. What was computed for each is kept beside the others: in a sequence of
        its own where the Llama was made with ``n_seq_max``, and else in the memory of the host, of which together
        they take at most ``conversation_bytes``. Those that were not used for longest are computed again.

        Args:
            name: Its name.
            system: A system prompt.
            overflow: What happens when it is longer than the context: "error" (as with None), "shift" or
                "truncate_middle"; see :class:`pyllm.conversation.Conversation`.
            **defaults: Arguments of every turn, such as temperature or tools.

        Raises:
            InvalidArgumentError: There is one of that name that was begun otherwise.
        """
        known = self._conversations.get(name)
        if known is None:
            messages = [] if system is None else [{"role": "system", "content": system}]
            return self._new_conversation(name, messages, overflow or "error", defaults)
        for what, given, has in (("system", system, known.system), ("overflow", overflow, known.overflow)):
            if given is not None and given != has:
                raise InvalidArgumentError(f"the conversation {name!r} has {what}={has!r} already, not {given!r}")
        if defaults and defaults != known.defaults:
            raise InvalidArgumentError(
                f"the conversation {name!r} was begun with other arguments: change its defaults, or give "
                f"{', '.join(defaults)} in a turn"
            )
        return known

    def load_conversation(
        self, path: str | os.PathLike[str], *, name: str | None = None, **defaults: Any
    ) -> Conversation:
        """Bring back a conversation that was saved.

        Args:
            path: What :meth:`pyllm.conversation.Conversation.save` has written.
            name: Its name here; None: the one it had.
            **defaults: Arguments of every turn.

        Raises:
            FileNotFoundError: There is no such file.
            StateError: It is damaged, or was saved with another model or other settings.
            InvalidArgumentError: There is a conversation of that name.
        """
        from pyllm.conversation.text import TextHistory

        saved = file.read(path, cast("Llama", self), "conversation")
        header = saved.header
        try:
            history = TextHistory.from_dict(header["text"])
            found, messages, first, overflow = (header[key] for key in ("name", "messages", "first", "overflow"))
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{os.fsdecode(path)!r} is damaged: {error!r} in its header") from None
        result = self._new_conversation(found if name is None else name, messages, overflow, defaults)
        try:
            result._first, result._history = int(first), history
            if len(saved.tokens):
                self._adopt(result.name, saved, path)
        except BaseException:
            result.close()
            raise
        return result

    def save_state(self, path: str | os.PathLike[str]) -> int:
        """Write what the last call has left in the KV cache to a file, its tokens and a checksum with it.

        A call after :meth:`load_state` whose prompt begins with these tokens, and which has ``cache_prompt=True``,
        computes only the rest. This is about calls outside of conversations, which have a ``save`` of their own.

        Returns:
            int: Size of the file in bytes. There are no logits in it.

        Raises:
            StateError: There is nothing: no call was made, or its memory was used otherwise since.
            InvalidArgumentError: The model has a control vector, which a file cannot name.
        """
        self._acquire(None)
        try:
            kept = self._cache.believed(None)
            if kept is None:
                raise StateError("there is nothing to save: no call has left anything in the KV cache")
            saved = file.SavedText({}, kept.tokens, self._cache.state_of(kept))
            return file.write(path, cast("Llama", self), "state", saved)
        finally:
            self._release()

    def load_state(self, path: str | os.PathLike[str]) -> int:
        """Bring back what :meth:`save_state` has written.

        Returns:
            int: How many tokens it holds.

        Raises:
            FileNotFoundError: There is no such file.
            StateError: It is damaged, or was saved with another model or other settings.
        """
        saved = file.read(path, cast("Llama", self), "state")
        self._adopt(None, saved, path)
        return len(saved.tokens)

    def _adopt(self, owner: str | None, saved: file.SavedText, path: str | os.PathLike[str]) -> None:
        self._acquire(None)
        try:
            self._cache.adopt(owner, saved.tokens.astype(np.int32), saved.state)
        except StateError as error:
            raise StateError(
                f"{os.fsdecode(path)!r} does not fit: {error.args[0]}", function=error.function, log=error.log
            ) from error
        finally:
            self._release()

    def _new_conversation(
        self, name: str, messages: Sequence[Mapping[str, Any]], overflow: str, defaults: Mapping[str, Any]
    ) -> Conversation:
        from pyllm.conversation.conversation import Conversation

        if not isinstance(name, str) or not name:
            raise InvalidArgumentError(f"the name of a conversation must be text, not {name!r}")
        with _making:
            if name in self._conversations:
                raise InvalidArgumentError(
                    f"there is a conversation {name!r} already; close() it, or take another name"
                )
            made = Conversation(cast("Llama", self), name, messages=messages, overflow=overflow, defaults=defaults)
            self._conversations[name] = made
        return made

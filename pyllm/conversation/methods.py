"""What a Llama can do with conversations, and with the state of its own calls."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pyllm.conversation import file
from pyllm.errors import InvalidArgumentError, StateError

if TYPE_CHECKING:
    from pyllm.completion.cache import PromptCache
    from pyllm.completion.host import CallLock
    from pyllm.conversation.conversation import Conversation, ConversationHost
    from pyllm.conversation.state import ConversationState
    from pyllm.core.context import Context
    from pyllm.params import ContextParams

# Two threads that ask for the same conversation must get the same one.
_making = threading.Lock()


class ConversationMethods:
    """The part of :class:`pyllm.Llama` that is about conversations."""

    context: Context
    context_params: ContextParams
    _cache: PromptCache
    _calls: CallLock
    _conversations: dict[str, ConversationState]

    @property
    def conversations(self) -> dict[str, Conversation]:
        """The conversations that are open, by name: a copy."""
        with _making:
            return {name: self._handle(state) for name, state in self._conversations.items()}

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
        from pyllm.conversation.state import ConversationState, plain

        messages = [] if system is None else plain({"role": "system", "content": system})
        asked = ConversationState(name, "error" if overflow is None else overflow, defaults, messages)
        with _making:
            known = self._conversations.setdefault(name, asked)
            found = self._handle(known)
        if known is asked:
            return found
        for what, given, has in (("system", system, found.system), ("overflow", overflow, found.overflow)):
            if given is not None and given != has:
                raise InvalidArgumentError(f"the conversation {name!r} has {what}={has!r} already, not {given!r}")
        if defaults and defaults != known.defaults:
            raise InvalidArgumentError(
                f"the conversation {name!r} was begun with other arguments: change its defaults, or give "
                f"{', '.join(defaults)} in a turn"
            )
        return found

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
        from pyllm.conversation.state import ConversationState

        saved = file.read(path, self._facts(), "conversation")
        made = ConversationState.from_file(os.fsdecode(path), saved, name, defaults, self.context.model.n_vocab)
        result = self._add_conversation(made)
        try:
            if len(saved.tokens):
                self._adopt(made.name, saved, path)
        except BaseException:
            made.closed = True
            self._conversations.pop(made.name, None)
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
        with self._calls.held():
            kept = self._cache.believed(None)
            if kept is None:
                raise StateError("there is nothing to save: no call has left anything in the KV cache")
            saved = file.SavedText({}, kept.tokens, self._cache.state_of(kept))
            return file.write(path, self._facts(), "state", saved)

    def load_state(self, path: str | os.PathLike[str]) -> int:
        """Bring back what :meth:`save_state` has written.

        Returns:
            int: How many tokens it holds.

        Raises:
            FileNotFoundError: There is no such file.
            StateError: It is damaged, or was saved with another model or other settings.
        """
        saved = file.read(path, self._facts(), "state")
        self._adopt(None, saved, path)
        return len(saved.tokens)

    def _adopt(self, owner: str | None, saved: file.SavedText, path: str | os.PathLike[str]) -> None:
        with self._calls.held():
            try:
                self._cache.adopt(owner, saved.tokens.astype(np.int32), saved.state)
            except StateError as error:
                raise StateError(
                    f"{os.fsdecode(path)!r} does not fit: {error.args[0]}", function=error.function, log=error.log
                ) from error

    def _facts(self) -> file.ModelFacts:
        return file.ModelFacts.of(self.context, self.context_params)

    def _add_conversation(self, state: ConversationState) -> Conversation:
        with _making:
            if self._conversations.setdefault(state.name, state) is not state:
                raise InvalidArgumentError(
                    f"there is a conversation {state.name!r} already; close() it, or take another name"
                )
            return self._handle(state)

    def _handle(self, state: ConversationState) -> Conversation:
        """The Conversation of a state: the same one, as long as somebody has it."""
        from pyllm.conversation.conversation import Conversation

        found: Conversation | None = None if state.handle is None else state.handle()
        if found is None:
            found = Conversation(cast("ConversationHost", self), state)
            state.handle = weakref.ref(found)
        return found

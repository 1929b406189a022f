"""A conversation: what was said, and the memory of it in the context of a Llama."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.cache import OWNER, common_length
from pyllm.completion.overflow import RULES
from pyllm.conversation import file, fit
from pyllm.conversation.text import TextHistory
from pyllm.errors import ClosedError, InvalidArgumentError

if TYPE_CHECKING:
    from pyllm.chat.types import ChatChunk, ChatCompletion
    from pyllm.llama import Llama, Tokens
    from pyllm.types import Completion

    Said = str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None

T = TypeVar("T")


class Conversation:
    """One of the conversations of a Llama; made by :meth:`pyllm.Llama.conversation`.

    It is a chat, by :meth:`say` and :meth:`stream`, or a text that grows, by :meth:`complete`. What was computed for
    it is kept, in a sequence of the context or in the memory of the host, so that only what is new is computed.

    Threads may share it: a turn waits until the one before it is done. A turn that fails leaves it as it was.

    Attributes:
        name: Its name.
        overflow: What happens when it is longer than the context. "error": the turn is an error. "truncate_middle":
            the oldest messages after the system's are not told to the model any more; of a text, the oldest tokens
            after the beginning. "shift": as "truncate_middle", and an answer goes on where the context is full; see
            :meth:`pyllm.Llama.create_completion`.
        defaults: Arguments of every turn, which a turn's own replace.
    """

    def __init__(
        self,
        llama: Llama,
        name: str,
        *,
        messages: Sequence[Mapping[str, Any]] = (),
        overflow: str = "error",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        if overflow not in RULES:
            raise InvalidArgumentError(f"overflow must be one of {', '.join(map(repr, RULES))}, not {overflow!r}")
        self.name = name
        self.overflow = overflow
        self.defaults = dict(defaults or {})
        _check_arguments(self.defaults)
        self._llama = llama
        self._messages: list[dict[str, Any]] = [dict(message) for message in messages]
        self._first = 0
        self._history = TextHistory()
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._closed = False

    # ---- what it is

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said, in OpenAI's shape: a copy. All of it, also what the model is not told any more."""
        return [dict(message) for message in self._messages]

    @property
    def system(self) -> str | None:
        """The system prompt, or None."""
        first = self._messages[0] if self._messages else {}
        return first["content"] if first.get("role") == "system" else None

    @property
    def text(self) -> str:
        """What :meth:`complete` was given and has generated so far."""
        return self._history.text

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The tokens that are kept of it, and need not be computed again: int32, shape (n,); none is possible."""
        kept = self._llama._cache.find(self.name)
        return np.empty(0, np.int32) if kept is None else kept.tokens.copy()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def __repr__(self) -> str:
        what = f"{len(self._messages)} messages" if not len(self._history) else f"{len(self._history.ids)} tokens"
        return f"<Conversation {self.name!r}, {'closed' if self._closed else what}>"

    # ---- turns

    def say(self, message: Said = None, **arguments: Any) -> ChatCompletion:
        """Say something, and get the answer. Both become part of the conversation.

        Args:
            message: Text of a user; or a message in OpenAI's shape, or several, such as the results of tools. None:
                answer what is there already.
            **arguments: See :meth:`pyllm.Llama.create_chat_completion`. ``cache_prompt`` is True here by default, so
                that with a seed too only what is new is computed.

        Raises:
            InvalidArgumentError: There is nothing to answer; it does not fit the context; or an argument is wrong.
        """
        with self._turn(message) as turn:
            completion: ChatCompletion = self._as_owner(
                lambda: self._llama.create_chat_completion(**self._chat_arguments(arguments))
            )
            turn(completion.message.to_dict())
        return completion

    def stream(self, message: Said = None, **arguments: Any) -> Iterator[ChatChunk]:
        """As :meth:`say`, piece by piece. It begins when the first piece is asked for.

        What was read is kept as the answer when it is closed before its end.
        """

        def chunks() -> Iterator[ChatChunk]:
            with self._turn(message) as turn:
                given = {**self._chat_arguments(arguments), "stream": True}
                pieces: Iterator[ChatChunk] = self._as_owner(lambda: self._llama.create_chat_completion(**given))
                text, reasoning = [], []
                try:
                    while (chunk := self._as_owner(lambda: next(pieces, None))) is not None:
                        text.append(chunk.text)
                        reasoning.append(chunk.reasoning)
                        if chunk.completion is not None:
                            turn(chunk.completion.message.to_dict())
                        yield chunk
                except GeneratorExit:
                    answer = {"role": "assistant", "content": "".join(text)}
                    if any(reasoning):
                        answer["reasoning_content"] = "".join(reasoning)
                    if any(text) or any(reasoning):
                        turn(answer)
                    raise
                finally:
                    pieces.close()  # type: ignore[attr-defined]

        return chunks()

    def complete(self, text: str | Tokens = "", **arguments: Any) -> Completion:
        """Add text without any template, and let the model go on from there; the rest becomes part of it too.

        Args:
            text: What comes next, as text or token ids; with none the model goes on where it ended.
            **arguments: See :meth:`pyllm.Llama.create_completion`.

        Raises:
            InvalidArgumentError: It is a chat already; it does not fit the context; or an argument is wrong.
        """
        with self._held():
            if self._messages:
                raise InvalidArgumentError(f"the conversation {self.name!r} is a chat: use say()")
            given = {"cache_prompt": True, **self.defaults, **arguments}
            _check_arguments(given)
            context, vocab = self._llama.context, self._llama.vocab
            if isinstance(text, str):
                added = vocab.tokenize(text, add_special=not len(self._history), parse_special=True)
            else:
                added = vocab.as_tokens(text)
                text = vocab.detokenize(added)
            keep = given.get("n_keep")
            if self.overflow == "error":
                prompt = self._history.prompt(added)
            else:
                most = fit.prompt_room(self._llama, given)
                if keep is None or keep < 0:
                    keep = int(vocab.add_bos and vocab.bos is not None)
                prompt = self._history.shortened(added, keep, most, context.n_ctx_seq // 2)
            given |= {"overflow": self.overflow}
            completion: Completion = self._as_owner(lambda: self._llama.create_completion(prompt, **given))
            self._history.add(added, np.array(completion.tokens, np.int32), text, completion.text)
        return completion

    def abort(self) -> None:
        """End the turn that is running, in another thread or as an open stream; see :meth:`pyllm.Llama.abort`."""
        with self._llama._abort_lock:
            running = self._llama._running
        if running is not None and getattr(running, "owner", None) == self.name:
            running.abort()

    # ---- the whole of it

    def undo(self) -> list[dict[str, Any]]:
        """Take back the last exchange: what a user said last, and all after it. Of a text, the last turn.

        Returns:
            list: The messages that were taken back; of a text none.

        Raises:
            InvalidArgumentError: There is nothing to take back.
        """
        with self._held():
            if len(self._history):
                self._history.pop()
                return []
            starts = fit.begins_exchange(self._messages)
            if not starts:
                raise InvalidArgumentError(f"nobody has said anything in the conversation {self.name!r}")
            removed = self._messages[starts[-1] :]
            del self._messages[starts[-1] :]
            return removed

    def reset(self) -> None:
        """Begin anew: nothing but what the system said first is left."""
        with self._held(), self._llama_held():
            del self._messages[fit.system_length(self._messages) :]
            self._first = 0
            self._history = TextHistory()
            self._llama._cache.drop(self.name)

    def fork(self, name: str) -> Conversation:
        """Another conversation that begins as this one. What they have in common is computed once.

        Args:
            name: Its name.

        Raises:
            InvalidArgumentError: There is one of that name.
        """
        with self._held():
            other = self._llama._new_conversation(name, self._messages, self.overflow, self.defaults)
            other._first = self._first
            other._history = self._history.copy()
        return other

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write it to a file, from which :meth:`pyllm.Llama.load_conversation` brings it back.

        The file holds messages, tokens and the KV cache of this sequence, and has a checksum. Where the memory was
        needed for others meanwhile, it has no KV cache, and what was said is computed again after loading. Defaults
        are not part of it: they may be functions.

        Returns:
            int: Its size in bytes.

        Raises:
            InvalidArgumentError: The model has a control vector, which a file cannot name.
        """
        with self._held(), self._llama_held():
            cache = self._llama._cache
            kept = cache.believed(self.name)
            header = {
                "name": self.name,
                "messages": self._messages,
                "first": self._first,
                "overflow": self.overflow,
                "text": self._history.to_dict(),
            }
            tokens, state = np.empty(0, np.int32), b""
            if kept is not None:
                tokens, state = kept.tokens, cache.state_of(kept)
            return file.write(path, self._llama, "conversation", file.SavedText(header, tokens, state))

    def close(self) -> None:
        """Forget it, and free its memory. Closing twice is allowed."""
        if self._closed:
            return
        with self._held():
            self._closed = True
            self._llama._conversations.pop(self.name, None)
            if not self._llama.context.closed:
                with self._llama_held():
                    self._llama._cache.drop(self.name)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ---- inside

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        from pyllm.llama import StreamOpenError

        if self._thread == threading.get_ident():
            raise StreamOpenError(
                f"a stream of the conversation {self.name!r} is still open in this thread: read it to its end, "
                "or close() it first"
            )
        with self._lock:
            if self._closed:
                raise ClosedError(f"the conversation {self.name!r} is closed")
            self._thread = threading.get_ident()
            try:
                yield
            finally:
                self._thread = None

    @contextlib.contextmanager
    def _llama_held(self) -> Iterator[None]:
        self._llama._acquire(None)
        try:
            yield
        finally:
            self._llama._release()

    @contextlib.contextmanager
    def _turn(self, message: Said) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Hold it with a message added. Without an answer, all is as it was."""
        with self._held():
            if len(self._history):
                raise InvalidArgumentError(f"the conversation {self.name!r} is a text: use complete()")
            before = len(self._messages)
            answers: list[dict[str, Any]] = []
            self._messages += _plain(message)
            try:
                if not self._messages or self._messages[-1]["role"] not in ("user", "tool"):
                    raise InvalidArgumentError(f"there is nothing to answer in the conversation {self.name!r}")
                yield answers.append
            finally:
                if answers:
                    self._messages += _plain(answers)
                else:
                    del self._messages[before:]

    def _as_owner(self, call: Callable[[], T]) -> T:
        token = OWNER.set(self.name)
        try:
            return call()
        finally:
            OWNER.reset(token)

    def _chat_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        given = {"cache_prompt": True, **self.defaults, **arguments}
        _check_arguments(given)
        messages: Sequence[Mapping[str, Any]] = self._messages
        if self.overflow != "error":
            begin = fit.system_length(messages)
            self._first = fit.fit_messages(
                messages,
                lambda some: len(self._prompt_tokens(some, given)),
                fit.prompt_room(self._llama, given),
                first=self._first,
                spare=self._llama.context.n_ctx_seq // 3,
            )
            messages = [*messages[:begin], *messages[self._first :]]
        if self.overflow == "shift":
            given |= {"overflow": "shift", "n_keep": self._system_tokens(given)}
        return {"messages": messages, **given}

    def _prompt_tokens(self, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> NDArray[np.int32]:
        from pyllm.chat.request import ChatRequest

        return ChatRequest(self._llama, messages, dict(given)).ids

    def _system_tokens(self, given: Mapping[str, Any]) -> int:
        """How many tokens the prompt begins with whatever a user says."""
        system = self._messages[: fit.system_length(self._messages)]
        one, other = (
            self._prompt_tokens([*system, {"role": "user", "content": text}], given) for text in ("Yes", "no")
        )
        return common_length(one, other)


def _plain(message: Any) -> list[dict[str, Any]]:
    from pyllm.chat.messages import plain_messages

    if message is None:
        return []
    if isinstance(message, str):
        return [{"role": "user", "content": message}]
    return plain_messages([message] if isinstance(message, Mapping) else message)


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    for name in ("messages", "prompt", "stream", "overflow"):
        if name in arguments:
            raise InvalidArgumentError(f"{name} is not an argument of a turn: the conversation sets it")
    for name in ("n", "best_of"):
        if arguments.get(name) not in (None, 1):
            raise InvalidArgumentError(f"a turn has one answer: {name} must be 1, not {arguments[name]!r}")

"""A conversation: what was said, and the memory of it in the context of a Llama."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.cache import OWNER, common_length
from pyllm.completion.host import CompletionHost
from pyllm.conversation import file, fit
from pyllm.conversation.state import ConversationState, answer_of, check_arguments, check_rule, plain
from pyllm.conversation.text import TextHistory, generated, tokens_behind
from pyllm.core.introspection import not_pickled
from pyllm.errors import ClosedError, InvalidArgumentError, StreamOpenError

if TYPE_CHECKING:
    from pyllm.chat.types import ChatChunk, ChatCompletion
    from pyllm.completion.host import Tokens
    from pyllm.params import ContextParams
    from pyllm.types import Completion

    Said = str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None

T = TypeVar("T")


class ConversationHost(CompletionHost, Protocol):
    """What a conversation needs of its Llama.

    Attributes:
        context_params: How the context was made.
    """

    context_params: ContextParams
    _conversations: dict[str, ConversationState]

    @property
    def create_completion(self) -> Callable[..., Any]:
        """Continues a prompt."""

    @property
    def create_chat_completion(self) -> Callable[..., Any]:
        """Answers messages."""

    def _facts(self) -> file.ModelFacts: ...

    def _add_conversation(self, state: ConversationState) -> Conversation: ...


class Conversation:
    """One of the conversations of a Llama; made by :meth:`pyllm.Llama.conversation`.

    It is a chat, by :meth:`say` and :meth:`stream`, or a text that grows, by :meth:`complete`. What was computed for
    it is kept, in a sequence of the context or in the memory of the host, so that only what is new is computed.

    Threads may share it: a turn waits until the one before it is done. A turn that fails leaves it as it was.

    It keeps its Llama, and the Llama keeps what was said: one that nobody has any more is found again by its name.
    """

    def __init__(self, llama: ConversationHost, state: ConversationState) -> None:
        self._llama = llama
        self._state = state

    # ---- what it is

    @property
    def name(self) -> str:
        """Its name."""
        return self._state.name

    @property
    def overflow(self) -> str:
        """What happens when it is longer than the context.

        "error": the turn is an error. "truncate_middle": the oldest messages after the system's are not told to the
        model any more; of a text, the oldest tokens after the beginning. "shift": as "truncate_middle", and an answer
        goes on where the context is full; see :meth:`pyllm.Llama.create_completion`.
        """
        return self._state.overflow

    @overflow.setter
    def overflow(self, value: str) -> None:
        check_rule(value)
        self._state.overflow = value

    @property
    def defaults(self) -> dict[str, Any]:
        """Arguments of every turn, which a turn's own replace. The dict may be changed."""
        return self._state.defaults

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said, in OpenAI's shape: a copy. All of it, also what the model is not told any more."""
        return copy.deepcopy(self._state.messages)

    @property
    def system(self) -> str | None:
        """The system prompt, or None."""
        messages = self._state.messages
        first = messages[0] if messages else {}
        return first["content"] if first.get("role") == "system" else None

    @property
    def text(self) -> str:
        """What :meth:`complete` was given and has generated so far."""
        return self._state.history.text

    @property
    def tokens(self) -> list[int]:
        """The tokens of the conversation that are kept, and need not be computed again; none is possible."""
        kept = self._llama._cache.find(self.name)
        tokens: list[int] = [] if kept is None else kept.tokens.tolist()
        return tokens

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._state.closed

    __reduce__ = not_pickled(
        "it lives in its Llama; save() it, and load the file with Llama.load_conversation(), or fork() it"
    )

    def __repr__(self) -> str:
        state = self._state
        what = f"{len(state.messages)} messages" if not len(state.history) else f"{len(state.history.ids)} tokens"
        return f"<Conversation {self.name!r}, {'closed' if self.closed else what}>"

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
            turn(answer_of(completion))
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
                done = False
                try:
                    while (chunk := self._as_owner(lambda: next(pieces, None))) is not None:
                        text.append(chunk.text)
                        reasoning.append(chunk.reasoning)
                        if chunk.completion is not None:
                            done = True
                            turn(answer_of(chunk.completion))
                        yield chunk
                except GeneratorExit:
                    if not done and (any(text) or any(reasoning)):
                        answer = {"role": "assistant", "content": "".join(text)}
                        if any(reasoning):
                            answer["reasoning_content"] = "".join(reasoning)
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
            state, llama = self._state, self._llama
            history, vocab = state.history, llama.vocab
            if state.messages:
                raise InvalidArgumentError(f"the conversation {self.name!r} is a chat: use say()")
            given = {"cache_prompt": True, **state.defaults, **arguments}
            check_arguments(given)
            given["overflow"] = state.overflow
            if not isinstance(text, (str, bytes)):
                added = vocab.as_token_array(text)
                data = b"".join(map(vocab.token_to_piece, added.tolist()))
            else:
                data = text.encode() if isinstance(text, str) else text
                # Nothing is put before a text that goes on.
                added = tokens_behind(vocab, data) if len(history) else vocab.tokenize_array(data, parse_special=True)
            prompt, dropped = history.prompt(added), history.dropped
            if state.overflow != "error":
                keep = given.get("n_keep")
                if keep is None or keep < 0:
                    keep = int(vocab.add_bos and vocab.bos is not None)
                most = fit.prompt_room(llama, given)
                prompt, dropped = history.shortened(added, keep, most, llama.context.n_ctx_seq // 2)
            completion: Completion = self._as_owner(lambda: llama.create_completion(prompt, **given))
            special = given.get("special", False)
            ids, answer = generated(vocab, completion.tokens, completion.choices[0].stop, special)
            history.add([added, ids], data + answer, dropped)
        return completion

    def abort(self) -> None:
        """End the turn that is running, in another thread or as an open stream; see :meth:`pyllm.Llama.abort`."""
        running = self._llama._calls.running
        if running is not None and running.owner == self.name:
            self._llama._calls.abort(running)

    # ---- the whole of it

    def undo(self) -> list[dict[str, Any]]:
        """Take back the last exchange: what a user said last, and all after it. Of a text, the last turn.

        Returns:
            list: The messages that were taken back; of a text none.

        Raises:
            InvalidArgumentError: There is nothing to take back.
        """
        with self._held():
            state = self._state
            if len(state.history):
                state.history.pop()
                return []
            starts = fit.begins_exchange(state.messages)
            if not starts:
                raise InvalidArgumentError(f"nobody has said anything in the conversation {self.name!r}")
            removed = state.messages[starts[-1] :]
            del state.messages[starts[-1] :]
            if state.first >= len(state.messages):
                state.first = 0  # what comes next is another exchange
            return removed

    def reset(self) -> None:
        """Begin anew: nothing but what the system said first is left."""
        with self._held(), self._llama._calls.held():
            state = self._state
            self._llama._cache.drop(self.name)
            del state.messages[fit.system_length(state.messages) :]
            state.first = 0
            state.history = TextHistory()

    def fork(self, name: str) -> Conversation:
        """Another conversation that begins as this one. What they have in common is computed once.

        Args:
            name: Its name.

        Raises:
            InvalidArgumentError: There is one of that name.
        """
        with self._held():
            state = self._state
            other = ConversationState(name, state.overflow, dict(state.defaults))
            other.begins_with(state)
            return self._llama._add_conversation(other)

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
        with self._held(), self._llama._calls.held():
            cache = self._llama._cache
            kept = cache.believed(self.name)
            tokens, state = np.empty(0, np.int32), b""
            if kept is not None:
                tokens, state = kept.tokens, cache.state_of(kept)
            saved = file.SavedText(self._state.to_header(), tokens, state)
            return file.write(path, self._llama._facts(), "conversation", saved)

    def close(self) -> None:
        """Forget it, and free its memory. Closing twice is allowed."""
        with self._held(even_closed=True):
            llama = self._llama
            if self.closed:
                return
            if not llama.context.closed:
                with self._llama._calls.held():
                    llama._cache.drop(self.name)
            self._state.closed = True
            llama._conversations.pop(self.name, None)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.close()
        except StreamOpenError:
            # An exception that passes through is not hidden behind the stream that it has left open.
            if not any(exc_info):
                raise

    # ---- inside

    @contextlib.contextmanager
    def _held(self, *, even_closed: bool = False) -> Iterator[None]:
        state = self._state
        if state.thread == threading.get_ident():
            raise StreamOpenError(
                f"a stream of the conversation {self.name!r} is still open in this thread: read it to its end, "
                "or close() it first"
            )
        with state.lock:
            if state.closed and not even_closed:
                raise ClosedError(f"the conversation {self.name!r} is closed")
            state.thread = threading.get_ident()
            try:
                yield
            finally:
                state.thread = None

    @contextlib.contextmanager
    def _turn(self, message: Said) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Hold it with a message added. Without an answer, all is as it was."""
        with self._held():
            state = self._state
            if len(state.history):
                raise InvalidArgumentError(f"the conversation {self.name!r} is a text: use complete()")
            before, first = len(state.messages), state.first
            answers: list[dict[str, Any]] = []
            state.messages += plain(message)
            try:
                if not state.messages or state.messages[-1]["role"] not in ("user", "tool"):
                    raise InvalidArgumentError(f"there is nothing to answer in the conversation {self.name!r}")
                yield answers.append
            finally:
                if answers:
                    state.messages += answers
                else:
                    del state.messages[before:]
                    state.first = first

    def _as_owner(self, call: Callable[[], T]) -> T:
        token = OWNER.set(self.name)
        try:
            return call()
        finally:
            OWNER.reset(token)

    def _chat_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        state = self._state
        given = {"cache_prompt": True, **state.defaults, **arguments}
        check_arguments(given)
        messages: Sequence[Mapping[str, Any]] = state.messages
        if state.overflow != "error":
            begin = fit.system_length(messages)
            state.first = fit.fit_messages(
                messages,
                lambda some: len(self._prompt_tokens(some, given)),
                fit.prompt_room(self._llama, given),
                first=state.first,
                spare=self._llama.context.n_ctx_seq // 3,
            )
            messages = [*messages[:begin], *messages[state.first :]]
        if state.overflow == "shift":
            given["overflow"] = "shift"
            if given.get("n_keep") is None:
                given["n_keep"] = self._system_tokens(given)
        return {"messages": messages, **given}

    def _prompt_tokens(self, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> NDArray[np.int32]:
        from pyllm.chat.request import ChatRequest

        return ChatRequest(self._llama, messages, dict(given)).ids

    def _system_tokens(self, given: Mapping[str, Any]) -> int:
        """How many tokens the prompt begins with whatever a user says."""
        messages = self._state.messages
        system = messages[: fit.system_length(messages)]
        one, other = (
            self._prompt_tokens([*system, {"role": "user", "content": text}], given) for text in ("Yes", "no")
        )
        return common_length(one, other)

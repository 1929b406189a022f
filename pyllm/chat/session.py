"""A chat completion: a completion of the prompt that messages make, whose text is read as messages again."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyllm.chat.answer import Answer
from pyllm.chat.messages import Messages
from pyllm.chat.request import ChatRequest
from pyllm.chat.types import ChatChoice, ChatChunk, ChatCompletion, ChatFinishReason, ChatLogprobs, Delta, Message
from pyllm.completion.session import CompletionSession
from pyllm.conversation.fit import told_messages
from pyllm.types import Choice, Chunk, Completion

if TYPE_CHECKING:
    from pyllm.llama import Llama

_Ended = tuple[Message, ChatFinishReason]


class ChatSession:
    """One call of a Llama. ``with`` it the Llama is held.

    Args:
        llama: The Llama.
        messages: The chat so far.
        arguments: See :meth:`pyllm.Llama.create_chat_completion`.
        streamed: Whether it is read piece by piece.
    """

    def __init__(self, llama: Llama, messages: Messages, arguments: dict[str, Any], *, streamed: bool = False) -> None:
        self.request = ChatRequest(llama, told_messages(llama, messages, arguments), arguments)
        self.session = CompletionSession(llama, self.request.ids, self.request.completion_arguments, streamed=streamed)
        self.id = f"chat{self.session.request.id}"

    def __enter__(self) -> ChatSession:
        self.session.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.session.__exit__(*exc_info)

    def abort(self) -> None:
        """End it as soon as possible."""
        self.session.abort()

    def finish(self) -> ChatCompletion:
        """Generate all of it."""
        completion = self.session.finish()
        ended: dict[int, _Ended] = {}
        for choice in completion.choices:
            message, reason, _ = Answer(self.request, choice.text).finish(choice.finish_reason)
            ended[choice.index] = message, reason
        return self._completion(completion, ended)

    def chunks(self) -> Iterator[ChatChunk]:
        """Pieces of the answers as they become final; the last chunk has the completion."""
        answers: dict[int, _Streamed] = {}
        ended: dict[int, _Ended] = {}
        for chunk in self.session.chunks():
            streamed = answers.get(chunk.index)
            if streamed is None:
                streamed = answers[chunk.index] = _Streamed(self.request)
            delta = streamed.add(chunk)
            if chunk.finish_reason is None:
                # Nothing new where the text may still become something else than content.
                if delta:
                    yield self._chunk(chunk, streamed, delta)
                continue
            message, reason, rest = streamed.answer.finish(chunk.finish_reason)
            ended[chunk.index] = message, reason
            completion = None if chunk.completion is None else self._completion(chunk.completion, ended)
            yield self._chunk(chunk, streamed, delta.joined(rest), reason, completion)

    def _chunk(
        self,
        chunk: Chunk,
        streamed: _Streamed,
        delta: Delta,
        reason: ChatFinishReason | None = None,
        completion: ChatCompletion | None = None,
    ) -> ChatChunk:
        tokens, logprobs = streamed.take()
        return ChatChunk(
            delta=streamed.with_role(delta),
            finish_reason=reason,
            completion=completion,
            index=chunk.index,
            tokens=tokens,
            logprobs=logprobs,
            model=chunk.model,
            id=self.id,
            created=chunk.created,
        )

    def _completion(self, completion: Completion, ended: dict[int, _Ended]) -> ChatCompletion:
        return ChatCompletion(
            choices=tuple(self._choice(choice, *ended[choice.index]) for choice in completion.choices),
            usage=completion.usage,
            timings=completion.timings,
            model=completion.model,
            id=self.id,
            created=completion.created,
        )

    def _choice(self, choice: Choice, message: Message, reason: ChatFinishReason) -> ChatChoice:
        logprobs = None
        if choice.logprobs is not None:
            logprobs = ChatLogprobs.of(choice.logprobs, self.request.top_logprobs or 0)
        form, parser = self.request.form, None
        if form is not None and form.parser is not None and reason == "stop" and choice.stop is None:
            parser = functools.partial(form.parse, message.text)
        return ChatChoice(
            message=message,
            finish_reason=reason,
            raw=choice.text,
            tokens=choice.tokens,
            seed=choice.seed,
            index=choice.index,
            stop=choice.stop,
            logprobs=logprobs,
            parser=parser,
        )


class _Streamed:
    """An answer of a stream, and what of it has not been given yet."""

    def __init__(self, request: ChatRequest) -> None:
        self.answer = Answer(request)
        self._k = request.top_logprobs
        self._begun = False
        self._tokens: tuple[int, ...] = ()
        self._logprobs: list[ChatLogprobs] = []

    def add(self, chunk: Chunk) -> Delta:
        """Add a piece, and give what is new in the message."""
        self._tokens += chunk.tokens
        if chunk.logprobs is not None and self._k is not None:
            self._logprobs.append(ChatLogprobs.of(chunk.logprobs, self._k))
        return self.answer.add(chunk.text)

    def with_role(self, delta: Delta) -> Delta:
        """The delta, with the role when it is the first."""
        if self._begun:
            return delta
        self._begun = True
        return replace(delta, role="assistant")

    def take(self) -> tuple[tuple[int, ...], ChatLogprobs | None]:
        """Tokens and log-probabilities since the last time."""
        tokens, self._tokens = self._tokens, ()
        parts, self._logprobs = self._logprobs, []
        if self._k is None:
            return tokens, None
        return tokens, ChatLogprobs(tuple(one for part in parts for one in part.content))

"""From the texts of a completion to the answers of a chat, whoever generates them."""

from __future__ import annotations

import functools
from dataclasses import replace

from pyllm.chat.answer import Answer
from pyllm.chat.request import ChatRequest
from pyllm.chat.types import ChatChoice, ChatChunk, ChatCompletion, ChatFinishReason, ChatLogprobs, Delta, Message
from pyllm.types import Choice, Chunk, Completion

_Ended = tuple[Message, ChatFinishReason]


class Reading:
    """Reads what was generated for a chat: all of it with :meth:`completion`, or piece by piece with :meth:`chunk`.

    Args:
        request: What the chat asked for. Its ``ids`` are the prompt, and its ``completion_arguments`` what the
            completion has to be asked with.
    """

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self._answers: dict[int, _Streamed] = {}
        self._ended: dict[int, _Ended] = {}

    def completion(self, completion: Completion) -> ChatCompletion:
        """The answers of a whole completion."""
        ended: dict[int, _Ended] = {}
        for choice in completion.choices:
            message, reason, _ = Answer(self.request, choice.text).finish(choice.finish_reason)
            ended[choice.index] = message, reason
        return self._completion(completion, ended)

    def chunk(self, chunk: Chunk) -> ChatChunk | None:
        """What a piece of a text adds to its answer; None where that is nothing yet."""
        streamed = self._answers.get(chunk.index)
        if streamed is None:
            streamed = self._answers[chunk.index] = _Streamed(self.request)
        delta = streamed.add(chunk)
        if chunk.finish_reason is None:
            # Nothing new where the text may still become something else than content.
            return self._chunk(chunk, streamed, delta) if delta else None
        message, reason, rest = streamed.answer.finish(chunk.finish_reason)
        self._ended[chunk.index] = message, reason
        completion = None if chunk.completion is None else self._completion(chunk.completion, self._ended)
        return self._chunk(chunk, streamed, delta.joined(rest), reason, completion)

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
            id=f"chat{chunk.id}",
            created=chunk.created,
        )

    def _completion(self, completion: Completion, ended: dict[int, _Ended]) -> ChatCompletion:
        return ChatCompletion(
            choices=tuple(self._choice(choice, *ended[choice.index]) for choice in completion.choices),
            usage=completion.usage,
            timings=completion.timings,
            speculation=completion.speculation,
            model=completion.model,
            id=f"chat{completion.id}",
            created=completion.created,
        )

    def _choice(self, choice: Choice, message: Message, reason: ChatFinishReason) -> ChatChoice:
        logprobs = None
        if choice.logprobs is not None:
            logprobs = ChatLogprobs.of(choice.logprobs, self.request.top_logprobs or 0)
        form, parser = self.request.form, None
        if form is not None and form.parser is not None and reason == "stop" and choice.stop is None:
            parser = functools.partial(form.parse, self.request.formed_text(message.text))
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
            score=choice.score,
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

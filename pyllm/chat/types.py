"""What a chat is made of and gives back: frozen dataclasses, which are mappings in the shape of OpenAI's API too."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pyllm.errors import InvalidArgumentError
from pyllm.types import Logprobs, Shaped, Speculation, Timings, Usage

ChatFinishReason = Literal["stop", "length", "tool_calls", "abort"]


@dataclass(frozen=True)
class ToolFunction(Shaped):
    """Which function a model wants to be called, and with what.

    Attributes:
        name: Its name.
        arguments: Its arguments as JSON text, as the model wrote it.
    """

    name: str
    arguments: str

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {"name": self.name, "arguments": self.arguments}


@dataclass(frozen=True)
class ToolCall(Shaped):
    """A call of a tool that a model asks for.

    Attributes:
        id: Its name, which the message with the result repeats as tool_call_id.
        function: The function and its arguments.
    """

    id: str
    function: ToolFunction

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.name

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, by name.

        Raises:
            InvalidArgumentError: They are not the JSON of an object: the answer ended before they were complete.
        """
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(
                f"the arguments of {self.name} are not complete JSON ({error}): {self.function.arguments!r}"
            ) from None
        if not isinstance(arguments, dict):
            raise InvalidArgumentError(f"the arguments of {self.name} are no object: {self.function.arguments!r}")
        return arguments

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {"id": self.id, "type": "function", "function": self.function.to_dict()}


@dataclass(frozen=True)
class Message(Shaped):
    """A message of a chat. Dicts in OpenAI's shape do as well, wherever messages are taken.

    Attributes:
        role: "system", "developer", "user", "assistant" or "tool".
        content: Text, or parts ``{"type": "text", "text": …}``; None where an assistant only calls tools.
        reasoning_content: What an assistant thought before it answered.
        tool_calls: The calls that an assistant asks for.
        name: Of the tool whose result this is.
        tool_call_id: Of the call whose result this is.
    """

    role: str
    content: str | Sequence[Mapping[str, Any]] | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one text; empty where there is none."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part["text"] for part in self.content or () if part.get("type") == "text")

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API; what is empty is left out, but for role and content."""
        content = self.content
        if content is not None and not isinstance(content, str):
            content = [dict(part) for part in content]
        result: dict[str, Any] = {"role": self.role, "content": content}
        if self.reasoning_content:
            result["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            result["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.name is not None:
            result["name"] = self.name
        if self.tool_call_id is not None:
            result["tool_call_id"] = self.tool_call_id
        return result


@dataclass(frozen=True)
class TokenLogprob(Shaped):
    """A token and how likely it was, by the model's own logits.

    Attributes:
        token: Its text; of one that is no text by itself, with U+FFFD for what is not.
        logprob: Natural logarithm of its probability.
        raw: The bytes that it stands for.
        top_logprobs: The likeliest tokens at its place.
    """

    token: str
    logprob: float
    raw: bytes
    top_logprobs: tuple[TokenLogprob, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {**self._short(), "top_logprobs": [top._short() for top in self.top_logprobs]}

    def _short(self) -> dict[str, Any]:
        return {"token": self.token, "logprob": self.logprob, "bytes": list(self.raw)}


@dataclass(frozen=True)
class ChatLogprobs(Shaped):
    """Log-probabilities of an answer.

    Attributes:
        content: One for each token that was generated, those of reasoning and tool calls among them.
    """

    content: tuple[TokenLogprob, ...]

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {"content": [one.to_dict() for one in self.content], "refusal": None}

    @classmethod
    def of(cls, logprobs: Logprobs, k: int) -> ChatLogprobs:
        """Those of a completion, with the k likeliest tokens of each place."""
        content = []
        for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
            likeliest = tuple(_token_logprob(text, one) for text, one in list((top or {}).items())[:k])
            content.append(_token_logprob(token, float(value or 0.0), likeliest))
        return cls(tuple(content))


def _token_logprob(text: str, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    data = text.encode()
    if text.startswith("bytes:\\x"):
        data = bytes.fromhex(text.removeprefix("bytes:").replace("\\x", ""))
    return TokenLogprob(data.decode("utf-8", "replace"), logprob, data, top)


@dataclass(frozen=True)
class ChatChoice(Shaped):
    """One of the answers of a chat completion.

    Attributes:
        message: The answer.
        finish_reason: "tool_calls": it calls tools. "stop": the model ended the answer, or a stop string was found.
            "length": max_tokens were generated, or the context is full. "abort": somebody aborted it.
        raw: The text as the model wrote it, with reasoning and tool calls in it.
        tokens: The generated ids, in order. A token that ended the text is not among them.
        seed: The seed that was used.
        index: Its place among the choices.
        stop: The stop string that was found, or None.
        logprobs: Where they were asked for.
        parser: What makes :attr:`parsed`.
        score: That of a beam search; see :class:`pyllm.types.Choice`.
    """

    message: Message
    finish_reason: ChatFinishReason
    raw: str = ""
    tokens: tuple[int, ...] = ()
    seed: int = 0
    index: int = 0
    stop: str | None = None
    logprobs: ChatLogprobs | None = None
    parser: Callable[[], Any] | None = field(default=None, compare=False, repr=False)
    score: float | None = field(default=None, compare=False)

    @property
    def parsed(self) -> Any:
        """The value that the content stands for, where a form was asked for: JSON, a pydantic object, a choice.

        None where no such form was asked for, and where the answer is not complete.
        """
        return None if self.parser is None else self.parser()

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {
            "index": self.index,
            "message": self.message.to_dict(),
            "finish_reason": self.finish_reason,
            "logprobs": None if self.logprobs is None else self.logprobs.to_dict(),
        }


@dataclass(frozen=True)
class ChatCompletion(Shaped):
    """A finished chat completion; what belongs to one answer is here that of the first choice.

    Attributes:
        choices: The answers.
        usage: Counts of tokens.
        timings: Durations.
        speculation: How drafts went, where they were made.
        model: Name of the model's file.
        id: A name that no other completion has.
        created: When it was asked for, in seconds since 1970.
    """

    choices: tuple[ChatChoice, ...]
    usage: Usage
    timings: Timings = field(default=Timings(0.0, 0.0, 0), compare=False)
    speculation: Speculation | None = field(default=None, compare=False)
    model: str = field(default="", compare=False)
    id: str = field(default="", compare=False)
    created: int = field(default=0, compare=False)

    @property
    def message(self) -> Message:
        """The answer, which can be appended to the messages as it is."""
        return self.choices[0].message

    @property
    def text(self) -> str:
        """The content of the answer; empty where it only calls tools."""
        return self.message.text

    @property
    def reasoning(self) -> str:
        """What the model thought before it answered; empty where it did not."""
        return self.message.reasoning_content or ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that the answer asks for."""
        return self.message.tool_calls

    @property
    def finish_reason(self) -> ChatFinishReason:
        """See :class:`ChatChoice`."""
        return self.choices[0].finish_reason

    @property
    def tokens(self) -> tuple[int, ...]:
        """See :class:`ChatChoice`."""
        return self.choices[0].tokens

    @property
    def seed(self) -> int:
        """See :class:`ChatChoice`."""
        return self.choices[0].seed

    @property
    def logprobs(self) -> ChatLogprobs | None:
        """See :class:`ChatChoice`."""
        return self.choices[0].logprobs

    @property
    def parsed(self) -> Any:
        """See :class:`ChatChoice`."""
        return self.choices[0].parsed

    @property
    def score(self) -> float | None:
        """See :class:`ChatChoice`."""
        return self.choices[0].score

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from pyllm import notebook  # only here: needed in notebooks alone

        return notebook.chat(self)

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice.to_dict() for choice in self.choices],
            "usage": self.usage.to_dict(),
        }


@dataclass(frozen=True)
class ToolCallDelta(Shaped):
    """A piece of a call: first its id and name, then its arguments bit by bit.

    Attributes:
        index: Which of the calls of the answer.
        id: In the first piece of a call, else None.
        name: In the first piece of a call, else None.
        arguments: More of the JSON text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        if self.id is None:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": self.index, "id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Delta(Shaped):
    """What a chunk adds to a message.

    Attributes:
        role: In the first chunk of an answer, else None.
        content: More of the content.
        reasoning_content: More of the reasoning.
        tool_calls: New calls, or more of their arguments.
    """

    role: str | None = None
    content: str = ""
    reasoning_content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API; what is empty is left out."""
        result: dict[str, Any] = {}
        if self.role is not None:
            result["role"] = self.role
        if self.content or self.role is not None:
            result["content"] = self.content or None
        if self.reasoning_content:
            result["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            result["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return result

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning_content or self.tool_calls)

    def joined(self, other: Delta) -> Delta:
        """This one and the next one as one."""
        return Delta(
            self.role,
            self.content + other.content,
            self.reasoning_content + other.reasoning_content,
            self.tool_calls + other.tool_calls,
        )


@dataclass(frozen=True)
class ChatChunk(Shaped):
    """A piece of a streamed answer.

    Attributes:
        delta: What it adds to the message.
        finish_reason: None, and in the last chunk of a choice why it ended.
        completion: In the last chunk of all the whole of it, else None.
        index: Which choice it belongs to.
        tokens: The ids generated since the last chunk of this choice.
        logprobs: Those of the tokens, where they were asked for.
        model: Name of the model's file.
        id: That of the completion.
        created: When it was asked for, in seconds since 1970.
    """

    delta: Delta
    finish_reason: ChatFinishReason | None = None
    completion: ChatCompletion | None = None
    index: int = 0
    tokens: tuple[int, ...] = ()
    logprobs: ChatLogprobs | None = None
    model: str = field(default="", compare=False)
    id: str = field(default="", compare=False)
    created: int = field(default=0, compare=False)

    @property
    def text(self) -> str:
        """More of the content; empty while the model thinks or calls tools."""
        return self.delta.content

    @property
    def reasoning(self) -> str:
        """More of the reasoning."""
        return self.delta.reasoning_content

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API; the last chunk has the usage too."""
        choice = {
            "index": self.index,
            "delta": self.delta.to_dict(),
            "finish_reason": self.finish_reason,
            "logprobs": None if self.logprobs is None else self.logprobs.to_dict(),
        }
        result: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        }
        if self.completion is not None:
            result["usage"] = self.completion.usage.to_dict()
        return result

"""What a generation gives back: frozen dataclasses, which are mappings in the shape of OpenAI's API too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "abort"]


class Shaped(Mapping[str, Any]):
    """A mapping whose items are those of `to_dict`."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API: plain lists, dicts, texts and numbers."""
        raise NotImplementedError

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request took.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens generated, all texts together.
        cached_tokens: How many of the prompt's were in the KV cache already, and were not computed again.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class Timings:
    """How long a request took, in milliseconds."""

    prompt_ms: float
    generation_ms: float
    completion_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, the prompt not counted."""
        return 1000 * self.completion_tokens / self.generation_ms if self.generation_ms > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Speculation:
    """How the guesses went that were computed along with a text.

    Attributes:
        drafts: How many drafts were made.
        drafted: Tokens in them.
        accepted: How many of these became part of the text.
        paused: Steps without a draft, because drafts had taken more time than they saved.
    """

    drafts: int
    drafted: int
    accepted: int
    paused: int = 0

    @property
    def rate(self) -> float:
        """The share of drafted tokens that were accepted, from 0 to 1."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def __add__(self, other: Speculation) -> Speculation:
        return Speculation(
            self.drafts + other.drafts,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.paused + other.paused,
        )


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of tokens, by the model's own logits: no processor or sampler has changed them.

    The lists are equally long, with one item for each token.

    Attributes:
        tokens: Texts of the tokens. One that is no text by itself is ``bytes:`` and its bytes in hexadecimal.
        text_offset: Where each begins in the text of its choice, in characters.
        token_logprobs: Natural logarithms; None for the first token of a prompt, which nothing predicts.
        top_logprobs: The likeliest tokens with their log-probabilities, and the token itself.
        ids: Ids of the tokens. Several tokens may have the same text; the id tells them apart.
        top_ids: The likeliest tokens as pairs of id and log-probability, the likeliest first.
    """

    tokens: tuple[str, ...]
    text_offset: tuple[int, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[dict[str, float] | None, ...]
    ids: tuple[int, ...] = field(default=(), compare=False)
    top_ids: tuple[tuple[tuple[int, float], ...], ...] = field(default=(), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {
            "tokens": list(self.tokens),
            "text_offset": list(self.text_offset),
            "token_logprobs": list(self.token_logprobs),
            "top_logprobs": [None if top is None else dict(top) for top in self.top_logprobs],
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the texts of a completion.

    Attributes:
        text: The generated text, without stop string; with ``echo`` the prompt stands before it.
        tokens: The generated ids, in order. A token that ended the text is not among them.
        finish_reason: "stop": the model ended the text, a stop string was found, or a stopping criterion was met.
            "length": max_tokens were generated, or the context is full. "abort": somebody aborted it.
        seed: The seed that was used; see :meth:`pyllm.Llama.create_completion` for what it promises.
        index: Its place among the choices.
        stop: The stop string that was found, or None.
        logprobs: Where they were asked for.
        parser: What makes :attr:`parsed`.
        score: Of a beam search: the sum of the log-probabilities of its tokens, the one that ended it included, divided
            by their number to the power `length_penalty`. None: there was no such search.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    seed: int
    index: int = 0
    stop: str | None = None
    logprobs: Logprobs | None = None
    parser: Callable[[], Any] | None = field(default=None, compare=False, repr=False)
    score: float | None = field(default=None, compare=False)

    @property
    def parsed(self) -> Any:
        """The value that the text stands for, where a form was asked for: JSON, a pydantic object, a choice.

        None where no such form was asked for, and where something else than the model has ended the text: max_tokens,
        a stop string, a stopping criterion. Validators of a pydantic model may raise ``pydantic.ValidationError``.
        """
        return None if self.parser is None else self.parser()

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return _choice(self.text, self.index, self.logprobs, self.finish_reason)


@dataclass(frozen=True)
class Completion(Shaped):
    """A finished generation.

    It is a mapping in the shape of OpenAI's API too: ``completion["choices"][0]["text"]``, and ``dict(completion)``
    is made of plain lists, dicts, texts and numbers. What belongs to one text is here that of the first choice.

    Attributes:
        choices: The texts.
        usage: Counts of tokens.
        timings: Durations.
        model: Name of the model's file.
        id: A name that no other completion has.
        created: When it was asked for, in seconds since 1970.
        speculation: How drafts went, where they were made.
    """

    choices: tuple[Choice, ...]
    usage: Usage
    timings: Timings = field(default=Timings(0.0, 0.0, 0), compare=False)
    model: str = field(default="", compare=False)
    id: str = field(default="", compare=False)
    created: int = field(default=0, compare=False)
    speculation: Speculation | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """See :class:`Choice`."""
        return self.choices[0].text

    @property
    def tokens(self) -> tuple[int, ...]:
        """See :class:`Choice`."""
        return self.choices[0].tokens

    @property
    def finish_reason(self) -> FinishReason:
        """See :class:`Choice`."""
        return self.choices[0].finish_reason

    @property
    def seed(self) -> int:
        """See :class:`Choice`."""
        return self.choices[0].seed

    @property
    def stop(self) -> str | None:
        """See :class:`Choice`."""
        return self.choices[0].stop

    @property
    def logprobs(self) -> Logprobs | None:
        """See :class:`Choice`."""
        return self.choices[0].logprobs

    @property
    def parsed(self) -> Any:
        """See :class:`Choice`."""
        return self.choices[0].parsed

    @property
    def score(self) -> float | None:
        """See :class:`Choice`."""
        return self.choices[0].score

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from pyllm import notebook  # only here: needed in notebooks alone

        return notebook.completion(self)

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice.to_dict() for choice in self.choices],
            "usage": self.usage.to_dict(),
        }


@dataclass(frozen=True)
class Chunk(Shaped):
    """A piece of a stream; a mapping in the shape of OpenAI's API too.

    Attributes:
        text: Text that has become final: whole characters, and no part of a stop string. It may stem from
            several tokens.
        tokens: The ids generated since the last chunk of this choice.
        finish_reason: None, and in the last chunk of a choice why it ended.
        completion: In the last chunk of all the whole of it, else None.
        index: Which choice it belongs to.
        logprobs: Those of the tokens, where they were asked for.
        model: Name of the model's file.
        id: That of the completion.
        created: When it was asked for, in seconds since 1970.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    completion: Completion | None = None
    index: int = 0
    logprobs: Logprobs | None = None
    model: str = field(default="", compare=False)
    id: str = field(default="", compare=False)
    created: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API; the last chunk has the usage too."""
        result = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [_choice(self.text, self.index, self.logprobs, self.finish_reason)],
        }
        if self.completion is not None:
            result["usage"] = self.completion.usage.to_dict()
        return result


def _choice(text: str, index: int, logprobs: Logprobs | None, finish_reason: FinishReason | None) -> dict[str, Any]:
    return {
        "text": text,
        "index": index,
        "logprobs": None if logprobs is None else logprobs.to_dict(),
        "finish_reason": finish_reason,
    }

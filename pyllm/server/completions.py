"""Completions of texts: OpenAI's ``/v1/completions``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response

from pyllm.server.active_request import ActiveRequest, Progress, timings_so_far
from pyllm.server.constraints import constraint_arguments
from pyllm.server.errors import as_api_error, invalid, json_response
from pyllm.server.limits import read_json
from pyllm.server.log import note
from pyllm.server.native_answer import token_entries, verbose
from pyllm.server.openapi import GENERATES, post
from pyllm.server.prompts import PROMPT, read_openai_prompts
from pyllm.server.sampling import MOST_LOGPROBS, MOST_TEXTS, SamplingFields, Sizes, sampling_arguments
from pyllm.server.settings import Settings
from pyllm.server.sse import DONE, EventWriter, event, stream_response, until_gone
from pyllm.server.state import ServerState, build_info, state_of
from pyllm.server.wire import Wire, about, decode, within
from pyllm.types import Choice, Chunk
from pyllm.types import Usage as Counts

# Texts of one request, over all of its prompts.
MOST_TEXTS_OF_ALL = 2048
# Of the tokens of a prompt, of which there are many.
_MOST_ECHOED_LOGPROBS = 20


class StreamOptions(Wire):
    """Options of a stream."""

    include_usage: bool | None = None


class StreamFields(SamplingFields, kw_only=True):
    """Sampling parameters, constraints, and the fields about streams of OpenAI's completions and chats."""

    stream: Annotated[bool | None, about("Whether the answer comes in pieces, as server-sent events.")] = None
    stream_options: StreamOptions | None = None
    timings_per_token: Annotated[bool | None, about("Whether every piece has the timings.")] = None
    return_progress: Annotated[bool | None, about("Whether a stream says how far the prompt has been read.")] = None
    verbose: Annotated[bool | None, about("Whether an answer that is no stream says all that is known of it.")] = None


class CompletionRequest(StreamFields, kw_only=True):
    """A request for completions."""

    model: Annotated[str | None, about("The name of the model.")] = None
    prompt: Annotated[Any, PROMPT]
    suffix: Annotated[str | None, about("What follows the text; for models that can fill in.")] = None
    echo: Annotated[bool | None, about("Whether the prompt stands before the text.")] = None
    best_of: (
        Annotated[int, within(1, MOST_TEXTS, "How many texts are made, of which the likeliest are answered.")] | None
    ) = None
    logprobs: Annotated[
        Annotated[int, within(0, MOST_LOGPROBS)] | bool | None,
        about("How many of the likeliest tokens to name at each place.", expected="a number"),
    ] = None
    return_token_ids: Annotated[bool | None, about("Whether choices have the ids of their tokens.")] = None

    def arguments(self, prompts: list[Any], settings: Settings, sizes: Sizes) -> dict[str, Any]:
        """Arguments of the engine for each prompt.

        Args:
            prompts: The prompts.
            settings: The server's.
            sizes: Those of the model.

        Raises:
            APIError: A value is out of range, or two exclude each other; the error names the parameter.
        """
        arguments = sampling_arguments(self, settings, sizes) | constraint_arguments(self)
        n: int = arguments.get("n", 1)
        stream_options(self)
        if self.logprobs is not None and self.logprobs is not False:
            # Some clients send OpenAI's switch of chats: true asks for the tokens' own numbers.
            top = int(self.logprobs)
            if self.echo and top > _MOST_ECHOED_LOGPROBS:
                message = f"logprobs must be from 0 to {_MOST_ECHOED_LOGPROBS} with echo, not {top}"
                raise invalid("logprobs", message)
            arguments["logprobs"] = top
        if self.echo:
            arguments["echo"] = True
        if self.best_of is not None:
            if self.best_of < n:
                raise invalid("best_of", f"best_of={self.best_of} must be at least n={n}")
            if self.best_of > n and self.stream:
                raise invalid("best_of", "best_of chooses when all texts are complete: it cannot be streamed")
            arguments["best_of"] = self.best_of
        if self.suffix:
            if any(not isinstance(prompt, str) for prompt in prompts):
                raise invalid("suffix", "suffix needs prompts that are texts")
            arguments["suffix"] = self.suffix
        check_number_of_texts(len(prompts) * max(n, self.best_of or 1))
        return arguments


class Logprobs(Wire):
    """How likely the tokens of a text were."""

    tokens: list[str]
    text_offset: list[int]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Wire):
    """One of the texts."""

    text: str
    index: int
    logprobs: Logprobs | None
    finish_reason: Annotated[str, about("", enum=["stop", "length", "tool_calls", "function_call"])]


class TokenDetails(Wire):
    """Of the tokens of the prompt, those that were in the cache."""

    cached_tokens: int


class Usage(Wire):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails


class Completion(Wire):
    """The texts."""

    id: str
    object: Annotated[str, about("", const="text_completion")]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


def stream_options(fields: StreamFields) -> tuple[bool, bool]:
    """Whether a request is streamed, and whether the stream ends with the counts of tokens.

    Raises:
        APIError: There are options of a stream, and there is none.
    """
    if fields.stream_options is not None and not fields.stream:
        raise invalid("stream_options", "stream_options has no effect without stream: true")
    return bool(fields.stream), fields.stream_options is not None and bool(fields.stream_options.include_usage)


def check_number_of_texts(n_texts: int) -> None:
    """Raise the error that refuses a request for more texts than one may ask for."""
    if n_texts > MOST_TEXTS_OF_ALL:
        message = f"prompt asks for {n_texts} texts in all; one request may ask for {MOST_TEXTS_OF_ALL}"
        raise invalid("prompt", message)


async def completions(request: Request) -> Response:
    """Go on with texts."""
    state = state_of(request)
    body, sizes = await read_json(request, state.settings), state.sizes
    asked = decode(CompletionRequest, body)
    prompts = read_openai_prompts(asked.prompt)
    arguments = asked.arguments(prompts, state.settings, sizes)
    return await until_gone(request, _answer(request, state, asked, prompts, arguments))


async def _answer(
    request: Request, state: ServerState, asked: CompletionRequest, prompts: list[Any], arguments: dict[str, Any]
) -> Response:
    active = ActiveRequest(state)
    try:
        await active.start(prompts, arguments, stream=bool(asked.stream))
    except Exception as error:
        raise as_api_error(error, param="prompt", retry_after=state.settings.retry_after) from error
    writer = _CompletionWriter(state, active, asked)
    if asked.stream:
        return stream_response(request, active, writer, state.settings, progress=asked.return_progress)
    found = await active.finish()
    choices = [
        writer.choice(number, choice, choice.to_dict())
        for number, completion in enumerate(found)
        for choice in completion.choices
    ]
    note(request, **active.report())
    more = {"timings": active.timings()}
    more |= verbose(state, active.jobs[0], found[0], wanted=bool(asked.verbose))
    return json_response(writer.whole(choices, active.usage()) | more)


class _CompletionWriter(EventWriter):
    """Writes completions, as a whole or as chunks of a stream."""

    def __init__(self, state: ServerState, active: ActiveRequest, asked: CompletionRequest) -> None:
        self._active, self._asked, self._n = active, asked, asked.n or 1
        self._vocab = state.model.vocab
        self._head = {
            "id": active.jobs[0].id,  # which is in the log, too
            "object": "text_completion",
            "created": int(time.time()),
            "model": state.alias,
            "system_fingerprint": build_info(),
        }
        _, self._include_usage = stream_options(asked)
        self._more: dict[str, Any] = {"usage": None} if self._include_usage else {}
        self._n_tokens = [0] * len(active.jobs)

    def choice(self, number: int, source: Choice | Chunk, choice: dict[str, Any]) -> dict[str, Any]:
        """A choice of one of the prompts, numbered over all of them."""
        choice["index"] += number * self._n
        if self._asked.return_token_ids:
            choice["token_ids"] = list(source.tokens)
            if source.logprobs is not None:
                # OpenAI's shape knows tokens by their texts, of which several can be the same.
                choice["logprobs"]["content"] = token_entries(self._vocab, source.logprobs)
        return choice

    def whole(self, choices: list[dict[str, Any]], usage: Counts | None = None) -> dict[str, Any]:
        """An answer, or a chunk of one, with these choices."""
        return {**self._head, "choices": choices} | ({} if usage is None else {"usage": usage.to_dict()})

    def progress(self, number: int, progress: Progress) -> Iterator[bytes]:
        """A chunk without text."""
        nothing = {"text": "", "index": number * self._n, "logprobs": None, "finish_reason": None}
        yield event(self.whole([nothing]) | self._more | progress.field())

    def chunk(self, number: int, chunk: Chunk) -> Iterator[bytes]:
        """The next piece of a text."""
        active, more = self._active, self._more
        (choice,) = chunk.to_dict()["choices"]
        self._n_tokens[number] += len(chunk.tokens)
        if self._asked.timings_per_token:
            more["timings"] = timings_so_far(active.jobs[number], self._n_tokens[number])
        if len(active.completions) == len(active.jobs) and not self._include_usage:
            more["timings"] = active.timings()
        yield event(self.whole([self.choice(number, chunk, choice)]) | more)

    def end(self) -> Iterator[bytes]:
        """The counts of tokens where they were asked for, and OpenAI's mark."""
        if self._include_usage:
            yield event(self.whole([], self._active.usage()) | {"timings": self._active.timings()})
        yield DONE


ROUTES = [
    post(
        "/v1/completions",
        completions,
        tag="texts",
        takes=CompletionRequest,
        gives=Completion,
        streams=True,
        refuses=GENERATES,
    )
]

"""From the engine's chunks to OpenAI's completions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyllm.server.completions.protocol import CompletionAsk
from pyllm.server.errors import as_api_error, json_response
from pyllm.server.generation import Generation
from pyllm.server.log import note
from pyllm.server.logprobs import token_entries
from pyllm.server.native.verbose import verbose
from pyllm.server.progress import Progress, with_progress
from pyllm.server.sse import DONE, EventStream, event
from pyllm.server.state import ServerState
from pyllm.server.timings import timings_so_far
from pyllm.server.version import build_info
from pyllm.types import Choice, Chunk, Usage


async def serve(request: Request, state: ServerState, ask: CompletionAsk) -> Response:
    """Start what was asked for; the response, or the beginning of a stream."""
    generation = Generation(state)
    try:
        await generation.start(ask.prompts, ask.arguments, stream=ask.stream)
    except Exception as error:
        raise as_api_error(error, param="prompt", retry_after=state.settings.retry_after) from error
    answer = _Answer(state, ask, generation.jobs[0].id)
    if ask.stream:
        return EventStream(_events(request, generation, answer, ask), state.settings, generation.cancel)
    completions = await generation.finish()
    choices = [
        answer.choice(number, choice, choice.to_dict())
        for number, completion in enumerate(completions)
        for choice in completion.choices
    ]
    note(request, **generation.report())
    more = {"timings": generation.timings()}
    more |= verbose(state, generation.jobs[0], completions[0], wanted=ask.verbose)
    return json_response(answer.whole(choices, generation.usage()) | more)


async def _events(
    request: Request, generation: Generation, answer: _Answer, ask: CompletionAsk
) -> AsyncGenerator[bytes, None]:
    more: dict[str, Any] = {"usage": None} if ask.include_usage else {}
    n_tokens = [0] * len(generation.jobs)
    try:
        async with contextlib.aclosing(with_progress(generation, wanted=ask.return_progress)) as events:
            async for number, chunk in events:
                if isinstance(chunk, Progress):
                    nothing = {"text": "", "index": number * ask.n, "logprobs": None, "finish_reason": None}
                    yield event(answer.whole([nothing]) | more | chunk.field())
                    continue
                (choice,) = chunk.to_dict()["choices"]
                n_tokens[number] += len(chunk.tokens)
                if ask.timings_per_token:
                    more["timings"] = timings_so_far(generation.jobs[number], n_tokens[number])
                if len(generation.completions) == len(generation.jobs) and not ask.include_usage:
                    more["timings"] = generation.timings()
                yield event(answer.whole([answer.choice(number, chunk, choice)]) | more)
        if ask.include_usage:
            yield event(answer.whole([], generation.usage()) | {"timings": generation.timings()})
        yield DONE
    finally:
        note(request, **generation.report())


class _Answer:
    """What all chunks of an answer have in common."""

    def __init__(self, state: ServerState, ask: CompletionAsk, id: str) -> None:
        self.n = ask.n
        self.return_token_ids = ask.return_token_ids
        self.vocab = state.model.vocab
        self.head = {
            "id": id,  # which is in the log, too
            "object": "text_completion",
            "created": int(time.time()),
            "model": state.alias,
            "system_fingerprint": build_info(),
        }

    def choice(self, number: int, source: Choice | Chunk, choice: dict[str, Any]) -> dict[str, Any]:
        """A choice of one of the prompts, numbered over all of them."""
        choice["index"] += number * self.n
        if self.return_token_ids:
            choice["token_ids"] = list(source.tokens)
            if source.logprobs is not None:
                # OpenAI's shape knows tokens by their texts, of which several can be the same.
                choice["logprobs"]["content"] = token_entries(self.vocab, source.logprobs)
        return choice

    def whole(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """An answer, or a chunk of one, with these choices."""
        return {**self.head, "choices": choices} | ({} if usage is None else {"usage": usage.to_dict()})

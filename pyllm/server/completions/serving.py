"""From the engine's chunks to OpenAI's completions."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyllm.server.completions.protocol import CompletionAsk
from pyllm.server.errors import as_api_error, json_response
from pyllm.server.generation import Generation
from pyllm.server.log import note
from pyllm.server.sse import DONE, EventStream, event
from pyllm.server.state import ServerState
from pyllm.types import Usage


async def serve(request: Request, state: ServerState, ask: CompletionAsk) -> Response:
    """Start what was asked for; the response, or the beginning of a stream."""
    generation = Generation(state)
    try:
        await generation.start(ask.prompts, ask.arguments, stream=ask.stream)
    except Exception as error:
        raise as_api_error(error, param="prompt", retry_after=state.settings.retry_after) from error
    answer = _Answer(state.alias, ask.n)
    if ask.stream:
        return EventStream(_events(request, generation, answer, ask.include_usage), state.settings, generation.cancel)
    completions = await generation.finish()
    choices = [
        answer.choice(number, choice.to_dict())
        for number, completion in enumerate(completions)
        for choice in completion.choices
    ]
    note(request, **generation.report())
    return json_response(answer.whole(choices, generation.usage()))


async def _events(
    request: Request, generation: Generation, answer: _Answer, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    more = {"usage": None} if include_usage else {}
    try:
        async with contextlib.aclosing(generation.events()) as events:
            async for number, chunk in events:
                (choice,) = chunk.to_dict()["choices"]
                yield event(answer.whole([answer.choice(number, choice)]) | more)
        if include_usage:
            yield event(answer.whole([], generation.usage()))
        yield DONE
    finally:
        note(request, **generation.report())


class _Answer:
    """What all chunks of an answer have in common."""

    def __init__(self, alias: str, n: int) -> None:
        self.n = n
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": alias,
        }

    def choice(self, number: int, choice: dict[str, Any]) -> dict[str, Any]:
        """A choice of one of the prompts, numbered over all of them."""
        return {**choice, "index": number * self.n + choice["index"]}

    def whole(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """An answer, or a chunk of one, with these choices."""
        return {**self.head, "choices": choices} | ({} if usage is None else {"usage": usage.to_dict()})

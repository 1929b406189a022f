"""From the engine's chunks to llama-server's completions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyllm.completion.request import CompletionRequest, argument_names
from pyllm.engine.engine import Engine, Prompt
from pyllm.server.errors import as_api_error, invalid, json_response
from pyllm.server.generation import Generation
from pyllm.server.log import note
from pyllm.server.native.answer import NativeAnswer
from pyllm.server.native.prompts import as_prompt
from pyllm.server.native.protocol import NativeAsk
from pyllm.server.native.watch import Watch
from pyllm.server.progress import Progress, with_progress
from pyllm.server.sse import EventStream, event
from pyllm.server.state import ServerState
from pyllm.types import Chunk

# Texts of one request, over all of its prompts.
_MOST_TEXTS_OF_ALL = 2048


async def serve(request: Request, state: ServerState, ask: NativeAsk, prompts: list[Any]) -> Response:
    """Start what was asked for; the response, or the beginning of a stream.

    Args:
        request: The HTTP request.
        state: The server's.
        ask: What is asked for.
        prompts: As :func:`pyllm.server.native.prompts.read_prompts` gives them.
    """
    if len(prompts) * ask.n > _MOST_TEXTS_OF_ALL:
        message = f"prompt asks for {len(prompts) * ask.n} texts in all; one request may ask for {_MOST_TEXTS_OF_ALL}"
        raise invalid("prompt", message)
    engine, generation = state.engine, Generation(state)
    try:
        texts = await asyncio.to_thread(_texts, engine, ask, prompts)
        answers = [NativeAnswer(i, state.alias, ask, watch) for i, (_, _, watch) in enumerate(texts)]
        each = [more for _, more, _ in texts]
        await generation.start([prompt for prompt, _, _ in texts], ask.arguments, stream=ask.stream, each=each)
    except Exception as error:
        raise as_api_error(error, param="prompt", retry_after=state.settings.retry_after) from error
    if ask.stream:
        settings = state.settings
        if ask.ping_interval is not None:
            settings = replace(settings, ping_interval=ask.ping_interval)
        events = _events(request, generation, answers, with_progress(generation, wanted=ask.return_progress))
        return EventStream(events, settings, generation.cancel)
    completions = await generation.finish()
    note(request, **generation.report())
    found = [
        answer.whole(job, completion)
        for answer, job, completion in zip(answers, generation.jobs, completions, strict=True)
    ]
    return json_response(found[0] if len(found) == 1 else found)


async def _events(
    request: Request,
    generation: Generation,
    answers: list[NativeAnswer],
    source: AsyncGenerator[tuple[int, Chunk | Progress], None],
) -> AsyncGenerator[bytes, None]:
    try:
        async with contextlib.aclosing(source) as events:
            async for number, chunk in events:
                answer, job = answers[number], generation.jobs[number]
                if isinstance(chunk, Progress):
                    yield event(answer.progress(job, chunk))
                    continue
                piece = answer.piece(job, chunk)
                if piece is not None:
                    yield event(piece)
                if chunk.completion is not None:
                    yield event(answer.whole(job, chunk.completion))
    finally:
        note(request, **generation.report())


def _texts(engine: Engine, ask: NativeAsk, prompts: list[Any]) -> list[tuple[Prompt, dict[str, Any], Watch | None]]:
    """For each text its prompt, what it is asked with besides, and what watches it."""
    found: list[tuple[Prompt, dict[str, Any], Watch | None]] = []
    for value in prompts:
        prompt = as_prompt(engine.vocab, value)
        for index in range(ask.n):
            more: dict[str, Any] = {"seed": ask.seed_of(index)}
            watch = _watch(engine, ask, prompt, more) if ask.watched else None
            if watch is not None:
                more["stopping_criteria"] = [watch]
            found.append((prompt, more, watch))
    return found


def _watch(engine: Engine, ask: NativeAsk, prompt: Prompt, more: dict[str, Any]) -> Watch:
    chain = None
    if ask.n_probs and ask.post_sampling:
        # With the same samplers, the same seed and the same logits it chooses as those of the text do.
        known = {*argument_names()}
        arguments = {name: value for name, value in (ask.arguments | more).items() if name in known}
        chain = CompletionRequest(engine, prompt, arguments).chain(0)
    return Watch(engine.vocab, chain=chain, n_probs=ask.n_probs, most_ms=ask.most_ms, n_indent=ask.n_indent)

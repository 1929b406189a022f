"""Continue many prompts at once: every decode holds a token of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.sampler import Sampler
from pyllm.core.text_stream import TextStream
from pyllm.errors import InvalidArgumentError


@dataclass(slots=True, eq=False)
class Prompt:
    """A text to continue.

    Attributes:
        tokens: Its tokens, int32, shape (n,), n at least 1.
        sampler: What chooses the next token.
        max_tokens: Stop after so many.
        stop: Texts before which the continuation ends.
    """

    tokens: NDArray[np.int32]
    sampler: Sampler
    max_tokens: int
    stop: tuple[str, ...] = ()


class _Running:
    """A prompt that has a sequence of the context."""

    def __init__(self, prompt: Prompt, index: int, seq_id: int) -> None:
        self.prompt, self.index, self.seq_id = prompt, index, seq_id
        self.stream = TextStream(prompt.stop)
        self.n_past, self.n_generated = len(prompt.tokens), 0
        self.token = 0


def generate(context: Context, prompts: Sequence[Prompt]) -> list[str]:
    """Continue prompts; as soon as one is done the next takes its place.

    Args:
        context: Its memory is cleared. It computes up to ``n_seq_max`` prompts at once, of at most ``n_ctx_seq``
            tokens each, what is generated included.
        prompts: What to continue.

    Returns:
        list[str]: The continuations, in the order of the prompts.

    Raises:
        InvalidArgumentError: A prompt is empty, or too long for what is to be generated.
    """
    limit = context.n_ctx_seq
    unified = context.n_ctx == limit
    for i, prompt in enumerate(prompts):
        # The last token that is generated need not be decoded.
        needed = len(prompt.tokens) + max(0, prompt.max_tokens - 1)
        if not 1 <= needed <= limit or len(prompt.tokens) == 0:
            raise InvalidArgumentError(
                f"prompt {i} has {len(prompt.tokens)} tokens and max_tokens={prompt.max_tokens}, "
                f"and the context holds {limit}"
            )
    context.memory.clear(data=False)
    texts = [""] * len(prompts)
    waiting = [(i, prompt) for i, prompt in enumerate(prompts) if prompt.max_tokens > 0][::-1]
    free = list(range(context.n_seq_max))[::-1]
    running: list[_Running] = []
    cells = 0
    while waiting or running:
        while waiting and free:
            needed = len(waiting[-1][1].tokens) + waiting[-1][1].max_tokens
            if unified and running and cells + needed > limit:
                break
            cells += needed
            index, prompt = waiting.pop()
            new = _Running(prompt, index, free.pop())
            if _start(context, new):
                running.append(new)
            else:
                cells -= needed
                texts[index] = _end(context, new, free)
        still = _step(context, running) if running else []
        for one in running:
            if one not in still:
                cells -= len(one.prompt.tokens) + one.prompt.max_tokens
                texts[one.index] = _end(context, one, free)
        running = still
    return texts


def _start(context: Context, one: _Running) -> bool:
    """Compute the prompt and choose the first token; False if the continuation ends there."""
    tokens = one.prompt.tokens
    for a in range(0, len(tokens), context.n_batch):
        part = tokens[a : a + context.n_batch]
        last = a + len(part) == len(tokens)
        positions = np.arange(a, a + len(part), dtype=np.int32)
        context.decode(Batch.from_arrays(part, pos=positions, seq_ids=one.seq_id, outputs="last" if last else "none"))
    return _choose(context, one, -1)


def _step(context: Context, running: Sequence[_Running]) -> list[_Running]:
    """Decode a token of each, and choose the next ones; those that go on are returned."""
    still = []
    for a in range(0, len(running), context.n_batch):
        part = running[a : a + context.n_batch]
        context.decode(
            Batch.from_arrays(
                [one.token for one in part],
                pos=[one.n_past for one in part],
                seq_ids=[one.seq_id for one in part],
                outputs="all",
            )
        )
        for i, one in enumerate(part):
            one.n_past += 1
            if _choose(context, one, i):
                still.append(one)
    return still


def _choose(context: Context, one: _Running, i: int) -> bool:
    # Sampler.sample accepts what it has chosen.
    vocab = context.model.vocab
    one.token = one.prompt.sampler.sample(context, index=i)
    if vocab.is_eog(one.token):
        return False
    one.n_generated += 1
    stopped = one.stream.append(vocab.token_to_piece(one.token, special=False))
    return not stopped and one.n_generated < one.prompt.max_tokens


def _end(context: Context, one: _Running, free: list[int]) -> str:
    context.memory.rm(one.seq_id)
    free.append(one.seq_id)
    return one.stream.take(all=True)

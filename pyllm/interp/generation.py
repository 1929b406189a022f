"""Texts that are generated while hooks read and change what the model computes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.core.sampler import Chain
from pyllm.core.text_stream import TextStream
from pyllm.interp.names import HookPoint
from pyllm.interp.passes import HookFunction
from pyllm.types import Choice, Completion, FinishReason, Timings, Usage

if TYPE_CHECKING:
    from pyllm.interp.runner import Interp

Hooked = list[tuple[HookPoint, HookFunction]]


def generate(
    lab: Interp,
    ids: NDArray[np.int32],
    hooked: tuple[Hooked, Hooked],
    chain: Chain,
    limit: int,
    stop: str | Sequence[str],
    seed: int,
) -> Completion:
    """Continue a text, token by token. The lock of the Interp is held.

    Args:
        lab: The model.
        ids: The prompt.
        hooked: Hooks for the graph of the prompt, and for that of a single token.
        chain: What chooses the tokens.
        limit: Most tokens.
        stop: Stop strings.
        seed: That of the chain, for the result.
    """
    stream, tokens = TextStream(stop), list[int]()
    reason: FinishReason = "length"
    passes, vocab = lab._passes, lab.vocab
    begin = time.perf_counter()
    passes.clear()
    try:
        passes.go_on(ids, 0, [], hooked[0])
        prefilled = time.perf_counter()
        while len(tokens) < limit:
            token = chain.sample(lab.context)
            if vocab.is_eog(token):
                reason = "stop"
                break
            tokens.append(token)
            if stream.append(vocab.token_to_piece(token, special=False)):
                reason = "stop"
                break
            if len(tokens) < limit:
                passes.go_on(np.array([token], np.int32), len(ids) + len(tokens) - 1, [], hooked[1])
    finally:
        passes.clear()
    end = time.perf_counter()
    found = stream.stopped.decode() if isinstance(stream.stopped, bytes) else stream.stopped
    choice = Choice(stream.take(all=True), tuple(tokens), reason, seed, stop=found)
    return Completion(
        (choice,),
        Usage(len(ids), len(tokens)),
        Timings(1000 * (prefilled - begin), 1000 * (end - prefilled), len(tokens)),
        model=os.path.basename(lab.model.path),
    )


__all__ = ["generate"]

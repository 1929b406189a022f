"""Four texts in one batch: their prompts, and steps of single decodes."""

from __future__ import annotations

import numpy as np

from pyllm import Batch, Context

PROMPTS = ([5, 6, 7], [9], [3, 3, 8, 20], [40, 41])


def prompt_batch() -> tuple[Batch, list[int]]:
    """All prompts, and the index of the last token of each."""
    lengths = [len(ids) for ids in PROMPTS]
    ends = np.cumsum(lengths) - 1
    outputs = np.zeros(sum(lengths), bool)
    outputs[ends] = True
    pos = np.concatenate([np.arange(n) for n in lengths])
    seq_ids = np.repeat(np.arange(len(PROMPTS)), lengths)
    tokens = np.concatenate(PROMPTS)
    return Batch.from_arrays(tokens, pos=pos, seq_ids=seq_ids, outputs=outputs), [int(end) for end in ends]


def started(context: Context) -> list[int]:
    """Decode all prompts at once; the index in the batch of the last token of each."""
    batch, ends = prompt_batch()
    context.decode(batch)
    return ends


def next_batch(tokens: list[int], past: list[int]) -> Batch:
    return Batch.from_arrays(tokens, pos=past, seq_ids=np.arange(len(tokens)), outputs="all")


def go_on(context: Context, tokens: list[int], past: list[int]) -> None:
    context.decode(next_batch(tokens, past))

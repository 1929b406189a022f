"""Speculative sampling by hand: a draft model proposes tokens, the target model looks at all of them in one decode.

The text is distributed as if the target were sampled token by token, whatever the draft is: a proposal x is accepted
with probability p(x) / q(x), and what replaces it otherwise is drawn from what p has more than q.

python examples/speculative_by_hand.py
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from shallow import strong_and_weak

from pyllm import Batch, Context


def forecasts(ctx: Context, text: list[int], n: int, temp: float) -> np.ndarray:
    """Decode what is new in the text; the probabilities of what follows each of its last n tokens."""
    pos = np.arange(ctx.memory.pos_max(0) + 1, len(text))
    ctx.decode(Batch.from_arrays(text[pos[0] :], pos=pos, outputs=pos >= len(text) - n))
    rows = np.exp((np.asarray(ctx.logits, np.float64) - np.max(ctx.logits, axis=1, keepdims=True)) / temp)
    return rows / rows.sum(axis=1, keepdims=True)


def judge(proposals: list[int], p: np.ndarray, q: np.ndarray, rng: np.random.Generator) -> list[int]:
    """The proposals that are accepted, and one more token. p has a row more than q."""
    for i, token in enumerate(proposals):
        if rng.random() >= p[i, token] / q[i, token]:
            rest = np.maximum(p[i] - q[i], 0)
            return [*proposals[:i], int(rng.choice(len(rest), p=rest / rest.sum()))]
    return [*proposals, int(rng.choice(p.shape[1], p=p[-1]))]


def rounds(target: Context, draft: Context, text: list[int], n: int, temp: float, seed: int = 1) -> Iterator[list[int]]:
    """Continue the text by 1 to n + 1 tokens, again and again."""
    rng = np.random.default_rng(seed)
    while True:
        for ctx in (target, draft):  # refused proposals leave the memory, and the last token is new to both
            ctx.memory.rm(0, len(text) - 1)
        proposals: list[int] = []
        q = np.empty((n, draft.n_vocab))
        for i in range(n):
            q[i] = forecasts(draft, text + proposals, 1, temp)
            proposals.append(int(rng.choice(q.shape[1], p=q[i])))
        tokens = judge(proposals, forecasts(target, text + proposals, n + 1, temp), q, rng)
        yield tokens
        text = text + tokens


def main() -> None:
    with strong_and_weak("smollm2") as (target, draft):
        vocab, prompt = target.model.vocab, "The sun rises in the east and sets in"
        going = rounds(target, draft, vocab.tokenize(prompt), n=3, temp=0.7)
        print(prompt, *(vocab.detokenize(next(going)) for _ in range(12)), sep="|")


if __name__ == "__main__":
    main()

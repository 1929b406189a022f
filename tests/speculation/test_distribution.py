"""Sampled texts are distributed as without drafts: chi-square against the model's own probabilities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support.drafting import PROMPT

from pyllm.core.batch import Batch
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Dist, Temp, TopK
from pyllm.core.speculative import Drafter
from pyllm.core.speculative_generation import SpeculativeGeneration
from pyllm.core.speculative_pace import Pace

K, TEMPERATURE, N = 3, 3.0, 1500
# The 0.9999 quantile of chi-square with 26 degrees of freedom.
LIMIT = 61.7


def expected(context) -> dict[tuple[int, ...], float]:
    """The probabilities of the first three tokens behind `PROMPT`, by TopK and Temp."""

    def after(tokens):
        context.memory.clear()
        context.decode(Batch.from_arrays(np.concatenate([PROMPT, tokens]).astype(np.int32)))
        row = context.logits[-1].astype(np.float64)
        best = np.argsort(-row, kind="stable")[:K]
        weights = np.exp((row[best] - row[best[0]]) / TEMPERATURE)
        return dict(zip(best.tolist(), weights / weights.sum(), strict=True))

    first = after([])
    second = {a: after([a]) for a in first}
    third = {(a, b): after([a, b]) for a in first for b in second[a]}
    return {
        (a, b, c): first[a] * second[a][b] * p
        for (a, b), probabilities in third.items()
        for c, p in probabilities.items()
    }


@pytest.mark.parametrize("seed_of_draft", [0, 5])
def test_three_tokens(load, make_context, seed_of_draft):
    model = load("llama")
    want = expected(make_context(model))
    assert sum(want.values()) == pytest.approx(1)
    context = make_context(model)
    drafter = Drafter(context, make_context(load("llama", seed=seed_of_draft)), n_max=3)
    pace = Pace(3, adaptive=False)
    counts = dict.fromkeys(want, 0)
    drafted = accepted = 0
    for seed in range(N):
        context.memory.rm(0, len(PROMPT) - 1)
        past = PROMPT[:-1] if seed else ()
        generation = SpeculativeGeneration(
            context, Chain(TopK(K), Temp(TEMPERATURE), Dist(seed)), drafter=drafter, pace=pace, past=past
        )
        generation.prefill(PROMPT[-1:] if seed else PROMPT)
        generation.run(3)
        counts[tuple(generation.tokens)] += 1
        drafted += generation.n_drafted
        accepted += generation.n_accepted
        generation.settle()
    chi_square = sum((counts[cell] - N * p) ** 2 / (N * p) for cell, p in want.items())
    assert len(list(itertools.chain(want))) == K**3
    assert chi_square < LIMIT
    # Both ways of a draft were taken, many times.
    assert accepted > N / 10 or seed_of_draft != 0
    assert drafted - accepted > N / 10

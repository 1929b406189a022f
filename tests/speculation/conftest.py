"""Texts with and without drafts, and what may differ between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.drafting import PROMPT
from support.numerics import EXACT

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.model import Model
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Greedy
from pyllm.core.speculative import Drafter
from pyllm.core.speculative_generation import SpeculativeGeneration
from pyllm.core.speculative_pace import Pace

Ids = NDArray[np.int32]


@pytest.fixture
def plain(make_context: Callable[..., Context]) -> Callable[..., list[int]]:
    """`plain(model, n)`: the tokens that a model writes behind `PROMPT` without drafts."""

    def write(model: Model, n: int = 100, chain: Chain | None = None, ids: Ids = PROMPT) -> list[int]:
        generation = Generation(make_context(model, n_ctx=512, **EXACT), chain or Chain(Greedy()))
        generation.prefill(ids)
        generation.run(n)
        return generation.tokens

    return write


@pytest.fixture
def make_drafted(make_context: Callable[..., Context]) -> Callable[..., SpeculativeGeneration]:
    """`make_drafted(model, draft=None, **options of Drafter)`: a text with drafts of the same length each time."""

    def make(
        model: Model,
        draft: Model | None = None,
        *,
        chain: Chain | None = None,
        adaptive: bool = False,
        limit: int | None = None,
        stop: Any = (),
        context: Context | None = None,
        second: Context | None = None,
        n_batch: int = 512,
        past: Any = (),
        **options: Any,
    ) -> SpeculativeGeneration:
        context = context or make_context(model, n_ctx=512, n_batch=n_batch, **EXACT)
        if draft is not None and second is None:
            second = make_context(draft, n_ctx=512, n_batch=n_batch)
        drafter = Drafter(context, second, **options)
        return SpeculativeGeneration(
            context,
            chain or Chain(Greedy()),
            drafter=drafter,
            pace=Pace(drafter.n_max, adaptive=adaptive),
            limit=limit,
            stop=stop,
            past=past,
        )

    return make


@pytest.fixture
def check_greedy(make_context: Callable[..., Context]) -> Callable[..., None]:
    """`check_greedy(model, ids, got, want)`: both are the greedy text, but for a choice that was all but a tie."""

    def check(model: Model, ids: Ids, got: Sequence[int], want: Sequence[int]) -> None:
        n = min(len(got), len(want))
        different = np.flatnonzero(np.array(got[:n]) != np.array(want[:n]))
        if len(different) == 0:
            assert len(got) == len(want)
            return
        context = make_context(model, n_ctx=1024, n_batch=1024)
        context.decode(Batch.from_arrays(np.concatenate([ids, want[: different[0]]])))
        best = np.sort(context.logits[-1])[-2:]
        assert best[1] - best[0] < 0.01, f"another token at {different[0]}, where the margin was {best[1] - best[0]}"

    return check

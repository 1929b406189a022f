"""Models with sliding windows: llama.cpp writes over what a window does not reach, and nobody may go on with that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support.numerics import EXACT

from pyllm import Llama, Model
from pyllm.engine import Engine

PROMPT = np.random.default_rng(0).integers(5, 250, 40).tolist()


@pytest.mark.parametrize("unified", [False, True])
def test_a_beginning_that_was_overwritten_is_computed_again(load: Callable[..., Model], unified: bool) -> None:
    model = load("gemma3")
    prompts = [PROMPT, PROMPT[:25], [*PROMPT[:30], 7, 8], [9, *PROMPT]]
    with Llama(model, n_ctx=512, cache_prompt=False, **EXACT) as llm:
        wants = [llm(prompt, max_tokens=150, temperature=0).tokens for prompt in prompts]
    sizes = {"n_ctx": 512 if unified else 1024, "n_parallel": 3, "n_batch": 64}
    with Engine(model, kv_unified=unified, **sizes, **EXACT) as engine:
        for _ in range(3):
            for prompt, want in zip(prompts, wants, strict=True):
                assert engine.complete(prompt, max_tokens=150, temperature=0).tokens == want
            found = engine.generate(prompts[:3], max_tokens=60, temperature=0)
            assert [one.tokens for one in found] == [want[:60] for want in wants[:3]]
        assert engine.metrics().n_cached_tokens > 0

"""Models with a recurrent state, which cannot be cut: what can be taken over is, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.engines import endless

from pyllm import Llama, Model
from pyllm.engine import Engine

PREFIX = list(range(5, 65))


@pytest.mark.parametrize("arch", ["mamba", "jamba"])
def test_prompts_that_begin_alike(load: Callable[..., Model], arch: str) -> None:
    model = load(arch)
    prompts = [[*PREFIX, 70 + i] for i in range(3)] + [PREFIX[:30], [9, 9]]

    def alone(prompt: Any) -> tuple[int, ...]:
        with Llama(model, n_ctx=256, n_threads=1) as llm:
            return llm(prompt, max_tokens=6, temperature=0, cache_prompt=False).tokens

    unending = endless(model)
    with Engine(model, n_ctx=512, n_parallel=3, n_threads=1, n_batch=64) as engine:
        for _ in range(2):
            found = engine.generate(prompts, max_tokens=6, temperature=0)
            assert [c.tokens for c in found] == [alone(prompt) for prompt in prompts]
        # A chat goes on: all but the last token of the answer is there.
        first = engine.complete(PREFIX, max_tokens=4, temperature=0, logit_bias=unending)
        longer = [*PREFIX, *first.tokens, 11, 12]
        second = engine.complete(longer, max_tokens=6, temperature=0)
        assert second.tokens == alone(longer)
        assert second.usage.cached_tokens == len(PREFIX) + 3

"""Models with a recurrent state, which cannot be cut: what can be taken over is, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
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


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("arch", ["mamba", "jamba"])
def test_checkpoints_of_prompts(load: Callable[..., Model], arch: str, unified: bool) -> None:
    model = load(arch)
    arguments: dict[str, Any] = {"max_tokens": 6, "temperature": 0}

    def alone(prompt: Any) -> tuple[int, ...]:
        with Llama(model, n_ctx=256, n_threads=1) as llm:
            return llm(prompt, cache_prompt=False, **arguments).tokens

    with Engine(model, n_ctx=512, n_parallel=2, n_threads=1, n_batch=64, kv_unified=unified) as engine:

        def ask(prompt: Any) -> int:
            found = engine.complete(prompt, **arguments)
            assert found.tokens == alone(prompt)
            return found.usage.cached_tokens

        first = [*PREFIX, 70, 71, 72]
        assert ask(first) == 0
        # Asked again, only the last token of the prompt is computed.
        assert ask(first) == len(first) - 1
        # Where another prompt leaves it a checkpoint is taken, for those that come after.
        assert ask([*PREFIX, 80, 81]) == 0
        assert ask([*PREFIX, 90, 91, 92, 93]) == len(PREFIX)
        assert ask(first) == len(first) - 1
        assert ask([*PREFIX[:40], 9]) == 0
        assert ask([*PREFIX[:40], 10]) == 40


@pytest.mark.parametrize("arch", ["mamba", "jamba"])
def test_checkpoints_among_many(load: Callable[..., Model], arch: str) -> None:
    model = load(arch)
    chooser = np.random.default_rng(5)
    prompts: list[list[int]] = [[int(token) for token in chooser.integers(5, 200, 30)]]
    for _ in range(30):
        base = prompts[chooser.integers(len(prompts))]
        prompts.append([*base[: chooser.integers(1, len(base) + 1)], *map(int, chooser.integers(5, 200, 12))])
    with Llama(model, n_ctx=512, n_threads=1) as llm:
        expected = [llm(prompt, max_tokens=5, temperature=0, cache_prompt=False).tokens for prompt in prompts]
    with Engine(model, n_ctx=1536, n_parallel=3, n_threads=1, n_batch=64) as engine:
        for _ in range(2):
            found = engine.generate(prompts, max_tokens=5, temperature=0)
            assert [one.tokens for one in found] == expected
        assert engine.metrics().n_cached_tokens > 0
        assert engine.metrics().n_failed == 0


def test_without_memory_of_the_host_there_are_no_checkpoints(load: Callable[..., Model]) -> None:
    with Engine(load("mamba"), n_ctx=512, n_parallel=1, n_threads=1, host_cache_bytes=0) as engine:
        prompt = [*PREFIX, 70, 71]
        for _ in range(2):
            assert engine.complete(prompt, max_tokens=3, temperature=0).usage.cached_tokens == 0

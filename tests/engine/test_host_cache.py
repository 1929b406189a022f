"""Texts that have to leave the KV cache go to the memory of the host, and come back when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.engines import endless
from support.numerics import EXACT

from pyllm import Llama, Model, errors
from pyllm.engine import Engine

# Three of them do not fit into 256 cells together.
PROMPTS = {name: [seed] + [5 + (seed * i) % 90 for i in range(109)] for seed, name in enumerate("ABC", 3)}


@pytest.fixture(scope="module")
def alone(load: Callable[..., Model]) -> Callable[..., tuple[int, ...]]:
    def say(arch: str, prompt: list[int], n: int) -> tuple[int, ...]:
        model = load(arch)
        with Llama(model, n_ctx=512, **EXACT) as llm:
            arguments: dict[str, Any] = {"temperature": 0, "cache_prompt": False, "logit_bias": endless(model)}
            return llm(prompt, max_tokens=n, **arguments).tokens

    return say


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba", "jamba"])
def test_prompts_that_drive_each_other_out_come_back(
    load: Callable[..., Model], alone: Callable[..., Any], arch: str
) -> None:
    model = load(arch)
    with Engine(model, n_ctx=256, n_parallel=1, kv_unified=True, host_cache_bytes=1 << 26, **EXACT) as engine:

        def ask(prompt: list[int], n: int = 5) -> Any:
            return engine.complete(prompt, max_tokens=n, temperature=0, logit_bias=endless(model))

        answers = {}
        for name, prompt in PROMPTS.items():
            answers[name] = ask(prompt)
            assert (answers[name].usage.cached_tokens, answers[name].tokens) == (0, alone(arch, prompt, 5))
        metrics = engine.metrics()
        assert metrics.n_host_bytes > 0 and metrics.n_host_hits == 0
        # The chat goes on: prompt, answer and something more.
        longer = [*PROMPTS["A"], *answers["A"].tokens, 7, 8, 9]
        again = ask(longer, 8)
        assert again.usage.cached_tokens == len(PROMPTS["A"]) + 4
        assert again.tokens == alone(arch, longer, 8)
        assert engine.metrics().n_host_hits == 1
        # A beginning of what came back. Of a sliding window there is only what its end looks at.
        cut = not (model.is_recurrent or model.is_hybrid or model.n_swa)
        for text in (PROMPTS["A"], PROMPTS["B"]):
            other = [*text[:90], 6, 6, 6]
            found = ask(other)
            assert (found.usage.cached_tokens, found.tokens) == (90 if cut else 0, alone(arch, other, 5))
        engine.check_invariants()


def test_where_each_sequence_has_cells_of_its_own(load: Callable[..., Model], alone: Callable[..., Any]) -> None:
    model = load("llama")
    with Engine(model, n_ctx=256, n_parallel=1, kv_unified=False, **EXACT) as engine:
        n = engine.context.n_seq_max + 1
        # Most of them begin alike: sequences are taken over, and what they held behind that goes to the host.
        prompts = [[3] * (i > 0) + [3 + i] + [5 + (i + 2) * j % 90 for j in range(99)] for i in range(n)]
        settings = {"max_tokens": 3, "temperature": 0, "logit_bias": endless(model)}
        first = [engine.complete(prompt, **settings).tokens for prompt in prompts]
        assert engine.metrics().n_host_bytes > 0
        again = engine.complete([*prompts[0][:95], 7, 8], **settings)
        assert (again.usage.cached_tokens, engine.metrics().n_host_hits) == (95, 1)
        assert again.tokens == alone("llama", [*prompts[0][:95], 7, 8], 3)
        assert [engine.complete(prompt, **settings).tokens for prompt in prompts] == first


def test_without_it_nothing_is_kept_and_small_texts_never_are(load: Callable[..., Model]) -> None:
    with Engine(load("llama"), n_ctx=256, n_parallel=1, kv_unified=True, host_cache_bytes=0, **EXACT) as engine:
        for _ in range(2):
            for prompt in PROMPTS.values():
                assert engine.complete(prompt, max_tokens=2).usage.completion_tokens > 0
        assert (engine.metrics().n_host_bytes, engine.metrics().n_host_hits) == (0, 0)
    with Engine(load("llama"), n_ctx=256, n_parallel=1, kv_unified=True, **EXACT) as engine:
        for i in range(20):
            engine.complete([5 + i] * 40, max_tokens=2, cache_prompt=True)
        assert engine.metrics().n_host_bytes == 0


def test_the_limit_holds(load: Callable[..., Model]) -> None:
    model = load("llama")
    with Engine(model, n_ctx=256, n_parallel=1, kv_unified=True, host_cache_bytes=1 << 26, **EXACT) as engine:
        for prompt in PROMPTS.values():
            engine.complete(prompt, max_tokens=2, cache_prompt=True)
        one = engine.metrics().n_host_bytes
    with Engine(model, n_ctx=256, n_parallel=1, kv_unified=True, host_cache_bytes=3 * one // 2, **EXACT) as engine:
        for prompt in [*PROMPTS.values(), *PROMPTS.values()]:
            engine.complete(prompt, max_tokens=2, cache_prompt=True)
            assert engine.metrics().n_host_bytes <= 1.5 * one
        assert engine.metrics().n_host_bytes > 0


def test_a_text_that_was_stopped_goes_on_from_where_it_was(
    load: Callable[..., Model], alone: Callable[..., Any]
) -> None:
    model = load("llama")
    prompts = [[9 + i] + [5 + i * j % 80 for j in range(69)] for i in range(3)]
    with Engine(model, n_ctx=256, n_parallel=3, n_batch=64, kv_unified=True, **EXACT) as engine:
        jobs = [engine.submit(p, max_tokens=40, temperature=0, logit_bias=endless(model)) for p in prompts]
        assert [job.result(300).tokens for job in jobs] == [alone("llama", p, 40) for p in prompts]
        metrics = engine.metrics()
        assert metrics.n_preempted > 0 and metrics.n_host_hits > 0


@pytest.mark.parametrize("value", [-1, True, 1.5, "1GiB"])
def test_wrong_limits(load: Callable[..., Model], value: Any) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="host_cache_bytes"):
        Engine(load("llama"), host_cache_bytes=value)

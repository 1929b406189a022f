"""Every text is the one that its prompt and its seed give alone, in a Llama and in an Engine, whatever is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support.engine_internals import between_steps
from support.engines import assert_idle, endless

from pyllm import Llama, Model, errors
from pyllm.engine import Engine

# One thread, float32 keys and values: sums do not depend on what is computed beside them, up to their last bits.
EXACT: dict[str, Any] = {"n_threads": 1, "type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled"}
PREFIX = list(range(5, 105))
ARCHITECTURES = ["llama", "gemma3", "mamba", "jamba"]
FACES = ["llama", "engine"]


@contextmanager
def face(kind: str, model: Model, *, n_parallel: int = 3, n_ctx: int = 768, unified: bool = True) -> Iterator[Any]:
    """A Llama or an Engine with so many sequences: both have `generate` here for one prompt."""
    if kind == "llama":
        with Llama(model, n_ctx=n_ctx, n_seq_max=n_parallel, kv_unified=unified, n_batch=64, **EXACT) as llm:
            yield llm
    else:
        with Engine(model, n_ctx=n_ctx, n_parallel=n_parallel, kv_unified=unified, n_batch=64, **EXACT) as engine:
            yield engine


def complete(maker: Any, prompt: list[int], **arguments: Any) -> Any:
    return (maker if isinstance(maker, Llama) else maker.complete)(prompt, **arguments)


@pytest.fixture
def unending(tiny_model: Model) -> dict[int, float]:
    return endless(tiny_model)


@pytest.fixture
def alone() -> Callable[..., Any]:
    """One text in a context that has never had another one."""

    def generate(model: Model, prompt: list[int], **arguments: Any) -> Any:
        with Llama(model, n_ctx=768, n_batch=64, **EXACT) as llm:
            return llm(prompt, cache_prompt=False, **arguments)

    return generate


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", FACES)
def test_greedy_texts(load: Callable[..., Model], alone, kind: str, arch: str) -> None:
    model = load(arch)
    prompts = [[5, 6, 7], PREFIX, [9]]
    with face(kind, model) as maker:
        for prompt in prompts:
            expected = alone(model, prompt, max_tokens=12, temperature=0).tokens
            assert complete(maker, prompt, max_tokens=12, temperature=0).tokens == expected


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", FACES)
@pytest.mark.parametrize("prompt", [[5, 6, 7], PREFIX], ids=["short", "long"])
def test_forks(load: Callable[..., Model], alone, kind: str, arch: str, unified: bool, prompt: list[int]) -> None:
    model = load(arch)
    arguments: dict[str, Any] = {"max_tokens": 10, "temperature": 1.2}
    expected = [alone(model, prompt, seed=3 + i, **arguments).tokens for i in range(3)]
    with face(kind, model, unified=unified) as maker:
        found = complete(maker, prompt, n=3, seed=3, **arguments)
        assert [choice.tokens for choice in found.choices] == expected
        assert len(set(expected)) > 1
        if kind == "engine":
            # Also the memory of a recurrent model is copied at the end of the prompt, and not computed again.
            assert maker.metrics().n_prompt_tokens == len(prompt)
            assert maker.metrics().n_cached_tokens == 2 * len(prompt)


@pytest.mark.parametrize("kind", FACES)
def test_more_sequences_than_the_context_has(tiny_model: Model, alone, unending, kind: str) -> None:
    arguments: dict[str, Any] = {"max_tokens": 9, "temperature": 1.0, "logit_bias": unending}
    expected = [alone(tiny_model, PREFIX, seed=i, **arguments).tokens for i in range(7)]
    with face(kind, tiny_model, n_parallel=2) as maker:
        found = complete(maker, PREFIX, n=7, seed=0, **arguments)
        assert [choice.tokens for choice in found.choices] == expected
        streamed: dict[int, list[int]] = {i: [] for i in range(7)}
        chunks = (
            maker.stream(PREFIX, n=7, seed=0, **arguments)
            if kind == "llama"
            else maker.submit(PREFIX, n=7, seed=0, **arguments)
        )
        for chunk in chunks:
            streamed[chunk.index] += chunk.tokens
        assert [tuple(tokens) for tokens in streamed.values()] == expected


@pytest.mark.parametrize("kind", FACES)
def test_preempted_sequences(tiny_model: Model, alone, unending, kind: str) -> None:
    # Three sequences of 100 + 100 tokens, which share 100 cells, do not fit into 256.
    arguments: dict[str, Any] = {"max_tokens": 100, "temperature": 0, "logit_bias": unending}
    expected = alone(tiny_model, PREFIX, **arguments).tokens
    with face(kind, tiny_model, n_ctx=256) as maker:
        found = complete(maker, PREFIX, n=3, **arguments)
        assert [choice.tokens for choice in found.choices] == [expected] * 3
        assert [choice.finish_reason for choice in found.choices] == ["length"] * 3
        if kind == "engine":
            assert maker.metrics().n_preempted > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", FACES)
def test_reused_prefixes(load: Callable[..., Model], alone, kind: str, arch: str) -> None:
    model = load(arch)
    arguments: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    with face(kind, model) as maker:
        first = complete(maker, PREFIX, cache_prompt=True, n=2, logit_bias=endless(model), **arguments)
        longer = [*PREFIX, *first.tokens, 11, 12]
        second = complete(maker, longer, cache_prompt=True, **arguments)
        assert second.usage.cached_tokens == len(PREFIX) + 7
        assert second.tokens == alone(model, longer, **arguments).tokens
        # What another prompt has left beside it is not mistaken for a part of this one.
        complete(maker, [9, 8, 7], cache_prompt=True, n=3, seed=1, max_tokens=20)
        assert complete(maker, longer, cache_prompt=True, **arguments).tokens == second.tokens


@pytest.mark.parametrize("kind", FACES)
def test_log_probabilities_of_forks_and_prompts(tiny_model: Model, alone, kind: str) -> None:
    arguments: dict[str, Any] = {"max_tokens": 5, "temperature": 1.0, "logprobs": 2, "echo": True}
    expected = [alone(tiny_model, PREFIX, seed=4 + i, **arguments) for i in range(2)]
    with face(kind, tiny_model) as maker:
        complete(maker, PREFIX, max_tokens=1)  # is not taken over: each token of the prompt is scored
        found = complete(maker, PREFIX, n=2, seed=4, cache_prompt=True, **arguments)
    for choice, one in zip(found.choices, expected, strict=True):
        assert choice.tokens == one.tokens and choice.text == one.text
        assert choice.logprobs is not None and choice.logprobs.tokens == one.logprobs.tokens
        assert choice.logprobs.token_logprobs[0] is None
        np.testing.assert_allclose(choice.logprobs.token_logprobs[1:], one.logprobs.token_logprobs[1:], atol=1e-4)


def test_an_engine_is_deterministic_in_a_crowd(tiny_model: Model, alone) -> None:
    arguments: dict[str, Any] = {"max_tokens": 20, "temperature": 1.0, "seed": 9, "deterministic": True}
    with face("engine", tiny_model) as engine:
        first = engine.complete(PREFIX, **arguments).tokens
        others = [engine.submit([i, 5], max_tokens=60, temperature=0) for i in range(4)]
        assert engine.complete(PREFIX, **arguments).tokens == first
        for other in others:
            other.cancel()
    del arguments["deterministic"]
    assert first == alone(tiny_model, PREFIX, **arguments).tokens


@pytest.mark.parametrize("kind", FACES)
def test_a_full_context_is_shifted(tiny_model: Model, unending, kind: str) -> None:
    arguments: dict[str, Any] = {"max_tokens": 700, "temperature": 0, "logit_bias": unending, "overflow": "shift"}
    with Llama(tiny_model, n_ctx=256, n_batch=64, **EXACT) as llm:
        expected = llm(PREFIX, n_keep=4, **arguments).tokens
    assert len(expected) == 700
    with face(kind, tiny_model, n_parallel=2, n_ctx=512, unified=False) as maker:
        found = complete(maker, PREFIX, n_keep=4, **arguments)
        assert found.tokens == expected and found.choices[0].finish_reason == "length"
        # What is left in the KV cache has seen other tokens than its own: it is no prefix of anything.
        again = complete(maker, [*PREFIX, *found.tokens[:100]], max_tokens=3, temperature=0, cache_prompt=True)
        assert again.usage.cached_tokens == 0


def test_shifted_sequences_that_share_cells_are_computed_again(tiny_model: Model, unending) -> None:
    arguments: dict[str, Any] = {"max_tokens": 400, "temperature": 0, "logit_bias": unending, "overflow": "shift"}
    with face("engine", tiny_model, n_parallel=2, n_ctx=256) as engine:
        seen: list[int] = []

        def look(ids: np.ndarray, logits: np.ndarray) -> None:
            seen.append(len(ids))

        found = engine.complete(PREFIX, n=2, **arguments)
        assert [len(choice.tokens) for choice in found.choices] == [400, 400]
        assert engine.complete(PREFIX, logits_processor=look, **arguments).tokens
        # Processors see all tokens, also those that the context has no room for.
        assert seen == list(range(len(PREFIX), len(PREFIX) + 400))
        assert_idle(engine)


@pytest.mark.parametrize("kind", FACES)
def test_a_long_prompt_loses_its_middle(tiny_model: Model, kind: str) -> None:
    prompt = [5 + i % 200 for i in range(500)]
    arguments: dict[str, Any] = {"max_tokens": 20, "temperature": 0}
    with Llama(tiny_model, n_ctx=256, n_batch=64, **EXACT) as llm:
        left = [*prompt[:10], *prompt[-226:]]
        expected = llm(left, **arguments).tokens
    with face(kind, tiny_model, n_parallel=2, n_ctx=512, unified=False) as maker:
        found = complete(maker, prompt, overflow="truncate_middle", n_keep=10, **arguments)
        assert (found.tokens, found.usage.prompt_tokens) == (expected, 236)


def test_a_deterministic_request_is_not_shifted(tiny_model: Model) -> None:
    with (
        face("engine", tiny_model) as engine,
        pytest.raises(errors.InvalidArgumentError, match="cannot be combined with overflow='shift'"),
    ):
        engine.complete([5], overflow="shift", deterministic=True)


def test_the_status_of_a_sequence(tiny_model: Model, unending) -> None:
    with face("engine", tiny_model, n_parallel=1) as engine:
        seen: list[tuple[str, str]] = []

        def look(ids: np.ndarray, logits: np.ndarray) -> None:
            seen.append((first.sequences[0].status.value, second.sequences[0].status.value))

        def submit() -> tuple[Any, Any]:
            arguments: dict[str, Any] = {"max_tokens": 2, "logit_bias": unending, "temperature": 0}
            return (
                engine.submit(PREFIX, logits_processor=look, **arguments),
                engine.submit([5, 6], logits_processor=look, **arguments),
            )

        # Both are there before the first step.
        first, second = between_steps(engine, submit)
        for request in (first, second):
            request.result(300)
    waiting, running, finished = "waiting", "running", "finished"
    # The processors run when the prompt is computed, and one token is left to sample from.
    assert seen[1:2] + seen[3:4] == [(running, waiting), (finished, running)]
    assert first.sequences[0].status.value == second.sequences[0].status.value == finished

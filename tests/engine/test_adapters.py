"""LoRA adapters of requests: mixed in one engine, each text is what it is alone with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engine_internals import on_decode
from support.loras import write_lora
from support.numerics import EXACT

from pyllm import Llama, Model, errors
from pyllm.engine import Engine

PROMPTS = [[5, 6, 7], [9], [3, 3, 8, 20], [40, 41], [1] * 30]
PREFIX = list(range(5, 85))


@pytest.fixture(scope="module")
def adapters(tiny_models: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("lora")
    return [write_lora(folder / f"style{seed}.gguf", tiny_models["llama"], seed) for seed in (1, 2)]


@pytest.fixture
def engine(tiny_model: Model, adapters: list[Path]) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=1024, n_parallel=4, n_batch=64, lora={adapters[0]: 0}, **EXACT) as engine:
        yield engine


@pytest.fixture
def alone(tiny_model: Model) -> Callable[..., tuple[int, ...]]:
    """What a Llama that never had anything else says."""

    def say(prompt: list[int], lora: Any, **arguments: Any) -> tuple[int, ...]:
        with Llama(tiny_model, n_ctx=256, lora=lora, **EXACT) as llm:
            return llm(prompt, **{"max_tokens": 10, "temperature": 0} | arguments).tokens

    return say


def test_mixed_texts_are_what_they_are_alone(engine: Engine, adapters: list[Path], alone: Callable[..., Any]) -> None:
    one, two = adapters
    sets = [None, one, (one, 0.5), [one, (two, 0.5)], {two: 1.0}]
    asked = [(prompt, lora) for prompt in PROMPTS for lora in sets]
    jobs = [engine.submit(prompt, max_tokens=10, temperature=0, lora=lora) for prompt, lora in asked]
    found = [job.result(300).tokens for job in jobs]
    assert found == [alone(prompt, lora) for prompt, lora in asked]
    assert len(set(found[:5])) > 1
    # The same two in another order are the same set, and nothing is loaded twice.
    again = engine.complete(PROMPTS[0], max_tokens=10, temperature=0, lora=[(two, 0.5), one])
    assert again.tokens == found[3]
    assert list(engine.lora) == [str(one), str(two)]


def test_adapters_change_only_where_the_set_does(engine: Engine, adapters: list[Path]) -> None:
    seen: list[Any] = []
    on_decode(engine, lambda *batch: seen.append(engine.context.adapters))

    def changes() -> list[int]:
        sets = [*seen, engine.context.adapters]  # a set that is set again is another object
        return [len(after) for before, after in itertools.pairwise(sets) if after is not before]

    engine.generate(PROMPTS, max_tokens=8, temperature=0)
    assert changes() == []
    engine.generate(PROMPTS, max_tokens=8, temperature=0, lora=adapters[0])
    engine.generate(PROMPTS, max_tokens=8, temperature=0, lora={adapters[0]: 1.0})
    assert changes() == [1]
    engine.generate(PROMPTS, max_tokens=8, temperature=0)
    assert changes() == [1, 0]


def test_what_was_computed_with_others_is_not_used(engine: Engine, adapters: list[Path], alone: Callable) -> None:
    prompt = [*PREFIX, 90]
    for lora, cached in ((None, 0), (adapters[0], 0), ((adapters[0], 0.5), 0), (adapters[0], 80), (None, 80), ({}, 80)):
        found = engine.complete(prompt, max_tokens=10, temperature=0, lora=lora, cache_prompt=True)
        assert (found.usage.cached_tokens, found.tokens) == (cached, alone(prompt, lora)), lora
    # Those that come together share with their own kind only.
    prompts = [[*PREFIX[::-1], 90 + i] for i in range(3)]
    jobs = [engine.submit(p, max_tokens=4, temperature=0, lora=a) for p in prompts for a in (None, adapters[0])]
    cached = sorted(job.result(300).usage.cached_tokens for job in jobs)
    assert cached[:2] == [0, 0] and all(n >= 48 for n in cached[2:])


def test_requests_without_adapters_use_those_of_the_engine(
    tiny_model: Model, adapters: list[Path], alone: Callable[..., Any]
) -> None:
    one, two = adapters
    prompt = PROMPTS[2]
    with Engine(tiny_model, n_ctx=256, n_parallel=2, lora=[one, (two, 0)], **EXACT) as engine:
        assert engine.lora == {str(one): 1.0, str(two): 0.0}

        def say(**arguments: Any) -> Any:
            return engine.complete(prompt, max_tokens=10, temperature=0, **arguments).tokens

        assert say() == alone(prompt, one)
        assert say(lora={}) == say(lora=[]) == say(lora={one: 0}) == alone(prompt, None)
        assert say(lora="style2") == say(lora=("style2.gguf", 1)) == alone(prompt, two)
        engine.set_lora({"style2": 0.5})
        assert engine.lora == {str(one): 0.0, str(two): 0.5}
        assert say() == alone(prompt, (two, 0.5))
        engine.set_lora(None)
        assert say() == alone(prompt, None)


def test_deterministic_texts_have_adapters_too(engine: Engine, adapters: list[Path]) -> None:
    arguments = {"max_tokens": 10, "temperature": 1.0, "seed": 3, "deterministic": True}
    first = [engine.complete(PROMPTS[2], lora=lora, **arguments).tokens for lora in (None, adapters[0])]
    jobs = [engine.submit(PROMPTS[2], lora=lora, **arguments) for lora in (adapters[0], None, adapters[0])]
    others = [engine.submit(prompt, max_tokens=20, lora=adapters[1]) for prompt in PROMPTS]
    assert [job.result(300).tokens for job in jobs] == [first[1], first[0], first[1]]
    assert first[0] != first[1]
    for job in others:
        job.result(300)


def test_wrong_adapters_end_their_request_alone(
    engine: Engine, adapters: list[Path], tiny_models: Any, tmp_path: Path, alone: Callable[..., Any]
) -> None:
    running = engine.submit(PROMPTS[0], max_tokens=10, temperature=0)
    foreign = write_lora(tmp_path / "foreign.gguf", tiny_models["llama"], 3, arch="gemma3")
    for lora, error in (
        (foreign, errors.AdapterError),
        (tiny_models["llama"], errors.AdapterError),
        ([adapters[0], adapters[0]], errors.AdapterError),
        (tmp_path / "nothing.gguf", errors.ModelNotFoundError),
        ((adapters[0], float("nan")), errors.InvalidArgumentError),
        ((adapters[0], float("inf")), errors.InvalidArgumentError),
        ((adapters[0], 10**400), errors.InvalidArgumentError),
        (5, errors.InvalidArgumentError),
        ([5], errors.InvalidArgumentError),
    ):
        with pytest.raises(error):
            engine.submit(PROMPTS[0], lora=lora)
        with pytest.raises(error):
            engine.set_lora(lora)
    assert running.result(300).tokens == alone(PROMPTS[0], None)
    assert engine.lora == {str(adapters[0]): 0.0}
    twin = write_lora(tmp_path / "style1.gguf", tiny_models["llama"], 7)
    engine.complete([5], max_tokens=1, lora=twin)
    with pytest.raises(errors.InvalidArgumentError, match="several adapters 'style1'"):
        engine.submit([5], lora="style1")


def test_a_wrong_adapter_at_the_start_leaves_nothing_open(tiny_models: Any, adapters: list[Path]) -> None:
    with pytest.raises(errors.AdapterError):
        Engine(tiny_models["llama"], n_ctx=256, n_threads=1, lora=tiny_models["llama"])
    engine = Engine(tiny_models["llama"], n_ctx=256, n_threads=1, n_parallel=1, lora=adapters[0])
    engine.close()
    with pytest.raises(errors.ClosedError):
        engine.submit([5], lora=adapters[1])

"""The engine with real (tiny) models: every text is what it is alone, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import isolation
from support.engine_internals import failing_context, limit_cells
from support.engines import PROMPTS, endless, slow, wait_until_idle
from support.waiting import wait_for

from pyllm import Llama, Model, errors
from pyllm.engine import AsyncEngine, Engine, QueueFullError
from pyllm.engine.slots import Slots
from pyllm.params import SamplingParams
from pyllm.sampling import build_chain


@pytest.fixture
def engine(tiny_model: Model) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=512, n_parallel=4, n_threads=1, n_batch=64) as engine:
        yield engine


@pytest.fixture
def llm(tiny_model: Model) -> Iterator[Llama]:
    with Llama(tiny_model, n_ctx=256, n_threads=1, cache_prompt=False) as llm:
        yield llm


# ---- texts


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.9, "seed": 7}])
def test_each_text_is_what_it_is_alone(engine: Engine, llm: Llama, settings: dict[str, Any]) -> None:
    alone = [llm(prompt, max_tokens=16, **settings) for prompt in PROMPTS]
    together = engine.generate(PROMPTS, max_tokens=16, **settings)
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert [c.text for c in together] == [c.text for c in alone]
    assert [c.finish_reason for c in together] == [c.finish_reason for c in alone]
    assert [c.usage.prompt_tokens for c in together] == [len(prompt) for prompt in PROMPTS]
    wait_until_idle(engine)


def test_a_cache_that_is_too_small_for_all_loses_nothing(tiny_model: Model, llm: Llama) -> None:
    alone = [llm(prompt, max_tokens=40, temperature=0).tokens for prompt in PROMPTS]
    with Engine(
        tiny_model, n_ctx=256, n_parallel=8, kv_unified=True, n_threads=1, n_batch=32, cache_prompt=False
    ) as engine:
        # Cells are counted in units of 256, so a part of them is taken away.
        limit_cells(engine, 90)
        together = engine.generate(PROMPTS, max_tokens=40, temperature=0)
        assert engine.metrics().n_preempted > 0
        wait_until_idle(engine)
    assert [c.tokens for c in together] == alone


def test_a_text_that_fills_the_cache_ends(tiny_model: Model) -> None:
    with Engine(tiny_model, n_ctx=256, n_parallel=2, n_threads=1) as engine:
        bias = endless(engine)
        ended = engine.complete([5, 6], temperature=0, logit_bias=bias)
        assert ended.finish_reason == "length"
        assert len(ended.tokens) == 255
        with pytest.raises(errors.InvalidArgumentError, match="n_ctx=256"):
            engine.submit([1] * 300)


def test_equal_beginnings_are_computed_once(engine: Engine, llm: Llama) -> None:
    prefix = list(range(5, 105))
    prompts = [[*prefix, 110 + i] for i in range(6)]
    alone = [llm(prompt, max_tokens=8, temperature=0).tokens for prompt in prompts]
    together = engine.generate(prompts, max_tokens=8, temperature=0)
    assert [c.tokens for c in together] == alone
    assert sorted(c.usage.cached_tokens for c in together) == [0, 100, 100, 100, 100, 100]
    assert engine.metrics().n_prompt_tokens == 100 + 6
    again = engine.complete(prompts[3], max_tokens=8, temperature=0)
    assert (again.tokens, again.usage.cached_tokens) == (alone[3], 100)
    apart = engine.complete(prompts[3], max_tokens=8, temperature=0, cache_prompt=False)
    assert (apart.tokens, apart.usage.cached_tokens) == (alone[3], 0)
    wait_until_idle(engine)


def test_streams_give_the_same_in_pieces(engine: Engine) -> None:
    jobs = [engine.submit(prompt, max_tokens=12, temperature=0, echo=i == 1) for i, prompt in enumerate(PROMPTS)]
    for i, job in enumerate(jobs):
        chunks = list(job)
        completion = chunks[-1].completion
        assert completion is not None and all(chunk.completion is None for chunk in chunks[:-1])
        assert "".join(chunk.text for chunk in chunks) == completion.text
        assert sum((chunk.tokens for chunk in chunks), ()) == completion.tokens
        assert chunks[-1].finish_reason == completion.finish_reason
        assert job.result(0) is completion
        if i == 1:
            assert completion.text.startswith(engine.detokenize(PROMPTS[1]))


def test_stop_strings_logprobs_several_texts_and_grammars(engine: Engine, llm: Llama) -> None:
    whole = llm([5, 6, 7], max_tokens=16, temperature=0)
    stop = whole.text[3:5]
    for arguments in (
        {"stop": [stop]},
        {"logprobs": 3},
        {"grammar": 'root ::= "a" [0-9]+ "b"'},
        {"choices": ["yes", "no"]},
        {"max_tokens": 0},
        {"logit_bias": {whole.tokens[0]: -np.inf}},
    ):
        wanted = llm([5, 6, 7], **{"max_tokens": 16, "temperature": 0, **arguments})
        found = engine.complete([5, 6, 7], **{"max_tokens": 16, "temperature": 0, **arguments})
        assert found.choices[0].tokens == wanted.choices[0].tokens
        assert (found.text, found.finish_reason, found.stop) == (wanted.text, wanted.finish_reason, wanted.stop)
        if wanted.logprobs is not None:
            assert found.logprobs is not None and found.logprobs.tokens == wanted.logprobs.tokens
            assert np.allclose(found.logprobs.token_logprobs, wanted.logprobs.token_logprobs, atol=1e-4)
    wanted = llm([9], max_tokens=8, n=3, best_of=4, seed=5)
    found = engine.complete([9], max_tokens=8, n=3, best_of=4, seed=5)
    assert [c.tokens for c in found.choices] == [c.tokens for c in wanted.choices]
    assert [c.index for c in found.choices] == [0, 1, 2]
    wait_until_idle(engine)


# ---- Python in the batch


def test_processors_and_stopping_criteria(engine: Engine, llm: Llama) -> None:
    def only_even(ids: np.ndarray, logits: np.ndarray) -> None:
        assert not ids.flags.writeable
        logits[1::2] = -np.inf

    def enough(ids: np.ndarray, logits: np.ndarray) -> bool:
        return len(ids) >= 9

    plain = engine.submit([5, 6, 7], max_tokens=20, temperature=0)
    edited = engine.submit(
        [5, 6, 7], max_tokens=20, temperature=0, logits_processor=only_even, stopping_criteria=enough
    )
    assert plain.result(300).tokens == llm([5, 6, 7], max_tokens=20, temperature=0).tokens
    found = edited.result(300)
    assert all(token % 2 == 0 for token in found.tokens)
    assert (len(found.tokens), found.finish_reason) == (6, "stop")


class Counting:
    """A processor with a state: it allows token 10 + how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def reset(self) -> None:
        self.calls = 0

    def __call__(self, ids: np.ndarray, logits: np.ndarray) -> None:
        keep = logits[10 + self.calls]
        logits[:] = -np.inf
        logits[10 + self.calls] = keep
        self.calls += 1


def test_several_texts_have_processors_of_their_own(engine: Engine) -> None:
    found = engine.complete([5], max_tokens=4, n=3, logits_processor=Counting())
    assert [c.tokens for c in found.choices] == [(10, 11, 12, 13)] * 3


def test_an_error_ends_its_request_alone(engine: Engine, llm: Llama) -> None:
    def fail(ids: np.ndarray, logits: np.ndarray) -> None:
        if len(ids) > 6:
            raise ZeroDivisionError("mine")

    good = [engine.submit(prompt, max_tokens=12, temperature=0) for prompt in PROMPTS[:3]]
    bad = engine.submit([8, 8], max_tokens=12, logits_processor=fail)
    streamed = engine.submit([8, 8], max_tokens=12, stopping_criteria=fail)
    with pytest.raises(ZeroDivisionError, match="mine"):
        bad.result(300)
    with pytest.raises(ZeroDivisionError, match="mine"):
        list(streamed)
    alone = [llm(prompt, max_tokens=12, temperature=0).tokens for prompt in PROMPTS[:3]]
    assert [job.result(300).tokens for job in good] == alone
    assert engine.metrics().n_failed == 2
    wait_until_idle(engine)


# ---- coming and going


def test_cancelled_requests_are_gone_within_a_step(engine: Engine) -> None:
    jobs = [engine.submit([5, i], max_tokens=200, logits_processor=slow) for i in range(6)]
    wait_for(lambda: engine.metrics().n_running == 4)
    assert engine.metrics().n_waiting == 2
    jobs[5].cancel()
    waiting = jobs[5].result(300)
    assert (waiting.finish_reason, waiting.tokens) == ("abort", ())
    for chunk in jobs[0]:  # a loop that is left
        assert chunk.completion is None
        break
    assert jobs[0].result(300).finish_reason == "abort"
    for job in jobs:
        job.cancel()
        job.cancel()
    assert {job.result(300).finish_reason for job in jobs} == {"abort"}
    assert engine.metrics().n_cancelled == 6
    wait_until_idle(engine)


def test_a_queue_with_bounds_refuses_more(tiny_model: Model) -> None:
    with Engine(tiny_model, n_ctx=256, n_parallel=1, n_threads=1, max_queued=2, max_queued_tokens=20) as engine:
        running = engine.submit([1], max_tokens=200, logits_processor=slow)
        wait_for(lambda: engine.metrics().n_running == 1)
        first = engine.submit([2], max_tokens=1)
        with pytest.raises(QueueFullError, match="max_queued_tokens=20"):
            engine.submit([3] * 20, max_tokens=1)
        second = engine.submit([3], max_tokens=1)
        with pytest.raises(QueueFullError, match="max_queued=2"):
            engine.submit([4], max_tokens=1)
        assert engine.metrics().n_rejected == 2
        running.cancel()
        assert len(first.result(300).tokens) == len(second.result(300).tokens) == 1
        assert engine.complete([4], max_tokens=1).tokens


def test_urgent_requests_go_first(tiny_model: Model) -> None:
    with Engine(tiny_model, n_ctx=256, n_parallel=1, n_threads=1) as engine:
        order: list[str] = []

        def note(name: str) -> Callable[..., None]:
            return lambda ids, logits: order.append(name) or time.sleep(0.002)

        first = engine.submit([1], max_tokens=30, logits_processor=note("first"))
        wait_for(lambda: len(order) > 2)
        later = engine.submit([2], max_tokens=2, logits_processor=note("later"))
        urgent = engine.submit([3], max_tokens=2, logits_processor=note("urgent"), priority=-1)
        for job in (first, later, urgent):
            job.result(300)
        assert order.index("urgent") < order.index("later")
        assert order[-1] == "later"
        assert first.result().finish_reason in ("length", "stop")


def test_wrong_arguments(engine: Engine, tiny_model: Model) -> None:
    with pytest.raises(errors.UnknownArgumentError, match="temperature"):
        engine.submit([1], temperatur=1)
    with pytest.raises(errors.InvalidArgumentError, match="priority"):
        engine.submit([1], priority="high")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgumentError, match="overflow"):
        engine.submit([1], overflow="shift")
    for arguments in ({"n_parallel": 0}, {"n_batch": 1, "n_parallel": 2}, {"target_ms": 0}, {"n_seq_max": 3}):
        with pytest.raises(errors.InvalidArgumentError):
            Engine(tiny_model, **arguments)
    with pytest.raises(errors.UnknownArgumentError, match="n_parallel"):
        Engine(tiny_model, n_paralel=3)
    assert engine.complete([1], max_tokens=1).tokens


def test_closing_ends_what_runs_and_refuses_the_rest(tiny_model: Model) -> None:
    before = threading.active_count()
    engine = Engine(tiny_model, n_ctx=256, n_parallel=2, n_threads=1)
    jobs = [engine.submit([i], max_tokens=200, logits_processor=slow) for i in range(4)]
    wait_for(lambda: engine.metrics().n_running == 2)
    engine.close()
    engine.close()
    for job in jobs:
        with pytest.raises(errors.ClosedError):
            job.result(300)
    with pytest.raises(errors.ClosedError):
        engine.submit([1])
    assert engine.context.closed and not tiny_model.closed
    wait_for(lambda: threading.active_count() == before)


@pytest.mark.process
def test_an_engine_may_be_left_open(tiny_models: dict[str, Any]) -> None:
    isolation.survive(
        """
from pyllm.engine import Engine
engine = Engine(sys.argv[1], n_ctx=256, n_parallel=2, n_threads=1)
job = engine.submit([1, 2], max_tokens=200)
next(iter(job))
""",
        tiny_models["llama"],
    )


# ---- asyncio


def test_async_requests(engine: Engine, llm: Llama) -> None:
    alone = [llm(prompt, max_tokens=12, temperature=0) for prompt in PROMPTS]

    async def main() -> None:
        client = AsyncEngine(engine)
        found = await asyncio.gather(*(client.complete(p, max_tokens=12, temperature=0) for p in PROMPTS))
        assert [c.tokens for c in found] == [c.tokens for c in alone]
        text = ""
        async for chunk in client.stream(PROMPTS[0], max_tokens=12, temperature=0):
            text += chunk.text
        assert text == alone[0].text
        with pytest.raises(errors.InvalidArgumentError):
            await client.complete([], max_tokens=1)

        task = asyncio.create_task(client.complete([5], max_tokens=200, logits_processor=slow))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for _ in client.stream([5], max_tokens=200, logits_processor=slow):
            break

    asyncio.run(main())
    wait_until_idle(engine)
    assert engine.metrics().n_cancelled == 2


# ---- everything at once


@pytest.mark.parametrize("unified", [True, False])
def test_many_random_requests_are_all_accounted_for(tiny_model: Model, unified: bool) -> None:
    random.seed(1)
    sizes = {"n_ctx": 256, "n_parallel": 6, "n_batch": 48, "kv_unified": unified}
    with Engine(tiny_model, n_threads=1, target_ms=20, **sizes) as engine:

        def fail(ids: np.ndarray, logits: np.ndarray) -> None:
            raise ValueError("mine")

        jobs, wanted = [], []
        for _ in range(250):
            prompt = [random.randrange(5, 8) for _ in range(random.randrange(1, 100))]
            kind = random.choice(["plain", "plain", "plain", "sampled", "fail", "cancel", "many"])
            arguments: dict[str, Any] = {"max_tokens": random.randrange(0, 30), "priority": random.randrange(2)}
            if kind == "fail":
                arguments |= {"logits_processor": fail, "max_tokens": 3}
            elif kind == "many":
                arguments |= {"n": 2}
            elif kind == "plain":
                arguments |= {"temperature": 0}
            jobs.append(engine.submit(prompt, stream=random.random() < 0.5, **arguments))
            wanted.append(kind)
            if kind == "cancel":
                threading.Timer(random.random() / 10, jobs[-1].cancel).start()
        for job, kind in zip(jobs, wanted, strict=True):
            if kind == "fail":
                with pytest.raises(ValueError, match="mine"):
                    job.result(300)
            else:
                completion = job.result(300)
                assert all(c.finish_reason in ("stop", "length", "abort") for c in completion.choices)
                assert kind == "cancel" or all(c.finish_reason != "abort" for c in completion.choices)
        wait_until_idle(engine)
        metrics = engine.metrics()
        assert (metrics.n_requests, metrics.n_failed) == (250, wanted.count("fail"))
        engine.reset_prefix_cache()
        assert engine.metrics().n_cells_used == 0


# ---- deterministic requests


def test_deterministic_texts_are_the_same_alone_and_in_a_crowd(smollm2: Model) -> None:
    arguments = {"max_tokens": 10, "temperature": 1.0, "seed": 11, "deterministic": True}
    prompt = "The first thing that she saw in the garden"
    with Engine(smollm2, n_ctx=1024, n_parallel=6, target_ms=100) as engine:
        alone = engine.complete(prompt, **arguments)
        crowd = [engine.submit(f"{i} is a number, and", max_tokens=20, seed=i) for i in range(4)]
        wait_for(lambda: engine.metrics().n_running == 4)
        busy = [engine.submit(prompt, **arguments) for _ in range(2)]
        assert [job.result(300).tokens for job in busy] == [alone.tokens] * 2
        assert busy[0].result().text == alone.text
        for job in crowd:
            assert job.result(300).finish_reason in ("stop", "length")
        cancelled = engine.submit(prompt, **arguments)
        cancelled.cancel()
        assert cancelled.result(300).finish_reason == "abort"
        assert engine.complete(prompt, **arguments).tokens == alone.tokens
        wait_until_idle(engine)


# ---- what concerns one request is no concern of the others


def test_several_texts_of_a_request_fail_in_the_same_step(engine: Engine, llm: Llama) -> None:
    def fail(ids: np.ndarray, logits: np.ndarray) -> None:
        try:
            inner(logits)
        except KeyError as cause:
            raise ZeroDivisionError("mine") from cause

    def inner(logits: np.ndarray) -> None:
        raise KeyError(len(logits))

    with pytest.raises(ZeroDivisionError, match="mine"):
        engine.complete([5, 6, 7], max_tokens=4, n=3, logits_processor=fail)
    assert (
        engine.complete([5, 6], max_tokens=4, temperature=0).tokens == llm([5, 6], max_tokens=4, temperature=0).tokens
    )
    assert engine.metrics().n_failed == 1
    wait_until_idle(engine)
    # Neither the errors nor what they came from hold views of logits, which would keep it from being closed.
    engine.close()


def test_samplers_of_callers(engine: Engine) -> None:
    sampler, closed = (build_chain(SamplingParams(seed=3), engine.vocab, 3) for _ in range(2))
    good = engine.submit([5, 6, 7], max_tokens=200, sampler=sampler, logits_processor=slow)
    bad = engine.submit([5, 6, 7], max_tokens=200, sampler=closed, logits_processor=slow)
    with pytest.raises(errors.InvalidArgumentError, match="not ended"):
        engine.submit([5, 6, 7], sampler=sampler)
    wait_for(lambda: bad.first_token is not None)
    closed.close()
    with pytest.raises(errors.ClosedError):
        bad.result(300)
    good.cancel()
    assert good.result(300).finish_reason == "abort"
    again = engine.submit([5, 6, 7], max_tokens=2, sampler=sampler)
    assert again.result(300).tokens
    wait_until_idle(engine)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_kept_row_of_logits_hinders_no_request(engine: Engine, deterministic: bool) -> None:
    kept: list[np.ndarray] = []

    def keep(ids: np.ndarray, logits: np.ndarray) -> None:
        kept[:] = [logits]

    engine.complete([5, 6, 7], max_tokens=2, logits_processor=keep, deterministic=deterministic)
    other = engine.submit([5, 6], max_tokens=30, temperature=0, logits_processor=slow)
    scored = {"max_tokens": 1, "echo": True, "logprobs": 1, "deterministic": deterministic}
    assert engine.complete([1] * 30, **scored).logprobs is not None
    assert other.result(300).finish_reason in ("stop", "length")
    assert np.isfinite(kept[0]).all()
    kept.clear()
    assert engine.complete([1] * 30, **scored).logprobs is not None
    wait_until_idle(engine)


def test_deterministic_requests_fail_alone(tiny_model: Model) -> None:
    with Engine(tiny_model, n_ctx=512, n_parallel=4, n_threads=1, n_seq_max=None) as engine:
        with failing_context(engine, ZeroDivisionError()):
            with pytest.raises(ZeroDivisionError):
                engine.complete([5, 6], deterministic=True)
            assert engine.complete([5, 6], max_tokens=2).choices
        n = engine.metrics().n_prompt_tokens
        assert engine.complete([5, 6], max_tokens=2, deterministic=True).choices
        assert engine.metrics().n_prompt_tokens - n == 2


def test_a_listener_that_fails_ends_nothing(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: object) -> None:
        raise ZeroDivisionError("mine")

    assert engine.submit([5, 6], max_tokens=3, listener=fail).result(300).tokens
    assert engine.complete([5, 6], max_tokens=3).tokens
    assert "the listener of" in caplog.text


def test_texts_may_end_while_callers_look(engine: Engine) -> None:
    ending: dict[int, Any] = {}

    class Text:
        @property
        def task(self) -> Any:
            ending.pop(1, None)  # as the thread of the engine does between any two instructions
            return SimpleNamespace(seq=0)

    ending |= {0: Text(), 1: Text(), 2: Text()}
    engine._texts = ending
    engine._check_queue(1)
    engine._texts = engine._steps.texts

    class Place:
        texts = iter([engine.submit([5, 6], max_tokens=1).texts[0]])
        look = None

        @property
        def text(self) -> Any:
            return next(self.texts, None)

    slots = Slots(1)
    slots._places = [Place()]  # type: ignore[list-item]
    assert slots.look()[0].running
    assert not slots.look()[0].running


def test_a_row_without_an_answer_fails_its_request_alone(load) -> None:
    """A processor that forbids all tokens, or writes NaN: the request says so, and the others go on."""

    def after_three(value):
        def edit(ids, logits):
            if len(ids) >= 9:
                logits[:] = value

        return edit

    prompt = [5, 6, 7, 8, 9, 10]
    with Engine(load("llama"), n_ctx=512, n_parallel=3, n_threads=1) as engine:
        want = engine.complete(prompt, max_tokens=20, temperature=0).tokens
        bad = [
            engine.submit(prompt, max_tokens=20, logits_processor=after_three(value), temperature=temperature)
            for value in (-np.inf, np.nan)
            for temperature in (0, 1)
        ]
        good = engine.submit(prompt, max_tokens=20, temperature=0)
        for job in bad:
            with pytest.raises(errors.SamplerError, match=r"forbid|is NaN"):
                job.result()
        assert good.result().tokens == want
        forced = engine.complete(prompt, max_tokens=3, temperature=1, logit_bias={77: np.inf})
        assert list(forced.tokens) == [77] * 3

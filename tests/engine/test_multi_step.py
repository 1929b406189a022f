"""Steps without Python between them: everybody gets what is theirs, once and in order, and hears of the end."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import isolation
from support.engine_internals import between_steps, count_turns, limit_cells
from support.engines import PROMPTS, assert_idle, endless
from support.numerics import EXACT
from support.waiting import LIMIT, wait_for

from pyllm import Chunk, Llama, Model, errors
from pyllm.core.batch import Batch
from pyllm.core.python_sampler import PythonSampler
from pyllm.engine import AsyncEngine, Engine, Job, channel
from pyllm.engine.channel import Channel, Post
from pyllm.params import SamplingParams
from pyllm.sampling import build_chain


@pytest.fixture(params=[True, False], ids=["unified", "split"])
def engine(tiny_model: Model, request: pytest.FixtureRequest) -> Iterator[Engine]:
    settings = {"n_ctx": 2048, "n_parallel": 4, "n_batch": 64, "kv_unified": request.param, "host_cache_bytes": 0}
    with Engine(tiny_model, **settings, **EXACT) as engine:
        yield engine


@pytest.fixture
def llm(tiny_model: Model) -> Iterator[Llama]:
    with Llama(tiny_model, n_ctx=512, cache_prompt=False, **EXACT) as llm:
        yield llm


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run(work: Any) -> Any:
    """Run something in an event loop, whose callbacks must not fail."""
    problems: list[Any] = []

    async def main() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        return await asyncio.wait_for(work, LIMIT)

    result = asyncio.run(main())
    assert problems == []
    return result


def check(chunks: list[Chunk]) -> Any:
    """The pieces make up the whole; the whole."""
    completion = chunks[-1].completion
    assert completion is not None
    assert sum(len(chunk.tokens) for chunk in chunks) == completion.usage.completion_tokens
    assert [chunk.completion for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    if len({chunk.index for chunk in chunks}) > len(completion.choices):
        return completion  # the best of several
    for choice in completion.choices:
        own = [chunk for chunk in chunks if chunk.index == choice.index]
        assert "".join(chunk.text for chunk in own) == choice.text
        assert sum((chunk.tokens for chunk in own), ()) == choice.tokens
        assert [chunk.finish_reason for chunk in own] == [None] * (len(own) - 1) + [choice.finish_reason]
    return completion


async def chunks_of(heard: asyncio.Queue[Any]) -> AsyncIterator[Chunk]:
    while True:
        chunk = await heard.get()
        yield chunk
        if chunk.completion is not None:
            return


async def read(stream: AsyncIterator[Chunk]) -> Any:
    return check([chunk async for chunk in stream])


def generate(engine: Engine, **arguments: Any) -> list[Any]:
    """Some texts whose requests come in the same moment."""
    jobs = between_steps(engine, lambda: [engine.submit(p, **arguments, stream=False) for p in PROMPTS[:4]])
    return [job.result(300) for job in jobs]


# ---- what they give


def test_sequences_without_python_run_several_steps(engine: Engine) -> None:
    arguments: dict[str, Any] = {"max_tokens": 100, "temperature": 0, "logit_bias": endless(engine)}
    turns = count_turns(engine)
    found = generate(engine, **arguments)
    assert engine.metrics().n_steps == sum(turns) == 100
    assert max(turns) > 1 and len(turns) < 60
    # As many steps as with somebody who looks at each token.
    turns.clear()
    watched = generate(engine, **arguments, logits_processor=lambda ids, logits: None)
    assert engine.metrics().n_steps == 200
    assert max(turns) == 1
    assert [c.tokens for c in watched] == [c.tokens for c in found]
    assert engine.metrics().n_generated_tokens == 2 * 4 * 100
    assert_idle(engine)


def test_streams_in_an_event_loop_run_several_steps(engine: Engine) -> None:
    turns = count_turns(engine)
    client = AsyncEngine(engine)

    async def work() -> list[Any]:
        streams = [client.stream(p, max_tokens=200, temperature=0, logit_bias=endless(engine)) for p in PROMPTS[:4]]
        return await asyncio.gather(*map(read, streams))

    found = run(work())
    assert [len(c.tokens) for c in found] == [200] * 4
    assert max(turns) > 1
    assert (
        found[1].tokens == engine.complete(PROMPTS[1], max_tokens=200, temperature=0, logit_bias=endless(engine)).tokens
    )
    assert_idle(engine)


def test_streams_of_all_sorts_are_whole(engine: Engine, llm: Llama) -> None:
    client = AsyncEngine(engine)
    stop = llm([5, 6, 7], max_tokens=60, temperature=0, logit_bias=endless(engine)).text[20:23]
    sorts: list[dict[str, Any]] = [
        {"stop": [stop]},
        {"n": 3, "seed": 4, "temperature": 1.0},
        {"echo": True},
        {"logprobs": 2},
        {"stopping_criteria": lambda ids, logits: len(ids) > 40},
        {"seed": 3, "temperature": 0.8, "repeat_penalty": 1.3},
        {"logit_bias": endless(engine), "max_tokens": 90},
        {"grammar": 'root ::= [a-z0-9 ]+ "."'},
        {"max_tokens": 0},
        {"n": 2, "best_of": 3, "seed": 5, "temperature": 1.0},
        {"deterministic": True},
    ]
    base = {"max_tokens": 50, "temperature": 0}

    async def one(index: int, arguments: dict[str, Any], streamed: bool) -> Any:
        await asyncio.sleep(0.004 * index)
        if streamed:
            return await read(client.stream([5, 6, 7], **base | arguments))
        return await client.complete([5, 6, 7], **base | arguments)

    async def leave(index: int) -> None:
        await asyncio.sleep(0.005 * index)
        n = 0
        async for _ in client.stream([9, 9], max_tokens=400, logit_bias=endless(engine), priority=index % 3 - 1):
            n += 1
            if n == 3:
                return

    async def work() -> list[Any]:
        leaving = [asyncio.create_task(leave(i)) for i in range(6)]
        found = await asyncio.gather(
            *(one(i, each, True) for i, each in enumerate(sorts)),
            *(one(i, each, False) for i, each in enumerate(sorts)),
        )
        await asyncio.gather(*leaving)
        return found

    found = run(work())
    n = len(sorts)
    for i, each in enumerate(sorts[:9]):
        wanted = llm([5, 6, 7], **base | each)
        for streamed in (found[i], found[n + i]):
            assert [c.tokens for c in streamed.choices] == [c.tokens for c in wanted.choices], each
            assert [c.text for c in streamed.choices] == [c.text for c in wanted.choices], each
            assert [c.finish_reason for c in streamed.choices] == [c.finish_reason for c in wanted.choices], each
    wait_for(lambda: engine.metrics().n_running == engine.metrics().n_waiting == 0)
    assert_idle(engine)


@pytest.mark.parametrize("hidden", [0, 100])
def test_a_cache_that_gets_full_in_between(tiny_model: Model, llm: Llama, hidden: int) -> None:
    bias = endless(llm)
    arguments: dict[str, Any] = {"max_tokens": 50, "temperature": 0, "logit_bias": bias}
    alone = [llm(prompt, **arguments).tokens for prompt in PROMPTS[:4]]
    settings = {"n_ctx": 256, "n_parallel": 4, "kv_unified": True, "cache_prompt": False}
    with Engine(tiny_model, **settings, **EXACT) as engine:
        context, last = engine.context, engine.context.n_seq_max - 1
        if not hidden:
            # Cells are counted in units of 256, so a part of them is taken away.
            limit_cells(engine, 120)
        else:
            # Cells that nobody has counted: llama.cpp finds no room in the middle of a round.
            batch = Batch.from_arrays(np.full(hidden, 5, np.int32), seq_ids=[last] * hidden)
            between_steps(engine, lambda: context.decode(batch))

        async def make_room() -> None:
            while not engine.metrics().n_preempted:
                await asyncio.sleep(0.001)
            between_steps(engine, lambda: context.memory.rm(last, -1, -1))

        async def work() -> list[Any]:
            post, heard = Post.of(asyncio.get_running_loop()), [asyncio.Queue[Any]() for _ in range(4)]
            channels = [Channel(post, queue.put_nowait) for queue in heard]
            # All come in the same moment.
            submit = functools.partial(engine.submit, **arguments)
            between_steps(engine, lambda: [submit(p, listener=c) for p, c in zip(PROMPTS, channels, strict=False)])
            streams = [read(chunks_of(queue)) for queue in heard]
            return (await asyncio.gather(*streams, make_room()))[:-1]

        found = run(work())
        assert engine.metrics().n_preempted > 0
        assert [c.tokens for c in found] == alone
        assert_idle(engine)


def test_what_comes_between_steps(engine: Engine, tmp_path: Any) -> None:
    engine.complete([5, 6, 7, 8], max_tokens=4, slot=3)
    job = engine.submit(PROMPTS[0], max_tokens=400, temperature=0, logit_bias=endless(engine), stream=False, slot=0)
    for i in range(20):
        assert engine.save_slot(3, tmp_path / "slot")[0] >= 4
        engine.erase_slot(3)
        assert engine.restore_slot(3, tmp_path / "slot")[0] >= 4
        engine.complete([9, i], max_tokens=1 + i % 3, priority=-(i % 2), slot=1)
        looks = engine.slots()
        assert all(len(look.ids) <= look.n_prompt + look.n_generated for look in looks if look.request is not None)
    tokens = job.result(300).tokens
    again = engine.complete(PROMPTS[0], max_tokens=100, temperature=0, logit_bias=endless(engine))
    # In a shared cache sums are rounded by where the others are, which shows late.
    assert tokens[:100] == again.tokens and len(tokens) == 400
    assert_idle(engine)


# ---- errors


def test_a_sampler_that_is_closed_ends_its_request_alone(engine: Engine) -> None:
    params = SamplingParams(logit_bias=endless(engine))
    good, closed = (build_chain(params, engine.vocab, seed) for seed in (3, 4))
    jobs = [engine.submit([5, 6, 7], max_tokens=500, sampler=one, stream=False) for one in (good, closed)]
    wait_for(lambda: jobs[1].first_token is not None)
    between_steps(engine, closed.close)  # else it waits for the end of a round, and may come late
    with pytest.raises(errors.ClosedError, match="Chain"):
        jobs[1].result(300)
    assert len(jobs[0].result(300).tokens) == 500
    assert not engine.closed
    assert_idle(engine)


def test_samplers_of_one_chain_do_not_end_the_engine(engine: Engine) -> None:
    chain = build_chain(SamplingParams(logit_bias=endless(engine)), engine.vocab, 3)
    samplers = [chain, chain[len(chain) - 1], None]
    jobs = [engine.submit([5, 6, 7], max_tokens=100, sampler=one, stream=False) for one in samplers]
    assert len(jobs[2].result(300).tokens) > 0
    for job in jobs[:2]:
        assert len(job.result(300).tokens) > 0
    assert not engine.closed
    assert_idle(engine)


def test_a_sampler_that_fails_in_a_round_ends_its_request_alone(engine: Engine) -> None:
    left = [60]

    def choose(candidates: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise ZeroDivisionError("mine")
        candidates.selected = 300

    sampler = PythonSampler(choose)
    client = AsyncEngine(engine)

    async def work() -> tuple[Any, list[Chunk]]:
        chunks: list[Chunk] = []

        async def fails() -> None:
            async for chunk in client.stream([5, 6, 7], max_tokens=500, sampler=sampler):
                chunks.append(chunk)

        other = asyncio.create_task(read(client.stream([9], max_tokens=300, logit_bias=endless(engine))))
        with pytest.raises(ZeroDivisionError):
            await fails()
        return await other, chunks

    whole, chunks = run(work())
    assert len(whole.tokens) == 300
    # What it had before it failed was told, but for what may have been a part of a character.
    assert 55 <= sum(len(chunk.tokens) for chunk in chunks) <= 59
    assert_idle(engine)


def test_an_error_that_comes_while_the_loop_reads(tiny_model: Model) -> None:
    with Engine(tiny_model, n_ctx=2048, n_parallel=1, n_threads=1) as engine:

        async def work() -> list[Any]:
            got: list[Any] = []
            client = AsyncEngine(engine)
            job = await client.submit([5, 6], listener=got.append, max_tokens=1500, logit_bias=endless(engine))
            text = job.texts[0]
            piece = text.piece

            def closing(**arguments: Any) -> Any:
                found = piece(**arguments)
                engine.close()
                return found

            text.piece = closing  # type: ignore[method-assign]
            while not got or not isinstance(got[-1], BaseException):
                await asyncio.sleep(0.001)
            assert sum((chunk.tokens for chunk in got[:-1]), ()) == tuple(text.row.tokens)
            with pytest.raises(errors.ClosedError):
                job.result(1)
            return got

        assert isinstance(run(work())[-1], errors.ClosedError)


# ---- ends


def test_a_request_is_released_before_its_end_is_read(tiny_model: Model, often: None) -> None:
    with Engine(tiny_model, n_ctx=4096, n_parallel=16, n_threads=1) as engine:
        client = AsyncEngine(engine)

        async def again(number: int) -> None:
            sampler = build_chain(SamplingParams(logit_bias=endless(engine)), engine.vocab, number)
            for _ in range(8):
                events: asyncio.Queue[Any] = asyncio.Queue()
                job = await client.submit([5, 6, number], max_tokens=40, sampler=sampler, listener=events.put_nowait)
                while (await events.get()).completion is None:
                    pass
                number = job.texts[0].task.id
                assert not any(slot.running and slot.task == number for slot in engine.slots())

        async def work() -> None:
            await asyncio.gather(*map(again, range(16)))

        run(work())
        assert engine.metrics().n_generated_tokens == 16 * 8 * 40


@pytest.mark.parametrize("stream", [True, False])
def test_a_result_that_the_loop_itself_waits_for(engine: Engine, stream: bool) -> None:
    async def work() -> None:
        got: list[Any] = []
        client = AsyncEngine(engine)
        arguments = {"max_tokens": 300, "logit_bias": endless(engine), "stream": stream}
        job = await client.submit([5, 6], listener=got.append, **arguments)
        with pytest.raises(TimeoutError):
            job.result(0)
        assert job.result(300).tokens == sum((chunk.tokens for chunk in got), ())
        await asyncio.sleep(0.01)
        assert check(got) is job.result(0)

    run(work())


def test_a_loop_that_is_closed_before_it_has_read_all(engine: Engine) -> None:
    loop = asyncio.new_event_loop()
    heard: list[Any] = []
    arguments: dict[str, Any] = {"max_tokens": 200, "logit_bias": endless(engine)}

    async def submit(n: int) -> list[Job]:
        return [await AsyncEngine(engine).submit([5, 6], listener=heard.append, **arguments) for _ in range(n)]

    first = loop.run_until_complete(submit(1))[0]
    # It does nothing meanwhile, and all is computed.
    wait_for(lambda: engine.metrics().n_running == engine.metrics().n_waiting == 0)
    running = loop.run_until_complete(submit(2))
    loop.close()
    n = len(heard)
    assert len(first.result(300).tokens) == 200
    for job in running:
        assert job.result(300).finish_reason in ("abort", "length")
        assert job.done
    assert len(heard) == n
    assert engine.complete([5], max_tokens=3).tokens
    assert_idle(engine)


def test_a_text_that_was_computed_when_its_loop_was_closed_is_done(engine: Engine) -> None:
    loop = asyncio.new_event_loop()

    async def submit() -> Job:
        client = AsyncEngine(engine)
        return await client.submit([5, 6], listener=lambda event: None, max_tokens=9, logit_bias=endless(engine))

    async def last() -> Job:
        job = await submit()
        wait_for(lambda: engine.metrics().n_running == engine.metrics().n_waiting == 0)
        # What the loop was told of the text comes behind this, and it does not come to that.
        loop.stop()
        return job

    task = loop.create_task(last())
    loop.run_forever()
    while not task.done():
        loop.run_until_complete(asyncio.sleep(0))
    job = task.result()
    loop.close()
    assert len(job.result(300).tokens) == 9
    assert job.done


def test_several_loops_and_several_engines(tiny_model: Model) -> None:
    engines = [Engine(tiny_model, n_ctx=1024, n_parallel=4, n_threads=1) for _ in range(2)]
    bias = endless(engines[0])
    fds = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    failed: list[BaseException] = []

    async def work(number: int) -> None:
        streams = [
            read(AsyncEngine(engine).stream([5, number + 3], max_tokens=100 + i, temperature=0, logit_bias=bias))
            for engine in engines
            for i in range(2)
        ]
        found = await asyncio.gather(*streams)
        assert [len(one.tokens) for one in found] == [100, 101, 100, 101]
        assert found[0].tokens == found[2].tokens == found[1].tokens[:100]

    def loops(number: int) -> None:
        try:
            for _ in range(3):
                run(work(number))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=loops, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert failed == []
    for engine in engines:
        assert_idle(engine)
    if fds is not None:
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= fds)
    for engine in engines:
        engine.close()


# ---- loops


@pytest.mark.parametrize("cause", ["pipe", "reader", "windows"])
def test_a_loop_that_cannot_wait_for_a_pipe(engine: Engine, monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(24, "Too many open files") if cause == "pipe" else NotImplementedError

    async def work() -> Any:
        with monkeypatch.context() as patch:
            if cause == "pipe":
                patch.setattr(os, "pipe", refuse)
            elif cause == "windows":
                patch.setattr(channel, "os", SimpleNamespace(name="nt"))
            else:
                patch.setattr(asyncio.get_running_loop(), "add_reader", refuse)
            stream = AsyncEngine(engine).stream([5, 6], max_tokens=30, logit_bias=endless(engine))
            completion = await read(stream)
            assert Post.of(asyncio.get_running_loop()).bell is None
            return completion

    assert len(run(work()).tokens) == 30


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
def test_a_listener_that_fails_keeps_nothing_from_others(engine: Engine, error: Any, caplog: Any) -> None:
    async def work() -> None:
        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context["exception"]))
        got: list[Any] = []

        def fail(event: Any) -> None:
            raise error

        client = AsyncEngine(engine)
        jobs = []
        for i in range(4):
            listener = got.append if i % 2 else fail
            jobs.append(await client.submit([5, i], max_tokens=20, stream=False, listener=listener))
        while not all(job.done for job in jobs) or len(got) < 2:
            await asyncio.sleep(0.001)
        assert len(problems) == (2 if error is asyncio.CancelledError else 0)

    asyncio.run(asyncio.wait_for(work(), LIMIT))
    assert caplog.text.count("the listener of") == (0 if error is asyncio.CancelledError else 2)


@pytest.mark.process
def test_the_process_may_end_in_the_middle(tiny_models: Any, tmp_path: Any) -> None:
    script = """
import asyncio, atexit
from pyllm.engine import AsyncEngine, Engine

def open_files():
    # They get the numbers of what was closed just now.
    files = [open(f"{sys.argv[2]}/{i}", "wb", buffering=0) for i in range(12)]
    time.sleep(0.05)
    sizes = [os.fstat(file.fileno()).st_size for file in files]
    assert sizes == [0] * 12, sizes

atexit.register(open_files)
engine = Engine(PATH, n_ctx=30000, n_parallel=1, n_threads=1)
bias = dict.fromkeys(engine.vocab.eog_tokens, -np.inf)

async def main():
    job = await AsyncEngine(engine).submit([5, 6], listener=lambda event: None, logit_bias=bias)
    while job.first_token is None:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)

asyncio.run(main())
"""
    isolation.survive(script, tiny_models["llama"], tmp_path)

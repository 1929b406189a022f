"""Calls that are aborted, in a thread and in asyncio: they end soon, give what they have, and leave nothing behind."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from support.waiting import LIMIT

from pyllm import Llama, errors
from pyllm.llama import StreamOpenError

PROMPT = "the people look at the number"
LONG = {"max_tokens": 100_000, "temperature": 0}


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llama(tiny_model, n_ctx=8192, n_batch=512, n_threads=1) as llm:
        # Nothing ends the text by itself.
        llm.forbidden = dict.fromkeys(llm.vocab.eog_tokens, float("-inf"))
        yield llm


def in_thread(function):
    results = []

    def work():
        results.append(function())

    thread = threading.Thread(target=work)
    thread.start()
    return thread, results


def abort_until_done(llm, thread):
    """Abort as soon as the call is running."""
    deadline = time.monotonic() + LIMIT
    while thread.is_alive() and time.monotonic() < deadline:
        llm.abort()
        thread.join(0.005)
    assert not thread.is_alive()


class TestAbort:
    def test_a_generation(self, llm):
        expected = llm(PROMPT, max_tokens=6, temperature=0)
        started = threading.Event()

        def note(ids, logits):
            started.set()

        thread, results = in_thread(lambda: llm(PROMPT, **LONG, logit_bias=llm.forbidden, logits_processor=note))
        assert started.wait(LIMIT)
        abort_until_done(llm, thread)
        assert results[0].finish_reason == "abort"
        assert len(results[0].tokens) < 8192 - 10
        assert results[0].text == llm.vocab.detokenize(results[0].tokens, unparse_special=False)
        assert llm(PROMPT, max_tokens=6, temperature=0).tokens == expected.tokens

    def test_in_one_go_without_python(self, llm):
        thread, results = in_thread(lambda: llm(PROMPT, **LONG, logit_bias=llm.forbidden))
        abort_until_done(llm, thread)
        assert results[0].finish_reason == "abort"

    def test_a_long_prompt(self, llm):
        ids = np.full(8000, 300, np.int32)
        thread, results = in_thread(lambda: llm(ids, max_tokens=1, cache_prompt=False))
        abort_until_done(llm, thread)
        assert results[0].finish_reason == "abort" and results[0].tokens == ()

    @pytest.mark.parametrize("arguments", [{}, {"n": 2}])
    def test_an_open_stream(self, llm, arguments):
        chunks = []
        for chunk in llm.stream(PROMPT, **LONG, logit_bias=llm.forbidden, **arguments):
            chunks.append(chunk)
            llm.abort()
        assert chunks[-1].completion.finish_reason == "abort"
        assert "".join(chunk.text for chunk in chunks if chunk.index == 0) == chunks[-1].completion.text
        assert len(chunks) < 20

    def test_texts_at_once(self, tiny_model):
        with Llama(tiny_model, n_ctx=1024, n_threads=1, n_seq_max=2, kv_unified=True) as wide:
            forbidden = dict.fromkeys(wide.vocab.eog_tokens, float("-inf"))
            chunks = []
            for chunk in wide.stream(PROMPT, max_tokens=300, n=2, seed=1, logit_bias=forbidden):
                chunks.append(chunk)
                wide.abort()
            assert [choice.finish_reason for choice in chunks[-1].completion.choices] == ["abort", "abort"]
            assert wide(PROMPT, max_tokens=3, n=2, seed=1).finish_reason == "length"

    def test_nothing_to_abort(self, llm):
        llm.abort()
        assert llm(PROMPT, max_tokens=3, temperature=0).finish_reason == "length"

    def test_an_abort_that_comes_too_late_ends_nothing_else(self, llm):
        expected = llm(PROMPT, max_tokens=3, temperature=0)
        stream = llm.stream(PROMPT, max_tokens=3, temperature=0)
        while next(stream).finish_reason is None:
            pass
        llm.abort()  # the text is complete, and the Llama is still held
        stream.close()
        assert llm(PROMPT, max_tokens=3, temperature=0).tokens == expected.tokens

    def test_an_abort_of_the_context_itself_is_an_error(self, llm):
        llm.context.abort()
        with pytest.raises(errors.DecodeAborted):
            llm(PROMPT, max_tokens=3)
        assert llm(PROMPT, max_tokens=3, temperature=0).finish_reason == "length"


class TestAsync:
    def test_the_same_as_without(self, llm):
        expected = llm(PROMPT, max_tokens=6, seed=1)

        async def main():
            assert await llm.acomplete(PROMPT, max_tokens=6, seed=1) == expected
            chunks = [chunk async for chunk in llm.astream(PROMPT, max_tokens=6, seed=1)]
            assert "".join(map(str, chunks)) == expected.text and chunks[-1].completion == expected

        asyncio.run(main())

    def test_tasks_wait_for_each_other_and_not_the_loop(self, llm):
        async def main():
            tasks = [asyncio.create_task(llm.acomplete(PROMPT, max_tokens=5, seed=seed)) for seed in range(4)]
            ticks = 0
            while not all(task.done() for task in tasks):
                ticks += 1
                await asyncio.sleep(0)
            assert ticks > 1
            return [task.result() for task in tasks]

        results = asyncio.run(main())
        assert [result.seed for result in results] == [0, 1, 2, 3]
        assert results == [llm(PROMPT, max_tokens=5, seed=seed) for seed in range(4)]

    def test_errors_come_out(self, llm):
        def fail(ids, logits):
            raise ZeroDivisionError("from the processor")

        async def main():
            with pytest.raises(ZeroDivisionError, match="from the processor"):
                await llm.acomplete(PROMPT, max_tokens=4, logits_processor=fail)
            with pytest.raises(errors.UnknownArgumentError, match="max_tokens"):
                llm.astream(PROMPT, max_token=4)

        asyncio.run(main())

    def test_an_open_stream_of_the_same_thread(self, llm):
        """It could not go on while it is waited for: an error rather than a deadlock."""

        async def main():
            stream = llm.stream(PROMPT, max_tokens=3, seed=1)
            next(stream)
            with pytest.raises(StreamOpenError, match="read it to its end"):
                await asyncio.wait_for(llm.acomplete(PROMPT, max_tokens=3), LIMIT)
            with pytest.raises(StreamOpenError, match="read it to its end"):
                await anext(llm.astream(PROMPT, max_tokens=3))
            stream.close()
            return await llm.acomplete(PROMPT, max_tokens=3, seed=1)

        assert asyncio.run(main()).finish_reason == "length"

    def test_a_cancelled_task_lets_go(self, llm):
        async def main():
            running = asyncio.create_task(llm.acomplete(PROMPT, **LONG, logit_bias=llm.forbidden))
            waiting = asyncio.create_task(llm.acomplete(PROMPT, **LONG, logit_bias=llm.forbidden))
            await asyncio.sleep(0.05)
            for task in (running, waiting):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            return await llm.acomplete(PROMPT, max_tokens=3, temperature=0)

        assert asyncio.run(main()).finish_reason == "length"

    def test_a_loop_that_is_left(self, llm):
        async def main():
            stream = llm.astream(PROMPT, **LONG, logit_bias=llm.forbidden)
            async for chunk in stream:
                assert chunk.finish_reason is None
                break
            await stream.aclose()
            return await llm.acomplete(PROMPT, max_tokens=3, temperature=0)

        assert asyncio.run(main()).finish_reason == "length"

"""`check_invariants()`: bookkeeping that contradicts llama.cpp's memory is found and named."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from support.engine_internals import between_steps
from support.engines import PROMPTS, endless, slow
from support.waiting import wait_for

from pyllm import Llama, Model, errors
from pyllm.core.batch import Batch
from pyllm.engine import Engine
from pyllm.engine.ledger import Ledger

LONG = np.arange(5, 105).tolist()


@pytest.fixture(params=[True, False], ids=["unified", "split"])
def engine(tiny_model: Model, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=1024, n_parallel=4, n_threads=1, kv_unified=request.param) as engine:
        yield engine


def broken(check: Callable[[], None], match: str) -> errors.InvariantError:
    with pytest.raises(errors.InvariantError, match=match) as caught:
        check()
    assert caught.value.problems and str(caught.value) == "; ".join(caught.value.problems)
    return caught.value


def test_an_engine_can_be_checked_while_it_works(engine: Engine) -> None:
    engine.check_invariants()
    jobs = [engine.submit(prompt, max_tokens=40, temperature=0, logits_processor=slow) for prompt in PROMPTS]
    while not all(job.done for job in jobs):
        engine.check_invariants()
    jobs = [engine.submit(prompt, max_tokens=100, logit_bias=endless(engine)) for prompt in PROMPTS]
    while not all(job.done for job in jobs):
        engine.check_invariants()
    assert engine.metrics().n_failed == 0


def test_tokens_that_vanish_are_found(engine: Engine) -> None:
    engine.complete(LONG, max_tokens=2, temperature=0)
    between_steps(engine, lambda: engine.context.memory.clear())
    broken(engine.check_invariants, "sequence [0-9]+ has 0 tokens in llama.cpp's memory, 101 here")
    engine.reset_prefix_cache()
    engine.check_invariants()


def test_cells_that_belong_to_no_request_are_found(engine: Engine) -> None:
    last = engine.context.n_seq_max - 1
    batch = Batch.from_arrays(np.full(10, 5, np.int32), seq_ids=last)
    between_steps(engine, lambda: engine.context.decode(batch))
    broken(engine.check_invariants, f"sequence {last} has 10 tokens in llama.cpp's memory")


def test_a_running_request_that_loses_tokens_is_found(engine: Engine) -> None:
    job = engine.submit(LONG, max_tokens=200, logit_bias=endless(engine), logits_processor=slow)
    wait_for(lambda: job.first_token is not None)
    (slot,) = [slot for slot in engine.slots() if slot.running]

    def lose() -> None:
        context = engine.context
        (seq,) = [seq for seq in range(context.n_seq_max) if context.memory.pos_max(seq) >= 100]
        state = context.state.save(seq)
        context.memory.rm(seq, 50, -1)
        broken(engine.check_invariants, "has 50 tokens in llama.cpp's memory, .* and its request has computed")
        context.memory.rm(seq, -1, -1)
        context.state.load(state, seq)
        engine.check_invariants()

    between_steps(engine, lose)
    job.cancel()
    job.result(300)
    assert slot.running


def test_a_closed_engine_is_not_checked(engine: Engine) -> None:
    engine.close()
    with pytest.raises(errors.ClosedError):
        engine.check_invariants()
    with pytest.raises(errors.ClosedError):
        engine.reset_prefix_cache()


@pytest.mark.parametrize("n_each", [None, 60])
def test_counts_of_cells_that_contradict_each_other(n_each: int | None) -> None:
    ledger = Ledger(100, n_each)
    ledger.append(0, 20)
    ledger.copy(0, 1, 10)
    ledger.append(1, 5)
    assert ledger.problems() == []
    ledger.used += 1
    assert len(ledger.problems()) == 1 and "cells count as used" in ledger.problems()[0]
    ledger.used -= 1
    ledger.truncate(1, 3)
    ledger.remove(0)
    assert ledger.problems() == [] and ledger.used == 3


def test_cached_prefixes_are_forgotten(engine: Engine) -> None:
    engine.complete(LONG, max_tokens=2)
    running = engine.submit([7, 8, 9], max_tokens=300, logit_bias=endless(engine), logits_processor=slow)
    wait_for(lambda: running.first_token is not None)
    assert engine.complete(LONG, max_tokens=2).usage.cached_tokens == 99
    engine.reset_prefix_cache()
    engine.check_invariants()
    metrics = engine.metrics()
    assert metrics.n_host_bytes == 0 and metrics.n_running == 1
    assert metrics.n_cells_used == metrics.n_cells_running > 0
    assert engine.complete(LONG, max_tokens=2).usage.cached_tokens == 0
    running.cancel()
    assert running.result(300).finish_reason == "abort"


def test_a_llama_can_be_checked_between_calls(tiny_model: Model) -> None:
    with Llama(tiny_model, n_ctx=512, n_threads=1, n_seq_max=3, kv_unified=True) as llm:
        llm.check_invariants()
        for name in ("first", "second", "third"):
            llm.conversation(name).complete("the more people look", max_tokens=5)
            llm.check_invariants()
        llm.context.memory.rm(0, 3)
        broken(llm.check_invariants, "sequence 0 has 3 tokens, and [0-9]+ are known")
        # The next call notices the change as well, and computes the prompt again.
        llm("the more people look", max_tokens=3)
        llm.check_invariants()
        stream = llm.stream("the", max_tokens=5)
        next(stream)
        with pytest.raises(errors.PyllmError, match="stream"):
            llm.check_invariants()
        stream.close()


def test_a_llama_is_checked_after_the_call_that_runs(tiny_model: Model) -> None:
    with Llama(tiny_model, n_ctx=512, n_threads=1) as llm:
        begun, go_on = threading.Event(), threading.Event()

        def hold(ids: np.ndarray, logits: np.ndarray) -> None:
            begun.set()
            assert go_on.wait(300)

        call = threading.Thread(target=llm, args=("the people",), kwargs={"max_tokens": 3, "logits_processor": hold})
        call.start()
        assert begun.wait(300)
        check = threading.Thread(target=llm.check_invariants)
        check.start()
        assert check.is_alive()
        go_on.set()
        call.join(300)
        check.join(300)
        assert not check.is_alive() and not call.is_alive()
        llm.check_invariants()


def test_the_error_keeps_its_list_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(errors.InvariantError("one; two", problems=["one", "two"])))
    assert error.problems == ("one", "two") and str(error) == "one; two"

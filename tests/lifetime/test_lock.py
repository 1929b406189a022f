"""A context that several threads share: what stays together in ``with context.lock()``."""

import threading

import numpy as np
import pytest
from support.waiting import LIMIT, in_threads

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.samplers import Greedy


def test_decode_and_sample_stay_together(make_context):
    context = make_context(n_seq_max=4, n_ctx=1024)
    expected = {}
    for seq in range(4):
        context.decode(Batch.from_arrays([10 + 20 * seq], pos=[0], seq_ids=[seq]))
        expected[seq] = Greedy().sample(context)
        context.memory.clear()
    got = {seq: set() for seq in range(4)}

    def use(seq):
        greedy = Greedy()
        for _ in range(40):
            with context.lock() as held:
                assert held is context
                context.memory.rm(seq)
                context.decode(Batch.from_arrays([10 + 20 * seq], pos=[0], seq_ids=[seq]))
                got[seq].add((greedy.sample(context), int(context.logits[-1].argmax())))

    in_threads(*[lambda seq=seq: use(seq) for seq in range(4)])
    assert len(set(expected.values())) > 1
    assert got == {seq: {(token, token)} for seq, token in expected.items()}


def test_another_thread_waits_until_the_block_ends(make_context):
    context = make_context()
    entered, order = threading.Event(), []

    def other():
        entered.wait(LIMIT)
        context.decode(Batch.from_arrays([7]))
        order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with context.lock():
        entered.set()
        context.decode(Batch.from_arrays([5]))
        thread.join(0.2)  # it cannot end: there is nothing that a slow machine could miss
        with context.lock():  # the same thread may hold it again
            kept = context.logits_copy()
        assert thread.is_alive() and np.array_equal(context.logits, kept)
        order.append("this")
    thread.join(LIMIT)
    assert order == ["this", "other"]


def test_one_block_entered_twice(make_context):
    context = make_context()
    block = context.lock()
    with block, block:
        context.decode(Batch.from_arrays([5]))
    in_threads(lambda: context.decode(Batch.from_arrays([6])))  # it was let go as often as it was taken


def test_only_the_thread_that_entered_can_leave(make_context):
    context = make_context()
    block = context.lock()
    with pytest.raises(RuntimeError, match="not entered"):
        block.__exit__(None, None, None)

    def leave():
        with pytest.raises(RuntimeError, match="not entered"):
            block.__exit__(None, None, None)

    with block:
        in_threads(leave)
    in_threads(lambda: context.decode(Batch.from_arrays([6])))


def test_an_exception_lets_go(make_context):
    context = make_context()
    with pytest.raises(KeyError), context.lock():
        raise KeyError
    in_threads(lambda: context.decode(Batch.from_arrays([6])))
    block = context.lock()
    context.close()
    with pytest.raises(errors.ClosedError), block:
        pass

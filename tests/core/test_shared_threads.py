"""Contexts that share their worker threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pyllm import Batch, Context, Model, errors
from pyllm.core.threadpool import ThreadPool


def logits(context: Context, ids: list[int]) -> np.ndarray:
    context.memory.clear(data=False)
    context.decode(Batch.from_arrays(ids))
    return context.logits[-1].copy()


def test_two_contexts_with_one_pool_in_turn_and_at_once(tiny_model: Model) -> None:
    with Context(tiny_model, n_ctx=64, n_threads=2) as first, Context(tiny_model, n_ctx=64, n_threads=2) as second:
        wanted = logits(first, [5, 6, 7]), logits(second, [9, 10])
        own = second.threadpool
        assert first.threadpool is not None and own is not None and own is not first.threadpool
        second.attach_threadpool(first.threadpool)
        assert second.threadpool is first.threadpool
        for _ in range(3):
            assert np.array_equal(logits(first, [5, 6, 7]), wanted[0])
            assert np.array_equal(logits(second, [9, 10]), wanted[1])
        wrong: list[int] = []

        def work(context: Context, ids: list[int], expected: np.ndarray) -> None:
            for i in range(60):
                if not np.array_equal(logits(context, ids), expected):
                    wrong.append(i)

        threads = [
            threading.Thread(target=work, args=(first, [5, 6, 7], wanted[0])),
            threading.Thread(target=work, args=(second, [9, 10], wanted[1])),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        first.close()
        assert np.array_equal(logits(second, [9, 10]), wanted[1])
        second.set_n_threads(3)
        assert second.threadpool is not own and second.threadpool.n_threads == 3  # type: ignore[union-attr]
        assert np.allclose(logits(second, [9, 10]), wanted[1], atol=1e-5)


def test_a_pool_that_is_too_small_is_refused(tiny_model: Model) -> None:
    with Context(tiny_model, n_ctx=64, n_threads=3) as context:
        before = context.threadpool
        with pytest.raises(errors.InvalidArgumentError, match="2 threads and the context computes with 3"):
            context.attach_threadpool(ThreadPool(2))
        with pytest.raises(TypeError):
            context.attach_threadpool(None)  # type: ignore[arg-type]
        assert context.threadpool is before
    with pytest.raises(errors.ClosedError):
        context.attach_threadpool(ThreadPool(4))
    with Context(tiny_model, n_ctx=64, n_threads=1) as context:
        assert context.threadpool is None
        context.attach_threadpool(ThreadPool(2))
        logits(context, [1, 2])

"""Thread pools: they start, compute and end."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.threadpool import ThreadPool


def threads() -> int:
    """Threads of this process, those of C included."""
    folder = Path("/proc/self/task")
    if not folder.exists():
        pytest.skip("there is no /proc here")
    return len(list(folder.iterdir()))


def test_a_pool_starts_its_threads_and_ends_them():
    before = threads()
    pool = ThreadPool(4)
    assert pool.n_threads == 4 and threads() == before + 3, "the calling thread is the fourth"
    del pool
    gc.collect()
    assert threads() == before


def test_a_context_starts_no_threads_in_a_decode(make_context, ids):
    context = make_context(n_threads=2)
    context.decode(Batch.from_arrays(ids))
    during = threads()
    for token in ids[:5]:
        context.decode(Batch.from_arrays([token]))
    assert threads() == during
    context.close()
    assert threads() == during - 1


def test_changing_the_number_of_threads_many_times(make_context, ids):
    context, rows = make_context(), []
    for n in (1, 2, 1, 3, 2, 4):
        context.set_n_threads(n)
        context.memory.clear()
        context.decode(Batch.from_arrays(ids[:4]))
        rows.append(context.logits.copy())
        gc.collect()
    for row in rows:
        np.testing.assert_allclose(row, rows[0], atol=1e-4)
    context.close()


def test_many_pools():
    before = threads()
    for _ in range(50):
        ThreadPool(3, poll=0)
    gc.collect()
    assert threads() == before and threading.active_count() >= 1


@pytest.mark.parametrize("arguments", [{"poll": 0}, {"poll": 100}, {"priority": -1}])
def test_settings(arguments):
    assert ThreadPool(2, **arguments).n_threads == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_threads": 0}, "n_threads"),
        ({"n_threads": -1}, "n_threads"),
        ({"n_threads": 100_000}, "n_threads"),
        ({"n_threads": 2, "poll": 101}, "poll"),
        ({"n_threads": 2, "poll": -1}, "poll"),
        ({"n_threads": 2, "priority": 4}, "priority"),
        ({"n_threads": 2, "priority": -2}, "priority"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        ThreadPool(**arguments)

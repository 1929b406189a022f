"""Outputs as arrays: methods, NumPy's functions, PyTorch; copies; arrays of several decodes."""

import copy
import gc
import pickle
import warnings

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.generation import Generation
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Greedy


@pytest.fixture
def logits(decoded):
    return decoded.logits


def test_it_is_an_array(logits):
    assert isinstance(logits, np.ndarray)
    assert (logits.ndim, logits.size, logits.itemsize) == (2, logits.shape[0] * logits.shape[1], 4)
    assert logits.nbytes == 4 * logits.size and logits.flags.writeable and logits.flags.c_contiguous


def test_methods_give_what_those_of_an_array_give(logits):
    array = np.array(logits)
    for name in (
        "argmax",
        "argmin",
        "max",
        "min",
        "mean",
        "std",
        "sum",
        "tolist",
        "argsort",
        "cumsum",
        "ravel",
        "round",
    ):
        result, expected = getattr(logits, name)(), getattr(array, name)()
        assert np.array_equal(result, expected) and type(result) is type(expected), name
    assert np.array_equal(logits.argmax(axis=1), array.argmax(axis=1))
    assert np.array_equal(logits.T, array.T) and np.shares_memory(logits.T, logits)
    assert logits.astype(np.float64).dtype == np.float64
    assert np.array_equal(logits.reshape(-1)[:5], array.reshape(-1)[:5])
    assert [type(row) for row in logits] == [np.ndarray] * len(array)


def test_arithmetic_and_functions(logits):
    array = np.array(logits)
    checks = (
        lambda a: a + 1, lambda a: 1 - a, lambda a: a * a, lambda a: a / 2, lambda a: -a, lambda a: abs(a),
        lambda a: a > 0, lambda a: a == a, lambda a: a @ a.T, lambda a: np.exp(a), lambda a: np.max(a, axis=1),
        lambda a: np.where(a > 0, a, 0), lambda a: np.concatenate([a, a]), lambda a: np.stack([a, a]),
        lambda a: np.add.reduce(a), lambda a: np.argsort(a, axis=-1), lambda a: np.linalg.norm(a),
        lambda a: np.einsum("ij->i", a),
    )  # fmt: skip
    for check in checks:
        result, expected = check(logits), check(array)
        assert np.array_equal(result, expected) and type(result) is type(expected)
        assert not np.shares_memory(result, logits)
    assert array[0, 0] in logits


def test_in_place_arithmetic_reaches_the_samplers(decoded):
    logits = decoded.logits
    first = logits[-1].copy()
    logits *= -1
    assert logits is decoded.logits and np.array_equal(logits[-1], -first)
    assert Greedy().sample(decoded) == int(first.argmin())
    np.negative(logits, out=logits)
    assert Greedy().sample(decoded) == int(first.argmax())
    logits.fill(0)
    assert not np.asarray(decoded.logits).any()


def test_copies_and_pickles_are_plain_arrays(logits):
    for made in (copy.copy(logits), copy.deepcopy(logits), pickle.loads(pickle.dumps(logits)), logits.copy()):
        assert type(made) is np.ndarray and np.array_equal(made, logits)
        assert not np.shares_memory(made, logits)
    again = logits.view(np.uint32)
    assert type(again) is np.ndarray and np.shares_memory(again, logits)
    subclass = np.array(logits, subok=True)  # a copy that NumPy makes by itself
    assert np.array_equal(subclass + 0, logits) and not np.shares_memory(subclass, logits)


def test_printing(decoded):
    assert repr(decoded.logits) == f"<Outputs {decoded.n_outputs} x {decoded.n_vocab} float32>"
    assert str(decoded.logits) == str(np.asarray(decoded.logits))
    assert "<" in decoded.logits._repr_html_()
    assert decoded.logits[0] is not None and decoded.logits._repr_html_()


def test_torch(logits):
    torch = pytest.importorskip("torch")
    array = np.asarray(logits)
    for tensor in (torch.from_numpy(logits), torch.asarray(logits), torch.from_dlpack(logits)):
        assert tensor.shape == logits.shape and tensor.data_ptr() == logits.address
    expected = torch.softmax(torch.from_numpy(array), dim=-1)
    assert torch.equal(torch.softmax(logits, dim=-1), expected)
    assert torch.argmax(logits).item() == int(array.argmax())
    assert torch.equal(torch.cat([logits, logits]), torch.from_numpy(np.concatenate([array, array])))


def test_what_torch_calls(decoded, monkeypatch):
    """The protocol without PyTorch: it calls the class with its function and the arguments."""
    import sys
    import types

    fake = types.ModuleType("torch")
    fake.from_numpy = lambda array: ("tensor", type(array), array.shape)
    monkeypatch.setitem(sys.modules, "torch", fake)
    logits = decoded.logits
    call = type(logits).__torch_function__
    assert call(lambda x, dim: (x, dim), (), (logits,), {"dim": -1}) == (("tensor", np.ndarray, logits.shape), -1)
    assert call(lambda xs: xs, (), ([logits, 1],)) == [("tensor", np.ndarray, logits.shape), 1]
    decoded.decode(Batch.from_arrays([1]))
    with pytest.raises(errors.StaleLogitsError):
        call(lambda x: x, (), (logits,))


# Copies that stay


def test_copies_of_rows_stay(make_context, ids):
    context = make_context(embeddings=True, pooling_type="none")
    context.decode(Batch.from_arrays(ids, outputs="all"))
    for kind in ("logits", "embeddings"):
        rows, copied = getattr(context, kind), getattr(context, f"{kind}_copy")
        assert np.array_equal(copied(), rows) and not np.shares_memory(copied(), rows)
        for row in (0, 3, -1, np.int64(2)):
            assert np.array_equal(copied(row), rows[row]) and not np.shares_memory(copied(row), rows)
        for row in (len(rows), -len(rows) - 1):
            with pytest.raises(errors.NoOutputError, match="no row"):
                copied(row)
        with pytest.raises(TypeError):
            copied(0.5)
    kept, expected = context.logits_copy(-1), context.logits[-1].copy()
    context.decode(Batch.from_arrays(ids[:1]))
    context.close()
    assert np.array_equal(kept, expected)


# Arrays of several decodes


def steps(context, ids, keep):
    kept = []
    for token in ids:
        context.decode(Batch.from_arrays([token]))
        kept.append(keep(context))
    return kept


@pytest.mark.parametrize("keep", [lambda context: context.logits[-1], lambda context: np.asarray(context.logits)])
def test_rows_kept_across_decodes_are_told_of_once(make_context, ids, keep):
    context = make_context()
    with pytest.warns(errors.StaleLogitsWarning, match=r"2 earlier decodes.*logits_copy") as caught:
        kept = steps(context, ids, keep)
    assert len([each for each in caught if each.category is errors.StaleLogitsWarning]) == 1
    assert caught[0].filename == __file__
    assert len(kept) == len(ids)


@pytest.mark.parametrize(
    "keep",
    [
        lambda context: context.logits_copy(-1),
        lambda context: context.logits,
        lambda context: (context.logits, context.logits)[0],
        lambda context: int(context.logits[-1].argmax()),
        lambda context: repr(context.logits),
        lambda context: (context.logits + 1, context.logits.T.copy()),
    ],
)
def test_what_cannot_lie_is_not_told_of(make_context, ids, keep):
    context = make_context()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(context, ids, keep)


def test_the_usual_loops_are_not_told_of(make_context, ids):
    context = make_context(embeddings=True, pooling_type="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for token in ids:
            context.decode(Batch.from_arrays([token]))
            row, vector = context.logits[-1], context.embeddings[-1]
            assert row.size and vector.size
        generation = Generation(context, Chain(Greedy()), seq_id=0)
        generation.prefill(ids[:2])
        while generation.n_generated < 4:
            generation.decode_next()
            row = context.logits[-1]
            row[0] = -np.inf
            if generation.step() is None:
                break


def test_arrays_that_are_gone_do_not_count(make_context, ids):
    context = make_context()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            context.decode(Batch.from_arrays(ids[:1]))
            first = context.logits[0]
            context.decode(Batch.from_arrays(ids[:1]))
            del first
            gc.collect()


def test_arrays_in_a_buffer_of_their_own_do_not_count(make_context, ids):
    """When the buffer had to grow, the arrays have kept the old one with its numbers."""
    context = make_context()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = []
        for n in range(1, 6):
            context.memory.clear()
            context.decode(Batch.from_arrays(ids[:n], outputs="all"))
            kept.append((context.logits[-1], context.logits_copy(-1)))
    assert all(np.array_equal(row, expected) for row, expected in kept)

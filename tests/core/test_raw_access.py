"""Calls of llama.cpp's functions that a context does not see: after them it shows what is there."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.samplers import Greedy


class RawBatch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def raw_decode(address: int, tokens, outputs) -> int:
    library = ctypes.CDLL(str(next((Path(pyllm.__file__).parent / "lib").glob("*pyllm-llama.*"))))
    library.llama_decode.argtypes = [ctypes.c_void_p, RawBatch]
    n = len(tokens)
    ids, flags = (ctypes.c_int32 * n)(*tokens), (ctypes.c_int8 * n)(*outputs)
    return library.llama_decode(address, RawBatch(n, ids, None, None, None, None, flags))


@pytest.fixture
def pair(make_context):
    """Two equal contexts: one for raw calls, the other to compare with."""
    return make_context(), make_context()


def test_outputs_changed(pair, ids):
    raw, other = pair
    for context in pair:
        context.decode(Batch.from_arrays(ids[:4], outputs="all"))
    old = raw.logits
    before = raw.decode_id
    assert raw_decode(raw.address, ids[4:6].tolist(), [0, 1]) == 0
    raw.outputs_changed()
    other.decode(Batch.from_arrays(ids[4:6]))
    assert raw.n_outputs == 1 and raw.decode_id != before
    assert np.array_equal(raw.logits, other.logits)
    assert Greedy().sample(raw) == Greedy().sample(other) == int(other.logits[-1].argmax())
    with pytest.raises(errors.StaleLogitsError):
        old[0]


def test_raw_access_with_arrays_alive(pair, ids):
    """The raw decode needs a larger buffer: the arrays keep the old one."""
    raw, other = pair
    for context in pair:
        context.decode(Batch.from_arrays(ids[:1]))
    row, kept = raw.logits[0], raw.logits_copy(0)
    with raw.raw_access() as address:
        assert address == raw.address
        assert raw_decode(address, ids[1:].tolist(), [1] * (len(ids) - 1)) == 0
    other.decode(Batch.from_arrays(ids[1:], outputs="all"))
    assert raw.n_outputs == len(ids) - 1
    assert np.array_equal(raw.logits, other.logits) and np.array_equal(row, kept)
    row[:] = 3.0
    assert np.array_equal(raw.logits, other.logits)
    raw.decode(Batch.from_arrays([1]))
    other.decode(Batch.from_arrays([1]))
    assert np.array_equal(raw.logits, other.logits)


def test_raw_access_without_a_decode(decoded):
    row, kept = decoded.logits[0], decoded.logits_copy(0)
    with decoded.raw_access():
        pass
    # The arrays have the buffer, and llama.cpp has no outputs any more.
    assert decoded.n_outputs == 0 and np.array_equal(row, kept)
    with pytest.raises(errors.NoOutputError):
        decoded.logits  # noqa: B018
    del row
    decoded.decode(Batch.from_arrays([1]))
    expected = decoded.logits_copy()
    with decoded.raw_access():
        pass
    assert np.array_equal(decoded.logits, expected)  # nobody had an array: they are still there


def test_a_raw_decode_that_fails(decoded):
    with decoded.raw_access() as address:
        assert raw_decode(address, [decoded.n_vocab], [1]) != 0
    decoded.decode(Batch.from_arrays([1]))
    assert np.isfinite(decoded.logits).all()


def test_raw_access_of_a_closed_context(make_context):
    context = make_context()
    block = context.raw_access()
    context.close()
    with pytest.raises(errors.ClosedError), block:
        pass
    for call in (context.outputs_changed, context.raw_access, context.lock):
        with pytest.raises(errors.ClosedError):
            call()
    another = make_context()
    with another.raw_access():
        another.close()
    assert another.closed

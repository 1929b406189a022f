"""Arithmetic on rows of logits, beside NumPy in float64."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.numerics import log_softmax

from pyllm import errors
from pyllm.core import kernels
from pyllm.core.batch import Batch

INF = float("inf")
# Shorter and longer than a vector, a block and a word of a bitmask, and not multiples of them.
SIZES = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 257, 1000, 5003]


def random_rows(n: int, n_vocab: int, seed: int = 0) -> np.ndarray:
    """Logits on a grid, so that equal ones appear, with a few that are minus infinity."""
    generator = np.random.default_rng(seed)
    rows = np.round(generator.normal(0, 6, (n, n_vocab)) * 8).astype(np.float32) / np.float32(8)
    rows[generator.random(rows.shape) < 0.1] = -INF
    rows[:, generator.integers(n_vocab)] = 3
    return rows


def reference_order(row: np.ndarray) -> np.ndarray:
    """Ids from the largest logit to the smallest, of equal ones the lowest first."""
    return np.argsort(-row.astype(np.float64), kind="stable")


@pytest.mark.parametrize("n_vocab", SIZES)
def test_agrees_with_numpy_in_float64(n_vocab: int) -> None:
    rows = random_rows(5, n_vocab, seed=n_vocab)
    before = rows.copy()
    expected = log_softmax(rows)
    possible = np.isfinite(expected)

    result = kernels.log_softmax(rows)
    assert result.dtype == np.float32
    assert np.array_equal(np.isneginf(result), ~possible)
    np.testing.assert_allclose(result[possible], expected[possible], rtol=2e-7, atol=1e-7)

    total = kernels.logsumexp(rows)
    assert total.dtype == np.float64
    np.testing.assert_allclose(total, np.log(np.exp(rows.astype(np.float64)).sum(axis=1)), rtol=1e-12, atol=1e-12)

    terms = np.where(possible, np.exp(expected) * np.where(possible, expected, 0), 0)
    entropy = kernels.entropy(rows)
    assert entropy.dtype == np.float64
    np.testing.assert_allclose(entropy, -terms.sum(axis=1), rtol=1e-9, atol=1e-12)

    order = np.stack([reference_order(row) for row in rows])
    tokens = np.random.default_rng(1).integers(n_vocab, size=5)
    ranks = kernels.token_ranks(rows, tokens)
    assert ranks.dtype == np.int32
    assert ranks.tolist() == [int(np.flatnonzero(line == token)[0]) for line, token in zip(order, tokens, strict=True)]
    chosen = kernels.token_logprobs(rows, tokens.astype(np.int32))
    assert chosen.dtype == np.float64
    np.testing.assert_allclose(chosen, expected[np.arange(5), tokens], rtol=1e-11, atol=1e-12)

    for k in {1, 2, min(40, n_vocab), max(1, n_vocab - 1), n_vocab} & set(range(1, n_vocab + 1)):
        ids, logprobs = kernels.top_k_logprobs(rows, k)
        assert (ids.dtype, logprobs.dtype) == (np.int32, np.float32)
        assert np.array_equal(ids, order[:, :k])
        np.testing.assert_allclose(logprobs, np.take_along_axis(expected, ids, 1), rtol=2e-7, atol=1e-7)

        kept = rows.copy()
        assert kernels.keep_top_k(kept, k) is None
        reference = np.full_like(rows, -INF)
        np.put_along_axis(reference, order[:, :k], np.take_along_axis(rows, order[:, :k], 1), 1)
        assert np.array_equal(kept, reference)
    assert np.array_equal(rows, before)


def test_one_row_gives_one_result() -> None:
    row = random_rows(1, 300)[0]
    rows = row[None]
    assert isinstance(kernels.logsumexp(row), float)
    assert kernels.logsumexp(row) == kernels.logsumexp(rows)[0]
    assert isinstance(kernels.entropy(row), float)
    assert kernels.entropy(row) == kernels.entropy(rows)[0]
    assert isinstance(kernels.token_ranks(row, 7), int)
    assert kernels.token_ranks(row, 7) == kernels.token_ranks(rows, [7])[0]
    assert isinstance(kernels.token_logprobs(row, np.int64(7)), float)
    assert kernels.token_logprobs(row, 7) == kernels.token_logprobs(rows, [7])[0]
    assert kernels.token_ranks(row, int(row.argmax())) == 0
    assert kernels.log_softmax(row).shape == (300,)
    assert [part.shape for part in kernels.top_k_logprobs(row, 5)] == [(5,), (5,)]
    kernels.keep_top_k(row, 5)
    assert np.isfinite(row).sum() == 5


def test_log_softmax_writes_where_it_is_told() -> None:
    rows = random_rows(3, 100)
    expected = kernels.log_softmax(rows)
    target = np.empty_like(rows)
    assert kernels.log_softmax(rows, out=target) is target
    assert np.array_equal(target, expected)
    assert kernels.log_softmax(rows, rows) is rows
    assert np.array_equal(rows, expected)


def test_large_values_do_not_overflow() -> None:
    rows = np.array([[1e38, -1e38, 0], [-3e38, -3e38, -3e38], [1e4, 1e4 - 1, -1e4]], np.float32)
    np.testing.assert_allclose(kernels.log_softmax(rows), log_softmax(rows), rtol=2e-7)
    assert kernels.entropy(rows)[0] == pytest.approx(0, abs=1e-300)
    assert kernels.entropy(rows)[1] == pytest.approx(np.log(3))


def test_rows_without_a_possible_token_are_defined() -> None:
    row = np.full(70, -INF, np.float32)
    assert kernels.logsumexp(row) == -INF
    assert np.array_equal(kernels.log_softmax(row), row)
    assert kernels.entropy(row) == 0
    assert kernels.token_logprobs(row, 3) == -INF
    assert kernels.token_ranks(row, 3) == 3
    ids, logprobs = kernels.top_k_logprobs(row, 4)
    assert (ids.tolist(), logprobs.tolist()) == ([0, 1, 2, 3], [-INF] * 4)
    kernels.keep_top_k(row, 4)
    assert np.isneginf(row).all()


def test_plus_infinity_is_certain() -> None:
    row = np.zeros(70, np.float32)
    row[[5, 40]] = INF
    expected = np.full(70, -INF)
    expected[[5, 40]] = np.log(0.5)
    np.testing.assert_allclose(kernels.log_softmax(row), expected, rtol=1e-7)
    assert kernels.logsumexp(row) == INF
    assert kernels.entropy(row) == pytest.approx(np.log(2))
    assert kernels.token_logprobs(row, 40) == pytest.approx(np.log(0.5))
    assert kernels.token_logprobs(row, 0) == -INF
    assert kernels.top_k_logprobs(row, 3)[0].tolist() == [5, 40, 0]


def test_nan_is_seen_in_its_row_and_nowhere_else() -> None:
    rows = random_rows(2, 100)
    rows[0, 30] = np.nan
    assert np.isnan(kernels.logsumexp(rows)).tolist() == [True, False]
    assert np.isnan(kernels.entropy(rows)).tolist() == [True, False]
    result = kernels.log_softmax(rows)
    assert np.isnan(result[0]).all() or np.isneginf(result[0][~np.isnan(result[0])]).all()
    assert not np.isnan(result[1]).any()
    assert np.isnan(kernels.logsumexp(np.full(5, np.nan, np.float32)))
    ids, _ = kernels.top_k_logprobs(rows, 100)
    assert sorted(ids[0].tolist()) == list(range(100))
    assert ids[0, -1] == 30
    kernels.keep_top_k(rows, 100 - 1)
    assert not np.isnan(rows[1]).any()


def test_nan_among_infinities() -> None:
    row = np.full(40, -INF, np.float32)
    row[3] = np.nan
    assert np.isnan(kernels.logsumexp(row))
    assert np.isnan(kernels.entropy(row))
    assert kernels.top_k_logprobs(row, 40)[0].tolist()[-1] == 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_bitmasks_agree_with_unpackbits(n_vocab: int, n_words: int, seed: int) -> None:
    n_words = min(n_words, (n_vocab + 31) // 32)
    generator = np.random.default_rng(seed)
    mask = generator.integers(-(2**31), 2**31, (3, n_words)).astype(np.int32)
    mask[generator.random(mask.shape) < 0.3] = -1
    mask[generator.random(mask.shape) < 0.3] = 0
    rows = generator.normal(size=(3, n_vocab)).astype(np.float32)
    bits = np.unpackbits(mask.view(np.uint8), axis=1, bitorder="little").astype(bool)
    allowed = np.zeros((3, n_vocab), bool)
    width = min(n_vocab, bits.shape[1])
    allowed[:, :width] = bits[:, :width]
    expected = np.where(allowed, rows, np.float32(-INF))

    kernels.apply_token_bitmask(rows, mask)
    assert np.array_equal(rows, expected)


def test_one_bitmask_holds_for_all_rows() -> None:
    rows = random_rows(4, 100)
    mask = np.array([5, 0, -1, 1], np.int32)
    expected = rows.copy()
    for row in expected:
        kernels.apply_token_bitmask(row, mask)
    kernels.apply_token_bitmask(rows, mask)
    assert np.array_equal(rows, expected)
    assert np.flatnonzero(~np.isneginf(expected).all(axis=0)).tolist() == [0, 2, *range(64, 97)]


def test_a_new_bitmask_allows_everything() -> None:
    mask = kernels.allocate_token_bitmask(2, 33)
    assert (mask.shape, mask.dtype, set(mask.ravel().tolist())) == ((2, 2), np.dtype(np.int32), {-1})
    rows = random_rows(2, 33)
    before = rows.copy()
    kernels.apply_token_bitmask(rows, mask)
    assert np.array_equal(rows, before)
    assert kernels.allocate_token_bitmask(0, 1).shape == (0, 1)
    for bad in [(-1, 5), (1, 0)]:
        with pytest.raises(errors.InvalidArgumentError, match=f"n={bad[0]}, n_vocab={bad[1]}"):
            kernels.allocate_token_bitmask(*bad)


def test_no_rows_give_no_results() -> None:
    rows = np.empty((0, 50), np.float32)
    assert kernels.log_softmax(rows).shape == (0, 50)
    assert kernels.logsumexp(rows).shape == (0,)
    assert kernels.token_ranks(rows, np.empty(0, np.int32)).shape == (0,)
    assert [part.shape for part in kernels.top_k_logprobs(rows, 3)] == [(0, 3), (0, 3)]
    kernels.keep_top_k(rows, 3)
    kernels.apply_token_bitmask(rows, np.zeros((0, 2), np.int32))


def test_rows_of_a_context_are_taken_as_they_are(decoded: Any, ids: np.ndarray) -> None:
    logits = decoded.logits
    copy = logits.copy()
    result = kernels.log_softmax(logits)
    assert np.array_equal(result, kernels.log_softmax(copy))
    np.testing.assert_allclose(
        kernels.token_logprobs(logits[:-1], ids[1:]), log_softmax(copy)[np.arange(len(ids) - 1), ids[1:]]
    )
    kernels.keep_top_k(logits, 3)
    assert (np.isfinite(decoded.logits[:]).sum(axis=1) == 3).all()
    decoded.decode(Batch.from_arrays(ids[:1]))
    with pytest.raises(errors.StaleLogitsError):
        kernels.logsumexp(logits)
    # Nothing holds on to the buffer afterwards.
    decoded.close()


READ = [
    kernels.log_softmax,
    kernels.logsumexp,
    kernels.entropy,
    lambda rows: kernels.token_ranks(rows, [0, 0]),
    lambda rows: kernels.token_logprobs(rows, [0, 0]),
    lambda rows: kernels.top_k_logprobs(rows, 2),
]
WRITE = [
    lambda rows: kernels.keep_top_k(rows, 2),
    lambda rows: kernels.apply_token_bitmask(rows, np.zeros(1, np.int32)),
    lambda rows: kernels.log_softmax(np.zeros((2, 8), np.float32), rows),
]


@pytest.mark.parametrize("function", READ + WRITE)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 8)), "float64 of shape"),
        (np.zeros((2, 8), np.float16), "float16 of shape"),
        (np.zeros((2, 8), np.int32), "int32 of shape"),
        (np.zeros((2, 8), ">f4"), ">f4 of shape"),
        (np.zeros((2, 2, 8), np.float32), r"shape \(2, 2, 8\)"),
        (np.zeros((), np.float32), r"shape \(\)"),
        (np.zeros((2, 16), np.float32)[:, ::2], "ascontiguousarray"),
        (np.zeros((8, 2), np.float32).T, "ascontiguousarray"),
        (np.zeros((2, 8), np.float32)[:, ::-1], "ascontiguousarray"),
        (np.zeros((2, 8), [("id", "i4"), ("logit", "f4"), ("p", "f4")])["logit"], "ascontiguousarray"),
        (np.zeros((2, 0), np.float32), "columns"),
        ([[0.0] * 8] * 2, "not list"),
        (None, "NoneType"),
        (b"x" * 64, "bytes"),
    ],
)
def test_other_arrays_are_refused(function: Any, rows: Any, message: str) -> None:
    if rows is None and function is WRITE[2]:
        pytest.skip("out=None asks for a new array")
    with pytest.raises(errors.InvalidArgumentError, match=message):
        function(rows)


@pytest.mark.parametrize("function", WRITE)
def test_what_is_read_only_is_not_written(function: Any) -> None:
    rows = np.zeros((2, 8), np.float32)
    rows.flags.writeable = False
    with pytest.raises(errors.InvalidArgumentError, match="read-only"):
        function(rows)
    for read in READ:
        read(rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rows: kernels.top_k_logprobs(rows, 0), "n_vocab=8, not 0"),
        (lambda rows: kernels.top_k_logprobs(rows, 9), "n_vocab=8, not 9"),
        (lambda rows: kernels.keep_top_k(rows, 0), "at least 1, not 0"),
        (lambda rows: kernels.keep_top_k(rows, 2**40), "1099511627776"),
        (lambda rows: kernels.token_ranks(rows, [0, 8]), "from 0 to 7, and these go from 0 to 8"),
        (lambda rows: kernels.token_logprobs(rows, [-1, 0]), "from -1 to 0"),
        (lambda rows: kernels.token_logprobs(rows, [0]), "2 integers"),
        (lambda rows: kernels.token_logprobs(rows, [[0], [1]]), "2 integers"),
        (lambda rows: kernels.token_logprobs(rows, [0.0, 1.0]), "not float64"),
        (lambda rows: kernels.token_ranks(rows[0], [0]), "must be an integer"),
        (lambda rows: kernels.log_softmax(rows, np.zeros((2, 9), np.float32)), r"\(2, 8\), not \(2, 9\)"),
        (lambda rows: kernels.log_softmax(rows, np.zeros(16, np.float32)), r"\(2, 8\), not \(16,\)"),
        (lambda rows: kernels.apply_token_bitmask(rows, np.zeros(2, np.int32)), "2 words for 64 tokens"),
        (lambda rows: kernels.apply_token_bitmask(rows, np.zeros((3, 1), np.int32)), "3 rows"),
        (lambda rows: kernels.apply_token_bitmask(rows, np.zeros(1, np.uint32)), "uint32"),
        (lambda rows: kernels.apply_token_bitmask(rows, np.zeros(1, np.int64)), "int64"),
        (lambda rows: kernels.apply_token_bitmask(rows, [1]), "not list"),
    ],
)
def test_arguments_out_of_range(call: Any, message: str) -> None:
    rows = np.arange(16, dtype=np.float32).reshape(2, 8)
    before = rows.copy()
    with pytest.raises(errors.InvalidArgumentError, match=message):
        call(rows)
    assert np.array_equal(rows, before)


def test_integers_are_integers() -> None:
    rows = np.zeros((2, 8), np.float32)
    for function in (kernels.keep_top_k, kernels.top_k_logprobs):
        with pytest.raises(TypeError):
            function(rows, 2.5)
    assert kernels.top_k_logprobs(rows, np.int64(2))[0].shape == (2, 2)


def test_other_threads_go_on() -> None:
    """The GIL is free while many rows are worked on."""
    rows = np.random.default_rng(0).normal(size=(64, 50_000)).astype(np.float32)
    ticks, stop = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not stop.wait(0.0005):
            ticks += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = ticks
        # One call at a time holds the GIL only for microseconds; with it held throughout nothing would count.
        for _ in range(5):
            kernels.entropy(rows)
        assert ticks > before
    finally:
        stop.set()
        thread.join()

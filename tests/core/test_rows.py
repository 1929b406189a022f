"""Rows of one decode, each with a text of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.batches import PROMPTS, go_on, next_batch, prompt_batch, started

from pyllm import Batch, Chain, Context, Generation, Model, errors
from pyllm.core.python_sampler import PythonSampler
from pyllm.core.rows import Row, decode_rows, sample_rows
from pyllm.core.samplers import Dist, Greedy, LogitBias, Penalties, Temp, TopK, TopP


@pytest.fixture
def context(make_context: Callable[..., Context]) -> Context:
    return make_context(n_ctx=256, n_seq_max=4, kv_unified=True)


def no_end(model: Model) -> LogitBias:
    return LogitBias(model.n_vocab, dict.fromkeys(model.vocab.eog_tokens, -np.inf))


def test_each_row_is_the_text_it_would_be_alone(context: Context, tiny_model: Model) -> None:
    rows = [Row(Chain(no_end(tiny_model), Temp(0.9), Dist(i))) for i in range(4)]
    indices = started(context)
    for step in range(12):
        tokens = sample_rows(context, rows, indices)
        assert all(isinstance(token, int) for token in tokens)
        go_on(context, tokens, [len(ids) + step for ids in PROMPTS])  # type: ignore[arg-type]
        indices = [0, 1, 2, 3]
    for i, (row, ids) in enumerate(zip(rows, PROMPTS, strict=True)):
        with Context(tiny_model, n_ctx=64, n_threads=1) as alone:
            generation = Generation(alone, Chain(no_end(tiny_model), Temp(0.9), Dist(i)))
            generation.prefill(ids)
            generation.run(12)
            assert row.tokens == generation.tokens
            assert row.stream.take(all=True) == generation.stream.take(all=True)
        assert (row.n_generated, row.finish_reason, row.error) == (12, None, None)


def test_an_error_of_one_sampler_fails_its_row_only(context: Context) -> None:
    def fail(candidates: Any) -> None:
        raise ZeroDivisionError("mine")

    rows = [
        Row(Chain(Greedy())),
        Row(Chain(PythonSampler(fail), Greedy())),
        Row(Chain(Temp(1.0))),
        Row(Chain(Greedy())),
    ]
    indices = started(context)
    found = sample_rows(context, rows, indices)
    assert [token is None for token in found] == [False, True, True, False]
    assert isinstance(rows[1].error, ZeroDivisionError)
    assert isinstance(rows[2].error, errors.SamplerError)  # it selects nothing
    assert [row.n_generated for row in rows] == [1, 0, 0, 1]
    assert sample_rows(context, [rows[0]], indices[:1]) and rows[0].error is None


def test_the_end_of_a_text(context: Context, tiny_model: Model) -> None:
    eog = tiny_model.vocab.eog_tokens[0]
    ends = Row(Chain(LogitBias(tiny_model.n_vocab, {eog: 1e9}), Greedy()))
    goes_on = Row(Chain(no_end(tiny_model), Greedy()))
    indices = started(context)
    found = sample_rows(context, [ends, goes_on], indices[:2])
    assert found[0] is None and found[1] is not None
    assert (ends.finish_reason, ends.tokens, ends.error) == ("stop", [], None)
    assert goes_on.finish_reason is None
    piece = tiny_model.vocab.token_to_piece(found[1]).decode("utf-8", "replace")
    stops = Row(Chain(no_end(tiny_model), Greedy()), stop=[piece])
    assert sample_rows(context, [stops], indices[1:2]) == [found[1]]
    assert (stops.finish_reason, stops.stream.take(all=True)) == ("stop", "")


def test_special_tokens_are_written_where_asked(context: Context, tiny_model: Model) -> None:
    control = next(
        i for i in range(tiny_model.n_vocab)
        if not tiny_model.vocab.token_to_piece(i, special=False) and tiny_model.vocab.token_to_piece(i, special=True)
        and not tiny_model.vocab.is_eog(i)
    )  # fmt: skip
    indices = started(context)
    texts = []
    for special in (False, True, [control], [control + 1]):
        row = Row(Chain(LogitBias(tiny_model.n_vocab, {control: 1e9}), Greedy()), special=special)
        assert sample_rows(context, [row], indices[:1]) == [control]
        texts.append(row.stream.take(all=True))
    name = tiny_model.vocab.token_to_piece(control, special=True).decode()
    assert texts == ["", name, name, ""]


def test_wrong_arguments(context: Context, tiny_model: Model) -> None:
    row = Row(Chain(Greedy()))
    with pytest.raises(errors.NoOutputError):
        sample_rows(context, [row], [0])
    indices = started(context)
    with pytest.raises(errors.NoOutputError, match="index 0"):
        sample_rows(context, [row], [0])
    with pytest.raises(errors.InvalidArgumentError, match="1 rows"):
        sample_rows(context, [row], [])
    with pytest.raises(errors.InvalidArgumentError, match="twice"):
        sample_rows(context, [row, row], indices[:2])
    with pytest.raises(TypeError, match="not NoneType"):
        sample_rows(context, [None], indices[:1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="str"):
        Row(Chain(Greedy()), special=["a"])  # type: ignore[list-item]
    closed = Chain(Greedy())
    closed.close()
    with pytest.raises(errors.ClosedError):
        sample_rows(context, [row, Row(closed)], indices[:2])
    shared = Chain(Greedy())
    with pytest.raises(errors.InvalidArgumentError, match="a sampler of its own"):
        sample_rows(context, [Row(shared), Row(shared)], indices[:2])
    assert sample_rows(context, [], []) == []
    context.close()
    with pytest.raises(errors.ClosedError):
        sample_rows(context, [row], [0])


# ---- a decode and its tokens in one call


def drawing(model: Model) -> list[Row]:
    return [
        Row(Chain(no_end(model), Greedy())),
        Row(Chain(no_end(model), TopK(20), Dist(1))),
        Row(Chain(no_end(model), Penalties(8, freq=0.2), Temp(0.9), Dist(2))),
        Row(Chain(no_end(model), TopP(0.9), Dist(3))),
    ]


@pytest.mark.parametrize("kv_unified", [True, False])
def test_decode_rows_is_decode_and_sample_rows(
    make_context: Callable[..., Context], tiny_model: Model, kv_unified: bool
) -> None:
    at_once, apart = (make_context(n_ctx=256, n_seq_max=4, kv_unified=kv_unified) for _ in range(2))
    rows, other = drawing(tiny_model), drawing(tiny_model)
    batch, indices = prompt_batch()
    for step in range(12):
        tokens = decode_rows(at_once, batch, rows, indices)
        apart.decode(batch)
        assert tokens == sample_rows(apart, other, indices) and None not in tokens
        assert np.array_equal(at_once.logits, apart.logits)
        assert at_once.n_outputs == apart.n_outputs == 4
        batch, indices = next_batch(tokens, [len(ids) + step for ids in PROMPTS]), [0, 1, 2, 3]  # type: ignore[arg-type]
    assert [row.tokens for row in rows] == [row.tokens for row in other]
    assert [row.stream.text for row in rows] == [row.stream.text for row in other]


def test_rows_for_some_of_a_batch(context: Context, make_context: Callable[..., Context], tiny_model: Model) -> None:
    batch, indices = prompt_batch()
    rows = drawing(tiny_model)
    before = context.decode_id
    # In any order; two of them may look at the same logits.
    tokens = decode_rows(context, batch, [rows[2], rows[0], rows[3]], [indices[3], indices[1], indices[1]])
    assert context.decode_id != before
    other = make_context(n_seq_max=4, kv_unified=True)
    other.decode(batch)
    again = drawing(tiny_model)
    assert tokens == sample_rows(other, [again[2], again[0], again[3]], [indices[3], indices[1], indices[1]])
    assert [row.n_generated for row in rows] == [1, 0, 1, 1]
    # Or none: then it is a decode.
    assert decode_rows(context, next_batch([7], [len(PROMPTS[0])]), [], []) == [] and context.n_outputs == 1


def test_an_index_without_logits(context: Context, tiny_model: Model) -> None:
    batch, indices = prompt_batch()
    rows = drawing(tiny_model)
    before = context.decode_id
    for wrong in (0, -1, -(2**31), len(batch), len(batch) + 1, 2**31 - 1):
        with pytest.raises(errors.NoOutputError, match=f"asks for no logits at index {wrong}$"):
            decode_rows(context, batch, rows[:2], [indices[0], wrong])
    empty = Batch(8)
    with pytest.raises(errors.NoOutputError, match="index 0"):
        decode_rows(context, empty, rows[:1], [0])
    assert context.decode_id == before and context.memory.pos_max(0) == -1
    assert [row.n_generated for row in rows] == [0] * 4


def test_what_is_wrong_before_computing_changes_nothing(context: Context, tiny_model: Model) -> None:
    batch, indices = prompt_batch()
    rows = drawing(tiny_model)
    tokens = decode_rows(context, batch, rows, indices)
    before = context.decode_id
    views = [np.asarray(context.logits)]
    values = views[0].copy()
    good = next_batch(tokens, [len(ids) for ids in PROMPTS])  # type: ignore[arg-type]
    closed = Chain(Greedy())
    closed.close()
    shared = Chain(Greedy())

    def refused(error: type[Exception], message: str, *arguments: Any) -> None:
        with pytest.raises(error, match=message):
            decode_rows(*arguments)
        assert context.decode_id == before and np.array_equal(views[0], values)
        assert [context.memory.pos_max(seq) for seq in range(4)] == [len(ids) - 1 for ids in PROMPTS]
        assert [row.tokens for row in rows] == [[token] for token in tokens]

    refused(errors.InvalidArgumentError, "2 rows go with as many indices, not with 1", context, good, rows[:2], [0])
    refused(errors.InvalidArgumentError, "twice", context, good, [rows[0], rows[0]], [0, 1])
    refused(errors.InvalidArgumentError, "of its own", context, good, [Row(shared), Row(shared)], [0, 1])
    refused(TypeError, "not str", context, good, ["a"], [0])
    refused(TypeError, "float", context, good, rows[:1], [0.0])
    refused(errors.InvalidArgumentError, "an index must be", context, good, rows[:1], [2**31])
    refused(TypeError, "NoneType", None, good, rows, [0, 1, 2, 3])
    refused(TypeError, "NoneType", context, None, rows, [0, 1, 2, 3])
    refused(TypeError, "NoneType", context, good, None, [0])
    refused(errors.ClosedError, "Chain has been closed", context, good, [rows[0], Row(closed)], [0, 1])
    refused(errors.InvalidBatchError, "4", context, Batch.from_arrays([5], pos=[9], seq_ids=[4]), rows[:1], [0])
    outside = Batch.from_arrays([tiny_model.n_vocab], pos=[9])
    refused(errors.InvalidBatchError, str(tiny_model.n_vocab), context, outside, rows[:1], [0])
    # The samplers were let go: another thread can use them.
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append([row.sampler.clone() for row in rows]))
    thread.start()
    thread.join(300)
    assert len(found) == 1
    assert None not in decode_rows(context, good, rows, [0, 1, 2, 3])
    views.clear()
    context.close()
    with pytest.raises(errors.ClosedError, match="context has been closed"):
        decode_rows(context, good, rows, [0, 1, 2, 3])


def test_a_sampler_that_fails_concerns_its_row_only(context: Context, tiny_model: Model) -> None:
    def fail(candidates: Any) -> None:
        raise ZeroDivisionError("mine")

    batch, indices = prompt_batch()
    rows = [
        Row(Chain(PythonSampler(fail), Greedy())),
        Row(Chain(no_end(tiny_model), TopK(5), Dist(1))),
        Row(Chain(Temp(1.0))),
        Row(Chain(Greedy(), PythonSampler(fail))),
    ]
    found = decode_rows(context, batch, rows, indices)
    assert [token is None for token in found] == [True, False, True, True]
    assert [type(row.error) for row in rows] == [
        ZeroDivisionError, type(None), errors.SamplerError, ZeroDivisionError
    ]  # fmt: skip
    assert [row.n_generated for row in rows] == [0, 1, 0, 0]
    assert all(row.finish_reason is None for row in rows)
    # It was computed all the same, and they can choose from it.
    assert [context.memory.pos_max(seq) for seq in range(4)] == [len(ids) - 1 for ids in PROMPTS]
    again = [Row(Chain(no_end(tiny_model), Greedy())) for _ in range(4)]
    assert sample_rows(context, again, indices) == [
        int(np.where(np.isin(np.arange(tiny_model.n_vocab), tiny_model.vocab.eog_tokens), -np.inf, each).argmax())
        for each in np.array(context.logits)
    ]
    # An error of before is forgotten.
    rows[0].sampler.remove(0)  # type: ignore[attr-defined]
    tokens = [5, 6, 7, 8]
    decode_rows(context, next_batch(tokens, [len(ids) for ids in PROMPTS]), rows[:1], [0])
    assert rows[0].error is None


def test_ends_in_decode_rows(context: Context, tiny_model: Model) -> None:
    eog = tiny_model.vocab.eog_tokens[0]
    batch, indices = prompt_batch()
    rows = [Row(Chain(LogitBias(tiny_model.n_vocab, {eog: np.inf}), Greedy())), *drawing(tiny_model)[1:]]
    found = decode_rows(context, batch, rows, indices)
    assert found[0] is None and None not in found[1:]
    assert [row.finish_reason for row in rows] == ["stop", None, None, None] and rows[0].tokens == []


def test_no_room_for_decode_rows(make_context: Callable[..., Context], tiny_model: Model) -> None:
    context = make_context(n_ctx=256, n_seq_max=5, kv_unified=True)
    rows, batch_and_indices = drawing(tiny_model), prompt_batch()
    tokens = decode_rows(context, batch_and_indices[0], rows, batch_and_indices[1])
    n = 256 - 10 - 3
    context.decode(Batch.from_arrays(np.full(n, 5), pos=np.arange(n), seq_ids=4, outputs="none"))
    batch = next_batch(tokens, [len(ids) for ids in PROMPTS])  # type: ignore[arg-type]
    before = [row.tokens for row in rows]
    for _ in range(2):
        with pytest.raises(errors.NoKVSlotError):
            decode_rows(context, batch, rows, [0, 1, 2, 3])
        assert [row.tokens for row in rows] == before and all(row.error is None for row in rows)
        assert context.n_outputs == 0
        with pytest.raises(errors.NoOutputError):
            sample_rows(context, rows, [0, 1, 2, 3])
    context.memory.rm(4)
    found = decode_rows(context, batch, rows, [0, 1, 2, 3])
    other, again = make_context(n_ctx=256, n_seq_max=5, kv_unified=True), drawing(tiny_model)
    assert decode_rows(other, batch_and_indices[0], again, batch_and_indices[1]) == tokens
    assert decode_rows(other, batch, again, [0, 1, 2, 3]) == found


def test_an_abort_of_decode_rows(context: Context, tiny_model: Model) -> None:
    rows, (batch, indices) = drawing(tiny_model), prompt_batch()
    context.abort()
    with pytest.raises(errors.DecodeAborted):
        decode_rows(context, batch, rows, indices)
    assert [row.n_generated for row in rows] == [0] * 4
    assert None not in decode_rows(context, batch, rows, indices)


def test_ctrl_c_in_decode_rows(context: Context, tiny_model: Model) -> None:
    def interrupt(candidates: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    rows, (batch, indices) = drawing(tiny_model), prompt_batch()
    eog = tiny_model.vocab.eog_tokens[0]
    rows[0] = Row(Chain(LogitBias(tiny_model.n_vocab, {eog: np.inf}), Greedy()))
    rows[2] = Row(Chain(PythonSampler(interrupt), Greedy()))
    with pytest.raises(KeyboardInterrupt):
        decode_rows(context, batch, rows, indices)
    assert [row.n_generated for row in rows] == [0, 1, 0, 0] and rows[2].error is None
    assert [row.finish_reason for row in rows] == ["stop", None, None, None]
    # It was computed: those that have no token can choose one, and everything can be used again.
    assert None not in sample_rows(context, [rows[3]], indices[3:])


@pytest.mark.parametrize("change", ["clear", "append"])
def test_a_list_of_rows_that_changes_meanwhile(context: Context, tiny_model: Model, change: str) -> None:
    def meddle(candidates: Any) -> None:
        if change == "clear":
            rows.clear()
        else:
            rows.extend(drawing(tiny_model) * 1000)

    rows, (batch, indices) = [Row(Chain(PythonSampler(meddle), Greedy())), *drawing(tiny_model)[1:]], prompt_batch()
    assert len(decode_rows(context, batch, rows, indices)) == 4
    rows[:] = [Row(Chain(PythonSampler(meddle), Greedy())), *drawing(tiny_model)[1:]]
    assert len(sample_rows(context, rows, indices)) == 4


def test_samplers_do_not_use_what_uses_them_in_decode_rows(context: Context, tiny_model: Model) -> None:
    def misuse(candidates: Any) -> None:
        decode_rows(context, batch, rows[:1], indices[:1])

    rows, (batch, indices) = drawing(tiny_model), prompt_batch()
    rows[1] = Row(Chain(PythonSampler(misuse), Greedy()))
    found = decode_rows(context, batch, rows, indices)
    assert [token is None for token in found] == [False, True, False, False]
    assert isinstance(rows[1].error, errors.ReentrantError)

"""Rows of one decode, each with a text of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyllm import Batch, Chain, Context, Generation, Model, errors
from pyllm.core.python_sampler import PythonSampler
from pyllm.core.rows import Row, sample_rows
from pyllm.core.samplers import Dist, Greedy, LogitBias, Temp

PROMPTS = ([5, 6, 7], [9], [3, 3, 8, 20], [40, 41])


def started(context: Context) -> list[int]:
    """Decode all prompts at once; the index in the batch of the last token of each."""
    tokens = np.concatenate(PROMPTS)
    lengths = [len(ids) for ids in PROMPTS]
    ends = np.cumsum(lengths) - 1
    outputs = np.zeros(len(tokens), bool)
    outputs[ends] = True
    pos = np.concatenate([np.arange(n) for n in lengths])
    seq_ids = np.repeat(np.arange(len(PROMPTS)), lengths)
    context.decode(Batch.from_arrays(tokens, pos=pos, seq_ids=seq_ids, outputs=outputs))
    return [int(end) for end in ends]


def go_on(context: Context, tokens: list[int], past: list[int]) -> None:
    context.decode(Batch.from_arrays(tokens, pos=past, seq_ids=np.arange(len(tokens)), outputs="all"))


@pytest.fixture
def context(make_context: Callable[..., Context]) -> Context:
    return make_context(n_ctx=256, n_seq_max=4, kv_unified=True)


def no_end(model: Model) -> LogitBias:
    return LogitBias(model.n_vocab, dict.fromkeys(model.vocab.eog_tokens.tolist(), -np.inf))


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
            assert row.tokens == generation.tokens.tolist()
            assert row.stream.take(all=True) == generation.stream.take(all=True)
        assert (row.n_generated, row.finish_reason, row.error) == (12, None, None)


def test_what_one_sampler_raises_concerns_no_other(context: Context) -> None:
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
    eog = int(tiny_model.vocab.eog_tokens[0])
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

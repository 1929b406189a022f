"""Which rows a decode puts out: those that the batch asks for, also where llama.cpp computes them for every token."""

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.batch_ext import BatchExt
from pyllm.core.capture import Capture
from pyllm.core.generation import Generation
from pyllm.core.rows import Row, decode_rows, sample_rows
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Dist, Greedy, TopK

# Without rounding in the cache, what other batches compute differs in the last digits only.
EXACT = {"type_k": "f32", "type_v": "f32"}
N = 34
MASKS = {
    "last": np.arange(N) == N - 1,
    "first": np.arange(N) == 0,
    "run": (np.arange(N) >= 5) & (np.arange(N) < 12),
    "scattered": np.random.default_rng(3).random(N) < 0.4,
    "all but one": np.arange(N) != 3,
    "all": np.ones(N, bool),
}


def tokens_of(n_seq: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of several sequences in a mixed order: tokens, positions, sequence ids."""
    order = np.random.default_rng(0).permutation(np.arange(N) % n_seq)
    pos = np.zeros(N, np.int32)
    for seq in range(n_seq):
        pos[order == seq] = np.arange((order == seq).sum())
    return (np.arange(N) * 7 + 3) % 100, pos, order


def make(make_context, model, *, n_seq=1, **arguments):
    return make_context(model, n_seq_max=n_seq, n_ctx=512, embeddings=True, pooling_type="none", **EXACT, **arguments)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("n_ubatch", [1, 7, 512])
@pytest.mark.parametrize("n_seq", [1, 3])
def test_with_embeddings_the_batch_decides_too(load, make_context, mask, n_ubatch, n_seq):
    model, wanted = load("llama"), MASKS[mask]
    tokens, pos, seqs = tokens_of(n_seq)
    every = make(make_context, model, n_seq=n_seq, n_ubatch=n_ubatch)
    every.decode(Batch.from_arrays(tokens, pos=pos, seq_ids=seqs, outputs="all"))
    context = make(make_context, model, n_seq=n_seq, n_ubatch=n_ubatch)
    context.decode(Batch.from_arrays(tokens, pos=pos, seq_ids=seqs, outputs=wanted))
    assert context.n_outputs == wanted.sum()
    for kind in ("logits", "embeddings"):
        rows = getattr(context, kind)
        assert len(rows) == wanted.sum()
        assert np.array_equal(rows, getattr(every, kind)[wanted])
        for row, i in enumerate(np.flatnonzero(wanted)):
            ith = getattr(context, f"{kind}_ith")
            assert ith(int(i)).ctypes.data == rows[row].ctypes.data == ith(row - len(rows)).ctypes.data
        for i in np.flatnonzero(~wanted):
            with pytest.raises(errors.NoOutputError):
                getattr(context, f"{kind}_ith")(int(i))
        with pytest.raises(errors.NoOutputError):
            getattr(context, f"{kind}_ith")(-len(rows) - 1)
    for row, i in enumerate(np.flatnonzero(wanted)):
        expected = int(every.logits[i].argmax())
        assert Greedy().sample(context, index=int(i)) == Greedy().sample(context, row=row) == expected
    assert Greedy().sample(context) == int(every.logits[np.flatnonzero(wanted)[-1]].argmax())
    # The next decode is not disturbed.
    for each in (every, context):
        each.decode(Batch.from_arrays([5], pos=[pos[seqs == 0].max() + 1]))
    assert np.array_equal(context.logits, every.logits)


@pytest.mark.parametrize("outputs", ["none", "last"])
def test_outputs_by_word(make_context, load, outputs):
    context = make(make_context, load("llama"))
    context.decode(Batch.from_arrays(np.arange(8), outputs=outputs))
    assert context.n_outputs == (outputs == "last")
    if outputs == "none":
        with pytest.raises(errors.NoOutputError):
            context.embeddings  # noqa: B018
        with pytest.raises(errors.NoOutputError):
            Greedy().sample(context)


def test_encoders_obey_the_batch(load, make_context):
    wanted = np.array([True, False, False, True, False])
    every, context = (make_context(load("bert"), embeddings=True, pooling_type="none") for _ in range(2))
    every.encode(Batch.from_arrays([1, 5, 6, 7, 8], outputs="all"))
    context.encode(Batch.from_arrays([1, 5, 6, 7, 8], outputs=wanted))
    assert np.array_equal(context.embeddings, every.embeddings[wanted])
    assert np.array_equal(context.embeddings_ith(3), every.embeddings[3])
    context.decode(Batch.from_arrays([1, 5, 6, 7, 8], outputs=wanted))
    assert np.array_equal(context.embeddings, every.embeddings[wanted])


def test_pooled_embeddings_see_every_token(load, make_context):
    last, every = (make_context(load("bert"), embeddings=True, pooling_type="mean") for _ in range(2))
    last.encode(Batch.from_arrays([1, 5, 6, 7]))
    every.encode(Batch.from_arrays([1, 5, 6, 7], outputs="all"))
    assert np.array_equal(last.embeddings_seq(), every.embeddings_seq())


def test_other_ways_to_compute(load, make_context):
    """A BatchExt, a capture, rows with samplers and a generation go through the same place."""
    model, wanted = load("llama"), MASKS["scattered"]
    tokens = tokens_of(1)[0]
    every = make(make_context, model)
    every.decode(Batch.from_arrays(tokens, outputs="all"))
    context = make(make_context, model)
    batch = BatchExt(context).add(tokens[:20], outputs=wanted[:20]).add(tokens[20:], outputs=wanted[20:])
    context.process(batch)
    assert np.array_equal(context.embeddings, every.embeddings[wanted])
    context.memory.clear()
    context.process(batch.clear().add(tokens))
    assert np.array_equal(context.logits, every.logits[-1:])

    context = make(make_context, model, capture=True)
    Capture(context).decode(Batch.from_arrays(tokens, outputs=wanted))
    assert np.array_equal(context.embeddings, every.embeddings[wanted])

    context = make(make_context, model)
    rows = [Row(Chain(Greedy())) for _ in range(wanted.sum())]
    indices = [int(i) for i in np.flatnonzero(wanted)]
    expected = [int(every.logits[i].argmax()) for i in indices]
    chosen = decode_rows(context, Batch.from_arrays(tokens, outputs=wanted), rows, indices)
    assert chosen == [None if model.vocab.is_eog(token) else token for token in expected]
    assert sample_rows(context, [Row(Chain(Greedy()))], [indices[0]])[0] == chosen[0]
    with pytest.raises(errors.NoOutputError):
        sample_rows(context, [Row(Chain(Greedy()))], [int(np.flatnonzero(~wanted)[0])])

    plain = make_context(model, **EXACT)
    with_embeddings = make(make_context, model)
    texts = []
    for each in (plain, with_embeddings):
        generation = Generation(each, Chain(Greedy()))
        generation.prefill(tokens)
        generation.run(8)
        texts.append(list(generation.tokens))
    assert texts[0] == texts[1]


def test_samplers_in_the_graph(load, make_context):
    model, wanted = load("llama"), MASKS["scattered"]
    tokens = tokens_of(1)[0]
    chosen = []
    for mask in (MASKS["all"], wanted):
        context = make(make_context, model, samplers={0: Chain(TopK(3), Dist(seed=1))}, n_outputs_max_per_seq=64)
        context.decode(Batch.from_arrays(tokens, outputs=mask))
        sampled, indices = context.sampled, [int(i) for i in np.flatnonzero(wanted)]
        chosen.append([(sampled.token(index=i), sampled.candidates(index=i).tolist()) for i in indices])
        if mask is wanted:
            by_row = [(sampled.token(row=r), sampled.candidates(row=r).tolist()) for r in range(len(indices))]
            assert by_row == chosen[1]
            with pytest.raises(errors.NoOutputError):
                sampled.token(index=int(np.flatnonzero(~wanted)[0]))
    assert [candidates for _, candidates in chosen[0]] == [candidates for _, candidates in chosen[1]]


# One number, two meanings


def test_a_number_with_two_meanings_is_an_error(make_context, ids):
    context = make_context()
    wanted = np.zeros(len(ids), bool)
    wanted[[1, 2, 5]] = True
    context.decode(Batch.from_arrays(ids, outputs=wanted))
    best = [int(row.argmax()) for row in context.logits]
    greedy = Greedy()
    # 0 is no output, and a row; 1 and 2 are both, and not the same.
    with pytest.raises(errors.NoOutputError, match="row=0"):
        greedy.sample(context, 0)
    for i in (1, 2):
        with pytest.raises(errors.InvalidArgumentError, match=rf"index={i} or row={i}"):
            greedy.sample(context, i)
    assert greedy.sample(context, 5) == best[2]  # there is no row 5
    assert [greedy.sample(context, i) for i in (-3, -2, -1)] == best
    assert [greedy.sample(context, row=r) for r in (0, 1, 2, -3, -2, -1)] == best * 2
    assert [greedy.sample(context, index=i) for i in (1, 2, 5)] == best
    for arguments in ({"index": 1, "row": 0}, {"i": 5, "row": 0}, {"i": 0, "index": 1}):
        with pytest.raises(errors.InvalidArgumentError, match="several"):
            greedy.sample(context, **arguments)
    for row in (3, -4, 2**31 - 1):
        with pytest.raises(errors.NoOutputError, match=f"no row {row}"):
            greedy.sample(context, row=row)
    with pytest.raises(errors.NoOutputError):
        greedy.sample(context, index=3)


def test_where_both_meanings_are_the_same_nothing_is_asked(make_context, ids):
    context = make_context()
    context.decode(Batch.from_arrays(ids, outputs="all"))
    for i in range(len(ids)):
        assert Greedy().sample(context, i) == int(context.logits[i].argmax())


def test_sampled_knows_both_meanings_too(make_context, ids):
    context = make_context(samplers={0: Chain(Greedy())}, n_outputs_max_per_seq=16)
    wanted = np.zeros(len(ids), bool)
    wanted[[1, 2]] = True
    context.decode(Batch.from_arrays(ids, outputs=wanted))
    sampled = context.sampled
    for read in (sampled.token, sampled.probs, sampled.logits, sampled.candidates, sampled.sample):
        with pytest.raises(errors.InvalidArgumentError, match="index=1 or row=1"):
            read(1)
    assert sampled.token(index=1) == sampled.token(row=0) == sampled.token(-2)
    assert sampled.sample(row=1) == sampled.token(index=2) == sampled.token()

"""Extended batches: the same numbers as a Batch gives, and what is refused."""

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.batch_ext import BatchExt


def test_the_same_logits_as_a_batch(make_context, ids):
    one, other = make_context(), make_context()
    one.decode(Batch.from_arrays(ids, outputs="all"))
    batch = BatchExt(other).add(ids, outputs="all")
    assert (len(batch), batch.n_tokens, batch.n_outputs) == (len(ids),) * 3
    other.process(batch)
    assert np.array_equal(one.logits, other.logits)
    assert np.array_equal(one.logits_ith(3), other.logits_ith(3))


def test_several_calls_of_add_and_several_sequences(make_context, ids):
    one, other = make_context(n_seq_max=3, kv_unified=True), make_context(n_seq_max=3, kv_unified=True)
    seq_ids = np.array([[0, -1], [0, 2], [0, -1], [2, 1]])
    one.decode(Batch.from_arrays(ids[:4], pos=[0, 1, 2, 2], seq_ids=seq_ids, outputs=[0, 1, 0, 1]))
    batch = BatchExt(other)
    batch.add(ids[:2], pos=[0, 1], seq_ids=seq_ids[:2], outputs=[0, 1])
    batch.add(ids[2:4], pos=[2, 2], seq_ids=seq_ids[2:], outputs=[0, 1])
    assert (batch.n_tokens, batch.n_outputs) == (4, 2)
    other.process(batch)
    assert other.logits.shape == (2, other.n_vocab)
    assert np.array_equal(one.logits, other.logits)


def test_positions_go_on_where_the_batch_and_the_memory_end(make_context, ids):
    context = make_context(n_seq_max=2)
    context.decode(Batch.from_arrays(ids[:5]))
    batch = BatchExt(context).add(ids[5:7]).add(ids[7:9]).add(ids[:3], seq_ids=1)
    context.process(batch)
    assert context.memory.pos_max(0) == 8
    assert context.memory.pos_max(1) == 2
    context.process(batch.clear().add(ids[9:10]))
    assert context.memory.pos_max(0) == 9


def test_embeddings_instead_of_tokens(make_context):
    one, other = make_context(), make_context()
    rows = np.random.default_rng(1).normal(size=(6, one.model.n_embd_inp)).astype(np.float32)
    one.decode(Batch.from_arrays(embeddings=rows, pos=np.arange(6), outputs="all"))
    other.process(BatchExt(other).add(embeddings=rows, outputs="all"))
    assert np.array_equal(one.logits, other.logits)


def test_views_hold_the_output_buffer(make_context, ids):
    context = make_context()
    context.process(BatchExt(context).add(ids[:4], outputs="all"))
    logits = context.logits
    view = np.asarray(logits)
    kept = view.copy()
    context.process(BatchExt(context).add(ids[4:12], outputs="all"))
    assert np.array_equal(view, kept) and len(context.logits) == 8
    with pytest.raises(errors.StaleLogitsError):
        logits[0]


def test_encoders(load, make_context):
    model = load("bert")
    one, other = (make_context(model, embeddings=True, pooling_type="none") for _ in range(2))
    ids = [1, 5, 6, 7]
    one.encode(Batch.from_arrays(ids))
    other.process(BatchExt(other).add(ids), encode=True)
    assert np.array_equal(one.embeddings, other.embeddings)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"tokens": [10**6]}, "vocabulary"),
        ({"tokens": [-1]}, "vocabulary"),
        ({"tokens": [1], "seq_ids": [7]}, "n_seq_max=1"),
        ({"tokens": [1], "pos": [-1]}, "positions start at 0"),
        ({"tokens": [1, 2], "pos": [1]}, "shape"),
        ({"tokens": [1], "embeddings": np.zeros((2, 3), np.float32)}, "do not go with"),
        ({}, "either"),
        ({"tokens": []}, "at least 1"),
        ({"tokens": np.ones(300, int)}, "n_batch"),
        ({"tokens": [1], "outputs": "some"}, "outputs"),
    ],
)
def test_what_does_not_fit_adds_nothing(context, arguments, match):
    batch = BatchExt(context).add([1])
    with pytest.raises(errors.InvalidBatchError, match=match):
        batch.add(**arguments)
    assert batch.n_tokens == 1
    context.process(batch)
    assert context.memory.pos_max(0) == 0


def test_contents_do_not_mix(context):
    batch = BatchExt(context).add([1])
    with pytest.raises(errors.InvalidBatchError, match=r"embeddings.*tokens"):
        batch.add(embeddings=np.zeros((1, context.model.n_embd_inp), np.float32))


def test_embeddings_of_another_width(context):
    with pytest.raises(errors.InvalidBatchError, match="3"):
        BatchExt(context).add(embeddings=np.zeros((2, 3), np.float32))
    with pytest.raises(errors.InvalidBatchError, match="do not go with"):
        BatchExt(context).add([1, 2], embeddings=np.zeros((2, 3), np.float32))


def test_empty_foreign_and_closed(make_context):
    context, other = make_context(), make_context()
    batch = BatchExt(context)
    with pytest.raises(errors.InvalidBatchError, match="empty"):
        context.process(batch)
    batch.add([1])
    with pytest.raises(errors.InvalidBatchError, match="another context"):
        other.process(batch)
    with pytest.raises(errors.ContextError, match="no encoder"):
        context.process(batch, encode=True)
    context.close()
    with pytest.raises(errors.ClosedError):
        batch.add([1])
    with pytest.raises(errors.ClosedError):
        context.process(batch)
    del context, other, batch


def test_a_full_cache_is_an_error_of_its_own(make_context):
    context = make_context(n_ctx=256, n_batch=256)
    context.process(BatchExt(context).add(np.ones(250, int)))
    with pytest.raises(errors.NoKVSlotError):
        context.process(BatchExt(context).add(np.ones(20, int)))

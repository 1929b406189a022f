"""Pooled embeddings of models that generate text: right, or refused where llama.cpp would pool a part of a sequence."""

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch

EXACT = {"type_k": "f32", "type_v": "f32", "n_ctx": 512, "embeddings": True}
A = np.random.default_rng(0).integers(5, 250, 30).astype(np.int32)
B = np.random.default_rng(1).integers(5, 250, 12).astype(np.int32)
KINDS = ["llama", "gemma3", "mamba", "jamba"]
POOLINGS = ["mean", "cls", "last"]


def several(*texts, seq_ids=None):
    """A batch of texts, one after the other."""
    lengths = [len(text) for text in texts]
    return Batch.from_arrays(
        np.concatenate(texts),
        pos=np.concatenate([np.arange(n) for n in lengths]),
        seq_ids=np.repeat(range(len(texts)) if seq_ids is None else seq_ids, lengths),
        outputs="all",
    )


def pooled(rows, pooling):
    return {"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[-1]}[pooling]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=POOLINGS)
def pooling(request):
    return request.param


@pytest.fixture
def make(load, make_context, kind, pooling):
    return lambda **sizes: make_context(load(kind), pooling_type=pooling, **(EXACT | sizes))


@pytest.fixture
def want(load, make_context, kind, pooling):
    def want(ids):
        context = make_context(load(kind), pooling_type="none", **EXACT)
        context.decode(Batch.from_arrays(ids, outputs="all"))
        return pooled(np.asarray(context.embeddings).copy(), pooling)

    return want


def right_or_refused(context, batches, expected, refused):
    """Decode batches; `refused` says whether that must be an error, and else the vectors by sequence are right."""
    if refused:
        with pytest.raises(errors.InvalidBatchError, match="pooling_type='none'"):
            for batch in batches:
                context.decode(batch)
        return
    for batch in batches:
        context.decode(batch)
    for seq_id, vector in expected.items():
        np.testing.assert_allclose(context.embeddings_seq(seq_id), vector, atol=5e-3)


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("seq_ids", [(0, 1), (0, 2), (1, 0)])
def test_several_sequences(make, want, kind, pooling, unified, seq_ids):
    """Without kv_unified llama.cpp takes as many tokens of each sequence with consecutive ids."""
    context = make(n_seq_max=4, kv_unified=unified)
    divided = kind in ("llama", "gemma3") and not unified and seq_ids == (0, 1) and pooling != "last"
    expected = {seq_ids[0]: want(A), seq_ids[1]: want(B)}
    right_or_refused(context, [several(A, B, seq_ids=seq_ids)], expected, divided)


@pytest.mark.parametrize("unified", [True, False])
def test_sequences_of_one_length(make, want, unified):
    context = make(n_seq_max=4, kv_unified=unified)
    right_or_refused(context, [several(A[:12], B)], {0: want(A[:12]), 1: want(B)}, False)


def test_a_text_longer_than_a_micro_batch(make, want, pooling):
    right_or_refused(make(n_ubatch=16), [several(A)], {0: want(A)}, pooling != "last")
    right_or_refused(make(n_ubatch=32), [several(A)], {0: want(A)}, False)


def test_a_text_in_two_decodes(make, want, pooling):
    parts = [Batch.from_arrays(A[:20], outputs="all"), Batch.from_arrays(A[20:], pos=np.arange(20, 30), outputs="all")]
    right_or_refused(make(), parts, {0: want(A)}, pooling != "last")
    context = make()
    right_or_refused(context, [several(B)], {0: want(B)}, False)
    context.memory.clear()
    right_or_refused(context, [several(A)], {0: want(A)}, False)


@pytest.mark.parametrize("sizes", [{}, {"kv_unified": True}, {"n_ubatch": 100}, {"n_batch": 64}])
def test_sizes_that_llama_cpp_asserts_about(load, make_context, sizes):
    words = r"multiple of n_seq_max=3.*give n_ubatch=(510|99|63) "
    with pytest.raises(errors.InvalidArgumentError, match=words) as caught:
        make_context(load("llama"), pooling_type="mean", n_seq_max=3, **(EXACT | sizes))
    n_ubatch = int(str(caught.value).partition("give n_ubatch=")[2].split()[0])
    context = make_context(
        load("llama"), pooling_type="mean", n_seq_max=3, **(EXACT | sizes | {"n_ubatch": n_ubatch, "kv_unified": True})
    )
    context.decode(several(A, B))
    assert np.isfinite(context.embeddings_seq(1)).all()
    with pytest.raises(errors.InvalidArgumentError, match="n_outputs_max must be at least n_ubatch=96"):
        make_context(load("llama"), pooling_type="mean", n_seq_max=3, n_ubatch=96, n_outputs_max=8, **EXACT)

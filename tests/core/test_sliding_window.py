"""Sliding windows: the cache overwrites what no later token reads, and a text goes on only where that is right."""

import numpy as np
import pytest

from pyllm import Chain, Generation, errors, hub
from pyllm.core.batch import Batch
from pyllm.core.model import Model
from pyllm.core.samplers import Greedy
from pyllm.core.state import StateFlags

EXACT = {"type_k": "f32", "type_v": "f32"}
# The part of the cache with the window has 256 cells, and turns over after so many tokens.
SIZES = {"n_ctx": 1024, "n_batch": 32, "n_ubatch": 32, "swa_full": False} | EXACT
IDS = (np.arange(600) * 7 % 150 + 261).astype(np.int32)


def decode(context, ids, start=0, seq=0, step=32):
    for i in range(0, len(ids), step):
        part = ids[i : i + step]
        context.decode(Batch.from_arrays(part, pos=np.arange(start + i, start + i + len(part)), seq_ids=seq))


@pytest.fixture
def model(load):
    return load("gemma3")


@pytest.fixture
def turned(model, make_context):
    """A context whose cache has turned over."""
    context = make_context(model, **SIZES)
    decode(context, IDS)
    assert context.memory.pos_min(0) > 300
    return context


def fresh(make_context, model, ids, sizes=SIZES):
    """The logits after these tokens, computed from nothing."""
    context = make_context(model, **sizes)
    decode(context, ids)
    return context.logits[-1].copy()


def first_right(context):
    """The smallest position at which a token finds all of its window."""
    return context.memory.pos_min(0) + context.model.n_swa - 1


def test_rm_is_refused_where_the_window_is_gone(turned):
    before = turned.memory.pos_min(0), turned.memory.pos_max(0)
    for p0 in (1, 100, before[0], first_right(turned) - 1):
        assert turned.memory.rm(0, p0) is False
        assert turned.memory.rm(-1, p0) is False
        assert turned.memory.rm(0, p0, 550) is False, "a gap there is the same when the rest goes"
        assert (turned.memory.pos_min(0), turned.memory.pos_max(0)) == before, "nothing was changed"
    assert turned.memory.rm(0, 600) and turned.memory.rm(0, 50, 50) and turned.memory.rm(0, 700, 800)
    assert turned.memory.rm(0) and turned.memory.pos_max(0) == -1


@pytest.mark.parametrize("beyond", [0, 1, 50])
def test_rm_goes_back_as_far_as_it_is_right(turned, make_context, model, beyond):
    p0 = first_right(turned) + beyond
    assert turned.memory.rm(0, p0) is True
    decode(turned, [300, 301], p0)
    np.testing.assert_allclose(turned.logits[-1], fresh(make_context, model, [*IDS[:p0], 300, 301]), atol=2e-2)


def test_what_is_refused_would_have_been_wrong(make_context, model):
    """llama.cpp itself removes it: the numbers show that the refusal is needed."""
    one = make_context(model, **SIZES)
    decode(one, IDS)
    p0 = first_right(one) - 10
    # The base of the cache is cut and the window is not there, as after llama_memory_seq_rm.
    short = make_context(model, **SIZES)
    decode(short, IDS[:p0])
    saved = short.state.save(0, flags=StateFlags.PARTIAL_ONLY)
    assert one.memory.rm(0, p0) is False
    one.state.load(saved, 0, flags=StateFlags.PARTIAL_ONLY)
    assert one.memory.rm(0, p0) is True, "with the window that was saved it goes"
    decode(one, [300], p0)
    np.testing.assert_allclose(one.logits[-1], fresh(make_context, model, [*IDS[:p0], 300]), atol=2e-2)


def test_after_keep_and_in_other_sequences(model, make_context):
    context = make_context(model, **(SIZES | {"n_seq_max": 2}))
    for seq in (0, 1):
        decode(context, IDS[:450], seq=seq)
    context.memory.keep(1)
    assert context.memory.pos_max(0) == -1
    assert context.memory.rm(1, 100) is False and context.memory.rm(0, 100) is True


def test_a_restored_state_goes_back_no_further_than_its_window(model, make_context):
    context, other = make_context(model, **SIZES), make_context(model, **SIZES)
    decode(context, IDS[:100])
    other.state.load(context.state.save(0), 0)
    assert other.memory.pos_max(0) == 99
    assert other.memory.rm(0, 60) is False
    p0 = first_right(other)
    assert p0 > 60 and other.memory.rm(0, p0)
    decode(other, [300], p0)
    np.testing.assert_allclose(other.logits[-1], fresh(make_context, model, [*IDS[:p0], 300]), atol=2e-2)


@pytest.mark.parametrize("unified", [True, False])
def test_cp_of_a_part_needs_its_window(model, make_context, unified):
    context = make_context(model, **(SIZES | {"n_ctx": 2048, "n_seq_max": 2, "kv_unified": unified}))
    decode(context, IDS)
    p1 = first_right(context)
    with pytest.raises(errors.ContextError, match="window of 16 tokens"):
        context.memory.cp(0, 1, 0, p1 - 1)
    assert context.memory.pos_max(1) == -1
    context.memory.cp(0, 1, 0, p1)
    decode(context, [300], p1, seq=1)
    np.testing.assert_allclose(context.logits[-1], fresh(make_context, model, [*IDS[:p1], 300]), atol=2e-2)
    context.memory.rm(1)
    context.memory.cp(0, 1)  # all of it
    decode(context, [300], 600, seq=1)
    np.testing.assert_allclose(context.logits[-1], fresh(make_context, model, [*IDS, 300]), atol=2e-2)


def test_shifting_a_part_needs_its_window(model, make_context):
    # Both parts of the cache have 256 cells: positions can be shifted.
    context = make_context(model, **(SIZES | {"n_ctx": 256, "n_seq_max": 2, "kv_unified": True}))
    decode(context, IDS[:5], seq=1)
    decode(context, IDS[:200])
    context.memory.rm(1)
    decode(context, IDS[200:210], 200)  # into the free cells, and over the first ones of the window
    assert context.memory.can_shift and context.memory.pos_min(0) > 0
    with pytest.raises(errors.ContextError, match="overwritten"):
        context.memory.add(0, -5, 12)
    with pytest.raises(errors.ContextError, match="overwritten"):
        context.memory.div(0, 50)
    assert context.memory.pos_max(0) == 209
    context.memory.add(0, -1)  # all of it stays what it is to each other
    assert context.memory.pos_max(0) == 208


def test_a_text_whose_logits_are_gone_cannot_be_sampled_from_a_broken_window(model, make_context):
    """Another sequence has overwritten the token before the window, which is needed to compute the last one again."""
    context = make_context(model, **(SIZES | {"n_seq_max": 2, "kv_unified": True}))
    generation = Generation(context, Chain(Greedy()))
    generation.prefill(IDS[:200])
    n = context.model.n_swa
    for start in range(0, 400, 32):
        decode(context, IDS[start : start + 32], start, seq=1)
    if context.memory.pos_min(0) > 200 - n:
        with pytest.raises(errors.StaleLogitsError):
            generation.step()
    else:
        want = fresh(make_context, model, IDS[:200]).argmax()
        assert generation.step() == want


@pytest.mark.slow
def test_gemma():
    """The real model: 1,300 tokens in parts of 512, and back to 400."""
    sizes = {"n_ctx": 2048, "n_batch": 512, "n_ubatch": 512, "swa_full": False, "n_threads": 2} | EXACT
    with Model(hub.pull("gemma3-270m")) as model:
        from pyllm import Context

        text = " ".join(f"The number {i} comes after {i - 1}, and before {i + 1}." for i in range(200))
        ids = model.vocab.tokenize(text)[:1300]
        assert len(ids) == 1300 and model.n_swa == 512
        # With all cells the same tokens were computed in the same parts, and going back is right.
        with Context(model, **sizes) as context, Context(model, **(sizes | {"swa_full": True})) as other:
            for each in (context, other):
                decode(each, ids, step=512)
            assert context.memory.pos_min(0) > 0
            assert context.memory.rm(0, 400) is False
            p0 = first_right(context)
            assert p0 < 1300 and context.memory.rm(0, p0 - 1) is False and context.memory.rm(0, p0) is True
            assert other.memory.pos_min(0) == 0 and other.memory.rm(0, p0) is True
            for each in (context, other):
                decode(each, ids[p0 : p0 + 1], p0)
            found, want = context.logits.copy()[-1], other.logits.copy()[-1]
    # The order of the cells alone moves the logits of these 4-bit weights by 1; a window that is gone, by 3.
    assert np.abs(found - want).max() < 2

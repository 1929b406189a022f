"""What can be done to the sequences of a KV cache, and that it means what it says: results equal recomputation."""

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.memory import Memory

EXACT = {"type_k": "f32", "type_v": "f32"}


def positions(context: Context) -> list[tuple[int, int]]:
    memory = context.memory
    return [(memory.pos_min(seq), memory.pos_max(seq)) for seq in range(context.n_seq_max)]


def next_logits(context: Context, token: int, pos: int, seq: int = 0) -> np.ndarray:
    context.decode(Batch.from_arrays([token], pos=[pos], seq_ids=seq))
    return context.logits[0].copy()


def recomputed(make_context, model, tokens, pos, token: int, at: int) -> np.ndarray:
    """The logits of `token` after a sequence of these tokens at these positions, computed from nothing."""
    context = make_context(model, **EXACT)
    context.decode(Batch.from_arrays(tokens, pos=pos))
    return next_logits(context, token, at)


@pytest.fixture(params=["llama", "qwen3moe"])
def model(request, load):
    """Models whose memory can do everything."""
    return load(request.param)


@pytest.fixture(params=[False, True], ids=["streams", "unified"])
def unified(request) -> bool:
    return request.param


# Positions


def test_positions_and_clear(make_context, ids):
    context = make_context(n_seq_max=3)
    assert positions(context) == [(-1, -1)] * 3
    context.decode(Batch.from_arrays(ids[:10]))
    context.decode(Batch.from_arrays(ids[:4], pos=range(7, 11), seq_ids=2))
    assert positions(context) == [(0, 9), (-1, -1), (7, 10)]
    context.memory.clear()
    assert positions(context) == [(-1, -1)] * 3
    context.decode(Batch.from_arrays(ids[:2]))
    context.memory.clear(data=False)
    assert positions(context) == [(-1, -1)] * 3


def test_nothing_of_what_was_cleared_is_seen(make_context, ids):
    fresh, used = make_context(), make_context()
    used.decode(Batch.from_arrays(ids))
    used.memory.clear(data=False)
    for context in (fresh, used):
        context.decode(Batch.from_arrays(ids[:5]))
    assert np.array_equal(fresh.logits.copy(), used.logits.copy())


# rm


def test_rm_of_the_end_is_going_back(model, make_context, ids):
    context = make_context(model, **EXACT)
    context.decode(Batch.from_arrays(ids[:20]))
    assert context.memory.rm(0, 12) is True
    assert context.memory.pos_max(0) == 11
    found = next_logits(context, 300, 12)
    np.testing.assert_allclose(found, recomputed(make_context, model, ids[:12], None, 300, 12), atol=1e-2)


def test_rm_from_the_middle_leaves_a_gap(model, make_context, ids):
    context = make_context(model, **EXACT)
    context.decode(Batch.from_arrays(ids[:20]))
    whole = next_logits(context, 300, 20)
    assert context.memory.rm(0, 20) and context.memory.rm(0, 5, 10)
    assert positions(context) == [(0, 19)]
    gap = next_logits(context, 300, 20)
    assert not np.allclose(gap, whole, atol=0.1)


def test_rm_of_everything(make_context, ids, unified):
    context = make_context(n_seq_max=3, kv_unified=unified)
    for seq in range(3):
        context.decode(Batch.from_arrays(ids[:5], seq_ids=seq))
    assert context.memory.rm(1) is True
    assert positions(context) == [(0, 4), (-1, -1), (0, 4)]
    assert context.memory.rm(-1, 3) is True
    assert positions(context) == [(0, 2), (-1, -1), (0, 2)]
    assert context.memory.rm(-1) is True
    assert positions(context) == [(-1, -1)] * 3


def test_rm_makes_room(make_context):
    context = make_context(n_ctx=256, n_batch=256)
    context.decode(Batch.from_arrays(np.arange(256)))
    with pytest.raises(errors.NoKVSlotError):
        context.decode(Batch.from_arrays([1]))
    context.memory.rm(0, 250)
    context.decode(Batch.from_arrays([1, 2]))
    assert context.memory.pos_max(0) == 251


def test_a_part_of_a_recurrent_state_cannot_be_removed(load, make_context, ids):
    for arch in ("mamba", "jamba"):
        context = make_context(load(arch))
        context.decode(Batch.from_arrays(ids[:10]))
        assert context.memory.rm(0, 5) is False
        assert context.memory.pos_max(0) == 9, "nothing was changed"
        assert context.memory.rm(0) is True
        assert context.memory.pos_max(0) == -1


# cp and keep


@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "gemma3", "mamba", "jamba"])
def test_cp_shares_a_prompt(load, make_context, ids, unified, arch):
    """Two sequences with one prompt go on as if each had decoded it."""
    model = load(arch)
    context = make_context(model, n_seq_max=3, kv_unified=unified, **EXACT)
    context.decode(Batch.from_arrays(ids[:10]))
    context.memory.cp(0, 2)
    assert positions(context)[2] == positions(context)[0] and positions(context)[1] == (-1, -1)
    for seq, token in ((0, 300), (2, 310), (0, 320), (2, 330)):
        pos = context.memory.pos_max(seq) + 1
        found = next_logits(context, token, pos, seq)
        history = {0: [300, 320], 2: [310, 330]}[seq][: pos - 10]
        alone = make_context(model, **EXACT)
        alone.decode(Batch.from_arrays([*ids[:10], *history]))
        np.testing.assert_allclose(found, next_logits(alone, token, pos), atol=1e-2)


def test_cp_replaces_what_is_there(model, make_context, ids, unified):
    """The target goes on as if it had decoded the tokens of the source, whatever it held."""
    context = make_context(model, n_seq_max=3, kv_unified=unified, **EXACT)
    context.decode(Batch.from_arrays(ids[:10]))
    context.decode(Batch.from_arrays(ids[12:30], seq_ids=1))
    context.memory.cp(0, 1)
    assert positions(context) == [(0, 9), (0, 9), (-1, -1)]
    found = next_logits(context, 300, 10, 1)
    np.testing.assert_allclose(found, recomputed(make_context, model, ids[:10], None, 300, 10), atol=1e-2)
    context.memory.cp(2, 1)
    assert positions(context) == [(0, 9), (-1, -1), (-1, -1)], "a sequence without tokens replaces all"


def test_cp_of_a_range_replaces_the_range(model, make_context, ids, unified):
    context = make_context(model, n_seq_max=2, kv_unified=unified, **EXACT)
    context.decode(Batch.from_arrays(ids[:10]))
    context.decode(Batch.from_arrays(ids[12:18], seq_ids=1))
    context.memory.cp(0, 1, 0, 8)
    assert positions(context) == [(0, 9), (0, 7)]
    found = next_logits(context, 300, 8, 1)
    np.testing.assert_allclose(found, recomputed(make_context, model, ids[:8], None, 300, 8), atol=1e-2)


def test_cp_into_the_middle(model, make_context, ids):
    """What stands before and behind the range stays."""
    context = make_context(model, n_seq_max=2, kv_unified=True, **EXACT)
    context.decode(Batch.from_arrays(ids[:12]))
    context.decode(Batch.from_arrays(ids[:12], seq_ids=1))
    context.memory.cp(0, 1, 4, 8)  # each token once: the same text
    assert positions(context) == [(0, 11), (0, 11)]
    found = next_logits(context, 300, 12, 1)
    np.testing.assert_allclose(found, recomputed(make_context, model, ids[:12], None, 300, 12), atol=1e-2)


def test_cp_into_the_middle_of_a_cache_in_parts(make_context, ids):
    context = make_context(n_seq_max=2, kv_unified=False)
    for seq in (0, 1):
        context.decode(Batch.from_arrays(ids[:12], seq_ids=seq))
    for p0, p1 in ((4, 8), (4, -1), (0, 8)):
        with pytest.raises(errors.ContextError, match="kv_unified=True"):
            context.memory.cp(0, 1, p0, p1)
        assert positions(context) == [(0, 11), (0, 11)]
    context.memory.rm(1)
    context.memory.cp(0, 1, 4, 8)
    assert positions(context) == [(0, 11), (4, 7)]


def test_cp_onto_itself_changes_nothing(load, make_context, ids, unified):
    for arch in ("llama", "gemma3", "mamba", "jamba"):
        model = load(arch)
        context = make_context(model, n_seq_max=2, kv_unified=unified, **EXACT)
        context.decode(Batch.from_arrays(ids[:10]))
        before = positions(context)
        for p0, p1 in ((-1, -1), (2, 5), (5, 2)):
            context.memory.cp(0, 0, p0, p1)
            assert positions(context) == before
        found = next_logits(context, 300, 10)
        np.testing.assert_allclose(found, recomputed(make_context, model, ids[:10], None, 300, 10), atol=1e-2)


@pytest.mark.parametrize("arch", ["mamba", "jamba"])
def test_cp_of_recurrent_states_is_whole(load, make_context, ids, unified, arch):
    model = load(arch)
    context = make_context(model, n_seq_max=2, kv_unified=unified, **EXACT)
    context.decode(Batch.from_arrays(ids[:10]))
    context.decode(Batch.from_arrays(ids[12:30], seq_ids=1))
    for p0, p1 in ((0, 8), (2, -1), (2, 5), (0, 12)):
        with pytest.raises(errors.ContextError, match="recurrent"):
            context.memory.cp(0, 1, p0, p1)
    assert context.memory.pos_max(1) == 17, "nothing was changed"
    context.memory.cp(0, 1)
    assert context.memory.pos_max(1) == 9
    found = next_logits(context, 300, 10, 1)
    np.testing.assert_allclose(found, recomputed(make_context, model, ids[:10], None, 300, 10), atol=1e-2)


def test_rm_of_all_sequences_of_a_recurrent_model(load, make_context, ids):
    context = make_context(load("mamba"), n_seq_max=2)
    for seq in (0, 1):
        context.decode(Batch.from_arrays(ids[:10], seq_ids=seq))
    assert context.memory.rm(-1) is True
    assert positions(context) == [(-1, -1)] * 2


def test_what_the_next_decode_moves_cannot_be_saved_before(make_context, ids):
    """llama.cpp would write the old keys with the new positions, and the old data of the target."""
    context = make_context(n_seq_max=2, kv_unified=False)
    context.decode(Batch.from_arrays(ids[:10]))
    saved = context.state.save(0)
    for change in (
        lambda: context.memory.cp(0, 1),
        lambda: context.memory.add(0, 3),
        lambda: context.memory.div(0, 2),
    ):
        change()
        for attempt in (lambda: context.state.save(0), context.state.save, lambda: context.state.load(saved, 1)):
            with pytest.raises(errors.StateError, match="decode first"):
                attempt()
        context.memory.rm(0, context.memory.pos_max(0))
        context.decode(Batch.from_arrays([300]))
        assert context.state.save(0)
    context.memory.add(0, 3)
    context.memory.clear()
    assert context.state.save()


def test_cp_of_a_part_in_a_unified_cache(make_context, ids):
    context = make_context(n_seq_max=2, kv_unified=True)
    context.decode(Batch.from_arrays(ids[:10]))
    context.memory.cp(0, 1, 2, 5)
    assert positions(context) == [(0, 9), (2, 4)]
    context.memory.cp(0, 1)
    context.memory.rm(0)
    assert positions(context) == [(-1, -1), (0, 9)], "what is shared stays as long as one sequence has it"


def test_cp_in_a_unified_cache_takes_no_room(make_context):
    context = make_context(n_ctx=256, n_batch=256, n_seq_max=4, kv_unified=True)
    context.decode(Batch.from_arrays(np.arange(200)))
    for seq in (1, 2, 3):
        context.memory.cp(0, seq)
    context.decode(Batch.from_arrays(np.arange(50)))
    assert positions(context) == [(0, 249)] + [(0, 199)] * 3


def test_keep_removes_all_others(make_context, ids, unified):
    context = make_context(n_seq_max=3, kv_unified=unified)
    for seq in range(3):
        context.decode(Batch.from_arrays(ids[: 3 + seq], seq_ids=seq))
    context.memory.keep(1)
    assert positions(context) == [(-1, -1), (0, 3), (-1, -1)]


# add and div


def test_shifting_everything_changes_nothing_relative(model, make_context, ids):
    context = make_context(model, **EXACT)
    context.decode(Batch.from_arrays(ids[:12]))
    context.memory.add(0, 7)
    assert positions(context) == [(7, 18)]
    shifted = next_logits(context, 300, 19)
    expected = recomputed(make_context, model, ids[:12], None, 300, 12)
    np.testing.assert_allclose(shifted, expected, atol=2e-2)
    context.memory.rm(0, 19)
    context.memory.add(0, -7)
    assert positions(context) == [(0, 11)]
    np.testing.assert_allclose(next_logits(context, 300, 12), expected, atol=2e-2)


def test_the_window_slides(model, make_context, ids):
    """Drop tokens from the beginning and shift the others: as if only those had been decoded."""
    # One layer: deeper ones keep what they saw of the dropped tokens.
    context = make_context(model, **EXACT)
    context.decode(Batch.from_arrays(ids[:20]))
    context.memory.rm(0, 0, 8)
    context.memory.add(0, -8, 8, 20)
    assert positions(context) == [(0, 11)]
    assert np.isfinite(next_logits(context, 300, 12)).all()


def test_the_window_slides_exactly_with_one_layer(load, make_context, ids):
    model = load("llama", n_layer=1)
    context = make_context(model, **EXACT)
    context.decode(Batch.from_arrays(ids[:20]))
    context.memory.rm(0, 0, 8)
    context.memory.add(0, -8, 8, 20)
    expected = recomputed(make_context, model, ids[8:20], None, 300, 12)
    np.testing.assert_allclose(next_logits(context, 300, 12), expected, atol=1e-2)


def test_div_groups_positions(load, make_context, ids):
    """As self-extend uses it: positions 0..11 become 0, 0, 1, 1, …"""
    model = load("llama", n_layer=1)
    context = make_context(model, **EXACT)
    context.decode(Batch.from_arrays(ids[:12]))
    context.memory.div(0, 2)
    assert positions(context) == [(0, 5)]
    expected = recomputed(make_context, model, ids[:12], [i // 2 for i in range(12)], 300, 6)
    np.testing.assert_allclose(next_logits(context, 300, 6), expected, atol=1e-2)


def test_div_of_a_part(make_context, ids):
    context = make_context()
    context.decode(Batch.from_arrays(ids[:12]))
    context.memory.div(0, 4, 8, 12)
    assert positions(context) == [(0, 7)]  # 8 to 11 are at 2 now
    context.memory.rm(0, 0, 2)
    context.memory.rm(0, 3, 8)
    assert positions(context) == [(2, 2)]


def test_shifting_a_part(make_context, ids):
    context = make_context()
    context.decode(Batch.from_arrays(ids[:12]))
    context.memory.add(0, 100, 6, 12)
    assert positions(context) == [(0, 111)]
    context.memory.rm(0, 0, 6)
    assert positions(context) == [(106, 111)]


def test_can_shift(load, make_context):
    assert {arch: make_context(load(arch)).memory.can_shift for arch in ("llama", "gemma3", "mamba")} == {
        "llama": True,
        "gemma3": True,
        "mamba": True,
    }


@pytest.mark.parametrize("divisor", [1, 0, -1, -(2**31)])
def test_divisors_out_of_range(decoded, divisor):
    with pytest.raises(errors.InvalidArgumentError, match="divisor"):
        decoded.memory.div(0, divisor)


@pytest.mark.parametrize("delta", [2**31 - 1, 2**31 - 30])
def test_positions_that_would_overflow(decoded, delta):
    before = positions(decoded)
    with pytest.raises(errors.InvalidArgumentError, match=str(delta)):
        decoded.memory.add(0, delta)
    assert positions(decoded) == before


# Sequence ids


@pytest.mark.parametrize("seq", [-1, 2, 100, 2**31 - 1, -(2**31)])
def test_sequence_ids_out_of_range(make_context, ids, seq):
    context = make_context(n_seq_max=2)
    context.decode(Batch.from_arrays(ids))
    memory = context.memory
    calls = [
        lambda: memory.cp(seq, 0),
        lambda: memory.cp(0, seq),
        lambda: memory.keep(seq),
        lambda: memory.add(seq, 1),
        lambda: memory.div(seq, 2),
        lambda: memory.pos_min(seq),
        lambda: memory.pos_max(seq),
    ]
    if seq != -1:
        calls.append(lambda: memory.rm(seq))
    for call in calls:
        with pytest.raises(errors.InvalidArgumentError, match=rf"{seq}.*n_seq_max=2"):
            call()
    assert positions(context)[0] == (0, len(ids) - 1)


@pytest.mark.parametrize("p0, p1", [(5, 3), (100, 200), (2**31 - 1, -1), (-(2**31), -(2**31)), (0, 0)])
def test_ranges_that_are_empty_or_wild(make_context, ids, p0, p1):
    context = make_context(n_seq_max=2, kv_unified=True)
    context.decode(Batch.from_arrays(ids))
    context.memory.rm(0, p0, p1)
    context.memory.cp(0, 1, p0, p1)
    context.memory.div(0, 2, p0, p1)
    # Two negative ends are the whole sequence; the other ranges have no token of it.
    assert positions(context) == [(-1, -1) if p1 < 0 and p0 < 0 else (0, len(ids) - 1), (-1, -1)]
    context.decode(Batch.from_arrays([1], seq_ids=1))
    assert positions(context)[1] == (0, 0)


# Lifetime


def test_memory_keeps_its_context_and_ends_with_it(make_context, tiny_model, ids):
    memory = Context(tiny_model, n_ctx=256, n_threads=1).memory
    assert memory.pos_max(0) == -1 and memory.address != 0 and "n_ctx=256" in repr(memory)
    context = make_context()
    memory = context.memory
    context.close()
    arguments = {"rm": (0,), "cp": (0, 0), "keep": (0,), "add": (0, 1), "div": (0, 2), "pos_min": (0,), "pos_max": (0,)}
    names = [name for name in dir(memory) if not name.startswith("_")]
    assert len(names) >= 10
    for name in names:
        with pytest.raises(errors.ClosedError):
            value = getattr(memory, name)
            value(*arguments.get(name, ()))
    assert "closed" in repr(memory)
    with pytest.raises(TypeError):
        Memory(None)

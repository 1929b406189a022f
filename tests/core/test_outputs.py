"""Logits and embeddings without copies: whose memory it is, how long it is valid, what its rows are."""

import copy
import ctypes
import gc
import pickle
import weakref
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.hold import Hold
from pyllm.core.outputs import Outputs
from pyllm.core.samplers import Greedy
from pyllm.core.view import OutputMemory, View

KINDS = ("logits", "embeddings")
# Without rounding in the cache, what other batches compute differs in the last digits only.
EXACT = {"type_k": "f32", "type_v": "f32"}


def libllama() -> ctypes.CDLL:
    folder = Path(pyllm.__file__).parent / "lib"
    # Loaded already: the extensions were linked with it.
    library = ctypes.CDLL(str(next(folder.glob("*pyllm-llama.*"))))
    for name in ("llama_get_logits", "llama_get_embeddings"):
        getattr(library, name).restype = ctypes.POINTER(ctypes.c_float)
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("llama_get_logits_ith", "llama_get_embeddings_ith"):
        getattr(library, name).restype = ctypes.POINTER(ctypes.c_float)
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_int32]
    return library


def address(pointer) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def ctx(make_context, ids, kind) -> Context:
    """A context with outputs of the kind in question."""
    context = make_context(embeddings=kind == "embeddings", pooling_type="none")
    context.decode(Batch.from_arrays(ids, outputs="all"))
    return context


# Whose memory


def test_the_memory_is_llama_cpps_own(ctx, kind, ids):
    view = getattr(ctx, kind)
    library = libllama()
    theirs = getattr(library, f"llama_get_{kind}")(ctx.address)
    assert view.address == address(theirs) == np.asarray(view).ctypes.data
    assert view.shape == (len(ids), ctx.model.n_embd_out if kind == "embeddings" else ctx.n_vocab)
    assert (view.dtype, len(view), view.nbytes) == (np.float32, len(ids), np.asarray(view).nbytes)
    # What is written on one side is read on the other.
    theirs[7] = 123.5
    assert view[0, 7] == 123.5
    view[0, 8] = -321.25
    assert theirs[8] == -321.25


def test_ith_is_llama_cpps_row(ctx, kind, ids):
    library = libllama()
    for i in (0, 3, len(ids) - 1, -1, -len(ids)):
        row = getattr(ctx, f"{kind}_ith")(i)
        assert row.ctypes.data == address(getattr(library, f"llama_get_{kind}_ith")(ctx.address, i))
        assert row.ctypes.data == getattr(ctx, kind)[i].ctypes.data
        assert row.shape == (getattr(ctx, kind).shape[1],)


def test_nothing_is_copied(ctx, kind):
    view = getattr(ctx, kind)
    whole, again, row, part = np.asarray(view), np.asarray(getattr(ctx, kind)), view[1], view[1:3, 4:6]
    for array in (whole, again, row, part):
        assert array.dtype == np.float32 and array.flags.writeable and not array.flags.owndata
    assert whole.flags.c_contiguous
    whole[1, 4] = 77.0
    assert again[1, 4] == row[4] == part[0, 0] == view[1, 4] == memoryview(view)[1, 4] == 77.0
    assert np.shares_memory(whole, again) and np.shares_memory(whole, row)


def test_copies_are_copies(ctx, kind):
    view = getattr(ctx, kind)
    copies = [view.copy(), np.array(view), np.asarray(view, dtype=np.float64), np.asarray(view, copy=True)]
    with pytest.raises(ValueError):
        np.asarray(view, dtype=np.float64, copy=False)
    for shared in (np.asarray(view, copy=False), np.array(view, copy=None)):
        assert shared.ctypes.data == view.address
    expected = float(view[0, 0])
    view[0, 0] = expected + 5
    for array in copies:
        assert array[0, 0] == expected and array.shape == view.shape


def test_writing_through_the_object(ctx, kind):
    view = getattr(ctx, kind)
    view[0] = np.arange(view.shape[1])
    view[1:, :3] = -1
    view[-1][2] = 9
    array = np.asarray(getattr(ctx, kind))
    assert array[0].tolist() == list(range(view.shape[1]))
    assert (array[1:-1, :3] == -1).all() and array[-1, :3].tolist() == [-1, -1, 9]
    with pytest.raises(IndexError):
        view[len(view)]
    with pytest.raises((TypeError, ValueError)):
        del view[0]


def test_dlpack_shares_the_memory(ctx, kind):
    view = getattr(ctx, kind)
    array = np.from_dlpack(view)
    assert array.ctypes.data == view.address and array.shape == view.shape
    assert view.__dlpack_device__() == (1, 0)
    del array


def test_torch_shares_the_memory(ctx, kind):
    torch = pytest.importorskip("torch")
    view = getattr(ctx, kind)
    for tensor in (torch.from_numpy(np.asarray(view)), torch.from_dlpack(view)):
        assert tensor.data_ptr() == view.address
        tensor[0, 1] = 55.0
        assert view[0, 1] == 55.0


def test_what_is_written_is_what_the_samplers_read(decoded):
    row = decoded.logits[-1]
    best = int(row.argmax())
    assert Greedy().sample(decoded) == best
    row[best] = -np.inf
    second = int(row.argmax())
    assert second != best and Greedy().sample(decoded) == second
    decoded.logits[0, 17] = 1e9
    assert Greedy().sample(decoded, 0) == 17
    assert Greedy().sample(decoded) == second
    decoded.logits_ith(3)[5] = 1e9
    assert Greedy().sample(decoded, 3) == 5


# How long the memory is valid


def test_an_array_keeps_its_memory_and_no_context(tiny_model, ids, kind):
    context = Context(tiny_model, n_ctx=256, n_threads=1, embeddings=kind == "embeddings", pooling_type="none")
    context.decode(Batch.from_arrays(ids, outputs="all"))
    view = getattr(context, kind)
    expected = view.copy()
    row, alive = view[2], weakref.ref(context)
    del context, view
    gc.collect()
    assert alive() is None
    # Memory that is taken now must not be that of the row.
    others = [np.full(len(row), np.nan, np.float32) for _ in range(1000)]
    assert np.array_equal(row, expected[2])
    row[:] = 1.0
    assert all(np.isnan(other).all() for other in others)


def test_outputs_outlive_a_context_that_nobody_names(tiny_model, ids):
    def first_logits():
        context = Context(tiny_model, n_ctx=256, n_threads=1)
        context.decode(Batch.from_arrays(ids, outputs="all"))
        return context.logits

    outputs = first_logits()
    gc.collect()
    assert np.isfinite(outputs).all() and outputs.shape == (len(ids), tiny_model.n_vocab)


@pytest.mark.parametrize("make", [np.asarray, memoryview, np.from_dlpack, lambda view: view[0], lambda view: view.T])
def test_closing_leaves_arrays_as_they_are(make_context, ids, kind, make):
    context = make_context(embeddings=kind == "embeddings", pooling_type="none")
    context.decode(Batch.from_arrays(ids, outputs="all"))
    held = make(getattr(context, kind))
    expected = np.array(held)
    context.close()
    context.close()
    assert context.closed
    others = [np.full(expected.size, np.nan, np.float32) for _ in range(100)]
    assert np.array_equal(np.asarray(held), expected)
    np.asarray(held)[...] = 2.0
    assert all(np.isnan(other).all() for other in others)
    with pytest.raises(errors.ClosedError):
        context.decode(Batch.from_arrays(ids))


def test_closing_the_model_leaves_arrays_as_they_are(make_model, tiny_models, ids):
    model = make_model(tiny_models["llama"])
    first, second = Context(model, n_ctx=256, n_threads=1), Context(model, n_ctx=256, n_threads=1)
    second.decode(Batch.from_arrays(ids))
    row = second.logits[0]
    expected = row.copy()
    model.close()
    assert model.closed and first.closed and second.closed
    del model, first, second
    gc.collect()
    assert np.array_equal(row, expected)


def test_outputs_of_a_closed_context_say_so(decoded):
    view = decoded.logits
    decoded.close()
    for read in (lambda: view[0], view.copy, lambda: view + 1, lambda: np.max(view)):
        with pytest.raises(errors.ClosedError):
            read()
    assert np.asarray(view).size == 0
    assert "stale" in repr(view)


def test_a_with_block_is_left_with_a_row_in_hand(tiny_model, ids):
    with Context(tiny_model, n_ctx=256, n_threads=1) as context:
        context.decode(Batch.from_arrays(ids))
        row = context.logits[-1]
        best = int(row.argmax())
    assert context.closed and int(row.argmax()) == best


def test_closing_in_finally_hides_no_exception(tiny_model, ids):
    context = Context(tiny_model, n_ctx=256, n_threads=1)

    def use():
        try:
            context.decode(Batch.from_arrays(ids))
            row = context.logits[-1]  # noqa: F841, held by the traceback
            raise KeyError("the cause")
        finally:
            context.close()

    with pytest.raises(KeyError, match="the cause") as info:
        use()
    assert context.closed and info.value.__context__ is None


# How long the contents are valid


def test_the_same_memory_shows_the_next_decode(make_context, ids, kind):
    context = make_context(embeddings=kind == "embeddings", pooling_type="none")
    context.decode(Batch.from_arrays(ids[:1]))
    first = np.asarray(getattr(context, kind))
    kept = getattr(context, kind).copy()
    for token in ids[1:6]:
        context.decode(Batch.from_arrays([token]))
        now = getattr(context, kind)
        assert now.address == first.ctypes.data
        assert np.array_equal(first, now.copy()) and not np.array_equal(first, kept)


def test_stale_outputs_are_an_error_and_not_a_silent_lie(ctx, kind, ids):
    view = getattr(ctx, kind)
    ctx.decode(Batch.from_arrays(ids[:1], outputs="all"))
    reads = (
        lambda: view[0], view.copy, lambda: list(view), lambda: view + 1, lambda: np.exp(view), view.argmax,
        view.tolist, lambda: view.T, lambda: np.concatenate([view, view]), lambda: np.from_dlpack(view),
        lambda: view.flat[0], lambda: pickle.dumps(view), lambda: copy.copy(view),
        lambda: np.add(1, 1, out=view), lambda: view.sort(),
    )  # fmt: skip
    for read in reads:
        with pytest.raises(errors.StaleLogitsError, match=r"copy"):
            read()
    with pytest.raises(errors.StaleLogitsError):
        view[0] = 1
    assert "stale" in repr(view) and "stale" in str(view) and "stale" not in repr(getattr(ctx, kind))


def test_what_c_code_makes_of_stale_outputs_is_empty(ctx, kind, ids):
    """``np.asarray`` and buffers ask no method of an array: there must be no number that could be taken for a logit."""
    view = getattr(ctx, kind)
    early = memoryview(view)
    ctx.decode(Batch.from_arrays(ids[:1], outputs="all"))
    late = np.asarray(view)
    assert late.size == memoryview(view).nbytes == 0
    for compute in (late.sum, late.max, late.argmax, late.mean, lambda: late + 1, lambda: np.exp(late)):
        with pytest.raises((TypeError, ValueError, RuntimeWarning)):
            compute()
    # What was made before is plain memory, and stays valid.
    ctx.close()
    assert np.isfinite(np.asarray(early)).all()


def test_reading_twice_gives_one_object(ctx, kind, ids):
    view = getattr(ctx, kind)
    assert getattr(ctx, kind) is view
    ctx.decode(Batch.from_arrays(ids[:1], outputs="all"))
    assert getattr(ctx, kind) is not view


def test_a_failed_decode_leaves_no_outputs(decoded, ids):
    view = decoded.logits
    with pytest.raises(errors.InvalidBatchError):
        decoded.decode(Batch.from_arrays([1], pos=[0]))
    assert decoded.n_outputs == 0
    with pytest.raises(errors.NoOutputError):
        decoded.logits  # noqa: B018
    with pytest.raises(errors.NoOutputError):
        decoded.logits_ith(0)
    with pytest.raises(errors.NoOutputError):
        Greedy().sample(decoded)
    with pytest.raises(errors.StaleLogitsError):
        view[0]


def test_a_batch_that_is_refused_at_once_leaves_the_outputs(decoded):
    before = decoded.logits.copy()
    with pytest.raises(errors.InvalidBatchError):
        decoded.decode(Batch.from_arrays([decoded.n_vocab]))
    assert np.array_equal(before, decoded.logits.copy())


def test_without_outputs_there_is_nothing_to_read(context, ids):
    with pytest.raises(errors.NoOutputError):
        context.logits  # noqa: B018
    context.decode(Batch.from_arrays(ids, outputs="none"))
    assert context.n_outputs == 0
    for read in (lambda: context.logits, lambda: context.logits_ith(0), lambda: Greedy().sample(context)):
        with pytest.raises(errors.NoOutputError):
            read()


def test_debug_mode_poisons_arrays_of_an_older_decode(make_context, ids, kind):
    context = make_context(embeddings=kind == "embeddings", pooling_type="none", poison_stale=True)
    context.decode(Batch.from_arrays(ids, outputs="all"))
    view = getattr(context, kind)
    row, whole, kept = view[1], np.asarray(view), view.copy()
    assert np.isfinite(whole).all() and np.shares_memory(row, whole)
    context.decode(Batch.from_arrays(ids[:1]))
    assert np.isnan(row).all() and np.isnan(whole).all() and np.isfinite(kept).all()
    assert np.isfinite(np.asarray(getattr(context, kind))).all()
    with pytest.raises(errors.StaleLogitsError):
        view[0]


def test_debug_mode_gives_the_same_numbers_and_the_samplers_see_what_is_written(make_context, decoded, ids):
    context = make_context(poison_stale=True)
    context.decode(Batch.from_arrays(ids, outputs="all"))
    assert np.array_equal(context.logits.copy(), decoded.logits.copy())
    context.logits[-1, 33] = 1e9
    assert Greedy().sample(context) == 33
    context.decode(Batch.from_arrays(ids[:1]))
    assert Greedy().sample(context) == context.logits[0].argmax()


# When the buffer has to grow


def test_growth_with_arrays_alive_leaves_them_their_memory(make_context, ids, kind):
    context = make_context(embeddings=kind == "embeddings", pooling_type="none")
    context.decode(Batch.from_arrays(ids[:1]))
    row = getattr(context, kind)[0]
    kept = row.copy()
    n_rows = len(ids) - 1
    context.decode(Batch.from_arrays(ids[1:], outputs="all"))
    assert context.n_outputs == n_rows == len(getattr(context, kind)) and context.memory.pos_max(0) == n_rows
    assert not np.shares_memory(row, np.asarray(getattr(context, kind)))
    row[:] = 7.0
    assert not (np.asarray(getattr(context, kind)) == 7.0).any()
    fresh = make_context(embeddings=kind == "embeddings", pooling_type="none")
    fresh.decode(Batch.from_arrays(ids[:1]))
    assert np.array_equal(getattr(fresh, kind)[0], kept)
    fresh.decode(Batch.from_arrays(ids[1:], outputs="all"))
    assert np.array_equal(fresh.logits.copy(), context.logits.copy())


def test_growth_again_and_again_with_rows_of_each(make_context, ids):
    context = make_context()
    rows = []
    for n in range(1, 12):
        context.memory.clear()
        context.decode(Batch.from_arrays(ids[:n], outputs="all"))
        rows.append((context.logits[-1], context.logits_copy(-1)))
    for row, kept in rows:
        assert np.array_equal(row, kept)
    context.close()
    for row, kept in rows:
        assert np.array_equal(row, kept)


def test_a_decode_that_fails_after_the_buffer_was_given_up(make_context, ids):
    context = make_context()
    context.decode(Batch.from_arrays(ids[:2]))
    row = context.logits[0]
    kept = row.copy()
    bad = Batch.from_arrays(np.arange(50), pos=np.arange(50) * 2 + 2, outputs="all")
    with pytest.raises(errors.InvalidBatchError):
        context.decode(bad)
    assert np.array_equal(row, kept) and context.n_outputs == 0
    for read in (lambda: context.logits, lambda: context.logits_ith(-1), lambda: Greedy().sample(context)):
        with pytest.raises(errors.NoOutputError):
            read()
    with pytest.raises(errors.NoOutputError):
        context.embeddings_seq()
    context.decode(Batch.from_arrays(ids[2:4], outputs="all"))
    assert len(context.logits) == 2 and np.isfinite(context.logits).all()


@pytest.mark.filterwarnings("ignore::pyllm.errors.StaleLogitsWarning")
def test_the_ordinary_loop_stays_at_one_address(make_context, ids):
    context = make_context(n_seq_max=4)
    rows = []
    for i in range(8):
        context.decode(Batch.from_arrays(ids[:4], seq_ids=range(4), pos=[i] * 4, outputs="all"))
        rows.append(np.asarray(context.logits))
    assert len({row.ctypes.data for row in rows}) == 1


def test_no_growth_without_more_outputs_than_ever(make_context, ids):
    context = make_context()
    context.decode(Batch.from_arrays(ids[:10], outputs="all"))
    row = context.logits[0]
    context.decode(Batch.from_arrays(ids[:10], outputs="all"))
    context.decode(Batch.from_arrays(ids[:9], outputs="all"))
    assert context.logits.address == row.ctypes.data


@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "gemma3", "mamba", "jamba"])
def test_reserve_outputs_makes_room_up_front(load, make_context, ids, arch):
    context = make_context(load(arch), reserve_outputs=len(ids))
    assert context.memory.pos_max(0) == -1, "the reservation must leave the memory empty"
    with pytest.raises(errors.NoOutputError):
        context.logits  # noqa: B018
    context.decode(Batch.from_arrays(ids[:1]))
    row = context.logits[0]
    context.decode(Batch.from_arrays(ids[1:], outputs="all"))
    assert context.logits.address == row.ctypes.data
    fresh = make_context(load(arch))
    fresh.decode(Batch.from_arrays(ids[:1]))
    fresh.decode(Batch.from_arrays(ids[1:], outputs="all"))
    assert np.array_equal(fresh.logits.copy(), context.logits.copy())


def test_reserve_outputs_for_an_encoder(load, make_context):
    context = make_context(load("bert"), embeddings=True, pooling_type="none", reserve_outputs=40)
    context.encode(Batch.from_arrays([5, 6, 7], outputs="all"))
    row = context.embeddings[0]
    context.encode(Batch.from_arrays(np.arange(40), outputs="all"))
    assert context.embeddings.address != 0 and len(context.embeddings) == 40
    del row


def test_reserve_outputs_for_an_encoder_decoder(load, make_context):
    context = make_context(load("t5"), reserve_outputs=40)
    context.encode(Batch.from_arrays(np.arange(3, 20), outputs="all"))
    context.decode(Batch.from_arrays([0]))
    row = context.logits[0]
    context.decode(Batch.from_arrays(np.arange(3, 20), outputs="all"))
    assert context.logits.address == row.ctypes.data


@pytest.mark.parametrize("n", [-1, 257, 2**31 - 1])
def test_reserve_outputs_out_of_range(make_context, n):
    with pytest.raises(errors.InvalidArgumentError, match="reserve_outputs"):
        make_context(reserve_outputs=n)


def fail_with_bad_positions(context: Context) -> None:
    with pytest.raises(errors.InvalidBatchError):
        context.decode(Batch.from_arrays(np.arange(50), pos=np.arange(50) * 2, outputs="all"))


def fail_for_want_of_room(context: Context) -> None:
    context.decode(Batch.from_arrays(np.arange(250)))
    with pytest.raises(errors.NoKVSlotError):
        context.decode(Batch.from_arrays(np.arange(50), outputs="all"))
    context.memory.clear()


def fail_by_abort(context: Context) -> None:
    context.abort()
    with pytest.raises(errors.DecodeAborted):
        context.decode(Batch.from_arrays(np.arange(50), outputs="all"))


@pytest.mark.parametrize("fail", [fail_with_bad_positions, fail_for_want_of_room, fail_by_abort])
def test_a_decode_that_failed_has_not_made_room(make_context, fail):
    context = make_context()
    fail(context)
    context.decode(Batch.from_arrays([1, 2, 3]))
    row = context.logits[0]
    kept = row.copy()
    context.decode(Batch.from_arrays(np.arange(50), outputs="all"))
    if context.logits.address != row.ctypes.data:
        assert np.array_equal(row, kept), "the buffer moved under an array"


def test_an_encoder_without_embeddings_does_not_move_either(load, make_context):
    context = make_context(load("bert"), pooling_type="none")
    context.decode(Batch.from_arrays([5, 6, 7]))
    context.set_embeddings(True)
    context.decode(Batch.from_arrays([5, 6, 7]))
    row = context.embeddings[0]
    kept = row.copy()
    context.set_embeddings(False)
    context.decode(Batch.from_arrays(np.arange(50)))
    assert np.array_equal(row, kept)


def test_switching_embeddings_on_needs_room_too(make_context, ids):
    context = make_context(pooling_type="none")
    context.decode(Batch.from_arrays(ids[:1]))
    row = context.logits[0]
    kept = row.copy()
    context.set_embeddings(True)
    context.decode(Batch.from_arrays(ids[:1]))
    assert np.array_equal(row, kept)
    assert context.embeddings.shape == (1, context.model.n_embd_out)


# The order of the rows


def interleaved(ids: np.ndarray, n_seq: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of several sequences, shuffled into each other: tokens, positions, sequence ids."""
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(n_seq), len(ids)))
    pos = np.zeros(len(order), np.int32)
    for seq in range(n_seq):
        pos[order == seq] = np.arange(len(ids))
    return ids[(pos + order) % len(ids)], pos, order


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba", "jamba"])
@pytest.mark.parametrize("n_ubatch", [1, 7, 512])
@pytest.mark.parametrize("kv_unified", [False, True])
def test_rows_stand_in_the_order_of_the_batch(load, make_context, ids, arch, n_ubatch, kv_unified, kind):
    """Each row equals what the sequence gives alone, whatever the micro-batches are."""
    model, ids, n_seq = load(arch), ids[:12], 3
    tokens, pos, seqs = interleaved(ids, n_seq)
    flags = {"embeddings": kind == "embeddings", "pooling_type": "none", **EXACT}
    expected = np.zeros((len(tokens), model.n_embd_out if kind == "embeddings" else model.n_vocab), np.float32)
    for seq in range(n_seq):
        alone = make_context(model, **flags)
        alone.decode(Batch.from_arrays(tokens[seqs == seq], outputs="all"))
        expected[seqs == seq] = getattr(alone, kind).copy()
    context = make_context(model, n_ubatch=n_ubatch, n_seq_max=n_seq, kv_unified=kv_unified, **flags)
    context.decode(Batch.from_arrays(tokens, pos=pos, seq_ids=seqs, outputs="all"))
    np.testing.assert_allclose(getattr(context, kind).copy(), expected, atol=1e-2)
    for i in range(len(tokens)):
        assert getattr(context, f"{kind}_ith")(i).ctypes.data == getattr(context, kind)[i].ctypes.data


@pytest.mark.parametrize("arch", ["llama", "mamba", "jamba"])
@pytest.mark.parametrize("n_ubatch", [1, 5, 512])
def test_rows_of_some_tokens_only(load, make_context, ids, arch, n_ubatch):
    """With outputs for some tokens, row k is that of the k-th token that asked, and ith() finds it by its index."""
    model, n_seq = load(arch), 3
    tokens, pos, seqs = interleaved(ids[:12], n_seq)
    every = make_context(model, n_ubatch=n_ubatch, n_seq_max=n_seq, **EXACT)
    every.decode(Batch.from_arrays(tokens, pos=pos, seq_ids=seqs, outputs="all"))
    wanted = np.random.default_rng(1).random(len(tokens)) < 0.4
    context = make_context(model, n_ubatch=n_ubatch, n_seq_max=n_seq, **EXACT)
    context.decode(Batch.from_arrays(tokens, pos=pos, seq_ids=seqs, outputs=wanted))
    assert context.n_outputs == wanted.sum() == len(context.logits)
    np.testing.assert_allclose(context.logits.copy(), every.logits.copy()[wanted], atol=1e-2)
    for row, i in enumerate(np.flatnonzero(wanted)):
        assert context.logits_ith(int(i)).ctypes.data == context.logits[row].ctypes.data
        assert Greedy().sample(context, index=int(i)) == context.logits[row].argmax()
        assert Greedy().sample(context, row=row) == context.logits[row].argmax()
    for i in np.flatnonzero(~wanted):
        with pytest.raises(errors.NoOutputError, match=f"index {i} "):
            context.logits_ith(int(i))
        with pytest.raises(errors.NoOutputError):
            Greedy().sample(context, int(i))
    assert context.logits_ith(-1).ctypes.data == context.logits[-1].ctypes.data


@pytest.mark.parametrize("i", [10_000, -10_000, 2**31 - 1, -(2**31)])
def test_ith_out_of_range(decoded, i):
    with pytest.raises(errors.NoOutputError):
        decoded.logits_ith(i)
    with pytest.raises(errors.NoOutputError):
        Greedy().sample(decoded, i)
    assert np.isfinite(decoded.logits[0]).all()


# Pooled embeddings


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_pooled_embeddings_are_what_pooling_says(load, make_context, arch, pooling):
    model = load(arch)
    tokens, seqs = np.arange(5, 15), np.repeat([0, 1], 5)
    batch = Batch.from_arrays(tokens, pos=np.tile(np.arange(5), 2), seq_ids=seqs, outputs="all")
    rows = make_context(model, n_seq_max=2, embeddings=True, pooling_type="none")
    rows.decode(batch)
    pooled = make_context(model, n_seq_max=2, embeddings=True, pooling_type=pooling)
    pooled.decode(batch)
    for seq in (0, 1):
        own = rows.embeddings.copy()[seqs == seq]
        expected = {"mean": own.mean(axis=0), "cls": own[0], "last": own[-1]}[pooling]
        np.testing.assert_allclose(pooled.embeddings_seq(seq), expected, atol=1e-4)
    with pytest.raises(errors.NoOutputError, match="embeddings_seq"):
        pooled.embeddings  # noqa: B018
    with pytest.raises(errors.NoOutputError):
        pooled.embeddings_ith(0)


def test_pooled_embeddings_are_copies_that_stay(load, make_context):
    context = make_context(load("bert"), embeddings=True)
    context.encode(Batch.from_arrays([5, 6, 7], outputs="all"))
    first = context.embeddings_seq()
    kept = first.copy()
    context.encode(Batch.from_arrays([8, 9], outputs="all"))
    assert np.array_equal(first, kept) and not np.array_equal(context.embeddings_seq(), kept)
    context.close()
    assert np.array_equal(first, kept)


def test_a_rank_is_one_number(load, make_context):
    context = make_context(load("bert", pooling="rank"), embeddings=True)
    assert context.model.cls_labels == ["relevance"]
    context.encode(Batch.from_arrays([5, 6, 7], outputs="all"))
    first = context.embeddings_seq(0)
    assert first.shape == (1,) and np.isfinite(first).all()
    context.encode(Batch.from_arrays([9, 6, 7], outputs="all"))
    assert context.embeddings_seq(0) != first


@pytest.mark.parametrize("seq", [1, -1, 10_000, -(2**31)])
def test_no_pooled_embedding_of_an_absent_sequence(load, make_context, seq):
    context = make_context(load("bert"), embeddings=True)
    context.encode(Batch.from_arrays([5, 6, 7], outputs="all"))
    with pytest.raises(errors.NoOutputError, match=f"sequence {seq}"):
        context.embeddings_seq(seq)


def test_no_embeddings_where_none_were_asked_for(decoded):
    for read in (lambda: decoded.embeddings, lambda: decoded.embeddings_ith(0), decoded.embeddings_seq):
        with pytest.raises(errors.NoOutputError, match="embeddings=True"):
            read()


def test_an_encoder_has_no_logits(load, make_context):
    context = make_context(load("bert"), embeddings=True, pooling_type="none")
    context.encode(Batch.from_arrays([5, 6, 7], outputs="all"))
    with pytest.raises(errors.NoOutputError, match="logits"):
        context.logits  # noqa: B018


# Made by hand


def test_views_are_not_made_from_python():
    for kind in (View, OutputMemory, Outputs, Hold):
        with pytest.raises(TypeError, match="Context"):
            kind()


def test_a_view_without_memory_is_harmless():
    view = View.__new__(View)
    with pytest.raises(BufferError):
        memoryview(view)
    assert view.nbytes == 0
    with pytest.raises(TypeError), Hold.__new__(Hold):
        pass

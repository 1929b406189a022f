"""Logits and embeddings without copies: whose memory it is, how long it is valid, what its rows are."""

import ctypes
import gc
import inspect
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.outputs import Outputs
from pyllm.core.samplers import Greedy
from pyllm.core.view import View

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
    copies = [view.copy(), np.array(view), np.asarray(view, dtype=np.float64)]
    if "copy" in inspect.signature(np.asarray).parameters or np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        copies.append(np.asarray(view, copy=True))
        with pytest.raises(ValueError):
            np.asarray(view, dtype=np.float64, copy=False)
        assert np.asarray(view, copy=False).ctypes.data == view.address
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
    with pytest.raises((TypeError, NotImplementedError)):
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


def test_a_view_keeps_the_context_alive(tiny_model, ids, kind):
    context = Context(tiny_model, n_ctx=256, n_threads=1, embeddings=kind == "embeddings", pooling_type="none")
    context.decode(Batch.from_arrays(ids, outputs="all"))
    view = getattr(context, kind)
    expected = view.copy()
    row = view[2]
    del context, view
    gc.collect()
    # Whoever takes memory now must not get that of the row.
    others = [np.full(len(row), np.nan, np.float32) for _ in range(1000)]
    assert np.array_equal(row, expected[2])
    row[:] = 1.0
    assert all(np.isnan(other).all() for other in others)


def test_close_with_views_raises_and_changes_nothing(make_context, ids, kind):
    context = make_context(embeddings=kind == "embeddings", pooling_type="none")
    context.decode(Batch.from_arrays(ids, outputs="all"))
    view = getattr(context, kind)
    row, derived = view[0], view[1:3][0, ::2]
    for _ in range(2):
        with pytest.raises(BufferError, match=r"view.*copy"):
            context.close()
    assert not context.closed and np.isfinite(row).all()
    context.decode(Batch.from_arrays(ids[:1]))
    del row
    with pytest.raises(BufferError, match="1 NumPy view"):
        context.close()
    del derived
    context.close()
    assert context.closed


def test_closing_the_model_with_views_raises_and_changes_nothing(make_model, tiny_models, ids):
    model = make_model(tiny_models["llama"])
    first, second = Context(model, n_ctx=256, n_threads=1), Context(model, n_ctx=256, n_threads=1)
    second.decode(Batch.from_arrays(ids))
    row = second.logits[0]
    with pytest.raises(BufferError):
        model.close()
    assert not (model.closed or first.closed or second.closed) and np.isfinite(row).all()
    first.decode(Batch.from_arrays(ids))
    del row
    model.close()
    assert model.closed and first.closed and second.closed


def test_an_outputs_object_alone_does_not_hinder_closing(decoded):
    view = decoded.logits
    decoded.close()
    with pytest.raises(errors.ClosedError):
        view[0]
    with pytest.raises(errors.ClosedError):
        view.copy()
    with pytest.raises(errors.ClosedError):
        np.asarray(view)
    assert "stale" in repr(view)


def test_leaving_a_with_block_with_views_raises(tiny_model, ids):
    with pytest.raises(BufferError), Context(tiny_model, n_ctx=256, n_threads=1) as context:
        context.decode(Batch.from_arrays(ids))
        row = context.logits[0]
    del row
    context.close()


def test_memoryviews_and_dlpack_count_as_views(decoded):
    view = decoded.logits
    for make in (memoryview, np.from_dlpack, np.asarray):
        held = make(view)
        with pytest.raises(BufferError):
            decoded.close()
        del held
    del view
    decoded.close()


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
    for read in (lambda: view[0], lambda: np.asarray(view), view.copy, lambda: memoryview(view), lambda: list(view)):
        with pytest.raises(errors.StaleLogitsError, match=r"copy"):
            read()
    with pytest.raises(errors.StaleLogitsError):
        view[0] = 1
    with pytest.raises(errors.StaleLogitsError):
        np.from_dlpack(view)
    assert "stale" in repr(view) and "stale" not in repr(getattr(ctx, kind))


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


def test_growth_with_views_alive_raises_before_it_starts(make_context, ids, kind):
    context = make_context(embeddings=kind == "embeddings", pooling_type="none")
    context.decode(Batch.from_arrays(ids[:1]))
    row = getattr(context, kind)[0]
    kept = row.copy()
    n_rows = len(ids) - 1
    bigger = Batch.from_arrays(ids[1:], outputs="all")
    with pytest.raises(BufferError, match=rf"reserve_outputs={n_rows}"):
        context.decode(bigger)
    # Nothing has happened: not to the view, not to the memory, not to the outputs.
    assert np.array_equal(row, kept) and context.memory.pos_max(0) == 0
    assert np.array_equal(getattr(context, kind)[0], kept)
    del row
    context.decode(bigger)
    assert context.n_outputs == n_rows and context.memory.pos_max(0) == n_rows


def test_the_ordinary_loop_never_meets_it(make_context, ids):
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
    with pytest.raises(BufferError):
        context.decode(Batch.from_arrays(ids[:11], outputs="all"))


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
    try:
        context.decode(Batch.from_arrays(np.arange(50), outputs="all"))
    except BufferError:
        pass  # right, and the view is safe
    else:
        assert context.logits.address == row.ctypes.data, "the buffer moved while a view was alive"


def test_an_encoder_without_embeddings_does_not_move_either(load, make_context):
    context = make_context(load("bert"), pooling_type="none")
    context.decode(Batch.from_arrays([5, 6, 7]))
    context.set_embeddings(True)
    context.decode(Batch.from_arrays([5, 6, 7]))
    row = context.embeddings[0]
    context.set_embeddings(False)
    with pytest.raises(BufferError):
        context.decode(Batch.from_arrays(np.arange(50)))
    assert np.isfinite(row).all()


def test_switching_embeddings_on_needs_room_too(make_context, ids):
    context = make_context(pooling_type="none")
    context.decode(Batch.from_arrays(ids[:1]))
    row = context.logits[0]
    context.set_embeddings(True)
    with pytest.raises(BufferError):
        context.decode(Batch.from_arrays(ids[:1]))
    del row
    context.decode(Batch.from_arrays(ids[:1]))
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
        assert Greedy().sample(context, int(i)) == context.logits[row].argmax()
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
    for kind in (View, Outputs):
        with pytest.raises(TypeError, match="Context"):
            kind()


def test_a_view_without_memory_is_harmless():
    for kind in (View, Outputs):
        view = kind.__new__(kind)
        for read in (memoryview, np.asarray):
            with pytest.raises((BufferError, ValueError, AttributeError)):
                read(view)

"""What goes into a batch, and what is refused."""

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch

# From arrays


def test_tokens_alone(context):
    batch = Batch.from_arrays([1, 2, 3])
    assert len(batch) == batch.capacity == 3
    assert batch.tokens.tolist() == [1, 2, 3] and batch.tokens.dtype == np.int32
    assert batch.pos is None and batch.seq_ids == [(0,)] * 3
    assert batch.outputs.tolist() == [False, False, True] and batch.n_outputs == 1
    assert batch.n_embd == 0 and "3 tokens, 1 outputs" in repr(batch)
    context.decode(batch)
    context.decode(batch)
    assert context.memory.pos_max(0) == 5, "without positions each batch goes on where the memory ends"


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_tokens_of_any_integer_type(dtype):
    array = np.arange(20, dtype=dtype)
    for given in (array, array[::2], array[::-1], array.astype(f">{array.dtype.str[1:]}")):
        assert Batch.from_arrays(given).tokens.tolist() == given.tolist()


def test_a_batch_is_a_copy():
    tokens, pos = np.array([1, 2, 3], np.int32), np.array([0, 1, 2], np.int32)
    batch = Batch.from_arrays(tokens, pos=pos)
    tokens[:] = 9
    pos[:] = 9
    assert batch.tokens.tolist() == [1, 2, 3] and batch.pos.tolist() == [0, 1, 2]
    batch.tokens[:] = 7
    batch.pos[:] = 7
    assert batch.tokens.tolist() == [1, 2, 3] and batch.pos.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "outputs, expected",
    [
        ("last", [0, 0, 1]),
        ("all", [1, 1, 1]),
        ("none", [0, 0, 0]),
        ([True, False, True], [1, 0, 1]),
        (np.array([0, 5, 0]), [0, 1, 0]),
        (np.array([2, 0, -1], np.int64), [1, 0, 1]),
    ],
)
def test_outputs(outputs, expected):
    batch = Batch.from_arrays([1, 2, 3], outputs=outputs)
    assert batch.outputs.tolist() == [bool(flag) for flag in expected]
    assert batch.n_outputs == sum(expected)


@pytest.mark.parametrize(
    "seq_ids, expected",
    [
        (2, [(2,)] * 3),
        (np.int32(2), [(2,)] * 3),
        ([0, 1, 2], [(0,), (1,), (2,)]),
        ([[0], [1], [0]], [(0,), (1,), (0,)]),
        ([[0, 1], [1, -1], [2, 0]], [(0, 1), (1,), (2, 0)]),
        ([[0, -1, 3], [1, 2, 3], [2, -1, -1]], [(0, 3), (1, 2, 3), (2,)]),
    ],
)
def test_sequence_ids(seq_ids, expected):
    assert Batch.from_arrays([1, 2, 3], seq_ids=seq_ids).seq_ids == expected


def test_embeddings():
    values = np.random.default_rng(0).normal(size=(5, 64))
    batch = Batch.from_arrays(embeddings=values, pos=range(5), outputs="all")
    assert (len(batch), batch.n_embd, batch.n_outputs, batch.tokens) == (5, 64, 5, None)
    assert "embeddings of 64" in repr(batch)
    four = Batch.from_arrays(embeddings=values, pos=np.arange(20).reshape(4, 5))
    assert four.pos.tolist() == list(range(20))


def test_embeddings_of_the_tokens_give_what_the_tokens_give(tiny_models, make_context, ids):
    """The rows of the embedding matrix as input: the same logits."""
    from pyllm.core.gguf import GGUFReader

    with GGUFReader(tiny_models["llama"]) as file:
        rows = np.array(file.tensor("token_embd.weight"))[ids]
    by_token, by_row = make_context(), make_context()
    by_token.decode(Batch.from_arrays(ids, outputs="all"))
    by_row.decode(Batch.from_arrays(embeddings=rows, outputs="all"))
    np.testing.assert_allclose(by_row.logits.copy(), by_token.logits.copy(), atol=1e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "either tokens or embeddings"),
        ({"tokens": [1], "embeddings": [[1.0]]}, "either tokens or embeddings"),
        ({"tokens": []}, "at least 1 token"),
        ({"tokens": [1.5]}, "tokens must be integers"),
        ({"tokens": [[1, 2]]}, "tokens must be integers in 1 dimension"),
        ({"tokens": "abc"}, "tokens must be integers"),
        ({"tokens": [2**31]}, "32 bits"),
        ({"tokens": [2**64]}, "tokens must be"),
        ({"tokens": [1, 2], "pos": [0]}, r"pos has shape \(1,\) for 2 tokens"),
        ({"tokens": [1, 2], "pos": [0, -1]}, "positions start at 0, and one is -1"),
        ({"tokens": [1, 2], "pos": [0, 2**40]}, "32 bits"),
        ({"tokens": [1, 2], "pos": [0.0, 1.0]}, "pos must be integers"),
        ({"tokens": [1, 2], "pos": [[0, 1]] * 4}, "embeddings only"),
        ({"tokens": [1, 2], "seq_ids": [0]}, "seq_ids has shape"),
        ({"tokens": [1, 2], "seq_ids": [[0], [-1]]}, "needs a sequence id >= 0"),
        ({"tokens": [1, 2], "seq_ids": -1}, "needs a sequence id >= 0"),
        ({"tokens": [1, 2], "seq_ids": [[], []]}, "seq_ids has shape"),
        ({"tokens": [1, 2], "seq_ids": [[[0]], [[0]]]}, "seq_ids must be integers"),
        ({"tokens": [1, 2], "outputs": "first"}, "'last', 'all', 'none'"),
        ({"tokens": [1, 2], "outputs": [True]}, r"outputs has shape \(1,\)"),
        ({"tokens": [1, 2], "outputs": [0.5, 1.0]}, "outputs has shape"),
        ({"embeddings": [1.0, 2.0]}, r"shape \(n, n_embd\)"),
        ({"embeddings": np.zeros((0, 64))}, "at least 1 token"),
        ({"embeddings": np.zeros((3, 0))}, "embeddings"),
        ({"embeddings": np.zeros((3, 64)), "pos": [0]}, "pos has shape"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(errors.InvalidBatchError, match=message):
        Batch.from_arrays(**arguments)


# Token by token


def test_add():
    batch = Batch(8, n_seq_max=2)
    assert batch.add(5, 0) == 0
    assert batch.add(6, 1, 1, output=True) == 1
    assert batch.add(7, 2, (0, 1)) == 2
    assert batch.tokens.tolist() == [5, 6, 7] and batch.pos.tolist() == [0, 1, 2]
    assert batch.seq_ids == [(0,), (1,), (0, 1)] and batch.outputs.tolist() == [False, True, False]
    assert (len(batch), batch.capacity, batch.n_outputs) == (3, 8, 1)
    assert batch.clear() is batch and (len(batch), batch.n_outputs) == (0, 0)
    assert batch.tokens.tolist() == [] and batch.seq_ids == []


def test_add_sequence():
    batch = Batch(16)
    assert batch.add_sequence([5, 6, 7], pos=3, seq_id=1) == range(0, 3)
    assert batch.add_sequence(np.array([8, 9], np.int64), outputs="all") == range(3, 5)
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9] and batch.pos.tolist() == [3, 4, 5, 0, 1]
    assert batch.seq_ids == [(1,)] * 3 + [(0,)] * 2
    assert batch.outputs.tolist() == [False, False, True, True, True] and batch.n_outputs == 3
    assert batch.add_sequence([]) == range(5, 5)


def test_one_way_and_the_other_are_the_same(make_context, ids):
    by_hand, arrays = make_context(n_seq_max=2), make_context(n_seq_max=2)
    batch = Batch(64)
    batch.add_sequence(ids[:10], seq_id=1, outputs="all")
    for i, token in enumerate(ids[10:15]):
        batch.add(int(token), i, 0, output=True)
    by_hand.decode(batch)
    arrays.decode(Batch.from_arrays(ids[:15], pos=[*range(10), *range(5)], seq_ids=[1] * 10 + [0] * 5, outputs="all"))
    assert np.array_equal(by_hand.logits.copy(), arrays.logits.copy())


def test_a_batch_is_used_again(context, ids):
    batch = Batch(8)
    for i, token in enumerate(ids[:20]):
        batch.clear().add(int(token), i, output=True)
        context.decode(batch)
    assert context.memory.pos_max(0) == 19


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda batch: batch.add(1, -1), "positions start at 0"),
        (lambda batch: batch.add(1, 0, (0, 1)), "1 to 1 sequences"),
        (lambda batch: batch.add(1, 0, ()), "1 to 1 sequences"),
        (lambda batch: [batch.add(1, i) for i in range(3)], "full.*2 tokens"),
        (lambda batch: batch.add_sequence([1, 2, 3]), "3 more tokens do not fit"),
        (lambda batch: batch.add_sequence([1], pos=-1), "start at 0"),
        (lambda batch: batch.add_sequence([1], seq_id=-1), "start at 0"),
        (lambda batch: batch.add_sequence([1, 2], pos=2**31 - 2), "pos"),
        (lambda batch: batch.add_sequence([1.5]), "integers"),
        (lambda batch: batch.add_sequence([1], outputs="first"), "'last', 'all', 'none'"),
    ],
)
def test_what_add_refuses(call, message):
    with pytest.raises(errors.InvalidBatchError, match=message):
        call(Batch(2))


def test_a_refused_add_leaves_the_batch(context):
    batch = Batch(2)
    batch.add(1, 0, output=True)
    with pytest.raises(errors.InvalidBatchError):
        batch.add_sequence([1, 2, 3])
    with pytest.raises(errors.InvalidBatchError):
        batch.add(1, -1)
    assert (len(batch), batch.n_outputs) == (1, 1)


def test_add_needs_a_batch_made_for_it():
    for batch in (Batch.from_arrays([1]), Batch.from_arrays(embeddings=np.zeros((1, 64)))):
        for call in (lambda batch=batch: batch.add(1, 0), lambda batch=batch: batch.add_sequence([1])):
            with pytest.raises(errors.InvalidBatchError, match="Batch\\(n_tokens\\)"):
                call()


@pytest.mark.parametrize("arguments", [{"n_tokens": 0}, {"n_tokens": -5}, {"n_seq_max": 0}])
def test_sizes_must_be_positive(arguments):
    with pytest.raises(errors.InvalidBatchError, match="at least 1"):
        Batch(**arguments)


def test_invalid_numbers():
    batch = Batch(3)
    for call in (lambda: Batch("3"), lambda: Batch(2**40), lambda: batch.add("a", 0), lambda: batch.add(1, 0, "a")):
        with pytest.raises((TypeError, errors.InvalidArgumentError, errors.InvalidBatchError)):
            call()


# What a context refuses


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tokens": [1, -1]}, "token -1 at index 1.*0 to 458"),
        ({"tokens": [459]}, "token 459 at index 0.*0 to 458"),
        ({"tokens": [1, 2], "seq_ids": [0, 2]}, "sequence id 2 at index 1.*n_seq_max=2"),
        ({"tokens": [1, 2], "seq_ids": 2**31 - 1}, "sequence id 2147483647"),
        ({"tokens": [1] * 65}, "65 tokens.*n_batch=64"),
        ({"embeddings": np.zeros((1, 63))}, "63 numbers.*64"),
        ({"embeddings": np.zeros((2, 64)), "pos": np.zeros((4, 2), int)}, "1 position"),
        ({"tokens": [1, 2, 3], "pos": [0, 1, 3]}, "refused"),
        ({"tokens": [1, 2, 3], "pos": [2, 1, 0]}, "refused"),
    ],
)
def test_what_a_context_refuses(make_context, arguments, message):
    context = make_context(n_batch=64, n_seq_max=2)
    with pytest.raises(errors.InvalidBatchError, match=message):
        context.decode(Batch.from_arrays(**arguments))
    assert context.memory.pos_max(0) == -1
    context.decode(Batch.from_arrays([1, 2]))


def test_an_empty_batch(context):
    with pytest.raises(errors.InvalidBatchError, match="empty"):
        context.decode(Batch(3))


@pytest.mark.parametrize("wrong", [None, [1, 2], 3])
def test_only_batches_are_decoded(context, wrong):
    with pytest.raises(TypeError):
        context.decode(wrong)


def test_a_token_of_several_sequences(make_context, ids):
    """One prompt decoded once for two sequences gives what each alone gives."""
    alone = make_context(n_seq_max=2, kv_unified=True)
    alone.decode(Batch.from_arrays(ids, seq_ids=0))
    shared = make_context(n_seq_max=2, kv_unified=True)
    shared.decode(Batch.from_arrays(ids, seq_ids=[[0, 1]] * len(ids)))
    assert np.array_equal(alone.logits.copy(), shared.logits.copy())
    assert [shared.memory.pos_max(i) for i in (0, 1)] == [len(ids) - 1] * 2
    shared.decode(Batch.from_arrays([7, 8], pos=[len(ids)] * 2, seq_ids=[0, 1], outputs="all"))
    alone.decode(Batch.from_arrays([7]))
    np.testing.assert_allclose(shared.logits[0], alone.logits[0], atol=2e-2)


def test_a_token_of_several_sequences_needs_a_unified_cache(make_context, ids):
    context = make_context(n_seq_max=2, kv_unified=False)
    with pytest.raises(errors.PyllmError, match="kv_unified"):
        context.decode(Batch.from_arrays(ids, seq_ids=[[0, 1]] * len(ids)))

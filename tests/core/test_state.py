"""Saved states: they come back to the bit, and what is wrong with them is an error that changes nothing."""

import struct

import numpy as np
import pytest
from support import isolation

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.state import StateFlags

KINDS = ["llama", "gemma3", "mamba", "jamba"]


def decode(context, ids, pos=0, seq_id=0):
    batch = Batch.from_arrays(ids, pos=np.arange(pos, pos + len(ids)), seq_ids=[seq_id] * len(ids), outputs="last")
    context.decode(batch)
    return context.logits.copy()


def step(context, token, pos, seq_id=0):
    """The logits after one more token, which is forgotten again where that can be done."""
    return decode(context, [token], pos, seq_id)


@pytest.fixture
def pair(load, make_context):
    def pair(kind, **arguments):
        model = load(kind)
        ids = model.vocab.tokenize_array("the more people look at the number the more")[:12]
        return make_context(model, **arguments), make_context(model, **arguments), ids

    return pair


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_context_goes_on_to_the_bit(pair, kind):
    one, other, ids = pair(kind)
    decode(one, ids)
    saved = one.state.save()
    assert len(saved) == one.state.size()
    other.state.load(saved)
    assert np.array_equal(step(one, 7, len(ids)), step(other, 7, len(ids)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_goes_on_under_another_number(pair, kind):
    one, other, ids = pair(kind, n_seq_max=3)
    decode(one, ids, seq_id=1)
    saved = one.state.save(1)
    assert len(saved) == one.state.size(1)
    decode(other, ids[:3], seq_id=0)
    other.state.load(saved, 2)
    assert other.memory.pos_max(2) == len(ids) - 1
    assert other.memory.pos_max(0) == 2
    assert np.allclose(step(one, 7, len(ids), 1), step(other, 7, len(ids), 2), atol=1e-5)


def test_save_into_memory_of_yours(pair):
    one, other, ids = pair("llama")
    decode(one, ids)
    buffer = np.zeros(one.state.size() + 100, np.uint8)
    n = one.state.save_into(buffer)
    assert buffer[:n].tobytes() == one.state.save()
    other.state.load(buffer[:n])
    assert np.array_equal(step(one, 7, len(ids)), step(other, 7, len(ids)))
    with pytest.raises(errors.InvalidArgumentError, match="has 10 bytes and the state needs"):
        one.state.save_into(bytearray(10))
    with pytest.raises(BufferError):
        one.state.save_into(bytes(n))


def test_partial_states_restore_what_a_rollback_cannot(pair):
    one, _, ids = pair("mamba")
    decode(one, ids)
    before = one.state.save(0, flags=StateFlags.PARTIAL_ONLY)
    expected = step(one, 7, len(ids))
    one.state.load(before, 0, flags=StateFlags.PARTIAL_ONLY)
    assert np.array_equal(step(one, 7, len(ids)), expected)
    with pytest.raises(errors.StateError, match="flags"):
        one.state.load(before, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_stay_on_the_device(pair, kind):
    one, other, ids = pair(kind)
    decode(one, ids)
    ticket = one.state.save(0, flags=StateFlags.ON_DEVICE)
    expected = step(one, 7, len(ids))
    one.state.load(ticket, 0, flags=StateFlags.ON_DEVICE)
    assert np.array_equal(step(one, 7, len(ids)), expected)
    with pytest.raises(errors.StateError, match="not there any more"):
        other.state.load(ticket, 0, flags=StateFlags.ON_DEVICE)
    one.state.save(0, flags=StateFlags.ON_DEVICE)
    with pytest.raises(errors.StateError, match="not there any more"):
        one.state.load(ticket, 0, flags=StateFlags.ON_DEVICE)


def test_logits_of_before_are_stale(pair):
    one, other, ids = pair("llama")
    decode(one, ids)
    decode(other, ids[:4])
    old = other.logits
    other.state.load(one.state.save())
    with pytest.raises(errors.StaleLogitsError):
        old[0]
    with pytest.raises(errors.NoOutputError):
        _ = other.logits


@pytest.mark.parametrize("seq_id", [None, 1])
def test_files(pair, tmp_path, seq_id):
    one, other, ids = pair("llama", n_seq_max=2, kv_unified=True)
    decode(one, ids, seq_id=seq_id or 0)
    path = tmp_path / "state.bin"
    assert one.state.save_file(path, ids, seq_id) == path.stat().st_size
    tokens = other.state.load_file(path, seq_id)
    assert tokens == ids.tolist()
    assert np.array_equal(step(one, 7, len(ids), seq_id or 0), step(other, 7, len(ids), seq_id or 0))
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.bin"]
    with pytest.raises(errors.StateError, match="whole context" if seq_id == 1 else "n_ctx|damaged|holds"):
        one.state.save_file(path, ids, None if seq_id == 1 else 1)
        other.state.load_file(path, seq_id)


def test_tokens_in_files_are_checked(pair, tmp_path):
    one, _, ids = pair("llama")
    decode(one, ids)
    path = tmp_path / "state.bin"
    for wrong in ([-1], [10**6]):
        with pytest.raises(errors.InvalidArgumentError, match="the vocabulary has"):
            one.state.save_file(path, wrong)
    with pytest.raises(errors.InvalidArgumentError, match="integers"):
        one.state.save_file(path, [1.5])
    assert list(tmp_path.iterdir()) == []
    one.state.save_file(path, ids)
    data = bytearray(path.read_bytes())
    struct.pack_into("<i", data, 12, 10**6)
    path.write_bytes(data)
    with pytest.raises(errors.StateError, match="token 1000000"):
        one.state.load_file(path)
    struct.pack_into("<I", data, 8, 2**30)
    path.write_bytes(data)
    with pytest.raises(errors.StateError, match="1073741824 tokens"):
        one.state.load_file(path)
    with pytest.raises(FileNotFoundError):
        one.state.load_file(tmp_path / "nothing")


def test_what_does_not_fit_changes_nothing(load, make_context):
    model = load("llama")
    ids = model.vocab.tokenize_array("the more people look at the number")[:8]
    source = make_context(model)
    decode(source, ids)
    saved, one_sequence = source.state.save(), source.state.save(0)
    many = make_context(model, n_seq_max=4, kv_unified=True)
    decode(many, ids, seq_id=3)
    others = {
        "another architecture": (make_context(load("gemma3")), saved, None),
        "other weights": (make_context(load("llama", n_layer=3)), saved, None),
        "another type of K": (make_context(model, type_k="f32"), saved, None),
        "another type, a sequence": (make_context(model, type_k="f32"), one_sequence, 0),
        "too small": (make_context(model, n_ctx=256, n_seq_max=64), one_sequence, 0),
        "fewer sequences": (make_context(model), many.state.save(), None),
        "other streams": (make_context(model, n_seq_max=4, kv_unified=False), saved, None),
    }
    for what, (context, data, seq_id) in others.items():
        decode(context, [1, 5])
        before = context.state.save()
        with pytest.raises(errors.StateError):
            context.state.load(data, seq_id)
            pytest.fail(what)
        assert context.state.save() == before, what
        assert np.isfinite(step(context, 6, 2)).all()


def test_arguments_out_of_range(pair):
    one, _, ids = pair("llama")
    decode(one, ids)
    state = one.state
    with pytest.raises(errors.InvalidArgumentError, match="n_seq_max=1"):
        state.save(1)
    with pytest.raises(errors.InvalidArgumentError, match="at least 0"):
        state.save(-1)
    with pytest.raises(errors.InvalidArgumentError, match="flags need a sequence"):
        state.save(flags=1)
    with pytest.raises(errors.InvalidArgumentError, match="flags="):
        state.save(0, flags=4)
    with pytest.raises(TypeError):
        state.save(0.5)
    with pytest.raises(TypeError):
        state.load("text")
    with pytest.raises(errors.StateError, match="this is the state of one sequence"):
        state.load(state.save(0))
    one.close()
    for call in (state.save, state.size, lambda: state.load(b"")):
        with pytest.raises(errors.ClosedError):
            call()


def test_raw_bytes_of_llama_cpp(pair):
    one, other, ids = pair("llama")
    decode(one, ids)
    other.state.load(one.state.save()[:-40], raw=True)
    other.memory.clear()
    other.state.load(one.state.save(0)[:-40], 0, raw=True)
    assert np.array_equal(step(one, 7, len(ids)), step(other, 7, len(ids)))


FUZZ = """
import random
from pyllm.core.gguf import GGUFReader
model = Model(PATH)
random.seed(7)
context = Context(model, n_ctx=64, n_seq_max=2, kv_unified=True, n_threads=1)
context.decode(Batch.from_arrays([1, 5, 6]))
before = context.state.save()
source = Context(model, n_ctx=64, n_seq_max=2, kv_unified=True, n_threads=1)
source.decode(Batch.from_arrays([3, 4]))
whole, one = source.state.save(), source.state.save(0)

def attempt(data, seq_id, **arguments):
    try:
        context.state.load(data, seq_id, **arguments)
    except errors.StateError:
        assert context.state.save() == before
        return 0
    # What llama.cpp takes, it can compute with and save; then back to the beginning.
    context.state.save()
    context.memory.clear()
    context.state.load(before)
    assert context.state.save() == before
    return 1

for data, seq_id in ((whole, None), (one, 1)):
    for n in list(range(0, 400)) + list(range(400, len(data), 97)):
        assert not attempt(data[:n], seq_id)
        if n < len(data) - 40:
            assert not attempt(data[:n], seq_id, raw=True)
    raw = data[:-40]
    for i in list(range(400)) * 2 + [len(data) - 1 - i for i in range(40)]:
        flipped = bytearray(data)
        flipped[i] ^= 1 << random.randrange(8)
        assert not attempt(bytes(flipped), seq_id)
        if i < 400:
            attempt(bytes(flipped)[:-40], seq_id, raw=True)
    for size in (0, 1, 8, 39, 40, 41, 500, 5000):
        noise = random.randbytes(size)
        assert not attempt(noise, seq_id)
        assert not attempt(noise, seq_id, raw=True)
context.decode(Batch.from_arrays([7], pos=[3]))
assert np.isfinite(context.logits[0]).all()
"""


@pytest.mark.process
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_states_never_kill(tiny_models, kind):
    isolation.survive(FUZZ, tiny_models[kind])


FUZZ_FILES = """
import random
model = Model(PATH)
random.seed(7)
path = sys.argv[2]
context = Context(model, n_ctx=64, n_threads=1)
context.decode(Batch.from_arrays([1, 5, 6]))
before = context.state.save()
source = Context(model, n_ctx=64, n_threads=1)
source.decode(Batch.from_arrays([3, 4]))
for seq_id in (None, 0):
    source.state.save_file(path, [3, 4], seq_id)
    data = open(path, "rb").read()
    for i in range(0, 300):
        flipped = bytearray(data)
        flipped[i] ^= 1 << random.randrange(8)
        for content in (bytes(flipped), data[:i], data + bytes(i) if i else data[:-1]):
            open(path, "wb").write(content)
            try:
                context.state.load_file(path, seq_id)
                context.memory.clear()
                context.state.load(before)
            except errors.StateError:
                pass
            assert context.state.save() == before
"""


@pytest.mark.process
def test_damaged_files_never_kill(tiny_models, tmp_path):
    isolation.survive(FUZZ_FILES, tiny_models["llama"], tmp_path / "state.bin")

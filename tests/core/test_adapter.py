"""LoRA adapters and control vectors, against models with merged weights."""

import gc
import weakref

import numpy as np
import pytest
from support import isolation

from pyllm import errors
from pyllm.core.adapter import LoraAdapter
from pyllm.core.batch import Batch
from pyllm.core.gguf import GGUFReader, GGUFWriter

RANK, ALPHA = 4, 8.0
TARGETS = ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight")


def write_lora(path, model_path, seed, targets=TARGETS, arch="llama", **extra):
    """A random adapter; returns what it adds to each weight at scale 1."""
    random = np.random.default_rng(seed)
    writer = GGUFWriter()
    writer.add("general.type", "adapter")
    writer.add("general.architecture", arch)
    writer.add("general.name", f"tiny {seed}")
    writer.add("adapter.type", "lora")
    writer.add("adapter.lora.alpha", ALPHA)
    if "tokens" in extra:
        writer.add("adapter.alora.invocation_tokens", extra["tokens"], "uint32")
    deltas = {}
    with GGUFReader(model_path) as model:
        shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    for name in targets:
        rows, columns = shapes.get(name, (64, 64))
        a = random.normal(0, 0.1, (RANK, columns)).astype(np.float32)
        b = random.normal(0, 0.1, (rows + extra.get("more_rows", 0), RANK)).astype(np.float32)
        writer.add_tensor(f"{name}.lora_a", a, extra.get("type"))
        if not extra.get("half"):
            writer.add_tensor(f"{name}.lora_b", b, extra.get("type"))
        deltas[name] = ALPHA / RANK * (b @ a)
    writer.write(path)
    return deltas


def merged(path, model_path, *parts):
    """The model with deltas times scales in its weights."""
    writer = GGUFWriter()
    with GGUFReader(model_path) as model:
        for key, value in model.metadata.items():
            writer.add(key, value)
        for tensor in model.tensors:
            values = model.tensor(tensor.name)
            for deltas, scale in parts:
                if tensor.name in deltas:
                    values = values + np.float32(scale) * deltas[tensor.name]
            writer.add_tensor(tensor.name, values)
        writer.write(path)
    return path


@pytest.fixture
def lora(tmp_path, tiny_models):
    """`lora(seed)`: path and deltas of an adapter for the tiny model."""

    def lora(seed=0, **extra):
        path = tmp_path / f"lora-{seed}.gguf"
        return path, write_lora(path, tiny_models["llama"], seed, **extra)

    return lora


def logits(context, ids):
    context.memory.clear()
    context.decode(Batch.from_arrays(ids, outputs="all"))
    return context.logits.copy()


@pytest.fixture
def exact(make_context):
    return lambda model: make_context(model, flash_attn_type="disabled", type_k="f32", type_v="f32")


def test_adapters_are_merged_weights(tmp_path, tiny_models, tiny_model, make_model, exact, ids, lora):
    (one_path, one_deltas), (two_path, two_deltas) = lora(1), lora(2)
    context = exact(tiny_model)
    plain = logits(context, ids)
    with LoraAdapter(tiny_model, one_path) as one, LoraAdapter(tiny_model, two_path) as two:
        for adapters, parts in (
            ({one: 1.0}, [(one_deltas, 1.0)]),
            ({one: 0.5, two: -1.5}, [(one_deltas, 0.5), (two_deltas, -1.5)]),
            ([(two, 2)], [(two_deltas, 2.0)]),
        ):
            context.set_adapters(adapters)
            path = merged(tmp_path / "merged.gguf", tiny_models["llama"], *parts)
            expected = logits(exact(make_model(path, load_mode="none")), ids)
            found = logits(context, ids)
            assert np.abs(found - expected).max() < 1e-4
            assert np.abs(found - plain).max() > 0.01
        context.set_adapters({one: 0.0})
        assert np.array_equal(logits(context, ids), plain)
        context.set_adapters([])
        assert context.adapters == ()
        assert np.array_equal(logits(context, ids), plain)


def test_facts_of_an_adapter(tiny_model, lora):
    path, _ = lora(3, tokens=[1, 5, 6])
    with LoraAdapter(tiny_model, path) as adapter:
        assert adapter.metadata["general.name"] == "tiny 3"
        assert adapter.metadata["adapter.lora.alpha"].startswith("8")
        assert adapter.meta("adapter.type") == "lora"
        assert adapter.meta("nothing") is None
        assert adapter.alora_tokens == [1, 5, 6]
        assert adapter.address
        assert adapter.model is tiny_model
        assert str(path) in repr(adapter)
    assert adapter.closed


def test_from_an_open_file(tmp_path, tiny_model, make_context, ids, lora):
    path, _ = lora(1)
    inside = tmp_path / "archive.bin"
    inside.write_bytes(bytes(64) + path.read_bytes())
    context = make_context()
    with LoraAdapter(tiny_model, path) as adapter:
        context.set_adapters({adapter: 1})
        expected = logits(context, ids)
    with open(inside, "rb") as file:
        file.seek(64)
        adapter = LoraAdapter(tiny_model, file)
        assert file.tell() == 64
        assert file.read(4) == b"GGUF"
    context.set_adapters({adapter: 1})
    assert np.array_equal(logits(context, ids), expected)
    import io

    with pytest.raises(errors.InvalidArgumentError, match="C can read"):
        LoraAdapter(tiny_model, io.BytesIO(path.read_bytes()))


def test_closing_takes_it_out_of_its_contexts(tiny_model, make_context, ids, lora):
    (one_path, _), (two_path, _) = lora(1), lora(2)
    context, plain_context = make_context(), make_context()
    one, two = LoraAdapter(tiny_model, one_path), LoraAdapter(tiny_model, two_path)
    context.set_adapters({two: 1})
    expected = logits(context, ids)
    context.set_adapters({one: 1, two: 1})
    one.close()
    one.close()
    assert context.adapters == ((two, 1.0),)
    assert np.array_equal(logits(context, ids), expected)
    with pytest.raises(errors.ClosedError):
        context.set_adapters({one: 1})
    with pytest.raises(errors.ClosedError):
        _ = one.metadata
    context.close()
    two.close()
    assert np.isfinite(logits(plain_context, ids)).all()


def test_adapters_and_models_keep_each_other_alive(tiny_models, make_model, make_context, ids, lora):
    path, _ = lora(1)
    model = make_model(tiny_models["llama"])
    context = make_context(model)
    adapter = LoraAdapter(model, path)
    context.set_adapters({adapter: 1})
    expected = logits(context, ids)
    reference = weakref.ref(adapter)
    del adapter
    gc.collect()
    assert reference() is context.adapters[0][0]
    assert np.array_equal(logits(context, ids), expected)
    context.set_adapters({})
    gc.collect()
    assert reference() is None
    adapter = LoraAdapter(model, path)
    context.set_adapters({adapter: 1})
    model.close()
    assert adapter.closed
    assert context.closed
    with pytest.raises(errors.ClosedError):
        LoraAdapter(model, path)


def test_what_is_refused(tmp_path, tiny_models, tiny_model, make_model, make_context, load, lora):
    path, _ = lora(1)
    context = make_context()
    for name, extra in {
        "half": {"half": True},
        "tokens": {"tokens": [10**6]},
        "shape": {"more_rows": 32},
        "names": {"targets": ("blk.9.attn_q.weight",)},
        "arch": {"arch": "gemma3"},
        "integers": {"type": "F64"},
    }.items():
        write_lora(tmp_path / "bad.gguf", tiny_models["llama"], 0, **extra)
        with pytest.raises(errors.AdapterError):
            LoraAdapter(tiny_model, tmp_path / "bad.gguf")
            pytest.fail(name)
    with pytest.raises(errors.AdapterError, match="adapter"):
        LoraAdapter(tiny_model, tiny_models["llama"])
    (tmp_path / "bad.gguf").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(errors.AdapterError, match="not within the file bounds"):
        LoraAdapter(tiny_model, tmp_path / "bad.gguf")
    with pytest.raises(FileNotFoundError):
        LoraAdapter(tiny_model, tmp_path / "nothing.gguf")
    with pytest.raises(errors.AdapterError, match="without weights"):
        LoraAdapter(make_model(tiny_models["llama"], vocab_only=True), path)
    adapter = LoraAdapter(tiny_model, path)
    with pytest.raises(errors.AdapterError, match="loaded for"):
        make_context(load("gemma3")).set_adapters({adapter: 1})
    with pytest.raises(errors.AdapterError, match="twice"):
        context.set_adapters([(adapter, 1), (adapter, 1)])
    for scale in (float("nan"), float("inf")):
        with pytest.raises(errors.InvalidArgumentError, match="scale"):
            context.set_adapters({adapter: scale})
    with pytest.raises(TypeError, match="LoraAdapter"):
        context.set_adapters({"a": 1.0})
    assert context.adapters == ()


@pytest.mark.process
def test_damaged_adapters_never_kill(tiny_models, lora):
    path, _ = lora(1)
    isolation.survive(
        """
import random
from pyllm.core.adapter import LoraAdapter
random.seed(3)
model, context = make()
data = open(sys.argv[2], "rb").read()
for i in list(range(700)) + list(range(700, len(data), 501)):
    flipped = bytearray(data)
    flipped[i] ^= 1 << random.randrange(8)
    for content in (flipped, data[:i]):
        open(sys.argv[2], "wb").write(content)
        try:
            adapter = LoraAdapter(model, sys.argv[2])
        except errors.PyllmError:
            continue
        try:
            context.set_adapters({adapter: 1})
            context.memory.clear()
            context.decode(Batch.from_arrays([1, 5]))
        except errors.PyllmError:
            pass
        adapter.close()
context.memory.clear()
context.decode(Batch.from_arrays([1, 5]))
""",
        tiny_models["llama"],
        path,
    )


# Control vectors


def test_a_control_vector_is_added_behind_its_layer(tmp_path, tiny_models, make_model, exact, ids):
    path = tiny_models.make("llama", n_layer=4)
    model = make_model(path)
    context = exact(model)
    plain = logits(context, ids)
    random = np.random.default_rng(0)
    vectors = random.normal(0, 1, (3, 64)).astype(np.float32)
    context.set_control_vector(vectors)
    assert context.control_vector
    all_layers = logits(context, ids)
    assert np.abs(all_layers - plain).max() > 0.1
    # Zeros elsewhere are the same as the range.
    context.set_control_vector(vectors, 2, 2)
    second = logits(context, ids)
    only = np.zeros_like(vectors)
    only[1] = vectors[1]
    context.set_control_vector(only)
    assert np.allclose(logits(context, ids), second, atol=1e-5)
    assert np.abs(second - all_layers).max() > 0.01
    # Behind the last layer it is what is added before the norm: the same as in NumPy.
    context.set_control_vector(None)
    assert not context.control_vector
    assert np.array_equal(logits(context, ids), plain)


def test_control_vectors_that_do_not_fit(tiny_models, make_model, make_context, ids):
    context = make_context(make_model(tiny_models.make("llama", n_layer=4)))
    good = np.zeros((3, 64), np.float32)
    for wrong in (good[:2], good[0], np.zeros((4, 64)), np.full((3, 64), np.nan)):
        with pytest.raises(errors.AdapterError):
            context.set_control_vector(wrong)
    for start, end in ((0, 2), (1, 4), (3, 2), (-1, None)):
        with pytest.raises(errors.InvalidArgumentError, match="layers from 1 to 3"):
            context.set_control_vector(good, start, end)
    with pytest.raises(errors.AdapterError, match="one layer"):
        make_context(make_model(tiny_models.make("llama", n_layer=1))).set_control_vector(good[:0])
    context.close()
    with pytest.raises(errors.ClosedError):
        context.set_control_vector(None)

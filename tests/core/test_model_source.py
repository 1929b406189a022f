"""Models from several files, from an open file, from arrays; and saved again."""

import io

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.gguf import GGUFReader, GGUFWriter
from pyllm.core.model import Model
from pyllm.core.model_source import split_path, split_prefix


@pytest.fixture
def closed_afterwards():
    made = []
    yield lambda model: made.append(model) or model
    for model in made:
        model.close()


def logits(context, ids):
    context.decode(Batch.from_arrays(ids, outputs="all"))
    return context.logits.copy()


def parts_of(path):
    with GGUFReader(path) as file:
        return dict(file.metadata), {tensor.name: file.tensor(tensor.name).copy() for tensor in file.tensors}


def write_parts(paths, metadata, tensors):
    names = sorted(tensors)
    for i, path in enumerate(paths):
        writer = GGUFWriter()
        for key, value in metadata.items() if i == 0 else ():
            writer.add(key, value)
        writer.add("split.no", i, "uint16")
        writer.add("split.count", len(paths), "uint16")
        writer.add("split.tensors.count", len(names), "int32")
        for name in names[i :: len(paths)]:
            writer.add_tensor(name, tensors[name])
        writer.write(path)


def test_from_splits(tmp_path, tiny_models, make_context, ids, closed_afterwards, tiny_model):
    paths = [tmp_path / name for name in ("first", "second part", "dritter.gguf")]
    write_parts(paths, *parts_of(tiny_models["llama"]))
    model = closed_afterwards(Model.from_splits(paths))
    assert np.array_equal(logits(make_context(model), ids), logits(make_context(tiny_model), ids))
    assert model.path == str(paths[0])
    with pytest.raises(errors.ModelLoadError) as raised:
        Model.from_splits(paths[:2])
    assert any("split" in line for line in raised.value.log)
    with pytest.raises(errors.ModelLoadError):
        Model.from_splits([paths[0], paths[2], paths[1]])
    with pytest.raises(errors.ModelNotFoundError, match="nothing"):
        Model.from_splits([*paths[:2], tmp_path / "nothing"])
    with pytest.raises(errors.InvalidArgumentError, match="empty"):
        Model.from_splits([])
    with pytest.raises(TypeError, match="list of paths"):
        Model.from_splits(str(paths[0]))


def test_parts_with_usual_names(tmp_path, tiny_models, make_model, make_context, ids, tiny_model):
    paths = [split_path(tmp_path / "tiny", i, 2) for i in range(2)]
    assert paths[1].endswith("tiny-00002-of-00002.gguf")
    assert split_prefix(paths[1], 1, 2) == str(tmp_path / "tiny")
    assert split_prefix(paths[1], 0, 2) is None
    write_parts(paths, *parts_of(tiny_models["llama"]))
    assert np.array_equal(logits(make_context(make_model(paths[0])), ids), logits(make_context(tiny_model), ids))
    with pytest.raises(errors.InvalidArgumentError, match="from 0 to 1"):
        split_path("a", 2, 2)


@pytest.mark.parametrize("load_mode", ["auto", "none"])
def test_from_an_open_file(tmp_path, tiny_models, make_context, ids, closed_afterwards, tiny_model, load_mode):
    data = tiny_models["llama"].read_bytes()
    inside = tmp_path / "archive.bin"
    inside.write_bytes(bytes(128) + data)
    with open(inside, "rb") as file:
        file.seek(128)
        model = closed_afterwards(Model.from_file(file, load_mode=load_mode))
        assert file.tell() == 128
        assert file.read(4) == b"GGUF"
    assert np.array_equal(logits(make_context(model), ids), logits(make_context(tiny_model), ids))
    assert model.path == str(inside)
    with open(inside, "rb") as file, pytest.raises(errors.ModelLoadError):
        Model.from_file(file)
    with pytest.raises(errors.InvalidArgumentError, match="C can read"):
        Model.from_file(io.BytesIO(data))
    with open(inside) as file, pytest.raises(errors.InvalidArgumentError, match="text mode"):
        Model.from_file(file)
    with open(inside, "rb") as file:
        file.close()
        with pytest.raises((errors.InvalidArgumentError, ValueError)):
            Model.from_file(file)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3moe", "mamba"])
def test_from_arrays(arch, tiny_models, load, make_context, closed_afterwards):
    metadata, tensors = parts_of(tiny_models[arch])
    model = closed_afterwards(Model.from_arrays(metadata, tensors))
    ids = load(arch).vocab.tokenize("the more people look at the number")
    for array in tensors.values():
        array.fill(0)  # they were copied
    # Weights in another buffer type may be multiplied in another order.
    assert np.allclose(logits(make_context(model), ids), logits(make_context(load(arch)), ids), atol=1e-4)
    assert model.path == "<arrays>"


def test_from_arrays_in_other_types(tiny_models, load, make_context, closed_afterwards):
    metadata, tensors = parts_of(tiny_models["llama"])
    mixed = {name: (array, "Q8_0") if array.ndim == 2 else array for name, array in tensors.items()}
    model = closed_afterwards(Model.from_arrays(metadata, mixed))
    ids = load("llama").vocab.tokenize("the more people")
    difference = np.abs(logits(make_context(model), ids) - logits(make_context(load("llama")), ids)).max()
    assert 0 < difference < 1
    assert model.size < 0.4 * sum(array.nbytes for array in tensors.values())


def test_arrays_that_do_not_make_a_model(tiny_models):
    metadata, tensors = parts_of(tiny_models["llama"])
    with pytest.raises(errors.ModelLoadError, match=r"missing: .*blk.0.attn_q.weight \(64, 64\)"):
        Model.from_arrays(metadata, {k: v for k, v in tensors.items() if k != "blk.0.attn_q.weight"})
    with pytest.raises(errors.ModelLoadError, match=r"no tensors nonsense\.weight"):
        Model.from_arrays(metadata, tensors | {"nonsense.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(errors.ModelLoadError, match=r"has the shape \(32, 64\), and must have \(64, 64\)"):
        Model.from_arrays(metadata, tensors | {"blk.0.attn_q.weight": np.zeros((32, 64), np.float32)})
    with pytest.raises(errors.ModelLoadError, match="i32"):
        Model.from_arrays(metadata, tensors | {"blk.0.attn_q.weight": np.zeros((64, 64), np.int32)})
    with pytest.raises(errors.ModelLoadError):
        Model.from_arrays({"general.architecture": "llama"}, tensors)
    with pytest.raises(errors.GGUFError):
        Model.from_arrays(metadata | {"x": object()}, tensors)


@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "mamba"])
def test_saved_and_loaded_again(arch, tmp_path, tiny_models, make_model, make_context):
    model = make_model(tiny_models[arch], use_extra_bufts=False)
    path = tmp_path / "saved.gguf"
    path.write_text("replaced")
    model.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved.gguf"]
    again = make_model(path, use_extra_bufts=False)
    ids = model.vocab.tokenize_array("the more people look at the number")
    assert np.array_equal(again.vocab.tokenize_array("the more people look at the number"), ids)
    assert np.array_equal(logits(make_context(model), ids), logits(make_context(again), ids))
    model.save(path)  # the file it does not come from
    again.save(path)  # and the one it does


def test_what_cannot_be_saved(tmp_path, tiny_models, make_model):
    with pytest.raises(errors.ModelLoadError, match="use_extra_bufts=False"):
        make_model(tiny_models["llama"]).save(tmp_path / "a.gguf")
    with pytest.raises(errors.ModelLoadError, match="without weights"):
        make_model(tiny_models["llama"], vocab_only=True).save(tmp_path / "a.gguf")
    with pytest.raises(errors.PyllmError):
        make_model(tiny_models["t5"], use_extra_bufts=False).save(tmp_path / "a.gguf")
    with pytest.raises(FileNotFoundError):
        make_model(tiny_models["llama"], use_extra_bufts=False).save(tmp_path / "no folder" / "a.gguf")
    assert list(tmp_path.iterdir()) == []


def test_sampling_metadata(tmp_path, tiny_models, make_model, tiny_model):
    metadata, tensors = parts_of(tiny_models["llama"])
    writer = GGUFWriter()
    for key, value in (metadata | {"general.sampling.temp": 0.5, "general.sampling.top_k": 20}).items():
        writer.add(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write(tmp_path / "a.gguf")
    found = make_model(tmp_path / "a.gguf").sampling_metadata
    assert {key: float(value) for key, value in found.items()} == {"temp": 0.5, "top_k": 20}
    assert tiny_model.sampling_metadata == {}

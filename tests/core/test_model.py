"""Loading models, and what a model tells about itself."""

import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pyllm import enums, errors
from pyllm.core.backend import devices
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.gguf import GGUFReader
from pyllm.core.model import Model

# Facts


def test_facts_of_a_dense_model(tiny_model, tiny_models):
    facts = {
        "n_embd": 64,
        "n_embd_inp": 64,
        "n_embd_out": 64,
        "n_layer": 2,
        "n_layer_nextn": 0,
        "n_head": 4,
        "n_head_kv": 2,
        "n_ctx_train": 512,
        "n_swa": 0,
        "rope_type": enums.RopeType.NORM,
        "rope_freq_scale_train": 1.0,
        "has_encoder": False,
        "has_decoder": True,
        "is_recurrent": False,
        "is_hybrid": False,
        "is_diffusion": False,
        "decoder_start_token": None,
        "cls_labels": [],
        "vocab_only": False,
        "no_alloc": False,
        "closed": False,
        "path": str(tiny_models["llama"]),
    }
    assert {name: getattr(tiny_model, name) for name in facts} == facts
    with GGUFReader(tiny_models["llama"]) as file:
        assert tiny_model.size == sum(tensor.nbytes for tensor in file.tensors)
        assert tiny_model.n_params == sum(int(np.prod(tensor.shape)) for tensor in file.tensors)
    assert "llama" in tiny_model.description and tiny_model.ftype in tiny_model.description
    assert tiny_model.path in repr(tiny_model) and tiny_model.address != 0


def test_facts_of_other_kinds(load):
    assert load("mamba").is_recurrent and not load("mamba").is_hybrid
    assert load("jamba").is_hybrid and not load("jamba").is_recurrent
    assert load("gemma3").n_swa == 16 and load("gemma3").rope_type == enums.RopeType.NEOX
    assert load("t5").has_encoder and load("t5").has_decoder and load("t5").decoder_start_token == 0
    assert load("bert", pooling="rank").cls_labels == ["relevance"] and load("bert").cls_labels == []


def test_metadata_is_that_of_the_file(tiny_model, tiny_models):
    with GGUFReader(tiny_models["llama"]) as file:
        scalars = {key: value for key, value in file.metadata.items() if isinstance(value, (str, int, float))}
    found = tiny_model.metadata
    assert found["general.architecture"] == "llama" and found["llama.block_count"] == "2"
    for key, value in scalars.items():
        if isinstance(value, bool):
            assert found[key] == str(value).lower()
        elif isinstance(value, float):
            assert float(found[key]) == pytest.approx(value, abs=1e-6)
        else:
            assert found[key] == str(value)
        assert tiny_model.meta(key) == found[key]
    assert tiny_model.meta("no.such.key") is None


def test_a_metadata_value_longer_than_any_buffer(tiny_models, make_model):
    template = "{# " + "x" * 100_000 + " é #}"
    model = make_model(tiny_models.make("llama", chat_template=template))
    assert model.chat_template() == model.metadata["tokenizer.chat_template"] == template
    assert model.meta("tokenizer.chat_template") == template


def test_chat_templates(tiny_model, load):
    assert "im_start" in tiny_model.chat_template()
    assert tiny_model.chat_template("tool_use") is None
    assert load("bert").chat_template() is None


def test_the_real_model(smollm2):
    assert (smollm2.n_layer, smollm2.n_embd, smollm2.n_head, smollm2.n_head_kv) == (30, 576, 9, 3)
    assert smollm2.n_ctx_train == 2048 + 6144 and 134e6 < smollm2.n_params < 135e6
    assert smollm2.ftype == "Q4_1" and 80e6 < smollm2.size < 100e6
    assert smollm2.metadata["general.architecture"] == "llama"


# Loading


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_paths_of_any_kind(tiny_models, make_model, kind):
    assert make_model(kind(tiny_models["llama"])).path == str(tiny_models["llama"])


def test_a_path_with_odd_characters(tmp_path, tiny_models, make_model):
    path = tmp_path / "a dir é 🙂" / "mödel.gguf"
    path.parent.mkdir()
    path.write_bytes(tiny_models["llama"].read_bytes())
    assert make_model(path).n_layer == 2


def test_progress_goes_from_0_to_1(tiny_models, make_model):
    seen = []
    make_model(tiny_models["llama"], progress_callback=seen.append)
    assert len(seen) > 1 and seen == sorted(seen) and seen[0] >= 0.0 and seen[-1] == 1.0


def test_progress_can_stop_the_load(tiny_models, make_model):
    calls = []
    with pytest.raises(errors.ModelLoadError):
        make_model(tiny_models["llama"], progress_callback=lambda progress: calls.append(progress) or False)
    assert len(calls) == 1


def test_what_the_progress_callback_raises_is_raised(tiny_models, make_model):
    error = RuntimeError("from the callback")

    def callback(progress):
        raise error

    with pytest.raises(RuntimeError) as caught:
        make_model(tiny_models["llama"], progress_callback=callback)
    assert caught.value is error
    assert make_model(tiny_models["llama"]).n_layer == 2, "the exception must not come up again"


def test_a_progress_callback_that_is_none(tiny_models, make_model):
    with pytest.raises(TypeError, match="callable"):
        make_model(tiny_models["llama"], progress_callback=3)


def test_vocab_only(tiny_models, make_model):
    model = make_model(tiny_models["llama"], vocab_only=True)
    assert model.vocab_only and len(model.vocab) == model.n_vocab and model.metadata
    with pytest.raises(errors.ContextError, match="vocab_only"):
        Context(model)


def test_no_alloc_takes_no_memory_and_computes_nothing(tiny_models, make_model, make_context):
    model = make_model(tiny_models["llama"], no_alloc=True)
    context = make_context(model)
    with pytest.raises(errors.ContextError, match="no_alloc"):
        context.decode(Batch.from_arrays([1]))


def test_kv_overrides_reach_the_model(tiny_models, make_model):
    overrides = {"llama.context_length": 99, "llama.attention.layer_norm_rms_epsilon": 0.5}
    model = make_model(tiny_models["llama"], kv_overrides={**overrides, "tokenizer.ggml.add_bos_token": False})
    assert model.n_ctx_train == 99 and not model.vocab.add_bos


def test_load_modes_give_the_same_model(tiny_models, make_model, make_context, ids):
    rows = []
    for mode in ("auto", "none", "mmap", enums.LoadMode.MMAP):
        context = make_context(make_model(tiny_models["llama"], load_mode=mode, check_tensors=True))
        context.decode(Batch.from_arrays(ids))
        rows.append(context.logits.copy())
    for row in rows:
        assert np.array_equal(row, rows[0])


def test_devices_by_name_or_object(tiny_models, make_model):
    cpu = [device for device in devices() if device.type == "cpu"]
    for given in (cpu[0], cpu[0].name):
        assert make_model(tiny_models["llama"], devices=[given]).n_layer == 2
    with pytest.raises(errors.InvalidArgumentError, match=rf"'GPU7'.*{cpu[0].name}"):
        make_model(tiny_models["llama"], devices=["GPU7"])


def test_buffer_types_by_name(tiny_models, make_model):
    make_model(tiny_models["llama"], tensor_buft_overrides={r"blk\.0\..*": "CPU"})
    with pytest.raises(errors.InvalidArgumentError, match=r"'nowhere'.*CPU"):
        make_model(tiny_models["llama"], tensor_buft_overrides={".*": "nowhere"})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split_mode": "diagonal"}, "split_mode.*'layer'"),
        ({"load_mode": "fast"}, "load_mode.*'mmap'"),
        ({"lazy_mode": 77}, "lazy_mode"),
        ({"main_gpu": -1}, "main_gpu"),
        ({"tensor_split": [1] * 1000}, "tensor_split"),
        ({"tensor_split": [-1.0]}, "tensor_split"),
        ({"tensor_split": [float("nan")]}, "tensor_split"),
        ({"kv_overrides": {"k" * 128: 1}}, "127 bytes"),
        ({"kv_overrides": {"k": "v" * 128}}, "127 bytes"),
        ({"kv_overrides": {"k": [1]}}, "must be int, float, bool or str"),
        ({"kv_overrides": {"a\0b": 1}}, "NUL"),
    ],
)
def test_arguments_out_of_range(tiny_models, make_model, arguments, message):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        make_model(tiny_models["llama"], **arguments)


@pytest.mark.parametrize("arguments", [{"n_gpu_layers": "all"}, {"n_layers": 3}, {"kv_overrides": 3}])
def test_arguments_of_a_wrong_type_or_name(tiny_models, make_model, arguments):
    with pytest.raises(TypeError):
        make_model(tiny_models["llama"], **arguments)


# Files that are no models


def test_no_such_file(tmp_path, make_model):
    path = tmp_path / "none.gguf"
    with pytest.raises(errors.ModelNotFoundError) as caught:
        make_model(path)
    assert isinstance(caught.value, FileNotFoundError) and isinstance(caught.value, errors.ModelLoadError)
    assert str(path) in str(caught.value)


def test_a_folder(tmp_path, make_model):
    with pytest.raises(errors.ModelLoadError, match="cannot be read"):
        make_model(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path, make_model, tiny_models):
    path = tmp_path / "secret.gguf"
    path.write_bytes(tiny_models["llama"].read_bytes())
    path.chmod(0)
    with pytest.raises(errors.ModelLoadError, match="cannot be read"):
        make_model(path)


@pytest.mark.parametrize("data", [b"", b"GG", b"PK\3\4 not a model", b"\0" * 100])
def test_not_gguf(tmp_path, make_model, data):
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(errors.ModelLoadError, match="not a GGUF file") as caught:
        make_model(path)
    assert caught.value.log


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_truncated(tmp_path, make_model, tiny_models, share):
    data = tiny_models["llama"].read_bytes()
    path = tmp_path / "a.gguf"
    path.write_bytes(data[: max(4, int(len(data) * share))])
    with pytest.raises(errors.ModelLoadError) as caught:
        make_model(path)
    assert caught.value.function == "llama_model_load_from_file" and caught.value.log


def test_an_unknown_architecture_in_llama_cpps_own_words(tmp_path, make_model, tiny_models):
    path = tmp_path / "a.gguf"
    data = tiny_models["llama"].read_bytes()
    key = b"general.architecture" + struct.pack("<IQ", 8, 5)
    assert key + b"llama" in data
    path.write_bytes(data.replace(key + b"llama", key + b"lhama"))
    with pytest.raises(errors.ModelLoadError) as caught:
        make_model(path)
    assert any("unknown model architecture: 'lhama'" in line for line in caught.value.log)
    assert "lhama" in str(caught.value)


@pytest.mark.process
def test_damaged_metadata_never_kills(tmp_path, tiny_models):
    """Random bytes anywhere in the header: an exception or a model, each in a process that goes on."""
    data = tiny_models["llama"].read_bytes()
    program = """
import sys, numpy as np
from pathlib import Path
from pyllm import PyllmError
from pyllm.core.model import Model
data = bytearray(Path(sys.argv[1]).read_bytes())
rng = np.random.default_rng(int(sys.argv[3]))
failed = 0
for _ in range(60):
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        damaged[rng.integers(4, 3000)] = rng.integers(256)
    Path(sys.argv[2]).write_bytes(damaged)
    try:
        Model(sys.argv[2]).close()
    except (PyllmError, MemoryError):
        failed += 1
print("survived", failed)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tiny_models["llama"], tmp_path / "a.gguf", "1"],
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0 and done.stdout.startswith("survived"), done.stderr[-3000:]
    assert int(done.stdout.split()[1]) > 5 and len(data) > 3000


def test_a_nul_in_the_path(make_model):
    with pytest.raises((errors.InvalidArgumentError, ValueError), match=r"NUL|null"):
        make_model("a\0b.gguf")


# Closing


def test_close_and_everything_after_it(tiny_models, make_model):
    model = make_model(tiny_models["llama"])
    model.close()
    model.close()
    assert model.closed and "closed" in repr(model)
    after = {
        "close",
        "closed",
        "path",
        "vocab_only",
        "no_alloc",
        "from_splits",
        "from_file",
        "from_arrays",
        "from_address",
    }
    names = [name for name in dir(model) if not name.startswith("_") and name not in after]
    assert len(names) > 20
    for name in names:
        with pytest.raises(errors.ClosedError, match="closed"):
            value = getattr(model, name)
            value(*(("x",) if name in ("meta", "save") else ()))
    with pytest.raises(errors.ClosedError):
        Context(model)


def test_with_closes_even_when_something_is_raised(tiny_models):
    with pytest.raises(KeyError), Model(tiny_models["llama"]) as model:
        raise KeyError
    assert model.closed


def test_closing_a_model_closes_its_contexts_first(tiny_models, make_model, ids):
    model = make_model(tiny_models["llama"])
    contexts = [Context(model, n_ctx=256, n_threads=1) for _ in range(3)]
    contexts[0].decode(Batch.from_arrays(ids))
    model.close()
    assert all(context.closed for context in contexts)
    with pytest.raises(errors.ClosedError):
        contexts[0].decode(Batch.from_arrays(ids))


def test_closing_waits_for_a_call_that_is_running(tiny_models, make_model):
    model = make_model(tiny_models["llama"])
    vocab, text, ended = model.vocab, "the more people look " * 20_000, []

    def work():
        ended.append(len(vocab.tokenize(text)))

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.01)
    model.close()
    thread.join()
    assert ended and ended[0] > 20_000


def test_threads_load_at_the_same_time(tiny_models):
    models = []
    threads = [threading.Thread(target=lambda: models.append(Model(tiny_models["llama"]))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({model.address for model in models}) == 6
    for model in models:
        model.close()

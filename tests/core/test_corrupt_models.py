"""Model files that are damaged or were never models: ModelLoadError with llama.cpp's own words, never a crash."""

from __future__ import annotations

import os
import struct
import sys

import numpy as np
import pytest
from support import isolation

from pyllm import errors
from pyllm.core.gguf import GGUFReader, GGUFWriter
from pyllm.core.model import Model


@pytest.fixture
def file(tmp_path):
    """`file(bytes)`: a path with that content."""

    def write(content):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture(scope="module")
def good(tiny_models):
    return tiny_models["llama"].read_bytes()


def refused(path, *words, kind=errors.ModelLoadError):
    with pytest.raises(kind) as info:
        Model(path)
    error = info.value
    assert isinstance(error, OSError) and str(path) in str(error)
    said = " ".join(error.log)
    for word in words:
        assert word in said, error.log
    return error


def rewritten(path, tmp_path, *, keys=None, tensors=None):
    """A copy of a model with other metadata (None: without that key) and tensors."""
    keys, tensors = keys or {}, tensors or {}
    with GGUFReader(path) as reader:
        writer = GGUFWriter()
        for key, value in (dict(reader.metadata) | keys).items():
            if value is not None and key != "general.alignment":
                writer.add(key, value)
        for info in reader.tensors:
            array = tensors.get(info.name, reader.tensor(info.name))
            if array is not None:
                writer.add_tensor(info.name, np.array(array))
    out = tmp_path / "rewritten.gguf"
    writer.write(out)
    return out


# ---- files that are none


def test_there_is_no_file(tmp_path):
    error = refused(tmp_path / "nothing.gguf", kind=errors.ModelNotFoundError)
    assert isinstance(error, FileNotFoundError)


def test_a_folder(tmp_path):
    refused(tmp_path)


def test_an_empty_file(file):
    refused(file(b""), "magic")


@pytest.mark.parametrize(
    "content", [b"G", b"GGU", b"not a model at all", b"\0" * 5000, b"GGML" + bytes(100), b"PK\x03\x04"]
)
def test_files_of_another_kind(file, content):
    refused(file(content), "magic")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(file, good):
    path = file(good)
    path.chmod(0)
    error = refused(path)
    assert isinstance(error.__cause__, PermissionError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_device_and_a_socket(tmp_path):
    import socket

    refused("/dev/null", "magic")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        refused(tmp_path / "s")


# ---- damaged headers


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<IQQ", 3, 2**63 - 1, 1),
        struct.pack("<IQQ", 3, 1, 2**63 - 1),
        struct.pack("<IQQ", 3, 2**64 - 1, 2**64 - 1),
        struct.pack("<IQQ", 3, 10**6, 0) + bytes(1000),
        struct.pack("<IQQ", 3, 0, 10**6) + bytes(1000),
        struct.pack("<IQQ", 99, 0, 0),
        struct.pack("<IQQ", 0, 0, 0),
        struct.pack(">IQQ", 3, 1, 1),
        struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + b"key",
        struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 3) + b"key" + struct.pack("<I", 99),
        struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 3) + b"key" + struct.pack("<IIQ", 9, 4, 2**62),
        struct.pack("<IQQ", 3, 0, 0),
        b"",
    ],
    ids=range(13),
)
def test_hostile_headers(file, header):
    assert refused(file(b"GGUF" + header)).log


def test_truncated_files(file, good, tiny_models):
    with GGUFReader(tiny_models["llama"]) as reader:
        start = reader.data_offset
    offsets = [*range(4, 200, 7), *range(200, start, 997), start, start + 1, (start + len(good)) // 2, len(good) - 1]
    for offset in offsets:
        assert refused(file(good[:offset])).log, f"nothing was said about the first {offset} bytes"


def test_a_hole_at_the_end_is_told_from_a_model(file, good):
    error = refused(file(good[:-100]), "not within the file bounds")
    assert "llama.cpp said" in str(error)


# ---- metadata and tensors that do not fit


METADATA = {
    "an unknown architecture": ({"general.architecture": "nonesuch"}, "unknown model architecture: 'nonesuch'"),
    "no architecture": ({"general.architecture": None}, "architecture"),
    "an architecture that is a number": ({"general.architecture": 5}, "general.architecture"),
    "another architecture": ({"general.architecture": "bert"}, "bert."),
    "no context length": ({"llama.context_length": None}, "llama.context_length"),
    "no layers": ({"llama.block_count": None}, "llama.block_count"),
    "more layers than tensors": ({"llama.block_count": 3}, "blk.2"),
    "very many layers": ({"llama.block_count": 10**6}, ""),
    "width 0": ({"llama.embedding_length": 0}, ""),
    "another width": ({"llama.embedding_length": 128}, ""),
    "a very large width": ({"llama.embedding_length": 2**31 - 1}, ""),
    "no heads": ({"llama.attention.head_count": 0}, ""),
    "heads that do not divide": ({"llama.attention.head_count": 3}, ""),
    "no heads for keys": ({"llama.attention.head_count_kv": 0}, ""),
    "text for a number": ({"llama.block_count": "two"}, "llama.block_count"),
    "a negative number": ({"llama.block_count": -1}, "llama.block_count"),
    "rotation of another width": ({"llama.rope.dimension_count": 5}, ""),
    "an unknown tokenizer": ({"tokenizer.ggml.model": "nonesuch"}, "unknown tokenizer: 'nonesuch'"),
    "no tokenizer": ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "token"),
    "tokens that are numbers": ({"tokenizer.ggml.tokens": [1, 2, 3]}, ""),
    "too few tokens": ({"tokenizer.ggml.tokens": ["a", "b"]}, ""),
    "too few scores": ({"tokenizer.ggml.scores": [0.5, 1.0]}, ""),
    "scores that are text": ({"tokenizer.ggml.scores": ["a"] * 459}, ""),
}


@pytest.mark.process
@pytest.mark.parametrize("change", METADATA.values(), ids=METADATA)
def test_metadata_that_does_not_fit(change, tiny_models, tmp_path):
    """In a process of its own: what llama.cpp does not check ends it."""
    keys, word = change
    path = rewritten(tiny_models["llama"], tmp_path, keys=keys)
    isolation.survive(
        """
try:
    model = Model(PATH)
    context = Context(model, n_ctx=64, n_threads=2)
    context.decode(Batch.from_arrays([1]))
    model.vocab.detokenize(model.vocab.tokenize("the cat"))
except errors.PyllmError as exception:
    assert sys.argv[2] in str(exception), exception
    assert exception.log or not isinstance(exception, errors.ModelLoadError)
else:
    raise AssertionError("it was loaded, and decodes")
""",
        path,
        word,
    )


ODD = {
    "an epsilon that is no number": {"llama.attention.layer_norm_rms_epsilon": float("nan")},
    "a negative epsilon": {"llama.attention.layer_norm_rms_epsilon": -1.0},
    "special tokens out of range": {
        "tokenizer.ggml.bos_token_id": 10**6,
        "tokenizer.ggml.eos_token_id": 2**31,
        "tokenizer.ggml.padding_token_id": 2**32 - 1,
    },
    "a context of no length": {"llama.context_length": 0},
    "a frequency of 0": {"llama.rope.freq_base": 0.0},
    "a frequency that is no number": {"llama.rope.freq_base": float("nan")},
    "token types out of range": {"tokenizer.ggml.token_type": [99] * 459},
    "scores that are no numbers": {"tokenizer.ggml.scores": [float("nan")] * 459},
    "the same token everywhere": {"tokenizer.ggml.tokens": ["same"] * 459},
    "empty tokens": {"tokenizer.ggml.tokens": [""] * 459},
    "a very long token": {
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "x" * 10**6] + [f"t{i}" for i in range(455)]
    },
    "a template that is none": {"tokenizer.chat_template": "{% if"},
}


@pytest.mark.process
@pytest.mark.parametrize("keys", ODD.values(), ids=ODD)
def test_metadata_that_is_odd(keys, tiny_models, tmp_path):
    """Loaded or refused, as llama.cpp will; never the end of the process."""
    isolation.survive(
        """
try:
    model = Model(PATH)
    vocab = model.vocab
    [vocab.bos, vocab.eos, vocab.pad, vocab.pieces(), vocab.attrs, vocab.scores, vocab.eog_tokens, model.metadata]
    [model.chat_template(), model.description, vocab.detokenize(vocab.tokenize("the cat", parse_special=True))]
    context = Context(model, n_ctx=64, n_threads=2)
    context.decode(Batch.from_arrays(np.ones(16, int)))
    generation = Generation(context, Chain(Greedy()))
    generation.prefill([1, 2])
    generation.run(5)
except errors.PyllmError:
    pass
""",
        rewritten(tiny_models["llama"], tmp_path, keys=keys),
    )


@pytest.mark.parametrize(
    "name", ["token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.1.ffn_down.weight"]
)
def test_a_missing_tensor(name, tiny_models, tmp_path):
    refused(rewritten(tiny_models["llama"], tmp_path, tensors={name: None}), "not found", name)


@pytest.mark.parametrize("shape", [(63, 64), (64,), (1, 1), (64, 64, 2)])
def test_a_tensor_of_another_shape(shape, tiny_models, tmp_path):
    path = rewritten(tiny_models["llama"], tmp_path, tensors={"blk.0.attn_q.weight": np.zeros(shape, np.float32)})
    refused(path, "blk.0.attn_q.weight")


@pytest.mark.process
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.float64])
@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "token_embd.weight", "output_norm.weight"])
def test_a_tensor_of_another_type(dtype, name, tiny_models, tmp_path):
    """Weights as integers are no weights: refused, or at least no crash when they are used."""
    with GGUFReader(tiny_models["llama"]) as reader:
        shape = reader.tensor(name).shape
    path = rewritten(tiny_models["llama"], tmp_path, tensors={name: np.zeros(shape, dtype)})
    use(path)


@pytest.mark.process
@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "output_norm.weight"])
def test_a_norm_that_no_kernel_takes(name, tiny_models, tmp_path):
    use(rewritten(tiny_models["llama"], tmp_path, tensors={name: np.ones(64, np.float16)}))


def use(path):
    isolation.survive(
        """
try:
    context = Context(Model(PATH), n_ctx=64, n_threads=2)
    for _ in range(2):
        try:
            context.decode(Batch.from_arrays([1, 2]))
        except errors.BackendAssertError:
            time.sleep(0.2)  # until the other threads have had their say
    context.close()
except errors.PyllmError:
    pass
""",
        path,
    )


def test_tensors_that_are_not_numbers_are_found_when_asked_for(tiny_models, tmp_path):
    path = rewritten(
        tiny_models["llama"], tmp_path, tensors={"blk.0.attn_q.weight": np.full((64, 64), np.nan, np.float32)}
    )
    with pytest.raises(errors.ModelLoadError) as info:
        Model(path, check_tensors=True)
    assert any("invalid" in line for line in info.value.log)


# ---- damage at random

DAMAGE = """
import random
source = open(PATH, "rb").read()
head, rounds, folder = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
loaded = 0
for seed in range(rounds):
    dice = random.Random(seed)
    data = bytearray(source)
    for _ in range(dice.choice([1, 1, 1, 2, 4, 16])):
        at = dice.randrange(head)
        what = dice.random()
        if what < 0.5:
            data[at] = dice.randrange(256)
        elif what < 0.7:
            data[at] ^= 1 << dice.randrange(8)
        elif what < 0.85:
            data[at : at + 4] = dice.choice([0, 1, 2**31 - 1, 2**32 - 1, 0x7FC00000]).to_bytes(4, "little")
        else:
            del data[at : at + dice.choice([1, 4, 8])]
    path = os.path.join(folder, "damaged.gguf")
    with open(path, "wb") as file:
        file.write(data)
    print(seed, flush=True)
    try:
        with Model(path) as model:
            vocab = model.vocab
            vocab.tokenize("the cat is \\u2603 here", parse_special=True)
            [vocab.pieces(), vocab.scores, vocab.attrs, vocab.eog_tokens, vocab.bos, model.metadata, model.description]
            context = Context(model, n_ctx=64, n_threads=1)
            if model.has_encoder:
                context.encode(Batch.from_arrays([1, 2]))
            context.decode(Batch.from_arrays([1, 2, 3]))
            loaded += 1
    except errors.PyllmError:
        pass
assert 0 < loaded < rounds
"""


def damage(arch, rounds, tiny_models, tmp_path):
    with GGUFReader(tiny_models[arch]) as reader:
        head = reader.data_offset
    # The seed that ended the process is the last number in the output.
    isolation.survive(DAMAGE, tiny_models[arch], head, rounds, tmp_path, timeout=500)


@pytest.mark.process
@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba", "bert", "t5"])
def test_damage_at_random(arch, tiny_models, tmp_path):
    damage(arch, 150, tiny_models, tmp_path)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "gemma3", "mamba", "jamba", "bert", "t5"])
def test_damage_at_random_for_long(arch, tiny_models, tmp_path):
    damage(arch, 2000, tiny_models, tmp_path)

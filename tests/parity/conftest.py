"""Models with their weights in float32: the files that both pyllm and Hugging Face transformers compute with."""

from __future__ import annotations

import pytest

from pyllm import hub
from pyllm.core.gguf import GGUFReader, GGUFWriter


@pytest.fixture(scope="session")
def smollm2_f32(tmp_path_factory):
    """The path of a GGUF file with all weights dequantized: rounding of the weights plays no part any more."""
    yield from _dequantized("smollm2", tmp_path_factory)


@pytest.fixture(scope="session")
def smollm2_hf(smollm2_f32):
    """The same weights in Hugging Face transformers, with attention computed step by step."""
    return _in_transformers(smollm2_f32)


@pytest.fixture(scope="session")
def gemma3_f32(tmp_path_factory):
    """As `smollm2_f32`: a model with sliding windows, and another size of its embeddings."""
    yield from _dequantized("gemma3-270m", tmp_path_factory)


@pytest.fixture(scope="session")
def gemma3_hf(gemma3_f32):
    """As `smollm2_hf`."""
    return _in_transformers(gemma3_f32)


def _dequantized(name, tmp_path_factory):
    path = tmp_path_factory.mktemp(f"{name}-f32") / f"{name}-f32.gguf"
    with GGUFReader(hub.pull(name)) as reader:
        writer = GGUFWriter()
        for key, value in reader.metadata.items():
            writer.add(key, 0 if key == "general.file_type" else value)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, reader.tensor(tensor.name, dequantize=True))
        writer.write(path)
    yield path
    path.unlink()


def _in_transformers(path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    pytest.importorskip("gguf")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()

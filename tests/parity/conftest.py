"""SmolLM2 with its weights in float32: the one file that both pyllm and Hugging Face transformers compute with."""

from __future__ import annotations

import pytest

from pyllm import hub
from pyllm.core.gguf import GGUFReader, GGUFWriter


@pytest.fixture(scope="session")
def smollm2_f32(tmp_path_factory):
    """The path of a GGUF file with all weights dequantized: rounding of the weights plays no part any more."""
    path = tmp_path_factory.mktemp("smollm2-f32") / "smollm2-f32.gguf"
    with GGUFReader(hub.pull("smollm2")) as reader:
        writer = GGUFWriter()
        for key, value in reader.metadata.items():
            writer.add(key, 0 if key == "general.file_type" else value)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, reader.tensor(tensor.name, dequantize=True))
        writer.write(path)
    yield path
    path.unlink()


@pytest.fixture(scope="session")
def smollm2_hf(smollm2_f32):
    """The same weights in Hugging Face transformers, with attention computed step by step."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    pytest.importorskip("gguf")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_f32.parent, gguf_file=smollm2_f32.name, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()

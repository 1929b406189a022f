"""Random LoRA adapters for tiny models: small files that change what a model says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyllm.core.gguf import GGUFReader, GGUFWriter

RANK = 4


def write_lora(path: Path, model_path: Path, seed: int, arch: str = "llama") -> Path:
    """Write an adapter for a model of two layers or more; `arch` is what it says to be for."""
    random = np.random.default_rng(seed)
    writer = GGUFWriter()
    for key, value in (("general.type", "adapter"), ("general.architecture", arch), ("adapter.type", "lora")):
        writer.add(key, value)
    writer.add("adapter.lora.alpha", 32.0)
    with GGUFReader(model_path) as model:
        shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight"):
        rows, columns = shapes[name]
        writer.add_tensor(f"{name}.lora_a", random.normal(0, 0.2, (RANK, columns)).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", random.normal(0, 0.2, (rows, RANK)).astype(np.float32))
    writer.write(path)
    return path

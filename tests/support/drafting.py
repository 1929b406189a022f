"""Drafting: the prompt of its tests, and a tiny random model with a layer for multi-token prediction (MiMo)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from support import models, vocabs

PROMPT = np.random.default_rng(0).integers(3, 250, 20).astype(np.int32)


def write_mtp(path: Path, *, seed: int = 0) -> Path:
    """Write it; see `models.write`."""
    sizes = models.Sizes(n_layer=3)
    model = models._Model("mimo2", sizes, seed, None)
    vocab = vocabs.make("spm", None)
    vocab.add_to(model.writer)
    model.transformer_keys()
    model.add("rope.dimension_count", sizes.n_embd_head)
    model.add("attention.key_length", sizes.n_embd_head)
    model.add("attention.value_length", sizes.n_embd_head)
    model.add("attention.sliding_window", sizes.sliding_window)
    model.add("attention.sliding_window_pattern", [False, True, False])
    model.add("expert_feed_forward_length", sizes.n_ff)
    model.add("nextn_predict_layers", 1)
    model.embeddings(vocab)
    model.norm("output_norm", sizes.n_embd)
    for i in range(sizes.n_layer):
        model.norm(f"blk.{i}.attn_norm", sizes.n_embd)
        # One matrix for queries, keys and values.
        model.matrix(f"blk.{i}.attn_qkv", sizes.n_embd + 2 * sizes.n_embd_kv, sizes.n_embd)
        model.matrix(f"blk.{i}.attn_output", sizes.n_embd, sizes.n_embd)
        model.norm(f"blk.{i}.ffn_norm", sizes.n_embd)
        model.feed_forward(f"blk.{i}")
    last = f"blk.{sizes.n_layer - 1}"
    model.matrix(f"{last}.nextn.eh_proj", sizes.n_embd, 2 * sizes.n_embd)
    model.norm(f"{last}.nextn.enorm", sizes.n_embd)
    model.norm(f"{last}.nextn.hnorm", sizes.n_embd)
    model.norm(f"{last}.nextn.shared_head_norm", sizes.n_embd)
    model.writer.write(path)
    return path

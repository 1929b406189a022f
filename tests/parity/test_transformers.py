"""The numbers beside those of Hugging Face transformers, on the same float32 weights.

Needs torch, transformers, accelerate and gguf, which the tests do not install by themselves.
"""

from __future__ import annotations

import numpy as np
import pytest

from pyllm import Batch, Context, Model

TEXT = (
    "A model of language reads what was written so far and says how likely each word would be as the next one. "
    "It was trained on more text than anybody can read, by a rule that is simple: be less surprised next time. "
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def tokens(smollm2_f32):
    with Model(smollm2_f32, vocab_only=True) as model:
        return model.vocab.tokenize_array(8 * TEXT)[:256]


@pytest.fixture(scope="module")
def expected(smollm2_hf, tokens):
    """Logits of all positions, float32, shape (256, n_vocab)."""
    import torch

    with torch.no_grad():
        return smollm2_hf(torch.tensor(tokens.astype(np.int64))[None]).logits[0].numpy()


# Flash attention, as the CPU backend computes it, rounds queries to 16 bits: what it costs is held here too.
@pytest.mark.parametrize(("flash_attn_type", "tolerance"), [("disabled", 5e-4), ("enabled", 0.2)])
@pytest.mark.parametrize("n_ubatch", [512, 100])
def test_logits_of_all_positions(smollm2_f32, tokens, expected, flash_attn_type, tolerance, n_ubatch):
    with Model(smollm2_f32) as model, Context(
        model, n_ctx=256, n_ubatch=n_ubatch, type_k="f32", type_v="f32", flash_attn_type=flash_attn_type, n_threads=2
    ) as context:  # fmt: skip
        context.decode(Batch.from_arrays(tokens, outputs="all"))
        logits = context.logits.copy()
    assert logits.shape == expected.shape == (256, 49152)
    assert np.abs(logits - expected).max() < tolerance
    assert np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)) > 0.99


def test_token_by_token_as_in_one_batch(smollm2_f32, tokens, expected):
    with Model(smollm2_f32) as model, Context(
        model, n_ctx=64, type_k="f32", type_v="f32", flash_attn_type="disabled", n_threads=2
    ) as context:  # fmt: skip
        for position, token in enumerate(tokens[:64]):
            context.decode(Batch.from_arrays([token], pos=[position]))
            assert np.abs(context.logits[-1] - expected[position]).max() < 5e-4

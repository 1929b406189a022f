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


# ---- rows that are asked for, and pooled embeddings, on two models


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def pair(request):
    """The path of a model, tokens, their logits and last hidden states in transformers, and a relative tolerance."""
    import torch

    path = request.getfixturevalue(f"{request.param}_f32")
    with Model(path, vocab_only=True) as model:
        ids = model.vocab.tokenize_array(4 * TEXT)[:96]
    with torch.no_grad():
        found = request.getfixturevalue(f"{request.param}_hf")(
            torch.tensor(ids.astype(np.int64))[None], output_hidden_states=True
        )
    # Gemma's GELU comes from a table with 16 bits in ggml. A row of another token differs by more than 1.
    tolerance = {"smollm2": 5e-4, "gemma3": 1e-2}[request.param]
    return path, ids, found.logits[0].numpy(), found.hidden_states[-1][0].numpy(), tolerance


def exact(path, **arguments):
    settings = {"n_ctx": 256, "type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled", "n_threads": 2}
    return Context(Model(path), **settings, **arguments)


@pytest.mark.parametrize("n_ubatch", [256, 32])
@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("asked", ["all", "last", "mask"])
def test_the_rows_are_those_of_the_batch(pair, n_ubatch, embeddings, asked):
    path, ids, logits, hidden, tolerance = pair
    rows = {"all": np.arange(96), "last": np.array([95]), "mask": np.array([0, 3, 17, 48, 95])}[asked]
    outputs = np.isin(np.arange(96), rows) if asked == "mask" else asked
    pooling = {"pooling_type": "none"} if embeddings else {}
    with exact(path, n_ubatch=n_ubatch, embeddings=embeddings, **pooling) as context:
        context.decode(Batch.from_arrays(ids, outputs=outputs))
        assert context.logits.shape == (len(rows), logits.shape[1])
        assert np.abs(context.logits - logits[rows]).max() < tolerance * max(1, logits.std())
        if embeddings:
            assert np.abs(context.embeddings - hidden[rows]).max() < tolerance * max(1, hidden.std())


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooled_embeddings(pair, pooling):
    path, ids, _, hidden, tolerance = pair
    expected = {"mean": hidden.mean(axis=0), "cls": hidden[0], "last": hidden[-1]}[pooling]
    with exact(path, embeddings=True, pooling_type=pooling) as context:
        context.decode(Batch.from_arrays(ids))
        assert np.abs(context.embeddings_seq(0) - expected).max() < tolerance * max(1, hidden.std())

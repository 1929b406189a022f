"""Divergences against NumPy in float64, and the file of log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from eval import corpus
from support.numerics import EXACT, log_softmax

from pyllm import Batch, Context
from pyllm.errors import InvalidArgumentError
from pyllm.eval import LogitsFile, LogitsFileError, kl, perplexity, save_logits
from pyllm.eval.kl_file import quantize, row_width

N_CTX = 32


@pytest.fixture(scope="module")
def other(load):
    return load("llama", type="Q8_0")


@pytest.fixture(scope="module")
def tokens(tiny_model):
    return tiny_model.vocab.tokenize_array(corpus.text(10))[:200]


def rows_by_hand(model, tokens):
    """Log-probabilities of the predicted tokens, float64: shape (n, n_vocab)."""
    found = []
    with Context(model, n_ctx=N_CTX, **EXACT) as context:
        for a in range(0, len(tokens) - N_CTX + 1, N_CTX):
            window = tokens[a : a + N_CTX].copy()
            window[0] = model.vocab.bos
            context.memory.clear()
            context.decode(Batch.from_arrays(window, outputs="all"))
            found.append(np.asarray(context.logits)[N_CTX // 2 : N_CTX - 1].astype(np.float64))
    return log_softmax(np.concatenate(found))


def test_divergence_is_that_of_the_definition(tiny_model, other, tokens):
    seen = []
    result = kl(tiny_model, other, tokens, n_ctx=N_CTX, n_batch=64, progress=lambda *done: seen.append(done), **EXACT)
    base, changed = rows_by_hand(tiny_model, tokens), rows_by_hand(other, tokens)
    divergence = (np.exp(base) * (base - changed)).sum(axis=1)
    assert divergence.mean() > 1e-4  # the models do differ
    assert np.allclose(result.divergences, divergence, atol=1e-4)
    assert result.mean == pytest.approx(divergence.mean(), rel=1e-3)
    assert result.median == pytest.approx(np.median(divergence), rel=1e-2)
    assert result.maximum == pytest.approx(divergence.max(), rel=1e-2)
    assert result.percentiles[90.0] == pytest.approx(np.percentile(divergence, 90), rel=1e-2)
    assert result.same_top == pytest.approx((base.argmax(axis=1) == changed.argmax(axis=1)).mean(), abs=0.03)
    predicted = np.concatenate(
        [tokens[a + N_CTX // 2 + 1 : a + N_CTX] for a in range(0, len(tokens) - N_CTX + 1, N_CTX)]
    )
    each = np.arange(len(predicted))
    change = np.exp(changed[each, predicted]) - np.exp(base[each, predicted])
    assert np.allclose(result.delta_p, change, atol=1e-4)
    assert result.delta_p_rms == pytest.approx(np.sqrt((change**2).mean()), rel=1e-2)
    assert result.ppl_base == pytest.approx(perplexity(tiny_model, tokens, n_ctx=N_CTX, **EXACT).ppl, rel=1e-4)
    assert result.ppl == pytest.approx(perplexity(other, tokens, n_ctx=N_CTX, **EXACT).ppl, rel=1e-4)
    assert result.log_ppl_ratio == pytest.approx(np.log(result.ppl / result.ppl_base), abs=1e-6)
    assert result.n_tokens == len(predicted)
    assert seen[-1] == (len(predicted), len(predicted))


def test_a_model_does_not_differ_from_itself(tiny_model, tokens):
    same = kl(tiny_model, tiny_model, tokens, n_ctx=N_CTX, n_threads=1)
    assert (same.mean, same.maximum, same.same_top, same.delta_p_rms) == (0, 0, 1, 0)


def test_contexts_of_different_sizes_go_in_step(tiny_model, other, tokens, make_context):
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled"}
    expected = kl(tiny_model, other, tokens, n_ctx=N_CTX, **EXACT)
    first = make_context(n_ctx=768, n_seq_max=3, **exact)
    second = make_context(other, n_ctx=256, n_batch=20, **exact)
    assert kl(first, second, tokens, n_ctx=N_CTX).mean == pytest.approx(expected.mean, rel=1e-3)
    with pytest.raises(InvalidArgumentError, match="cannot be both"):
        kl(first, first, tokens, n_ctx=N_CTX)


def test_a_file_stands_for_the_base(tiny_model, other, tokens, tmp_path):
    file = save_logits(tmp_path / "base.kld", tiny_model, tokens, n_ctx=N_CTX, n_batch=64, **EXACT)
    expected = rows_by_hand(tiny_model, tokens)
    assert len(file) == len(expected)
    rows = file.log_probs(0, len(file))
    kept = expected > expected.max(axis=1, keepdims=True) - 16
    assert np.abs(rows - expected)[kept].max() < 16 / 65535 + 1e-3
    live = kl(tiny_model, other, tokens, n_ctx=N_CTX, **EXACT)
    read = kl(LogitsFile(tmp_path / "base.kld"), other, **EXACT)
    assert read.mean == pytest.approx(live.mean, rel=1e-2)
    assert read.ppl == pytest.approx(live.ppl, rel=1e-5)
    assert read.ppl_base == pytest.approx(live.ppl_base, rel=1e-3)
    assert kl(file, other, n_chunks=2, **EXACT).n_tokens == 2 * file.windows.per_chunk
    with pytest.raises(InvalidArgumentError, match="in the file already"):
        kl(file, other, tokens)


def test_rows_that_are_flat_or_minus_infinity():
    rows = np.zeros((2, 5), np.float32)
    rows[1] = [0, -np.inf, -3, -40, -1]
    sums = np.log(np.exp(rows.astype(np.float64)).sum(axis=1))
    packed = quantize(rows, sums)
    assert packed.shape == (2, row_width(5)) == (2, 10)
    scale, minimum = np.ascontiguousarray(packed[:, :4]).view("<f4").T
    values = packed[:, 4:9] * scale[:, None] + minimum[:, None]
    assert np.allclose(values[0], -np.log(5), atol=1e-6)
    assert np.allclose(values[1], np.maximum(rows[1], -16) - sums[1], atol=3e-4)


def test_files_that_are_none(tiny_model, load, tokens, tmp_path):
    path = tmp_path / "base.kld"
    save_logits(path, tiny_model, tokens, n_ctx=N_CTX, n_threads=1)
    data = path.read_bytes()
    for broken, words in (
        (b"", "does not begin with"),
        (b"GGUF" + data[4:], "does not begin with"),
        (data[:-1], "bytes, and with n_ctx=32"),
        (data[:8] + b"\xff\xff\xff\xff" + data[12:], "which cannot be"),
        (data[:20] + b"\xff\xff\xff\x7f" + data[24:], "ids go from 0 to"),
    ):
        path.write_bytes(broken)
        with pytest.raises(LogitsFileError, match=words):
            LogitsFile(path)
    path.write_bytes(data)
    bigger = load("llama", vocab_size=len(tiny_model.vocab) + 10)
    with pytest.raises(InvalidArgumentError, match="a vocabulary of"):
        kl(LogitsFile(path), bigger)
    with pytest.raises(InvalidArgumentError, match="a vocabulary of"):
        kl(tiny_model, bigger, tokens, n_ctx=N_CTX)
    with pytest.raises(InvalidArgumentError, match="a text is needed"):
        kl(tiny_model, tiny_model)

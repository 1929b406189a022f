"""Examples of decoding research compute what they say: checked on tiny models, against NumPy."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from support.numerics import log_softmax, softmax

from pyllm import Batch, Context
from pyllm.core.gguf import GGUFReader
from pyllm.core.samplers import Greedy
from pyllm.interp import Interp, logit_lens

# Without rounding in the cache, what other batches compute differs in the last digits only.
EXACT = {"type_k": "f32", "type_v": "f32"}
PROMPT = "the more people look at the number"


def forecast(context: Context, ids) -> np.ndarray:
    """Log-probabilities of what follows, computed from nothing."""
    context.memory.clear()
    context.decode(Batch.from_arrays(ids))
    return log_softmax(context.logits.copy()[-1])


def greedy(context: Context, ids, n: int, change=lambda logprobs, ids: logprobs) -> list[int]:
    """What should be written: each token from a decode of the whole text."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(change(forecast(context, ids), ids).argmax()))
    return ids[-n:]


@pytest.fixture
def weak_path(example, tiny_models, tmp_path):
    return example("shallow").drop_layers(tiny_models["llama"], tmp_path / "weak.gguf", range(1, 2))


# A model without some layers


def test_a_model_without_its_last_layer_says_what_the_lens_shows(weak_path, tiny_model, make_model, make_context, ids):
    weak = make_model(weak_path)
    assert (weak.n_layer, tiny_model.n_layer, len(weak.vocab)) == (1, 2, len(tiny_model.vocab))
    context = make_context(weak, flash_attn_type="disabled", **EXACT)
    context.decode(Batch.from_arrays(ids, outputs="all"))
    with Interp(tiny_model, n_ctx=128, n_threads=1) as lab:
        lens = logit_lens(lab, ids, layers=[0], keep_logits=True)
    assert np.allclose(context.logits.copy(), lens.logits[0], atol=1e-3)


def test_layers_after_a_gap_move_up(example, tiny_models, tmp_path, make_model):
    path = tiny_models.make("llama", n_layer=4)
    kept = example("shallow").drop_layers(path, tmp_path / "kept.gguf", range(1, 3))
    with GGUFReader(path) as all_of_it, GGUFReader(kept) as file:
        names = {tensor.name for tensor in file.tensors}
        assert {name.split(".")[1] for name in names if name.startswith("blk.")} == {"0", "1"}
        assert np.array_equal(file.tensor("blk.1.ffn_up.weight"), all_of_it.tensor("blk.3.ffn_up.weight"))
    assert make_model(kept).n_layer == 2


# Classifier-free guidance


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_is_what_the_formula_says(example, tiny_model, make_context, scale):
    prompts = [PROMPT, "he had one word"]
    others = [tiny_model.vocab.tokenize(prompt) for prompt in prompts]
    plain = make_context(**EXACT)

    def guide(logprobs, ids):
        other = forecast(plain, others[1] + ids[len(others[0]) :])
        return logprobs + (scale - 1) * (logprobs - other)

    expected = greedy(make_context(**EXACT), others[0], 8, guide)
    context = make_context(n_seq_max=2, **EXACT)
    text = example("classifier_free_guidance").guided(context, prompts, scale, Greedy(), 8)
    assert text == tiny_model.vocab.detokenize(expected)


# Contrastive decoding


def test_contrast_leaves_what_is_plausible(example):
    expert = np.array([3.0, 2.9, 0.0, -np.inf], np.float32)
    amateur = np.array([3.0, 1.0, -9.0, -np.inf], np.float32)
    with np.errstate(invalid="ignore"):
        example("contrastive_decoding").contrast(expert, amateur, 0.1, 1.0)
    assert np.allclose(expert[:2], [3.0, 4.8])
    assert (expert[2:] == -np.inf).all()


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_two_models_write_one_text(example, weak_path, tiny_model, make_model, make_context, beta):
    ids = tiny_model.vocab.tokenize_array(PROMPT)
    weak = make_model(weak_path)
    amateur = make_context(weak, **EXACT)

    def contrast(logprobs, ids):
        changed = (1 + beta) * logprobs - beta * forecast(amateur, ids)
        return np.where(logprobs < logprobs.max() + np.log(0.1), -np.inf, changed)

    expected = greedy(make_context(**EXACT), ids, 12, contrast)
    contexts = [make_context(model, **EXACT) for model in (tiny_model, weak)]
    text = example("contrastive_decoding").write(*contexts, PROMPT, 0.1, beta, 12)
    assert text == tiny_model.vocab.detokenize(expected)
    if beta:
        assert expected != greedy(make_context(**EXACT), ids, 12)


# DoLa


def test_divergence_of_rows(example):
    divergence = example("dola").divergence
    p = np.log(np.array([[0.5, 0.5], [1 - 1e-12, 1e-12]]))
    q = np.log(np.array([[0.5, 0.5], [1e-12, 1 - 1e-12]]))
    assert np.allclose(divergence(p, q), [0.0, np.log(2)], atol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_layers_are_contrasted_as_the_lens_shows_them(
    example, tiny_models, make_model, make_context, monkeypatch, beta
):
    path = tiny_models.make("llama", n_layer=4)
    model = make_model(path)
    dola = example("dola")
    monkeypatch.setattr(dola, "CANDIDATES", range(1, 4))
    with GGUFReader(path) as file:
        weights = [file.tensor(f"{name}.weight") for name in ("output_norm", "output")]
    ids = model.vocab.tokenize(PROMPT)
    written = list(islice(dola.write(make_context(model, capture=True, **EXACT), ids, *weights, beta), 6))

    with Interp(model, n_ctx=128, n_threads=1) as lab:
        for token, layer in written:
            lens = logit_lens(lab, ids, positions=[-1], keep_logits=True)
            *early, last = log_softmax(lens.logits[:, 0])
            mean = [np.logaddexp(last, e) - np.log(2) for e in early]
            apart = [
                (np.exp(last) * (last - m)).sum() + (np.exp(e) * (e - m)).sum()
                for e, m in zip(early, mean, strict=True)
            ]
            assert layer == 1 + int(np.argmax(apart))
            changed = last + beta * (last - early[layer - 1])
            assert token == int(np.where(last < last.max() + np.log(0.1), -np.inf, changed).argmax())
            ids.append(token)


# Speculative sampling


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """How far counts are from what is expected, in standard deviations; rare cells are taken together."""
    common = expected >= 5
    assert common.sum() >= 8
    counts, expected = (np.append(values[common], values[~common].sum()) for values in (counts, expected))
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum() - freedom) / np.sqrt(2 * freedom))


def test_judgement_keeps_the_distribution(example):
    judge = example("speculative_by_hand").judge
    rng = np.random.default_rng(5)
    p, q = rng.dirichlet(np.ones(6), 3), rng.dirichlet(np.ones(6), 2)
    n = 20_000
    counts = np.zeros((6, 6))
    for _ in range(n):
        tokens = judge([int(rng.choice(6, p=row)) for row in q], p, q, rng)
        if len(tokens) == 1:  # the next round would go on from here
            tokens.append(int(rng.choice(6, p=p[1])))
        counts[tokens[0], tokens[1]] += 1
    assert chi_square(counts.ravel(), n * np.outer(p[0], p[1]).ravel()) < 4


@pytest.mark.parametrize("draft", ["shallow", "stranger"])
def test_speculative_samples_are_the_targets(
    example, tiny_models, weak_path, tiny_model, make_model, make_context, draft
):
    """Pairs of tokens, counted, beside their probabilities under the target alone."""
    temp, n = 0.6, 2000
    ids = tiny_model.vocab.tokenize(PROMPT)
    other = make_model(weak_path if draft == "shallow" else tiny_models.make("llama", seed=9))
    contexts = [make_context(model, **EXACT) for model in (tiny_model, other)]
    rounds = example("speculative_by_hand").rounds

    counts: dict[tuple[int, int], int] = {}
    accepted = 0
    for seed in range(n):
        text: list[int] = []
        for tokens in rounds(*contexts, ids, n=2, temp=temp, seed=seed):
            accepted += len(tokens) - 1
            text += tokens
            if len(text) >= 2:
                break
        counts[text[0], text[1]] = counts.get((text[0], text[1]), 0) + 1
    assert accepted > 0

    plain = make_context(**EXACT)

    def probabilities(ids: list[int]) -> np.ndarray:
        return softmax(forecast(plain, ids) / temp)

    first = probabilities(ids)
    joint = np.zeros((len(first), len(first)))
    for token in np.flatnonzero(first > 1e-4).tolist():
        joint[token] = first[token] * probabilities([*ids, token])
    found = np.zeros_like(joint)
    for pair, count in counts.items():
        found[pair] = count
    assert chi_square(found.ravel(), n * joint.ravel()) < 4

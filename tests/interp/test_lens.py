"""The logit lens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support.numerics import log_softmax

from pyllm import errors
from pyllm.interp import Interp, NoActivationError, logit_lens


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3moe", "mamba", "jamba"])
def test_after_the_last_layer_it_is_the_model(open_lab: Callable[..., Interp], text: str, arch: str) -> None:
    lab = open_lab(arch)
    logits = lab.run(text)
    lens = logit_lens(lab, text, keep_logits=True)
    assert lens.logits.shape == (2, *logits.shape)
    assert np.allclose(lens.logits[-1], logits, atol=1e-3)
    assert not np.allclose(lens.logits[0], logits, atol=1e-1)


def test_every_layer_is_norm_and_matrix(lab: Interp, text: str, tiny_models: dict) -> None:
    """As computed by hand from the file's weights."""
    from pyllm.core.gguf import GGUFReader

    lens = logit_lens(lab, text, keep_logits=True)
    cache = lab.capture(text, "blocks.*.hook_resid_post")
    with GGUFReader(tiny_models["llama"]) as reader:
        norm = np.array(reader.tensor("output_norm.weight"))
        matrix = np.array(reader.tensor("output.weight"))
    for layer in range(2):
        stream = cache["resid_post", layer].astype(np.float64)
        normed = stream / np.sqrt((stream**2).mean(axis=1, keepdims=True) + 1e-5) * norm
        assert np.allclose(lens.logits[layer], normed @ matrix.T, atol=1e-3)


def test_what_is_kept(lab: Interp, text: str) -> None:
    lens = logit_lens(lab, text, top=3, keep_logits=True)
    logprobs = log_softmax(lens.logits)
    n = len(lens.tokens)
    assert np.array_equal(lens.top_tokens, np.argsort(-logprobs, axis=-1)[..., :3])
    assert np.allclose(lens.top_logprobs, -np.sort(-logprobs, axis=-1)[..., :3], atol=1e-4)
    assert np.allclose(lens.entropy, -(np.exp(logprobs) * logprobs).sum(axis=-1), atol=1e-4)
    for i in range(n - 1):
        target, row = lens.tokens[i + 1], lens.logits[:, i]
        assert np.allclose(lens.target_logprobs[:, i], logprobs[:, i, target], atol=1e-4)
        assert np.array_equal(lens.target_ranks[:, i], (row > row[:, target, None]).sum(axis=-1))
    assert np.isnan(lens.target_logprobs[:, -1]).all()
    assert (lens.target_ranks[:, -1] == -1).all()
    assert logit_lens(lab, text).logits is None


def test_layers_and_positions(open_lab: Callable[..., Interp], text: str) -> None:
    """Rows go through the model in batches as large as it takes, so that a small one gives the same."""
    whole = logit_lens(open_lab(), text, keep_logits=True)
    lens = logit_lens(open_lab(n_ubatch=5), text, [-1, 0], positions=[-1, 2], keep_logits=True)
    n = len(whole.tokens)
    assert lens.layers == (1, 0)
    assert lens.positions.tolist() == [n - 1, 2]
    assert np.allclose(lens.logits, whole.logits[[1, 0]][:, [n - 1, 2]], atol=2e-3)
    one = logit_lens(open_lab(), text, [0], positions=[1])
    assert one.top_tokens.shape == (1, 1, 5)
    assert np.array_equal(one.top_tokens[0, 0], whole.top_tokens[0, 1])


def test_wrong_arguments(lab: Interp, open_lab: Callable[..., Interp], text: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="top"):
        logit_lens(lab, text, top=0)
    with pytest.raises(errors.InvalidArgumentError, match="layers"):
        logit_lens(lab, text, [2])
    with pytest.raises(errors.InvalidArgumentError, match="position"):
        logit_lens(lab, text, positions=[1000])
    with pytest.raises(NoActivationError, match="embedding"):
        logit_lens(open_lab("bert"), [5, 6])


def test_no_layer_is_no_lens(lab: Interp, text: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="layers are some of 0 to 1"):
        logit_lens(lab, text, [])

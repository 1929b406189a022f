"""Activations beside those of Hugging Face transformers, on the same float32 weights.

Needs torch, transformers, accelerate and gguf, which the tests do not install by themselves.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from pyllm import Llama
from pyllm.interp import Interp, SteeringVector, logit_lens

PROGRAM = Path(__file__).resolve().parents[2] / "build/cmake-native/bin/llama-completion"

TEXT = "A model of language reads what was written so far and says how likely each word would be as the next one."

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def lab(smollm2_f32):
    with Interp(smollm2_f32, n_ctx=64, n_threads=2) as lab:
        yield lab


@pytest.fixture(scope="module")
def tokens(lab):
    return lab.tokenize_array(TEXT)


@pytest.fixture(scope="module")
def forward(smollm2_hf, tokens):
    """`forward(hooks, **arguments)`: run transformers, with forward hooks on modules by name."""
    import torch

    def forward(hooks=(), **arguments):
        modules = dict(smollm2_hf.named_modules())
        handles = [getattr(modules[name], register)(hook) for name, register, hook in hooks]
        try:
            with torch.no_grad():
                return smollm2_hf(torch.tensor(tokens.astype(np.int64))[None], **arguments)
        finally:
            for handle in handles:
                handle.remove()

    return forward


def distance(got, expected):
    """Largest difference, relative to the largest number."""
    return np.abs(got - expected).max() / np.abs(expected).max()


def test_residual_streams_of_all_layers(lab, tokens, forward):
    # The last hidden state of transformers is behind the final norm: hooks see all layers alike.
    streams = {}
    hooks = [
        (
            f"model.layers.{i}",
            "register_forward_hook",
            lambda module, inputs, output, i=i: streams.__setitem__(
                i, (output[0] if isinstance(output, tuple) else output)[0].numpy()
            ),
        )
        for i in range(lab.model.n_layer)
    ]
    out = forward(hooks, output_hidden_states=True)
    logits, cache = lab.run_with_cache(tokens, "*hook_resid_*")
    assert distance(cache["resid_pre", 0], out.hidden_states[0][0].numpy()) < 1e-6
    worst = 0.0
    for layer in range(lab.model.n_layer):
        got, expected = cache["resid_post", layer], streams[layer]
        assert got.shape == expected.reshape(got.shape).shape
        # Position 0 is a thousand times larger than the others, which are to agree by themselves too.
        worst = max(worst, distance(got, expected), *(distance(a, b) for a, b in zip(got, expected, strict=True)))
    assert worst < 1e-3
    assert distance(logits, out.logits[0].numpy()) < 1e-4


def test_the_fast_path_gives_the_same(lab, tokens, forward):
    hidden = forward(output_hidden_states=True).hidden_states
    cache = lab.capture(tokens, "blocks.*.hook_resid_pre")
    for layer in range(lab.model.n_layer):
        assert distance(cache["resid_pre", layer], hidden[layer][0].numpy()) < 1e-3


def test_attention_patterns(lab, tokens, forward):
    attentions = forward(output_attentions=True).attentions
    cache = lab.capture(tokens, "blocks.*.attn.hook_pattern")
    for layer in range(lab.model.n_layer):
        assert np.abs(cache["pattern", layer] - attentions[layer][0].numpy()).max() < 1e-4


@pytest.mark.parametrize(("layer", "head"), [(0, 3), (11, 0), (29, 8)])
def test_zeroing_a_head(lab, tokens, forward, layer, head):
    size = lab.point("blocks.0.attn.hook_z").shape[2]

    def in_torch(module, inputs):
        values = inputs[0].clone()
        values[..., head * size : (head + 1) * size] = 0
        return (values,)

    def in_pyllm(values, hook):
        values[:, head] = 0

    plain = lab.run(tokens)
    expected = forward([(f"model.layers.{layer}.self_attn.o_proj", "register_forward_pre_hook", in_torch)])
    got = lab.run_with_hooks(tokens, [(f"blocks.{layer}.attn.hook_z", in_pyllm)])
    effect = np.abs(plain - got).max()
    assert np.abs(got - expected.logits[0].numpy()).max() < min(1e-3, effect / 20)


@pytest.mark.parametrize("layer", [0, 15, 29])
def test_zeroing_an_mlp(lab, tokens, forward, layer):
    plain = lab.run(tokens)
    expected = forward(
        [(f"model.layers.{layer}.mlp", "register_forward_hook", lambda module, inputs, output: output * 0)]
    )
    got = lab.run_with_hooks(tokens, [(f"blocks.{layer}.hook_mlp_out", lambda values, hook: values * 0)])
    effect = np.abs(plain - got).max()
    assert np.abs(got - expected.logits[0].numpy()).max() < min(1e-3, effect / 20)


def test_the_lens(lab, tokens, forward, smollm2_hf):
    import torch

    hidden = forward(output_hidden_states=True).hidden_states
    lens = logit_lens(lab, tokens, layers=[0, 14, 28, 29], keep_logits=True)
    for i, layer in enumerate([0, 14, 28]):
        with torch.no_grad():
            expected = smollm2_hf.lm_head(smollm2_hf.model.norm(hidden[layer + 1]))[0].numpy()
        assert np.abs(lens.logits[i] - expected).max() < 2e-3
    assert np.abs(lens.logits[3] - lab.run(tokens)).max() < 1e-3


@pytest.mark.skipif(not PROGRAM.exists(), reason="llama-completion is not built: make tools")
def test_a_vector_steers_as_it_does_in_llama_completion(smollm2_path, tmp_path):
    """The file that is written here is read there, and the text is the same."""
    prompt = "I watched the new play yesterday, and it was"
    with Llama(smollm2_path, n_ctx=256, n_threads=1) as llm:
        with Interp(llm, n_ctx=64, n_threads=1) as lab:
            things = ["film", "food", "hotel", "book"]
            positive = [f"I loved the {thing}. It was wonderful" for thing in things]
            negative = [f"I hated the {thing}. It was terrible" for thing in things]
            vector = SteeringVector.train(lab, positive, negative)
        plain = llm(prompt, max_tokens=16, temperature=0).text
        path = vector.save(tmp_path / "mood.gguf")
        for scale in (1.0, -1.0):
            vector.apply(llm.context, scale, layers=range(14, 17))
            ours = llm(prompt, max_tokens=16, temperature=0).text
            done = subprocess.run(
                [
                    *(PROGRAM, "-m", smollm2_path, "-p", prompt, "-n", "16", "--temp", "0", "-no-cnv"),
                    *("--no-display-prompt", "-t", "1", "-c", "256", "--control-vector-scaled", f"{path}:{scale}"),
                    *("--control-vector-layer-range", "14", "16"),
                ],
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            theirs = done.stdout.replace(" [end of text]", "")
            assert ours != plain
            assert ours.strip() == theirs.strip()

"""Interp: activations by name, several texts, hooks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pyllm import Llama, errors
from pyllm.core.model import Model
from pyllm.interp import ActivationCache, Interp, NoActivationError
from pyllm.interp.passes import Hook, Passes

DECODERS = ["llama", "gemma3", "qwen3moe", "mamba", "jamba"]


# ---- shapes and meanings


def test_shapes_are_those_of_transformerlens(lab: Interp, text: str) -> None:
    logits, cache = lab.run_with_cache(text)
    n = len(lab.tokenize(text))
    assert logits.shape == (n, lab.model.n_vocab)
    shapes = {
        "hook_embed": (n, 64), "blocks.1.hook_resid_pre": (n, 64), "blocks.1.hook_resid_mid": (n, 64),
        "blocks.1.hook_resid_post": (n, 64), "blocks.1.attn.hook_q": (n, 4, 16), "blocks.1.attn.hook_k": (n, 2, 16),
        "blocks.1.attn.hook_v": (n, 2, 16), "blocks.1.attn.hook_z": (n, 4, 16),
        "blocks.1.attn.hook_pattern": (4, n, n), "blocks.1.attn.hook_attn_scores": (4, n, n),
        "blocks.1.mlp.hook_pre": (n, 128), "blocks.1.mlp.hook_post": (n, 128), "blocks.1.hook_attn_out": (n, 64),
        "blocks.1.hook_mlp_out": (n, 64), "ln_final.hook_normalized": (n, 64),
    }  # fmt: skip
    assert {name: cache[name].shape for name in shapes} == shapes
    assert all(values.dtype == np.float32 for values in cache.values())
    assert set(cache) == set(lab.names())


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3moe"])
def test_the_residual_stream_adds_up(open_lab: Callable[..., Interp], text: str, arch: str) -> None:
    _, cache = open_lab(arch).run_with_cache(text)
    for layer in range(2):
        pre, mid, post = cache["resid_pre", layer], cache["resid_mid", layer], cache["resid_post", layer]
        assert np.allclose(pre + cache["attn_out", layer], mid, atol=1e-5)
        assert np.allclose(mid + cache["mlp_out", layer], post, atol=1e-5)
    assert np.array_equal(cache["resid_post", 0], cache["resid_pre", 1])


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_attention_is_what_its_parts_say(open_lab: Callable[..., Interp], text: str, arch: str) -> None:
    """Scores are rotated queries times keys, patterns their causal softmax, z the pattern times values."""
    _, cache = open_lab(arch).run_with_cache(text, layers=1)
    q, k, v = (cache[name, 1] for name in ("rot_q", "rot_k", "v"))
    scores, pattern = cache["attn_scores", 1], cache["pattern", 1]
    k, v = np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)
    expected = np.einsum("qhd,khd->hqk", q, k) / 4
    assert np.allclose(scores, expected, atol=1e-3)
    causal = np.tril(np.ones(scores.shape[1:], bool))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True)) * causal
    assert np.allclose(pattern, weights / weights.sum(axis=-1, keepdims=True), atol=1e-4)
    assert np.allclose(pattern.sum(axis=-1), 1, atol=1e-4)
    assert np.allclose(cache["z", 1], np.einsum("hqk,khd->qhd", pattern, v), atol=1e-3)


def test_the_mlp_is_gate_times_up(lab: Interp, text: str) -> None:
    _, cache = lab.run_with_cache(text, "blocks.0.mlp.*")
    gate, up = cache["pre", 0], cache["pre_linear", 0]
    assert np.allclose(cache["post", 0], gate / (1 + np.exp(-gate)) * up, atol=1e-4)


def test_the_last_norm_and_the_logits(lab: Interp, text: str) -> None:
    logits, cache = lab.run_with_cache(text, ["ln_final.hook_normalized", "result_output", "result_norm"])
    assert np.array_equal(cache["result_output"], logits)
    assert np.array_equal(cache["result_norm"], cache["ln_final.hook_normalized"])


def test_arrays_are_copies(lab: Interp, text: str) -> None:
    logits, cache = lab.run_with_cache(text, "blocks.0.hook_resid_post")
    kept, kept_logits = cache["resid_post", 0].copy(), logits.copy()
    lab.run_with_cache("something else entirely", "blocks.0.hook_resid_post")
    assert np.array_equal(cache["resid_post", 0], kept)
    assert np.array_equal(logits, kept_logits)
    lab.context.close()  # nothing of it is in use
    assert np.array_equal(cache["resid_post", 0], kept)


# ---- selection


def test_names_globs_lists_filters(lab: Interp, text: str) -> None:
    def got(names: object, **arguments: object) -> list[str]:
        return list(lab.capture(text, names, **arguments))

    assert got("blocks.0.hook_resid_mid") == ["blocks.0.hook_resid_mid"]
    assert got("blocks.*.hook_resid_mid") == ["blocks.0.hook_resid_mid", "blocks.1.hook_resid_mid"]
    assert got("*hook_resid_*", layers=-1) == [f"blocks.1.hook_resid_{name}" for name in ("pre", "mid", "post")]
    assert got(["hook_embed", "l_out-*"]) == ["hook_embed", "l_out-0", "l_out-1"]
    assert got(lambda name: name.endswith("hook_z")) == ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]
    assert got(lambda name: name.startswith("ffn_inp")) == ["ffn_inp-0", "ffn_inp-1"]
    assert got(["blocks.1.hook_in", "blocks.1.hook_out"]) == ["blocks.1.hook_in", "blocks.1.hook_out"]
    assert got("blocks.*.hook_out", layers=[0]) == ["blocks.0.hook_out"]
    assert got("Qcur-0#0") == ["Qcur-0#0"]


def test_v3_names_are_the_same_values(lab: Interp, text: str) -> None:
    cache = lab.capture(text, ["blocks.1.hook_in", "blocks.1.hook_resid_pre", "blocks.0.hook_out", "l_out-0", "embd"])
    for name in ("blocks.1.hook_in", "blocks.0.hook_out", "l_out-0"):
        assert np.array_equal(cache[name], cache["blocks.1.hook_resid_pre"])
    assert np.array_equal(cache["embd"], lab.capture(text, "blocks.0.hook_in")["blocks.0.hook_in"])


def test_positions(lab: Interp, text: str) -> None:
    whole = lab.capture(text, ["blocks.0.hook_resid_post", "blocks.0.attn.hook_pattern"])
    n = len(whole.tokens)
    for positions, rows in ((-1, [n - 1]), ([0, 2], [0, 2]), (slice(1, 3), [1, 2]), (np.int64(0), [0])):
        part = lab.capture(text, ["blocks.0.hook_resid_post", "blocks.0.attn.hook_pattern"], positions=positions)
        assert part.positions.tolist() == rows
        assert np.array_equal(part["resid_post", 0], whole["resid_post", 0][rows])
        assert np.array_equal(part["pattern", 0], whole["pattern", 0][:, rows])
    with pytest.raises(errors.InvalidArgumentError, match="no position"):
        lab.capture(text, "blocks.0.hook_resid_post", positions=n)


def test_names_that_do_not_exist(lab: Interp, open_lab: Callable[..., Interp], text: str) -> None:
    for name, words in (
        ("blocks.0.hook_resid_pots", "hook_resid_post"),
        ("blocks.7.hook_resid_post", "from 0 to 1"),
        ("l_uot-0", "l_out-0"),
        ("nothing*", "has no 'nothing"),
    ):
        with pytest.raises(NoActivationError, match=words):
            lab.run_with_cache(text, name)
    with pytest.raises(NoActivationError, match="nothing matches"):
        lab.run_with_cache(text, lambda name: False)
    with pytest.raises(errors.InvalidArgumentError, match="layers go from 0 to 1"):
        lab.run_with_cache(text, layers=[2])
    with pytest.raises(NoActivationError, match="was not captured"):
        lab.capture(text, "hook_embed")["blocks.0.hook_resid_post"]
    with pytest.raises(LookupError):
        lab.capture(text, "hook_embed")["resid_post", 0]


def test_patterns_under_flash_attention(open_lab: Callable[..., Interp], text: str) -> None:
    lab = open_lab(flash_attn=True)
    for name in ("blocks.0.attn.hook_pattern", "blocks.1.attn.hook_attn_scores", "kq_soft_max-0", "kq-1"):
        with pytest.raises(NoActivationError, match="flash_attn=False"):
            lab.run_with_cache(text, name)
    _, fused = lab.run_with_cache(text)
    assert not any("pattern" in name for name in fused)
    plain = open_lab().capture(text, "blocks.1.attn.hook_z")
    assert np.allclose(fused["z", 1], plain["z", 1], atol=2e-2)


def test_what_there_is(lab: Interp) -> None:
    point = lab.point("blocks.1.attn.hook_q")
    assert (point.layer, point.shape, point.axis, point.tensor) == (1, ("pos", 4, 16), 0, ("Qcur-1", 1))
    tensors = lab.tensors()
    assert tensors["kq_soft_max-0"].shape == (4, "pos", 256)
    assert tensors["Kcur-0"].tensor == ("Kcur-0", 2)
    assert tensors["result_output"].shape == ("pos", lab.model.n_vocab)


# ---- several texts


@pytest.mark.parametrize("arch", DECODERS)
@pytest.mark.parametrize("n_ubatch", [None, 7])
def test_several_texts_are_as_one_by_one(
    open_lab: Callable[..., Interp], texts: list[np.ndarray], arch: str, n_ubatch: int | None
) -> None:
    """Rows of a batch of sequences come back to the sequence and position they belong to."""
    one = open_lab(arch)
    many = open_lab(arch, n_sequences=4, n_ubatch=n_ubatch)
    names = lambda name: "pattern" not in name and "scores" not in name  # noqa: E731
    got = many.run_with_cache(texts, names)
    assert len(got) == len(texts)
    for ids, (logits, cache) in zip(texts, got, strict=True):
        expected_logits, expected = one.run_with_cache(ids, names)
        assert np.array_equal(cache.tokens, ids)
        assert list(cache) == list(expected)
        assert np.allclose(logits, expected_logits, atol=2e-3)
        for name in cache:
            assert cache[name].shape == expected[name].shape
            assert np.allclose(cache[name], expected[name], atol=2e-3), name


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3moe"])
def test_raw_tensors_of_several_texts(open_lab: Callable[..., Interp], texts: list[np.ndarray], arch: str) -> None:
    one, many = open_lab(arch), open_lab(arch, n_sequences=3)
    names = [
        name for name in ("Qcur-1", "Kcur-0#0", "ffn_moe_topk-0", "ffn_moe_down-1", "l_out-1") if name in one.tensors()
    ]
    for ids, cache in zip(texts, many.capture(texts, names), strict=True):
        expected = one.capture(ids, names)
        for name in names:
            assert np.allclose(cache[name], expected[name], atol=2e-3), name


def test_patterns_of_several_texts(open_lab: Callable[..., Interp], texts: list[np.ndarray]) -> None:
    one, many = open_lab("gemma3"), open_lab("gemma3", n_sequences=3)
    for ids, cache in zip(texts, many.capture(texts, "*.hook_pattern"), strict=True):
        expected = one.capture(ids, "*.hook_pattern")
        assert cache["pattern", 1].shape == (4, len(ids), len(ids))
        assert all(np.allclose(cache[name], expected[name], atol=1e-4) for name in expected)


def test_a_long_text_in_parts(open_lab: Callable[..., Interp]) -> None:
    ids = np.random.default_rng(1).integers(3, 200, 50).astype(np.int32)
    whole_logits, whole = open_lab().run_with_cache(ids)
    logits, parts = open_lab(n_ubatch=16).run_with_cache(ids)
    assert np.allclose(logits, whole_logits, atol=2e-3)
    for name in whole:
        if "scores" in name:
            causal = np.tril(np.ones(whole[name].shape[1:], bool))
            assert np.allclose(parts[name][:, causal], whole[name][:, causal], atol=2e-3)
            continue
        assert np.allclose(parts[name], whole[name], atol=2e-3), name


def test_sliding_windows(open_lab: Callable[..., Interp]) -> None:
    """In a window of 16, the 40th token sees nothing of the first, and the full layer does."""
    ids = np.random.default_rng(2).integers(3, 200, 40).astype(np.int32)
    cache = open_lab("gemma3").capture(ids, "blocks.*.attn.hook_pattern")
    assert cache["pattern", 0].shape == (4, 40, 40)
    distance = np.arange(40)[:, None] - np.arange(40)
    assert not cache["pattern", 0][:, (distance >= 16) | (distance < 0)].any()
    assert (cache["pattern", 0][:, (distance < 16) & (distance >= 0)] > 0).all()
    assert (cache["pattern", 1][:, distance >= 0] > 0).all()


@pytest.mark.parametrize("arch", DECODERS)
def test_a_single_token(open_lab: Callable[..., Interp], arch: str) -> None:
    lab = open_lab(arch, n_sequences=2)
    logits, cache = lab.run_with_cache([5])
    assert logits.shape == (1, lab.model.n_vocab)
    assert all(values.shape[cache.points[name].axis] == 1 for name, values in cache.items())
    pairs = lab.run_with_cache([[5], [5, 6]], "blocks.*.hook_resid_post")
    assert np.allclose(pairs[0][1]["resid_post", 1][0], pairs[1][1]["resid_post", 1][0], atol=2e-3)
    assert np.allclose(cache["resid_post", 1][0], pairs[1][1]["resid_post", 1][0], atol=2e-3)


def test_an_embedding_model(open_lab: Callable[..., Interp]) -> None:
    lab = open_lab("bert")
    embeddings, cache = lab.run_with_cache([5, 6, 7, 8])
    assert embeddings.shape == (4, 64)
    assert cache["pattern", 1].shape == (4, 4, 4)
    assert np.allclose(cache["pattern", 0].sum(axis=-1), 1, atol=1e-4)
    raw = lab.capture([5, 6, 7, 8], "result_embd_pooled")["result_embd_pooled"]
    assert np.array_equal(raw, embeddings)


def test_mixture_of_experts_by_raw_names(open_lab: Callable[..., Interp], text: str) -> None:
    cache = open_lab("qwen3moe").capture(text, ["ffn_moe_topk-0", "ffn_moe_probs-0", "ffn_moe_weighted-0"])
    best = cache["ffn_moe_topk-0"]
    assert best.shape == (len(cache.tokens), 2)
    probabilities = cache["ffn_moe_probs-0"]
    assert np.array_equal(best, np.argsort(-probabilities, axis=1, kind="stable")[:, :2])
    assert cache["ffn_moe_weighted-0"].shape == (len(cache.tokens), 2, 64)


def test_an_encoder_decoder_is_refused(open_lab: Callable[..., Interp]) -> None:
    with pytest.raises(errors.ContextError, match=r"core\.capture"):
        open_lab("t5")


# ---- the fast path


def test_inputs_of_layers_come_without_a_stop(
    open_lab: Callable[..., Interp], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = open_lab()
    slow_logits, slow = lab.run_with_cache(text, "*hook_resid_*")
    calls = []
    fast_path = Passes.layer_inputs
    monkeypatch.setattr(Passes, "layer_inputs", lambda self, *a: calls.append(got := fast_path(self, *a)) or got)
    logits, fast = lab.run_with_cache(text, ["blocks.*.hook_resid_pre", "blocks.0.hook_resid_post"])
    assert calls[-1] is not None
    assert np.array_equal(logits, slow_logits)
    assert np.array_equal(fast["resid_pre", 0], slow["resid_pre", 0])
    assert np.array_equal(fast["resid_pre", 1], slow["resid_pre", 1])
    assert np.array_equal(fast["resid_post", 0], slow["resid_post", 0])
    only = lab.capture(text, "blocks.1.hook_resid_pre", positions=[-1])
    assert calls[-1] is not None
    assert np.array_equal(only["resid_pre", 1], slow["resid_pre", 1][-1:])
    lab.run_with_cache(text, "blocks.1.hook_resid_post")  # the output of the last layer is no input
    assert calls[-1] is None
    open_lab("gemma3").capture(text, "blocks.1.hook_resid_pre")  # its graphs hand nothing out
    assert calls[-1] is None
    assert np.array_equal(lab.run(text), slow_logits)


# ---- hooks


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3moe", "mamba", "jamba", "bert"])
def test_patching_with_itself_changes_nothing(open_lab: Callable[..., Interp], arch: str) -> None:
    """Bit for bit, at every point and all of them together: what is returned is written back."""
    lab = open_lab(arch)
    ids = np.random.default_rng(3).integers(3, 100, 20).astype(np.int32)
    logits, cache = lab.run_with_cache(ids)
    for name in lab.names():
        patched = lab.run_with_hooks(ids, [(name, lambda values, hook: cache[hook.name].copy())])
        assert np.array_equal(patched, logits), name
    patched = lab.run_with_hooks(ids, [(None, lambda values, hook: cache[hook.name].copy())])
    assert np.array_equal(patched, logits)


@pytest.mark.model
def test_patching_the_real_model_with_itself(smollm2: Model) -> None:
    with Interp(smollm2, n_ctx=32, n_threads=1) as lab:
        logits, cache = lab.run_with_cache("The capital of France is")
        for layer in (0, 17, 29):
            patched = lab.run_with_hooks(
                "The capital of France is", [(f"blocks.{layer}.*", lambda values, hook: cache[hook.name].copy())]
            )
            assert np.array_equal(patched, logits)
        patched = lab.run_with_hooks("The capital of France is", [(None, lambda values, hook: cache[hook.name].copy())])
        assert np.array_equal(patched, logits)
        assert lab.vocab.token_to_piece(int(logits[-1].argmax())) == b" Paris"


def test_hooks_see_names_tokens_positions(open_lab: Callable[..., Interp]) -> None:
    lab = open_lab(n_ubatch=8)
    ids = np.arange(10, 30, dtype=np.int32)
    seen: list[Hook] = []
    lab.run_with_hooks([ids[:5], ids], [("blocks.1.hook_resid_mid", lambda values, hook: seen.append(hook))])
    assert {(hook.name, hook.layer) for hook in seen} == {("blocks.1.hook_resid_mid", 1)}
    assert [hook.index for hook in seen] == [0, 1, 1, 1]
    assert [hook.positions.tolist() for hook in seen] == [
        list(range(5)), list(range(8)), list(range(8, 16)), list(range(16, 20)),
    ]  # fmt: skip
    assert np.array_equal(np.concatenate([hook.tokens for hook in seen[1:]]), ids)


def test_ablation_in_place_and_by_return(lab: Interp, text: str) -> None:
    def in_place(values: np.ndarray, hook: Hook) -> None:
        values[:, 2] = 0

    def returned(values: np.ndarray, hook: Hook) -> np.ndarray:
        changed = values.copy()
        changed[:, 2] = 0
        return changed

    name = "blocks.0.attn.hook_z"
    logits = lab.run(text)
    first, second = lab.run_with_hooks(text, [(name, in_place)]), lab.run_with_hooks(text, [(name, returned)])
    assert np.array_equal(first, second)
    assert not np.array_equal(first, logits)
    _, cache = lab.run_with_cache(text, [name, "blocks.0.hook_attn_out"], fwd_hooks=[(name, in_place)])
    assert not cache["z", 0][:, 2].any()


def test_causal_effects_only_reach_later_positions(lab: Interp, text: str) -> None:
    def shift(values: np.ndarray, hook: Hook) -> None:
        values[3] += np.linspace(-1, 1, values.shape[1], dtype=np.float32)

    logits = lab.run(text)
    changed = lab.run_with_hooks(text, [("blocks.0.hook_resid_post", shift)])
    assert np.array_equal(changed[:3], logits[:3])
    assert (np.abs(changed[3:] - logits[3:]).max(axis=1) > 1e-4).all()


def test_patterns_and_scores_can_be_set(lab: Interp, text: str) -> None:
    """Each head looks at the first token only: z is its value."""

    def first_only(values: np.ndarray, hook: Hook) -> np.ndarray:
        values[:] = 0
        values[:, :, 0] = 1
        return values

    _, cache = lab.run_with_cache(text, layers=0, fwd_hooks=[("blocks.0.attn.hook_pattern", first_only)])
    value = np.repeat(cache["v", 0], 2, axis=1)[0]
    assert np.allclose(cache["z", 0], value[None], atol=1e-5)

    def prefer_first(values: np.ndarray, hook: Hook) -> None:
        values[:, :, 0] = 100

    _, cache = lab.run_with_cache(text, layers=0, fwd_hooks=[("blocks.0.attn.hook_attn_scores", prefer_first)])
    assert np.allclose(cache["pattern", 0][:, :, 0], 1, atol=1e-5)


def test_a_patch_from_another_run(lab: Interp) -> None:
    """All of a layer's output from another text of the same length: the logits are that text's."""
    one, other = np.arange(5, 15, dtype=np.int32), np.arange(50, 60, dtype=np.int32)
    cache = lab.capture(one, "blocks.1.hook_resid_post")
    got = lab.run_with_hooks(other, [("blocks.1.hook_resid_post", lambda values, hook: cache[hook.name])])
    assert np.array_equal(got, lab.run(one))


def test_hooks_in_a_with_block(lab: Interp, text: str) -> None:
    logits = lab.run(text)
    zero = [("blocks.*.hook_mlp_out", lambda values, hook: values * 0)]
    with lab.hooks(zero) as same:
        assert same is lab
        inside = lab.run(text)
        _, cache = lab.run_with_cache(text, "blocks.*.hook_mlp_out")
        assert not cache.stack("mlp_out").any()
    assert np.array_equal(inside, lab.run_with_hooks(text, zero))
    assert np.array_equal(lab.run(text), logits)
    with pytest.raises(NoActivationError), lab.hooks([("blocks.*.nothing", print)]):
        pass
    with pytest.raises(RuntimeError, match="from inside"), lab.hooks(zero):
        raise RuntimeError("from inside")
    assert np.array_equal(lab.run(text), logits)


def test_what_a_hook_raises(lab: Interp, text: str) -> None:
    logits = lab.run(text)

    def fail(values: np.ndarray, hook: Hook) -> None:
        raise ZeroDivisionError(hook.name)

    with pytest.raises(ZeroDivisionError, match="hook_resid_mid"):
        lab.run_with_hooks(text, [("blocks.1.hook_resid_mid", fail)])
    with pytest.raises(errors.InvalidArgumentError, match=r"\(8, 64\)|shape"):
        lab.run_with_hooks(text, [("blocks.1.hook_resid_mid", lambda values, hook: values[1:])])
    with pytest.raises(errors.InvalidArgumentError, match="numbers"):
        lab.run_with_hooks(text, [("blocks.1.hook_resid_mid", lambda values, hook: values.astype(str))])
    with pytest.raises(errors.ReentrantError):
        lab.run_with_hooks(text, [("blocks.1.hook_resid_mid", lambda values, hook: lab.run("again"))])
    with pytest.raises(TypeError, match="callable"):
        lab.run_with_hooks(text, [("blocks.1.hook_resid_mid", 3)])
    assert np.array_equal(lab.run(text), logits)


# ---- the cache, and opening


def test_the_cache(lab: Interp, text: str, tmp_path) -> None:
    cache = lab.capture(text, "*hook_resid*")
    assert isinstance(cache, ActivationCache)
    assert cache.layers == [0, 1]
    assert cache.stack("resid_post").shape == (2, len(cache.tokens), 64)
    assert cache.nbytes == 6 * len(cache.tokens) * 64 * 4
    assert "6 activations" in repr(cache)
    with np.load(cache.save(tmp_path / "cache.npz")) as file:
        assert np.array_equal(file["blocks.1.hook_resid_post"], cache["resid_post", 1])
        assert np.array_equal(file["tokens"], cache.tokens)
    with pytest.raises(errors.InvalidArgumentError, match="npz"):
        cache.save(tmp_path / "cache.txt")
    with pytest.raises(NoActivationError):
        cache.stack("pattern")


def test_wrong_texts(lab: Interp) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="n_ctx=64"):
        lab.run(np.ones(65, np.int32))
    with pytest.raises(errors.InvalidArgumentError, match="0 tokens"):
        lab.run([])
    with pytest.raises(errors.PyllmError):
        lab.run([10**6])
    with pytest.raises(errors.PyllmError):
        lab.run([-1])
    assert lab.run([1, 5]).shape == (2, lab.model.n_vocab)


def test_wrong_arguments(tiny_model: Model) -> None:
    for arguments in ({"n_ctx": 2}, {"n_sequences": 0}, {"n_ctx": 8, "n_ubatch": 16}, {"n_ctx": 8, "n_sequences": 9}):
        with pytest.raises(errors.InvalidArgumentError):
            Interp(tiny_model, **arguments)


def test_the_model_of_a_llama(tiny_models: dict, text: str, lab: Interp) -> None:
    with Llama(tiny_models["llama"], n_ctx=64, n_threads=1) as llm:
        with Interp(llm, n_ctx=64, n_threads=1) as shared:
            assert np.array_equal(shared.run(text), lab.run(text))
        assert llm(text, max_tokens=2).usage.completion_tokens == 2


def test_closing(load: Callable[..., Model], tiny_models: dict, text: str) -> None:
    shared = load("llama")
    with Interp(shared, n_ctx=64, n_threads=1) as lab:
        pass
    lab.close()
    assert not shared.closed
    with pytest.raises(errors.ClosedError):
        lab.run(text)
    with Interp(tiny_models["llama"], n_ctx=16, n_threads=1) as own:
        own.run([1, 5])
    assert own.model.closed


def test_threads_wait_for_each_other(lab: Interp, texts: list[np.ndarray]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    expected = [lab.run_with_cache(ids, "blocks.1.hook_resid_post") for ids in texts]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda ids: lab.run_with_cache(ids, "blocks.1.hook_resid_post"), texts * 3))
    for (logits, cache), (right_logits, right) in zip(got, expected * 3, strict=True):
        assert np.array_equal(logits, right_logits)
        assert np.array_equal(cache["resid_post", 1], right["resid_post", 1])


# ---- what does not fit says so


def test_a_cache_is_a_mapping_that_can_be_asked(lab: Interp, text: str) -> None:
    cache = lab.capture(text, "*.hook_resid_*")
    assert "blocks.0.hook_resid_pst" not in cache
    assert cache.get("nothing") is None
    # The same tensors by the names that TransformerLens 3 has for them.
    assert cache["blocks.1.hook_in"] is cache["blocks.1.hook_resid_pre"]
    assert cache["blocks.1.hook_out"] is cache["blocks.1.hook_resid_post"]
    with pytest.raises(NoActivationError, match=r"resid_pst.* are blocks") as info:
        cache["blocks.0.hook_resid_pst"]
    assert isinstance(info.value, KeyError) and not str(info.value).startswith('"') and len(str(info.value)) < 300
    with pytest.raises(NoActivationError, match="of layers"):
        cache["resid_post", 99]
    with pytest.raises(NoActivationError):
        cache["resid_post", 0, 0]  # type: ignore[index]


def test_wrong_arguments_are_named(lab: Interp, text: str) -> None:
    name = "blocks.0.hook_resid_post"
    assert list(lab.capture(text, "*.hook_resid_post", layers=np.int64(0))) == [name]  # type: ignore[arg-type]
    for layers in ("0", 0.5, [0.5], ["0"]):
        with pytest.raises(errors.InvalidArgumentError, match="layers are integers"):
            lab.capture(text, "*.hook_resid_post", layers=layers)  # type: ignore[arg-type]
    for positions in (0.5, "0", [0.5], [True]):
        with pytest.raises(errors.InvalidArgumentError, match="positions are integers"):
            lab.capture(text, name, positions=positions)  # type: ignore[arg-type]
    for names in (3, [3]):
        with pytest.raises(errors.InvalidArgumentError, match="names are"):
            lab.capture(text, names)  # type: ignore[arg-type]
    for wrong in (None, 3, (each for each in [text])):
        with pytest.raises(errors.InvalidArgumentError, match="a text, token ids or a list"):
            lab.run(wrong)
    for hooks in ((name, print), [3], [(name,)]):
        with pytest.raises(errors.InvalidArgumentError, match="pairs"):
            lab.run_with_hooks(text, hooks)  # type: ignore[arg-type]
    with pytest.raises(errors.UnknownArgumentError, match="'n_ctx'"):
        Interp(lab.model, n_ctxx=64)
    for n_ctx in (0, -1, 2, 64.5):
        with pytest.raises(errors.InvalidArgumentError, match="n_ctx must be"):
            Interp(lab.model, n_ctx=n_ctx)  # type: ignore[arg-type]

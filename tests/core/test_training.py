"""Training: a tiny model learns a text, and what cannot be trained says so."""

import math
import os
import signal
import threading
import time

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.batch_ext import BatchExt
from pyllm.core.model import Model
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Dist, TopK
from pyllm.core.training import Trainer, windows

N_CTX = 256
SIZES = {"n_ctx": N_CTX, "n_batch": N_CTX, "n_ubatch": N_CTX, "type_k": "f32", "type_v": "f32"}


@pytest.fixture
def model(tiny_models, make_model):
    return make_model(tiny_models.make("llama", n_layer=1), load_mode="none", use_extra_bufts=False)


@pytest.fixture
def trainable(model, make_context):
    def make(**arguments):
        return make_context(model, **(SIZES | arguments))

    return make


@pytest.fixture
def text(model):
    """Six words over and over, with a little noise: there is something to learn."""
    rng = np.random.default_rng(0)
    ids = np.tile(rng.integers(10, 200, 6), 200)
    ids[rng.random(len(ids)) < 0.02] = 7
    return ids


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1e-2), ("sgd", 0.02)])
def test_a_tiny_fine_tune_lowers_the_loss(trainable, text, optimizer, lr):
    trainer = Trainer(trainable(), optimizer=optimizer, lr=lr)
    epochs = [trainer.epoch(windows(text, N_CTX)[:5], val_split=0.2, shuffle=i) for i in range(6)]
    first, last = epochs[0], epochs[-1]
    assert last["train_loss"] < 2 < 5 < first["train_loss"]
    assert last["val_loss"] < 2 < 4 < first["val_loss"]
    assert last["val_accuracy"] > 0.4 > 0.2 > first["val_accuracy"]
    assert (first["train_windows"], first["val_windows"]) == (4, 1)


def test_the_same_training_twice_gives_the_same_weights(tiny_models, make_model, make_context, text):
    rows = []
    for _ in range(2):
        model = make_model(tiny_models.make("llama", n_layer=1), load_mode="none")
        Trainer(make_context(model, **SIZES), lr=1e-3).epoch(windows(text, N_CTX)[:3], shuffle=5)
        context = make_context(model)
        context.decode(Batch.from_arrays(text[:8]))
        rows.append(context.logits.copy())
    assert np.array_equal(*rows)


def test_windows_are_computed_by_the_threads_of_the_context(trainable, text):
    """llama.cpp would take four, which on fewer cores costs seconds for each window."""
    trainer = Trainer(trainable(n_threads=1))
    before = time.process_time(), time.perf_counter()
    trainer.epoch(windows(text, N_CTX)[:8])
    cpu, wall = time.process_time() - before[0], time.perf_counter() - before[1]
    assert cpu < 1.5 * wall + 0.05


def test_the_loss_is_that_of_the_logits(trainable, model, make_context, text):
    """An epoch that only evaluates gives the mean negative log-likelihood, and changes nothing."""
    window = windows(text, N_CTX)[:1]
    context = make_context(model, n_ctx=N_CTX)
    context.decode(Batch.from_arrays(window[0, :-1], outputs="all"))
    logits = context.logits.copy().astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(N_CTX), window[0, 1:]]
    trainer = Trainer(trainable())
    result = trainer.epoch(window, val_split=1)
    assert result["val_loss"] == pytest.approx(losses.mean(), abs=2e-3)
    assert result["val_accuracy"] == pytest.approx((logits.argmax(-1) == window[0, 1:]).mean(), abs=0.01)
    assert math.isnan(result["train_loss"]) and result["train_windows"] == 0
    assert trainer.epoch(window, val_split=1)["val_loss"] == pytest.approx(result["val_loss"], abs=1e-6)


def test_what_was_learned_is_in_the_model(trainable, model, make_context, text, tmp_path):
    def logits(model):
        context = make_context(model)
        context.decode(Batch.from_arrays(text[:8]))
        return context.logits[-1].copy()

    before = logits(model)
    Trainer(trainable(), lr=1e-3).epoch(windows(text, N_CTX)[:2])
    after = logits(model)
    assert np.abs(after - before).max() > 1e-3
    path = tmp_path / "trained.gguf"
    model.save(path)
    with Model(path) as saved:
        assert np.allclose(logits(saved), after, atol=1e-5)
        assert saved.n_ctx_train == model.n_ctx_train == N_CTX, "llama.cpp writes the length of the windows"
    with Model(path, kv_overrides={"llama.context_length": 512}) as longer:
        assert longer.n_ctx_train == 512


def test_only_what_the_filter_chooses_is_trained(trainable, text):
    seen = {}

    def norms(name, shape):
        seen[name] = shape
        return "norm" in name

    trainer = Trainer(trainable(), param_filter=norms)
    assert trainer.parameters and all("norm" in name for name in trainer.parameters)
    assert len(seen) > len(trainer.parameters)
    n_embd = trainer.context.model.n_embd
    assert seen["output_norm.weight"] == (n_embd,)
    assert "token_embd.weight" not in seen
    trainer.epoch(windows(text, N_CTX)[:1])


def test_progress_and_what_it_raises(trainable, text):
    trainer = Trainer(trainable())
    calls = []
    trainer.epoch(windows(text, N_CTX)[:3], val_split=0.4, progress=lambda *arguments: calls.append(arguments))
    assert [call[:3] for call in calls] == [(True, 1, 2), (True, 2, 2), (False, 1, 1)]
    assert all(loss > 0 for *_, loss in calls)

    def stop(train, i, n, loss):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        trainer.epoch(windows(text, N_CTX)[:3], progress=stop)
    assert trainer.epoch(windows(text, N_CTX)[:1])["train_windows"] == 1


def test_the_filters_exception_is_raised(trainable):
    def broken(name, shape):
        raise LookupError(name)

    with pytest.raises(LookupError):
        Trainer(trainable(), param_filter=broken)


def test_the_context_decodes_no_more(trainable, text):
    """What computes whole windows cannot compute less; llama.cpp would fail with an assertion."""
    context = trainable()
    trainer = Trainer(context, lr=1e-3)
    for _ in range(2):
        with pytest.raises(errors.ContextError, match="another context"):
            context.decode(Batch.from_arrays(text[:4]))
        with pytest.raises(errors.ContextError, match="another context"):
            context.process(BatchExt(context).add(text[:4]))
        with pytest.raises(errors.NoOutputError):
            _ = context.logits
        trainer.epoch(windows(text, N_CTX)[:1])
    trainer.lr = 5e-4
    assert trainer.lr == pytest.approx(5e-4)
    trainer.epoch(windows(text, N_CTX)[:1])
    context.close()
    with pytest.raises(errors.ClosedError):
        trainer.epoch(windows(text, N_CTX)[:1])


def test_windows_in_parts(trainable, text):
    """Smaller batches train too, without gradients for keys and values, and leave the context able to decode."""
    context = trainable(n_batch=128, n_ubatch=64)
    trainer = Trainer(context, lr=1e-3)
    losses = [trainer.epoch(windows(text, N_CTX)[:2])["train_loss"] for _ in range(4)]
    assert losses[-1] < losses[0] - 0.3
    context.memory.clear()
    context.decode(Batch.from_arrays(text[:4]))
    assert np.isfinite(context.logits[-1]).all()
    trainer.epoch(windows(text, N_CTX)[:1])


def cost_of(trainer, many):
    """Seconds of computing for all windows, measured with a few: the time of the wall depends on other processes."""
    before = time.process_time()
    trainer.epoch(many[:4])
    return (time.process_time() - before) / 4 * len(many)


def test_ctrl_c_between_windows(trainable, text):
    trainer = Trainer(trainable())
    many = windows(text, N_CTX, stride=1)
    half = cost_of(trainer, many) / 2
    before = time.process_time()
    with pytest.raises(KeyboardInterrupt):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        trainer.epoch(many)
    assert time.process_time() - before < half, "all of it was computed"
    assert trainer.epoch(many[:1])["train_windows"] == 1, "nothing was left half done"


def test_abort_leaves_nothing_to_go_on_with(trainable, text):
    context = trainable()
    trainer = Trainer(context)
    many = windows(text, N_CTX, stride=1)
    half = cost_of(trainer, many) / 2
    threading.Timer(0.1, context.abort).start()
    before = time.process_time()
    with pytest.raises(errors.DecodeAborted, match="half changed"):
        trainer.epoch(many)
    assert time.process_time() - before < half, "all of it was computed"
    with pytest.raises(errors.ContextError, match="half way"):
        trainer.epoch(many[:1])
    context.close()


def test_views_are_safe(trainable, text):
    context = trainable()
    context.decode(Batch.from_arrays(text[:4]))
    view = np.asarray(context.logits)
    trainer = Trainer(context)
    trainer.epoch([text[: context.n_ctx + 1]])
    context.close()
    assert np.isfinite(view).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"type_k": "f16"}, "float32"),
        ({"n_batch": 96, "n_ubatch": 32}, "must divide"),
        ({"n_ubatch": 100}, "must divide"),
    ],
)
def test_contexts_that_cannot_train(trainable, arguments, match):
    with pytest.raises(errors.ContextError, match=match):
        Trainer(trainable(**arguments))


def test_models_that_cannot_be_trained(tiny_models, make_model, make_context, load):
    mapped = make_model(tiny_models["llama"], load_mode="mmap")
    with pytest.raises(errors.ContextError, match="load_mode"):
        Trainer(make_context(mapped, **SIZES))
    quantized = make_model(tiny_models.make("llama", type="Q8_0"), load_mode="none")
    with pytest.raises(errors.ContextError, match="F32"):
        Trainer(make_context(quantized, **SIZES))
    for arch in ("mamba", "bert", "t5"):
        with pytest.raises(errors.ContextError, match="decoders with attention"):
            Trainer(make_context(load(arch), n_ctx=256, n_batch=256, n_ubatch=256))


@pytest.mark.parametrize("arch", ["gemma3", "qwen3moe"])
def test_operations_without_a_gradient(tiny_models, make_model, make_context, text, arch):
    model = make_model(tiny_models.make(arch), load_mode="none")
    trainer = Trainer(make_context(model, **SIZES))
    with pytest.raises(errors.BackendAssertError, match="backward pass"):
        trainer.epoch(windows(text, N_CTX)[:1])
    with pytest.raises(errors.ContextError, match="half way"):
        trainer.epoch(windows(text, N_CTX)[:1])


def test_samplers_in_the_graph_are_in_the_way(trainable, text):
    chain = Chain(TopK(5), Dist(1))
    with pytest.raises(errors.ContextError, match="set_sampler"):
        Trainer(trainable(samplers={0: chain}))
    context = trainable()
    trainer = Trainer(context)
    context.set_sampler(0, chain)
    with pytest.raises(errors.ContextError, match="set_sampler"):
        trainer.epoch(windows(text, N_CTX)[:1])
    context.set_sampler(0, None)
    trainer.epoch(windows(text, N_CTX)[:1])


@pytest.mark.parametrize(
    "arguments",
    [
        {"embeddings": True, "pooling_type": "none"},
        {"embeddings": True, "pooling_type": "mean"},
        {"flash_attn_type": "enabled"},
        {"n_seq_max": 4, "kv_unified": True},
        {"capture": True},
        {"reserve_outputs": N_CTX},
        {"poison_stale": True},
        {"n_batch": 1, "n_ubatch": 1},
    ],
    ids=str,
)
def test_contexts_of_other_kinds_train_too(trainable, text, arguments):
    window = windows(text, N_CTX)[:1]
    expected = Trainer(trainable()).epoch(window, val_split=1)["val_loss"]
    trainer = Trainer(trainable(**arguments), lr=1e-3)
    assert trainer.epoch(window, val_split=1)["val_loss"] == pytest.approx(expected, abs=1e-4)
    trainer.epoch(window)
    assert trainer.epoch(window, val_split=1)["val_loss"] < expected - 0.2


def test_one_trainer_for_each_context(trainable):
    context = trainable()
    Trainer(context)
    with pytest.raises(errors.ContextError, match="already"):
        Trainer(context)


def test_numbers_that_do_not_fit(trainable, text):
    for arguments in (
        {"lr": 0},
        {"lr": -1},
        {"lr": math.nan},
        {"optimizer": "lion"},
        {"beta1": 1},
        {"weight_decay": 2},
    ):
        with pytest.raises(errors.InvalidArgumentError):
            Trainer(trainable(), **arguments)
    with pytest.raises(errors.InvalidArgumentError, match="refused all"):
        Trainer(trainable(), param_filter=lambda name, shape: False)
    trainer = Trainer(trainable())
    n_vocab = trainer.context.n_vocab
    for tokens, match in (
        (np.arange(20), "fill a window"),
        (np.zeros((1, N_CTX), int), "n_ctx"),
        (np.zeros((0, N_CTX + 1), int), "windows"),
        (np.zeros(600), "integers"),
        (np.full(600, n_vocab), "token ids"),
        (np.full(600, -1), "token ids"),
    ):
        with pytest.raises(errors.InvalidArgumentError, match=match):
            trainer.epoch(tokens)
    with pytest.raises(errors.InvalidArgumentError, match="val_split"):
        trainer.epoch(text, val_split=1.5)


def test_windows():
    assert windows(np.arange(10), 4, 3).tolist() == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]]
    assert windows(np.arange(5), 4).tolist() == [[0, 1, 2, 3, 4]]
    assert windows(np.arange(9), 4).shape == (3, 5)

"""What a model takes, what fits, and what is refused before anything is allocated."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from pyllm import Llama, errors, host_memory, loading, memory
from pyllm.core.breakdown import memory_breakdown
from pyllm.core.model import Model
from pyllm.params import ContextParams

MIB = 1 << 20


@pytest.fixture(scope="module")
def path(tiny_models):
    return tiny_models["llama"]


@pytest.fixture
def available(monkeypatch):
    """Pretend that the host has so much memory left."""

    def pretend(number: int | None) -> None:
        known = host_memory.HostMemory(number, number)
        monkeypatch.setattr(memory, "host_memory", lambda: known)
        monkeypatch.setattr(loading, "host_memory", lambda: known)

    return pretend


def test_estimate_is_what_is_allocated(path):
    estimate = memory.estimate(path, n_ctx=512, n_ubatch=64)
    with Llama(path, n_ctx=512, n_ubatch=64, n_threads=1) as llm:
        buffers = memory_breakdown(llm.context)
    for kind in ("context", "compute"):
        assert getattr(estimate, kind) == sum(getattr(buffer, kind) for buffer in buffers)
    assert estimate.total == estimate.model + estimate.context + estimate.compute
    assert [device.name for device in estimate.devices] == ["host"]
    assert estimate.host.used == estimate.total


def test_estimate_grows_with_the_context_and_shrinks_with_the_type(path):
    small, large = (memory.estimate(path, n_ctx=n_ctx) for n_ctx in (1024, 4096))
    assert large.context == 4 * small.context
    f32 = memory.estimate(path, n_ctx=1024, type_k="f32", type_v="f32")
    assert f32.context == 2 * small.context


def test_estimate_refuses_what_it_does_not_know(path):
    with pytest.raises(errors.UnknownArgumentError, match="did you mean 'type_k'"):
        memory.estimate(path, typ_k="q8_0")
    with pytest.raises(errors.ModelNotFoundError):
        memory.estimate("nowhere/x.gguf")


def test_largest_context_within_a_budget(path):
    needed = memory.estimate(path, n_ctx=8192).total
    with memory.Probe(path) as probe:
        assert memory.fit(path, budget=needed).n_ctx == probe.model.n_ctx_train < 8192
        found = probe.largest(needed, 256, 65536)
        assert found is not None and 8192 * 0.97 <= found.n_ctx <= 8192
        assert found.host.used <= needed
        assert probe.largest(needed * 100, 256, 65536).n_ctx == 65536
        assert probe.largest(1000, 256, 65536) is None


def test_fit_gives_arguments_for_a_llama(path):
    fitted = memory.fit(path, n_ctx=512)
    assert fitted.arguments == {"n_ctx": 512}
    with Llama(path, **fitted.arguments, n_threads=1) as llm:
        assert llm.context.n_ctx == 512


def test_a_context_of_0_is_the_trained_length_and_must_fit(path):
    trained = memory.estimate(path)
    assert memory.fit(path, n_ctx=0, budget=np.int64(trained.total)).n_ctx == trained.n_ctx
    with pytest.raises(errors.InsufficientMemoryError, match=f"{trained.n_ctx:,} tokens"):
        memory.fit(path, n_ctx=0, n_ctx_min=256, budget=trained.total - 1)
    assert memory.fit(path, n_ctx_min=256, budget=trained.total - 1).n_ctx < trained.n_ctx


def test_fit_says_what_would_fit(path):
    budget = memory.estimate(path, n_ctx=4096).total
    with pytest.raises(errors.InsufficientMemoryError, match=r"65,536 tokens.*n_ctx=\d+") as caught:
        memory.fit(path, n_ctx=65536, budget=budget)
    error = caught.value
    assert isinstance(error, MemoryError)
    assert error.needed > error.available == budget
    assert memory.estimate(path, n_ctx=error.n_ctx).total <= budget
    assert error.n_ctx > 3000
    with pytest.raises(errors.InsufficientMemoryError, match="no context makes it fit"):
        memory.fit(path, budget=1000)


@pytest.mark.parametrize("budget", [-1, 1.5, True, {"host": "all"}, {"CUDA9": 5}])
def test_budgets_that_are_none(path, budget):
    with pytest.raises(errors.InvalidArgumentError, match="budget"):
        memory.fit(path, budget=budget)


# ---- Llama


def test_default_context_is_the_trained_length(path):
    with Llama(path, n_threads=1) as llm:
        assert llm.context.n_ctx == llm.model.n_ctx_train
    with Model(path) as model, Llama(model, n_threads=1) as llm:
        assert llm.context.n_ctx == model.n_ctx_train


def test_default_context_of_a_long_model_stays_below_a_quarter_of_what_is_free(tiny_models, available):
    path = tiny_models.make("llama", n_ctx_train=131072)
    whole = memory.estimate(path, n_ctx=131072)
    available(4 * whole.context // 2)
    with Llama(path, n_threads=1) as llm:
        n_ctx = llm.context.n_ctx
        context = sum(buffer.context for buffer in memory_breakdown(llm.context))
        assert 4096 <= n_ctx < 131072 and n_ctx % 256 == 0
        assert 0.9 * whole.context // 2 < context <= whole.context // 2


def test_default_context_is_not_below_4096(tiny_models, available):
    path = tiny_models.make("llama", n_ctx_train=131072, n_layer=8, n_embd=128, n_head=4, n_head_kv=4)
    small = memory.estimate(path, n_ctx=4096)
    assert small.context > small.total // 4
    available(small.total)
    with Llama(path, n_threads=1) as llm:
        assert llm.context.n_ctx == 4096


def test_what_obviously_fits_is_not_measured(path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("measured")

    monkeypatch.setattr(memory, "Probe", never)
    with Llama(path, n_threads=1) as llm:
        assert llm.context.n_ctx == llm.model.n_ctx_train
    with Llama(path, n_ctx=1024, n_threads=1):
        pass


def test_a_context_that_does_not_fit_is_refused_with_the_one_that_would(path, available):
    available(memory.estimate(path, n_ctx=8192).total)
    with pytest.raises(
        errors.InsufficientMemoryError, match=r"131,072 tokens.*n_ctx=\d+.*check_memory=False"
    ) as caught:
        Llama(path, n_ctx=131072, n_threads=1)
    # The weights are there by then, and what they take is not free any more.
    assert 8000 < caught.value.n_ctx < 9000
    with Llama(path, n_ctx=caught.value.n_ctx, n_threads=1) as llm:
        assert llm.context.n_ctx == caught.value.n_ctx
    with Llama(path, n_ctx=65536, n_threads=1, check_memory=False) as llm:
        assert llm.context.n_ctx == 65536


def test_nothing_is_loaded_where_the_weights_do_not_fit(path, available, monkeypatch):
    available(100_000)
    loaded = []

    class Loading:
        def __init__(self, *_, **__):
            loaded.append(1)

    monkeypatch.setattr(loading, "Model", Loading)
    with pytest.raises(errors.InsufficientMemoryError, match="no context makes it fit"):
        Llama(path, n_ctx=256)
    assert loaded == []


def test_a_given_model_is_checked_and_stays_open(path, available):
    with Model(path) as model:
        available(memory.estimate(path, n_ctx=4096).total)
        with pytest.raises(errors.InsufficientMemoryError):
            Llama(model, n_ctx=131072)
        assert not model.closed


def test_an_unknown_amount_of_memory_refuses_nothing(path, available):
    available(None)
    with Llama(path, n_ctx=2048, n_threads=1) as llm:
        assert llm.context.n_ctx == 2048
    with Llama(path, n_threads=1) as llm:
        assert llm.context.n_ctx == min(4096, llm.model.n_ctx_train)


@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "gemma3", "mamba", "jamba", "bert", "t5"])
def test_the_bound_is_one(load, tiny_models, arch):
    """What is taken for enough without measuring is enough."""
    model = load(arch)
    for n_ctx in (512, 8192):
        estimate = memory.estimate(tiny_models[arch], n_ctx=n_ctx)
        context, compute = loading._bound(model, n_ctx, ContextParams())
        assert estimate.context <= context
        assert estimate.compute <= compute * 1.5


def test_sizes_that_are_none_are_the_context_s_to_refuse(path):
    for n_ctx in (-1, 1 << 31):
        with pytest.raises(errors.InvalidArgumentError, match="n_ctx"):
            Llama(path, n_ctx=n_ctx)
    for name in ("n_ctx", "n_ubatch", "n_seq_max"):
        for value, error in (("many", TypeError), (1.5, TypeError), (-1, errors.InvalidArgumentError)):
            with pytest.raises(error):
                Llama(path, **{"n_ctx": 256, name: value})
    with pytest.raises(errors.InsufficientMemoryError):
        Llama(path, n_ctx=np.int64(1 << 30))


def test_estimate_without_a_size_is_for_the_trained_length(path):
    sizes = [memory.estimate(path, **arguments).n_ctx for arguments in ({}, {"n_ctx": 0}, {"n_ctx": None})]
    with Model(path) as model:
        assert sizes == [model.n_ctx_train] * 3


def test_missing_part_is_named(tiny_models, tmp_path):
    part = tmp_path / "x-00001-of-00002.gguf"
    part.write_bytes(tiny_models["llama"].read_bytes())
    with pytest.raises(errors.ModelNotFoundError, match="x-00002-of-00002"):
        Llama(part)


def test_flash_attention_is_left_to_llama_cpp(path, caplog):
    with caplog.at_level(logging.INFO, logger="pyllm.llama"), Llama(path, n_ctx=256, n_threads=1):
        pass
    assert any("flash_attn" in record.message and "auto" in record.message for record in caplog.records)


def test_absurd_contexts_are_not_even_measured(path):
    psutil = pytest.importorskip("psutil")
    before = psutil.Process().memory_info().rss
    estimate = memory.estimate(path, n_ctx=1 << 30)
    assert estimate.n_ctx == 1 << 30
    assert estimate.context == memory.estimate(path, n_ctx=1 << 20).context << 10
    with pytest.raises(errors.InsufficientMemoryError, match="1,073,741,824 tokens"):
        Llama(path, n_ctx=1 << 30)
    assert psutil.Process().memory_info().rss - before < 500 * MIB

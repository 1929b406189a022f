"""An engine asks whether it fits before it takes memory, as a Llama does."""

from __future__ import annotations

import pytest

from pyllm import loading
from pyllm.engine import Engine
from pyllm.engine.sizes import default_n_ctx
from pyllm.errors import InsufficientMemoryError, InvalidArgumentError
from pyllm.host_memory import HostMemory
from pyllm.params import ContextParams


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "host_memory", lambda: HostMemory(200_000, 1 << 30))


@pytest.mark.usefixtures("little")
def test_what_does_not_fit_is_refused(tiny_models, tiny_model) -> None:
    for model in (tiny_models["llama"], tiny_model):
        with pytest.raises(InsufficientMemoryError, match=r"n_ctx|no context") as caught:
            Engine(model, n_ctx=4096, n_threads=1)
        assert caught.value.needed > caught.value.available
    assert not tiny_model.closed


@pytest.mark.usefixtures("little")
def test_check_memory_can_be_turned_off(tiny_model) -> None:
    with Engine(tiny_model, n_ctx=256, n_parallel=2, n_threads=1, check_memory=False) as engine:
        assert engine.complete("the cat", max_tokens=2).usage.completion_tokens <= 2


def test_a_loaded_model_takes_no_arguments_of_loading(tiny_model) -> None:
    with pytest.raises(InvalidArgumentError, match="loaded already; n_gpu_layers"):
        Engine(tiny_model, n_gpu_layers=0)


def test_the_size_that_is_chosen(tiny_models, tiny_model) -> None:
    assert default_n_ctx(tiny_model, 3) == 3 * min(tiny_model.n_ctx_train, 4096)
    with Engine(tiny_models["llama"], n_parallel=2, n_threads=1) as engine:
        assert engine.context.n_ctx == 2 * min(tiny_model.n_ctx_train, 4096)


def test_models_are_opened_in_one_place(tiny_models, tiny_model) -> None:
    model, params = loading.open_model(tiny_model, {}, ContextParams(n_ctx=64), check=True)
    assert model is tiny_model
    assert params.n_ctx == 64
    model, params = loading.open_model(
        tiny_models["llama"], {}, ContextParams(), check=True, default_n_ctx=lambda model: model.n_ctx_train // 2
    )
    with model:
        assert params.n_ctx == model.n_ctx_train // 2

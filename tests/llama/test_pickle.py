"""Pickling and copying a Llama, and what lives in one."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import loras

from pyllm import Llama, Model, errors
from pyllm.engine import Engine
from pyllm.interp import Interp
from pyllm.params import ContextParams, ModelParams, SamplingParams
from pyllm.speculation import SpeculationParams
from pyllm.types import Completion

PROMPT = "the more people look"
ARGUMENTS = {"max_tokens": 8, "temperature": 0}


@pytest.fixture
def path(tiny_models) -> Path:
    return Path(tiny_models["llama"])


def again(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def text_of(llm: Llama) -> str:
    return llm(PROMPT, **ARGUMENTS).text


def test_a_llama_is_pickled_by_path_and_arguments(path: Path) -> None:
    template = "{{ messages[0].content }}!"
    given = {"n_ctx": 128, "n_threads": 1, "seed": 5, "cache_prompt": True, "chat_template": template}
    with Llama(path, use_extra_bufts=False, conversation_bytes=1 << 20, **given) as llm:
        llm.seed = 7  # as it is now, not as it was made
        with again(llm) as other:
            assert (other.seed, other.cache_prompt, other.chat_template) == (7, True, template)
            assert other.context.n_ctx == llm.context.n_ctx and other.context.n_threads == 1
            assert other.model is not llm.model and other.model_params.use_extra_bufts is False
            assert text_of(other) == text_of(llm)


def test_no_argument_is_forgotten(path: Path) -> None:
    with Llama(path, n_ctx=128, n_threads=1) as llm:
        arguments = llm.__reduce__()[1][2]
    named = {one.name for one in inspect.signature(Llama).parameters.values() if one.kind is one.KEYWORD_ONLY}
    assert named | {"n_threads"} == set(arguments)


def test_a_process_that_is_spawned_can_be_given_one(path: Path) -> None:
    with Llama(path, n_ctx=128, n_threads=1) as llm:
        expected = text_of(llm)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(Llama.create_completion, (llm, PROMPT), ARGUMENTS).text == expected


def test_the_model_of_a_llama_on_a_model(path: Path) -> None:
    with Model(path) as model, Llama(model, n_ctx=128, n_threads=1) as llm:
        first, second = again((llm, llm))
        assert first is second and text_of(first) == text_of(llm)
        first.close()
        assert not first.model.closed
        first.model.close()


def test_a_name_in_the_folder_is_found_from_another_one(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(path.parent)
    with Llama(path.name, n_ctx=128, n_threads=1, draft=path.name) as llm:
        monkeypatch.chdir(tmp_path)
        with monkeypatch.context() as there:
            there.chdir(path.parent)
            data = pickle.dumps(llm)
        with pickle.loads(data) as other:
            assert text_of(other) == text_of(llm)


def test_adapters_in_use_come_along(path: Path, tmp_path: Path) -> None:
    adapter = loras.write_lora(tmp_path / "adapter.gguf", path, 1)
    with Llama(path, n_ctx=128, n_threads=1) as llm:
        llm.set_lora((adapter, 0.5))
        with again(llm) as other:
            assert {os.path.realpath(name): scale for name, scale in other.lora.items()} == {
                os.path.realpath(adapter): 0.5
            }


def test_what_reports_a_load_stays_behind_and_other_callbacks_do_not(path: Path) -> None:
    with Llama(path, n_ctx=128, n_threads=1, progress_callback=lambda done: None) as llm:
        again(llm).close()
    llm = Llama(path, n_ctx=128, n_threads=1, abort_callback=lambda: False)
    with llm, pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(llm)


def test_a_closed_llama(path: Path) -> None:
    llm = Llama(path, n_ctx=128, n_threads=1)
    llm.close()
    with pytest.raises(errors.ClosedError, match="closed"):
        pickle.dumps(llm)


@pytest.mark.parametrize("function", [copy.copy, copy.deepcopy])
def test_a_llama_is_not_copied(path: Path, function: Callable[[Any], Any]) -> None:
    with Llama(path, n_ctx=128, n_threads=1) as llm:
        with pytest.raises(TypeError, match=r"a Llama is not copied: .*Llama\(llm\.model\)"):
            function(llm)
        # As the message says: no second load.
        with Llama(llm.model, n_ctx=128, n_threads=1) as second:
            assert second.model is llm.model and text_of(second) == text_of(llm)


def test_the_rest_says_why_not_and_what_to_do(path: Path) -> None:
    with Llama(path, n_ctx=128, n_threads=1) as llm, Interp(llm, n_ctx=64, n_threads=1) as lab:
        for thing, instead in (
            (llm.conversation("anna"), r"save\(\)"),
            (lab, "path of the model"),
            (llm.context, r"ctx\.state\.save\(\)"),
        ):
            message = rf"^an? {type(thing).__name__} cannot be pickled or copied: .*{instead}"
            for function in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match=message):
                    function(thing)
    engine = Engine(path, n_ctx=128, n_threads=1)
    with engine, pytest.raises(TypeError, match=r"^an Engine cannot be pickled or copied: .*make an Engine there"):
        pickle.dumps(engine)


def test_parameters_and_results(path: Path) -> None:
    for params in (
        ModelParams(n_gpu_layers=3, kv_overrides={"a": 1}),
        ContextParams(n_ctx=5, type_k="q8_0"),
        SamplingParams(temperature=0.3, logit_bias={5: 1.0}, samplers=("top_k", "temperature")),
        SpeculationParams(),
    ):
        for other in (again(params), copy.copy(params), copy.deepcopy(params)):
            assert other == params and type(other) is type(params)
    with Llama(path, n_ctx=128, n_threads=1) as llm:
        result = llm(PROMPT, **ARGUMENTS)
        assert isinstance(again(result), Completion) and again(result) == result

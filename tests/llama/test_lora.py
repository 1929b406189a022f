"""LoRA adapters of a Llama."""

from __future__ import annotations

import pytest
from support.loras import write_lora

from pyllm import Llama, errors
from pyllm.core.model import Model
from pyllm.lora import lora_pairs

PROMPT = "the more people look at the number"


@pytest.fixture(scope="module")
def path(tiny_models):
    return tiny_models["llama"]


@pytest.fixture(scope="module")
def adapters(path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return [write_lora(folder / f"{seed}.gguf", path, seed) for seed in (1, 2)]


def text(llm) -> list[int]:
    return llm(PROMPT, max_tokens=12, temperature=0, cache_prompt=True).tokens


@pytest.fixture
def expected(path, adapters):
    """What a Llama that never had anything else says, by its adapters."""

    def say(lora) -> list[int]:
        with Llama(path, n_ctx=256, n_threads=1, lora=lora) as llm:
            return text(llm)

    return say


def test_every_way_to_give_them(path, adapters, expected):
    one, two = adapters
    plain = expected(None)
    assert expected(one) != plain
    assert expected(str(one)) == expected((one, 1.0)) == expected([one]) == expected({one: 1}) == expected([(one, 1.0)])
    assert expected({one: 0}) == expected([]) == expected({}) == plain
    assert expected([one, (two, 0.5)]) == expected({one: 1.0, two: 0.5}) != expected(one)


def test_changed_between_calls_and_what_was_computed_is_forgotten(path, adapters, expected):
    one, two = adapters
    with Llama(path, n_ctx=256, n_threads=1) as llm:
        for lora in (None, one, {one: 0.5}, two, [one, two], None, one):
            llm.set_lora(lora)
            assert text(llm) == expected(lora), lora
            assert text(llm) == expected(lora), lora


def test_those_in_use_can_be_seen(path, adapters):
    with Llama(path, n_ctx=256, n_threads=1, lora=(adapters[0], 0.5)) as llm:
        assert llm.lora == {str(adapters[0]): 0.5}
        llm.set_lora(None)
        assert llm.lora == {}


def test_a_file_is_loaded_once(path, adapters):
    with Llama(path, n_ctx=256, n_threads=1) as llm:
        llm.set_lora(adapters[0])
        adapter = llm.context.adapters[0][0]
        llm.set_lora(None)
        llm.set_lora((adapters[0], 2.0))
        assert llm.context.adapters[0] == (adapter, 2.0)
        with pytest.raises(errors.AdapterError, match="is there twice"):
            llm.set_lora([adapters[0], adapters[0]])
        assert llm.context.adapters[0] == (adapter, 2.0)


def test_closing_closes_them_and_leaves_a_given_model_open(path, adapters):
    with Model(path) as model:
        llm = Llama(model, n_ctx=256, n_threads=1, lora=adapters[0])
        adapter = llm.context.adapters[0][0]
        llm.close()
        llm.close()
        assert adapter.closed and not model.closed


@pytest.mark.parametrize("lora", [5, [5], {"x": "y"}, [("x", 1, 2)], {"x": True}, b"x"])
def test_what_is_none_is_refused(lora):
    with pytest.raises(errors.InvalidArgumentError, match="lora takes a path"):
        lora_pairs(lora)


def test_wrong_files(path, adapters, tmp_path, tiny_models):
    with pytest.raises(errors.ModelNotFoundError):
        Llama(path, n_ctx=256, lora=tmp_path / "nothing.gguf")
    with pytest.raises(errors.AdapterError):
        Llama(path, n_ctx=256, lora=path)
    with Llama(path, n_ctx=256, n_threads=1, lora=adapters[0]) as llm:
        with pytest.raises(errors.AdapterError):
            llm.set_lora(write_lora(tmp_path / "other.gguf", path, 3, arch="gemma3"))
        assert llm.lora == {str(adapters[0]): 1.0}
        with pytest.raises(errors.InvalidArgumentError, match="scale"):
            llm.set_lora((adapters[0], float("nan")))


def test_not_while_a_stream_is_open(path, adapters):
    with Llama(path, n_ctx=256, n_threads=1) as llm:
        stream = llm.stream(PROMPT, max_tokens=5)
        next(stream)
        with pytest.raises(errors.PyllmError, match="stream"):
            llm.set_lora(adapters[0])
        stream.close()
        llm.set_lora(adapters[0])

"""The plugin for `llm`."""

from __future__ import annotations

import importlib.metadata
import json

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
llm = pytest.importorskip("llm")


@pytest.fixture
def model(tiny_models, monkeypatch, tmp_path):
    from pyllm.compat import llm_plugin

    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    yield llm_plugin.PyllmModel(str(tiny_models["llama"]))
    for opened in llm_plugin._OPEN.values():
        opened.close()
    llm_plugin._OPEN.clear()


def test_the_plugin_is_registered():
    entries = importlib.metadata.entry_points(group="llm")
    assert any(entry.value == "pyllm.compat.llm_plugin" for entry in entries)


def test_models_have_names(monkeypatch):
    from pyllm.compat import llm_plugin

    monkeypatch.setenv("PYLLM_LLM_MODELS", "a.gguf, b.gguf")
    names = []
    llm_plugin.register_models(lambda model: names.append(model.model_id))
    assert {"pyllm/smollm2", "pyllm/a.gguf", "pyllm/b.gguf"} <= set(names)
    llm_plugin.register_embedding_models(lambda model: names.append(model.model_id))
    assert "pyllm/minilm" in names


def test_an_answer(model):
    response = model.prompt("the number", system="Be brief.", max_tokens=8, temperature=0)
    text = response.text()
    assert text
    assert response.usage().output
    assert "".join(model.prompt("the number", system="Be brief.", max_tokens=8, temperature=0)) == text


def test_a_conversation(model):
    conversation = model.conversation()
    first = conversation.prompt("the number", max_tokens=6, temperature=0).text()
    second = conversation.prompt("and the time", max_tokens=6, temperature=0)
    second.text()
    alone = model.prompt("and the time", max_tokens=6, temperature=0)
    alone.text()
    assert first
    assert second.usage().input > alone.usage().input


def test_a_schema(model):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    assert isinstance(json.loads(model.prompt("the number", schema=schema, seed=1).text())["ok"], bool)


def test_vectors(tiny_models):
    from pyllm.compat import llm_plugin

    vectors = llm_plugin.PyllmEmbeddings(str(tiny_models["llama"])).embed_multi(["the people", "the time"])
    assert [len(vector) for vector in vectors] == [64, 64]

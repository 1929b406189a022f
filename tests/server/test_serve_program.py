"""`pyllm serve`, as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal

import httpx
import openai
import pytest
from support import programs

from pyllm.cli.serve_models import WantedModel
from pyllm.server.log import JSONFormatter, TextFormatter


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_a_process_from_start_to_end(serve, tiny_models, tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# those who may\nfirst\n\nsecond\n")
    process = serve(tiny_models["llama"], "-a", "tiny", "-c", "512", "-np", "2", "--api-key-file", keys, "--metrics")
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="second", max_retries=0) as client:
        assert client.models.list().data[0].id == "tiny"
        answer = client.completions.create(model="m", prompt="the cat", max_tokens=4)
        assert answer.usage.prompt_tokens > 0
        stream = client.completions.create(
            model="m", prompt="the", max_tokens=300, stream=True, logit_bias={"2": -100}, temperature=0
        )
        first = next(iter(stream))
        process.process.send_signal(signal.SIGTERM)
        texts = [first.choices[0].text, *(chunk.choices[0].text for chunk in stream)]
        assert len(texts) > 1
    assert process.wait() == 0
    assert process.rest == []
    (line, *_) = [line for line in process.lines if line.get("path") == "/v1/completions"]
    assert (line["status"], line["id"]) == (200, answer.id)
    assert line["completion_tokens"] > 0
    assert line["first_token_ms"] > 0
    assert process.process.stdout.read() == ""


def test_variables_of_the_environment(serve, tiny_models) -> None:
    process = serve(
        LLAMA_ARG_MODEL=str(tiny_models["llama"]),
        LLAMA_ARG_ALIAS="named",
        LLAMA_ARG_CTX_SIZE="256",
        LLAMA_ARG_N_PARALLEL="3",
        LLAMA_API_KEY="key",
    )
    headers = {"x-api-key": "key"}
    assert httpx.get(process.url + "/props", timeout=60).status_code == 401
    props = httpx.get(process.url + "/props", headers=headers, timeout=60).json()
    assert (props["model_alias"], props["total_slots"]) == ("named", 3)
    assert props["default_generation_settings"]["n_ctx"] == 256


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_a_model_has_the_name_by_which_it_is_served(serve) -> None:
    process = serve("smollm2", "-c", "256")
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list().data] == ["smollm2"]
        assert client.models.retrieve("smollm2").id == "smollm2"
        assert client.completions.create(model="smollm2", prompt="the cat", max_tokens=1).model == "smollm2"
    named = serve("smollm2", "-c", "256", "-a", "other")
    assert httpx.get(f"{named.url}/v1/models", timeout=60).json()["data"][0]["id"] == "other"


def test_names_of_models_without_a_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for reference in ("smollm2", "owner/repo:Q4_K_M", "hf:owner/repo", "ollama:llama3:8b"):
        assert WantedModel(reference).default_name == reference
    (tmp_path / "minilm").touch()
    (tmp_path / "smollm2").mkdir()  # the alias comes before a folder
    assert WantedModel("smollm2").default_name == "smollm2"
    for file in ("minilm", str(tmp_path / "minilm"), "./a.gguf", "https://example.org/a.gguf"):
        assert WantedModel(file).default_name is None


def test_a_model_of_vectors(serve, tiny_models) -> None:
    process = serve(tiny_models["bert"])
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
        assert client.embeddings.create(model="m", input="the cat").data[0].embedding


def test_listening_on_all_addresses_without_a_key_is_a_warning(serve, tiny_models) -> None:
    process = serve(tiny_models["llama"], "-c", "256", "--host", "0.0.0.0")
    assert process.url
    warnings = [line["message"] for line in process.lines if line["level"] == "warning"]
    assert len(warnings) == 1
    assert "no API key" in warnings[0]


def test_wrong_usage(tiny_models, tmp_path) -> None:
    twice = programs.invoke("serve", tiny_models["llama"], "-m", "other")
    assert twice.returncode == 2
    assert programs.invoke("serve", tmp_path / "none.gguf").returncode == 1
    assert programs.invoke("serve", tiny_models["llama"], "--lora", tmp_path / "none.gguf").returncode == 1
    assert programs.invoke("serve", tiny_models["llama"], "--slot-save-path", tmp_path / "none").returncode == 1


def test_a_port_that_is_taken(server, tiny_models) -> None:
    port = server.url.rpartition(":")[2]
    done = programs.start("serve", tiny_models["llama"], "-c", "256", "-t", "1", "--port", port)
    assert done.returncode == 1
    assert port in done.stderr
    assert "Traceback" not in done.stderr


def test_lines_of_the_log_are_lines() -> None:
    import logging

    record = logging.LogRecord("pyllm.server", logging.INFO, "", 0, "GET %s 200", ("/a\nERROR",), None)
    record.fields = {"method": "GET", "path": "/a\nERROR", "status": 200, "ms": 1.5}
    assert "\n" not in TextFormatter().format(record)
    assert "ms=1.5" in TextFormatter().format(record)
    line = JSONFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["status"] == 200


@pytest.mark.parametrize("text", ["", "\n# nobody yet\n\n"])
def test_a_file_without_a_key_is_no_server_for_everybody(tiny_models, tmp_path, text) -> None:
    keys = tmp_path / "keys"
    keys.write_text(text)
    done = programs.invoke("serve", tiny_models["llama"], "--api-key-file", keys)
    assert done.returncode == 2
    assert "has no key in it" in re.sub(r"[\s│]+", " ", done.stderr)

"""How a server is reached and where it writes: prefixes, HTTPS, the log's file; and models of a config file."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import ssl
import subprocess

import httpx
import openai
import pytest
from support.waiting import wait_for

from pyllm.chat.request import ChatRequest
from pyllm.errors import InvalidArgumentError
from pyllm.server import Settings
from pyllm.server.chat import ChatCompletionRequest
from pyllm.server.log import set_up_log
from pyllm.server.messages import MessagesRequest
from pyllm.server.responses import ResponseRequest
from pyllm.server.sampling import Sizes
from pyllm.server.wire import decode

# ---- prefixes


def test_all_paths_begin_with_the_prefix(start, engine) -> None:
    server = start(engine, api_prefix="/llm", api_keys=("key",))
    headers = {"x-api-key": "key"}
    assert server.get("/llm/health").json() == {"status": "ok"}
    assert server.get("/llm/props", headers=headers).status_code == 200
    assert server.get("/llm/props").status_code == 401
    assert server.get("/llm", follow_redirects=True).url.path == "/llm/"  # the page
    for path in ("/health", "/props", "/llmprops", "/"):
        answer = server.get(path, headers=headers)
        assert answer.status_code == 404
        assert "/llm" in answer.json()["error"]["message"]
    # No redirection leads outside.
    assert server.get("/llm/props/", headers=headers).status_code == 404
    with openai.OpenAI(base_url=f"{server.url}/llm/v1", api_key="key", max_retries=0) as client:
        assert client.completions.create(model="m", prompt="the cat", max_tokens=2).choices


@pytest.mark.parametrize("prefix", ["llm", "/llm/", "/"])
def test_what_is_no_prefix(prefix: str) -> None:
    with pytest.raises(InvalidArgumentError, match="api_prefix"):
        Settings(api_prefix=prefix)


# ---- HTTPS


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate")
def test_https(serve, tiny_models, tmp_path) -> None:
    key, certificate, log = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "log.jsonl"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    process = serve(
        tiny_models["llama"], "-c", 256, "--ssl-key-file", key, "--ssl-cert-file", certificate, "--log-file", log
    )
    assert process.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cafile=str(certificate))
    assert httpx.get(f"{process.url}/props", verify=context, timeout=60).status_code == 200
    with pytest.raises(httpx.HTTPError):
        httpx.get(process.url.replace("https", "http") + "/health", timeout=60)
    wait_for(lambda: "/props" in log.read_text())
    assert [json.loads(line)["level"] for line in log.read_text().splitlines()]


def test_a_log_without_stderr(tmp_path, capfd) -> None:
    logger = logging.getLogger("pyllm.server")
    uvicorn = logging.getLogger("uvicorn")
    before = [(one, one.handlers[:], one.level, one.propagate) for one in (logger, uvicorn)]
    try:
        set_up_log(as_json=False, file=tmp_path / "log", stderr=False)
        logger.info("here")
    finally:
        for handler in logger.handlers:
            handler.close()
        for one, handlers, level, propagate in before:
            one.handlers[:], one.propagate = handlers, propagate
            one.setLevel(level)
    assert "here" in (tmp_path / "log").read_text()
    assert capfd.readouterr().err == ""


# ---- chats


def test_chats_have_defaults_of_the_server() -> None:
    settings = Settings(
        chat={"reasoning_format": "none", "chat_template_kwargs": {"a": 1, "b": 2}}, chat_template="{{ messages }}"
    )
    sizes = Sizes(512, 100, (2,))
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
    for arguments in (
        decode(ChatCompletionRequest, chat).arguments(settings, sizes),
        decode(MessagesRequest, chat).arguments(settings, sizes),
        decode(ResponseRequest, {"input": "x"}).arguments(settings, sizes),
    ):
        assert arguments["reasoning_format"] == "none"
        assert arguments["chat_template_kwargs"] == {"a": 1, "b": 2}
        assert arguments["chat_template"] == "{{ messages }}"
    own = {**chat, "reasoning_format": "deepseek", "chat_template_kwargs": {"b": 3}}
    arguments = decode(ChatCompletionRequest, own).arguments(settings, sizes)
    assert arguments["reasoning_format"] == "deepseek"
    assert arguments["chat_template_kwargs"] == {"a": 1, "b": 3}


def test_defaults_reach_the_template(engine) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ mood }}"
    settings = Settings(chat={"chat_template_kwargs": {"mood": "glad"}}, chat_template=template)
    asked = decode(ChatCompletionRequest, {"messages": [{"role": "user", "content": "x"}]})
    arguments = asked.arguments(settings, Sizes(512, 100, (2,)))
    assert ChatRequest(engine, asked.messages, arguments).prompt.prompt.endswith("glad")


# ---- a config file


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGTERM to catch")
def test_models_of_a_config_file(serve, tiny_models, tmp_path) -> None:
    config = tmp_path / "pyllm.toml"
    config.write_text(f"""
        ctx-size = 512
        parallel = 2
        metrics = true
        models-max = 2

        [models.first]
        model = "{tiny_models["llama"]}"
        load = "start"

        [models.second]
        model = "{tiny_models["qwen3moe"]}"
        predict = 4

        [models.vectors]
        model = "{tiny_models["bert"]}"
        ctx-size = 0
    """)
    process = serve("--config", config, "-b", 256)
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
        status = {model.id: model.status["value"] for model in client.models.list()}
        assert status == {"first": "loaded", "second": "unloaded", "vectors": "unloaded"}
        answer = client.completions.create(model="second", prompt="the", logit_bias={"2": -100})
        assert (answer.model, answer.usage.completion_tokens) == ("second", 4)
        assert client.embeddings.create(model="vectors", input="the cat").model == "vectors"
        assert {model.id for model in client.models.list() if model.status["value"] == "loaded"} == {
            "second",
            "vectors",
        }
        with pytest.raises(openai.NotFoundError, match="'first', 'second', 'vectors'"):
            client.completions.create(model="third", prompt="the")
        document = httpx.get(process.url.replace("/v1", "") + "/openapi.json", timeout=60).json()
        assert {"/models/load", "/models/unload"} <= set(document["paths"])
        stream = client.completions.create(
            model="first", prompt="the", max_tokens=300, stream=True, logit_bias={"2": -100}, temperature=0
        )
        first = next(iter(stream))
        process.process.send_signal(signal.SIGTERM)
        assert first.model == "first"
        assert [*stream][-1].choices[0].finish_reason == "length"
    assert process.wait() == 0
    assert process.rest == []
    assert [line["model"] for line in process.lines if line.get("path") == "/v1/embeddings"] == ["vectors"]

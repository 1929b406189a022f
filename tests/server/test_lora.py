"""LoRA adapters of requests, by their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.loras import write_lora
from support.servers import Served

from pyllm import Llama, Model
from pyllm.engine import Engine

PROMPT = "the more people look at the number"


@pytest.fixture(scope="module")
def files(tiny_models: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("lora")
    return [write_lora(folder / f"style{i}.gguf", tiny_models["llama"], i) for i in (1, 2)]


@pytest.fixture
def server(start: Callable[..., Served], tiny_model: Model, files: list[Path]) -> Iterator[Served]:
    with Engine(tiny_model, n_ctx=512, n_parallel=2, n_threads=1, lora=[(files[0], 0), (files[1], 0)]) as engine:
        server = start(engine, alias="tiny")
        yield server
        server.stop()


@pytest.fixture(scope="module")
def alone(tiny_model: Model) -> Callable[[Any], str]:
    def say(lora: Any) -> str:
        with Llama(tiny_model, n_ctx=256, n_threads=1, lora=lora) as llm:
            return llm(PROMPT, max_tokens=8, temperature=0).text

    return say


def said(server: Served, **more: Any) -> str:
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, **more}
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


def test_requests_name_adapters(server: Served, files: list[Path], alone: Callable[[Any], str]) -> None:
    one, two = files
    assert alone(one) != alone(None) != alone(two)
    assert said(server) == said(server, lora=[]) == said(server, lora=None) == alone(None)
    assert said(server, lora=[{"id": 0, "scale": 1.0}]) == alone(one)
    assert said(server, lora=[{"id": 1, "scale": 0.5}, {"id": 0, "scale": 0}]) == alone((two, 0.5))
    assert said(server, lora=[{"id": 1, "scale": 0.5}, {"id": 0, "scale": 2}]) == alone({one: 2.0, two: 0.5})
    native = {"prompt": PROMPT, "n_predict": 8, "temperature": 0, "lora": [{"id": 0, "scale": 1}]}
    assert server.post("/completion", native).json()["content"] == alone(one)
    chat = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8, "temperature": 0}
    plain, changed = (
        server.post("/v1/chat/completions", chat | more).json()["choices"][0]["message"]["content"]
        for more in ({}, {"lora": [{"id": 0, "scale": 1}]})
    )
    assert plain != changed


def test_their_scales_for_everybody(server: Served, files: list[Path], alone: Callable[[Any], str]) -> None:
    described = server.get("/lora-adapters").json()
    assert described == [
        {"id": i, "path": str(path), "scale": 0.0, "task_name": "", "prompt_prefix": ""} for i, path in enumerate(files)
    ]
    assert server.post("/lora-adapters", [{"id": 1, "scale": 0.5}]).json() == {"success": True}
    assert [one["scale"] for one in server.get("/lora-adapters").json()] == [0.0, 0.5]
    assert said(server) == alone((files[1], 0.5))
    assert said(server, lora=[{"id": 0, "scale": 1}]) == alone(files[0])
    assert server.post("/lora-adapters", []).json() == {"success": True}
    assert said(server) == alone(None)


@pytest.mark.parametrize(
    ("lora", "param"),
    [
        ({}, "lora"),
        ("style1", "lora"),
        ([5], "lora[0]"),
        ([{"id": 0}], "lora[0].scale"),
        ([{"scale": 1}], "lora[0].id"),
        ([{"id": 2, "scale": 1}], "lora[0].id"),
        ([{"id": -1, "scale": 1}], "lora[0].id"),
        ([{"id": True, "scale": 1}], "lora[0].id"),
        ([{"id": 0, "scale": "1"}], "lora[0].scale"),
        ([{"id": 0, "scale": 1e200}], "lora[0].scale"),
        ([{"id": 0, "scale": 1}, {"id": 0, "scale": 1}], "lora[1].id"),
    ],
)
def test_wrong_lists(server: Served, lora: Any, param: str) -> None:
    if lora != {}:
        response = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 1, "lora": lora})
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    response = server.post("/lora-adapters", lora)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == (param.removeprefix("lora") or None)


def test_a_server_without_adapters(shared_server: Served) -> None:
    assert shared_server.get("/lora-adapters").json() == []
    response = shared_server.post("/v1/completions", {"prompt": "x", "lora": [{"id": 0, "scale": 1}]})
    assert response.status_code == 400
    assert "without adapters" in response.json()["error"]["message"]


def test_flags(serve: Callable[..., Any], tiny_models: Any, files: list[Path], tmp_path: Path) -> None:
    process = serve(
        tiny_models["llama"], "-c", 512, "-np", 2, "--lora", files[0], "--lora-scaled", f"{files[1]}:0.5",
        "--slot-save-path", tmp_path, "--cache-ram", 16, "--slot-prompts",
    )  # fmt: skip
    assert [one["scale"] for one in httpx.get(f"{process.url}/lora-adapters", timeout=60).json()] == [1.0, 0.5]
    body = {"prompt": PROMPT, "n_predict": 3, "id_slot": 1}
    assert httpx.post(f"{process.url}/completion", json=body, timeout=60).json()["id_slot"] == 1
    saved = httpx.post(f"{process.url}/slots/1?action=save", json={"filename": "a"}, timeout=60).json()
    assert saved["n_saved"] > 3 and (tmp_path / "a").exists()
    assert PROMPT[:10] in httpx.get(f"{process.url}/slots", timeout=60).json()[1]["prompt"]
    process = serve(
        tiny_models["llama"], "-c", 512, "--lora", f"{files[0]},{files[1]}", "--lora-init-without-apply",
        LLAMA_ARG_CACHE_RAM="0", LLAMA_ARG_ENDPOINT_SLOTS="0",
    )  # fmt: skip
    assert [one["scale"] for one in httpx.get(f"{process.url}/lora-adapters", timeout=60).json()] == [0.0, 0.0]
    assert httpx.get(f"{process.url}/slots", timeout=60).status_code == 501

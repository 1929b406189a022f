"""What is as llama-server's own tests ask for, and what is otherwise on purpose: each row of the table."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pyllm.engine import Engine
from pyllm.errors import InvalidArgumentError
from pyllm.server import Settings

PAGE = Path(__file__).parents[2] / "docs" / "server-endpoints.md"


def numbers(server: Any) -> dict[str, float]:
    text = server.get("/metrics").text
    return {name: float(value) for name, value in re.findall(r"^(llamacpp:\w+) (\S+)$", text, re.MULTILINE)}


def test_metrics_of_steps_and_sequences(start, tiny_model) -> None:
    with Engine(tiny_model, n_ctx=512, n_parallel=2, n_threads=1) as engine:
        server = start(engine, metrics=True)
        answer = server.post("/completion", {"prompt": "the quick brown fox", "n_predict": 8, "ignore_eos": True})
        n_prompt = answer.json()["timings"]["prompt_n"]
        found = numbers(server)
        assert found["llamacpp:prompt_tokens_total"] == n_prompt
        assert n_prompt < found["llamacpp:n_tokens_max"] <= n_prompt + 8
        assert found["llamacpp:n_busy_slots_per_decode"] == 1
        server.stop()


def test_metrics_count_what_is_embedded(start, load) -> None:
    with Engine(load("bert"), n_threads=1) as engine:
        server = start(engine, metrics=True)
        assert server.post("/v1/embeddings", {"input": ["hello world", "goodbye"]}).status_code == 200
        found = numbers(server)
        assert found["llamacpp:prompt_tokens_total"] > 0
        assert found["llamacpp:n_decode_total"] > 0
        assert found["llamacpp:tokens_predicted_total"] == 0
        server.stop()


def test_an_idle_slot_has_nothing_left_of_its_last_text(server, engine) -> None:
    server.post("/completion", {"prompt": "the", "n_predict": 8})
    seen = [slot["next_token"][0] for slot in server.get("/slots").json() if "next_token" in slot]
    assert seen
    for token in seen:
        assert (token["has_next_token"], token["n_remain"], token["n_decoded"]) == (False, -1, 0)


def test_verbose_servers_tell_the_prompt(start, engine) -> None:
    body = {"messages": [{"role": "user", "content": "What"}], "max_tokens": 4}
    assert "__verbose" not in start(engine).post("/v1/chat/completions", body).json()
    server = start(engine, verbose=True, chat_template="llama3")
    told = server.post("/v1/chat/completions", body).json()["__verbose"]["prompt"]
    assert "<|start_header_id|>user<|end_header_id|>" in told


def test_further_names_of_a_model(start, engine) -> None:
    server = start(engine, alias="b", aliases=("a", "c"))
    (model,) = server.get("/v1/models").json()["data"]
    assert (model["id"], model["aliases"]) == ("b", ["b", "a", "c"])
    for name in ("a", "b", "c"):
        assert server.get(f"/v1/models/{name}").json()["id"] == "b"
    assert server.get("/v1/models/d").status_code == 404


def test_tags_of_a_model(start, engine) -> None:
    (model,) = start(engine, tags=("chat", "small")).get("/v1/models").json()["data"]
    assert model["tags"] == ["chat", "small"]


# ---- the table


def _metrics(start: Any, engine: Any) -> None:
    assert start(engine).get("/metrics").status_code == 404


def _origin(start: Any, engine: Any) -> None:
    answer = httpx.get(start(engine).url + "/v1/models", headers={"Origin": "http://a.example"}, timeout=60)
    assert "access-control-allow-origin" not in answer.headers


def _headers(start: Any, engine: Any) -> None:
    ask = {"Origin": "http://a", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-one"}
    answer = httpx.options(start(engine, cors_origins=("*",)).url + "/completion", headers=ask, timeout=60)
    assert answer.headers["access-control-allow-headers"] == "x-one"


def _host(start: Any, engine: Any) -> None:
    assert httpx.get(start(engine).url + "/health", headers={"Host": "a.example"}, timeout=60).status_code == 403


def _template(start: Any, engine: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        Settings(chat_template="no template")


def _id(start: Any, engine: Any) -> None:
    assert start(engine, alias="b", aliases=("a",)).get("/v1/models").json()["data"][0]["id"] == "b"


def _type(start: Any, engine: Any) -> None:
    assert "# TYPE llamacpp:n_tokens_max gauge" in start(engine, metrics=True).get("/metrics").text


PIXEL = "iVBORw0KGgo="


def _no_messages(start: Any, engine: Any) -> None:
    assert start(engine).post("/v1/messages", {"max_tokens": 4, "messages": []}).status_code == 400


def _picture(start: Any, engine: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    answer = start(engine).post("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]})
    assert answer.status_code == 400


def _picture_of_tool(start: Any, engine: Any) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [image]}
    messages = [
        {"role": "user", "content": "Look"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "see", "input": {}}]},
        {"role": "user", "content": [result]},
    ]
    asked = {"max_tokens": 4, "messages": messages}
    assert start(engine).post("/v1/messages", asked).status_code == 200


def _list_of_models(start: Any, engine: Any) -> None:
    answer = start(engine).get("/v1/models").json()
    assert sorted(answer) == ["data", "object"]
    assert answer["data"][0]["capabilities"] == ["completion"]


def _predictions(start: Any, engine: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIP_PREDICT_ROUTE", "/predict")
        assert start(engine).post("/predict", {"instances": [{"prompt": "x"}]}).status_code == 404


CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "`GET /metrics`": _metrics,
    "a page of another origin": _origin,
    "`Access-Control-Allow-Headers`": _headers,
    "another name in `Host`": _host,
    "`--chat-template`": _template,
    "the id of a model": _id,
    "type of `llamacpp:n_tokens_max`": _type,
    "`messages: []`": _no_messages,
    "an image from a user": _picture,
    "an image in the result of a tool": _picture_of_tool,
    "the list `models`": _list_of_models,
    "the path in `AIP_PREDICT_ROUTE`": _predictions,
}


def rows() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    part = text[text.index("## Intended differences") : text.index("### Fields and answers")]
    return [line.strip("| ") for line in part.splitlines() if line.startswith("| ")][1:]


def test_each_difference_has_its_check() -> None:
    found = [next(key for key in CHECKS if row.startswith(key)) for row in rows()]
    assert sorted(found) == sorted(CHECKS)


@pytest.mark.parametrize("case", CHECKS)
def test_a_difference_is_as_the_table_says(start, engine, case: str) -> None:
    CHECKS[case](start, engine)

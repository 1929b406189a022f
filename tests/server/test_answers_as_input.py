"""A server takes back what it answered: every kind of answer, in every API, streamed and not, in the next turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.engines import Prompted
from support.servers import Served

TEMPLATES = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "models" / "templates"
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
        "required": ["city", "days"],
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo \\"é\\"", "days": [1, 22]}}\n</tool_call>'
THOUGHT = "<think>\nIt rains.\n</think>\n\n"
# How a model writes each kind of answer.
TEXTS = {
    "text": "It rains in Oslo.",
    "nothing": "",
    "refusal": "I cannot say that.",
    "reasoning": f"{THOUGHT}It rains.",
    "call": CALL,
    "reasoning and a call": THOUGHT + CALL,
    "parallel calls": f"{CALL}\n{CALL}",
    "text and a call": f"I look.\n{CALL}",
}


@pytest.fixture(scope="module")
def qwen(start: Callable[..., Served], shared_engine: Prompted) -> Served:
    (path,) = TEMPLATES.glob("Qwen-Qwen3-0.6B*.jinja")
    return start(shared_engine, chat_template=path.read_text(encoding="utf-8"))


class Chat:
    """One of the APIs: asking, taking an answer from a stream, and what the next turn sends."""

    def __init__(self, server: Served, stream: bool) -> None:
        self.server = server
        self.stream = stream

    def post(self, path: str, body: dict[str, Any]) -> Any:
        response = self.server.post(path, {**body, "stream": self.stream})
        assert response.status_code == 200, response.text
        if not self.stream:
            return response.json()
        lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


class Chats(Chat):
    def ask(self, messages: list[Any], n: int, **more: Any) -> tuple[list[Any], str]:
        tools = [{"type": "function", "function": WEATHER}]
        body = {"messages": messages, "max_tokens": n, "tools": tools, "parallel_tool_calls": True, **more}
        answer = self.post("/v1/chat/completions", body)
        if not self.stream:
            (choice,) = answer["choices"]
            return [choice["message"]], choice["finish_reason"]
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for chunk in answer:
            for choice in chunk["choices"]:
                delta, reason = choice["delta"], choice["finish_reason"]
                for key in ("content", "reasoning_content"):
                    if delta.get(key):
                        message[key] = (message.get(key) or "") + delta[key]
                for call in delta.get("tool_calls") or ():
                    calls = message.setdefault("tool_calls", [])
                    if call["index"] == len(calls):
                        calls.append({**call, "function": dict(call["function"])})
                    else:
                        calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        return [message], reason

    def results(self, items: list[Any]) -> list[Any]:
        calls = items[0].get("tool_calls") or ()
        return [{"role": "tool", "tool_call_id": call["id"], "content": None} for call in calls]

    def question(self, text: str) -> Any:
        return {"role": "user", "content": text}


class Responses(Chat):
    def ask(self, messages: list[Any], n: int, **more: Any) -> tuple[list[Any], str]:
        body = {"input": messages, "max_output_tokens": n, "tools": [{"type": "function", **WEATHER}], **more}
        answer = self.post("/v1/responses", body)
        response = answer[-1]["response"] if self.stream else answer
        cut = response["status"] == "incomplete"
        # Only the last item can be one that was cut off.
        states = [item["status"] for item in response["output"]]
        assert states == ["completed"] * (len(states) - 1) + ["incomplete" if cut else "completed"] * bool(states)
        if self.stream:
            done = [event["item"] for event in answer if event["type"] == "response.output_item.done"]
            assert done == response["output"]
        return response["output"], "length" if cut else "stop"

    def results(self, items: list[Any]) -> list[Any]:
        calls = [item for item in items if item["type"] == "function_call"]
        return [{"type": "function_call_output", "call_id": call["call_id"], "output": "rain"} for call in calls]

    def question(self, text: str) -> Any:
        return {"role": "user", "content": [{"type": "input_text", "text": text}]}


class Messages(Chat):
    def ask(self, messages: list[Any], n: int, **more: Any) -> tuple[list[Any], str]:
        tool = {"name": WEATHER["name"], "input_schema": WEATHER["parameters"]}
        answer = self.post("/v1/messages", {"messages": messages, "max_tokens": n, "tools": [tool], **more})
        if not self.stream:
            return [{"role": "assistant", "content": answer["content"]}], answer["stop_reason"]
        blocks: list[dict[str, Any]] = []
        reason = ""
        for event in answer:
            if event["type"] == "content_block_start":
                blocks.append({**event["content_block"], "json": ""})
            elif event["type"] == "content_block_delta":
                delta, block = event["delta"], blocks[-1]
                for kind, key in (("text_delta", "text"), ("thinking_delta", "thinking")):
                    block[key] = block.get(key, "") + delta[key] if delta["type"] == kind else block.get(key, "")
                block["json"] += delta.get("partial_json", "")
            elif event["type"] == "message_delta":
                reason = event["delta"]["stop_reason"]
        for block in blocks:
            text = block.pop("json")
            if block["type"] == "tool_use":
                try:
                    block["input"] = json.loads(text or "{}")
                except ValueError:
                    block["input"] = {}
        return [{"role": "assistant", "content": blocks}], reason

    def results(self, items: list[Any]) -> list[Any]:
        calls = [block for block in items[0]["content"] if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": block["id"]} for block in calls]
        return [{"role": "user", "content": results}] if results else []

    def question(self, text: str) -> Any:
        return {"role": "user", "content": text}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("api", [Chats, Responses, Messages])
@pytest.mark.parametrize("kind", TEXTS)
def test_every_answer_goes_back(qwen, engine, api, kind: str, stream: bool) -> None:
    chat, text = api(qwen, stream), TEXTS[kind]
    length = len(engine.vocab.tokenize(text, add_special=False, parse_special=True))
    # Whole, cut off after its beginning and near its end, and in between.
    for n in sorted({length + 1, 1, max(1, length // 3), max(1, length // 2), max(1, length - 3), max(1, length - 6)}):
        engine.says(text)
        question = [chat.question("Weather?")]
        items, reason = chat.ask(question, n)
        assert (reason in ("length", "max_tokens")) == (n <= length), (n, length, reason)
        turns = [[*question, *items, *chat.results(items), chat.question("And tomorrow?")]]
        if chat.results(items):
            turns.append([*question, *items, *chat.results(items)])
        else:
            # The answer goes on.
            turns.append([*question, *items])
        for turn in turns:
            engine.says("Rain.")
            again, _ = chat.ask(turn, 20)
            assert "Rain." in json.dumps(again)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_calls_of_functions_go_back(server, engine, stream: bool) -> None:
    """OpenAI's form of calls before there were tools is answered in that form, and taken back."""
    chat, question = Chats(server, stream), [{"role": "user", "content": "Weather?"}]
    text = CALL.replace("\n", "")
    for n in (100, 60):
        engine.says(text)
        settings = {"messages": question, "functions": [WEATHER], "function_call": "auto", "max_tokens": n}
        answer = chat.post("/v1/chat/completions", settings)
        parts = [choice for chunk in (answer if stream else [answer]) for choice in chunk["choices"]]
        calls = [part["delta" if stream else "message"].get("function_call") for part in parts]
        call: dict[str, Any] = {}
        for one in filter(None, calls):
            call = {"name": call.get("name") or one["name"], "arguments": call.get("arguments", "") + one["arguments"]}
        assert call["name"] == "get_weather"
        assert not any("tool_calls" in part["delta" if stream else "message"] for part in parts)
        if parts[-1]["finish_reason"] != "length":
            assert parts[-1]["finish_reason"] == "function_call"
            assert json.loads(call["arguments"])["days"] == [1, 22]
        told = [
            *question,
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "get_weather", "content": "rain"},
        ]
        engine.says("Rain.")
        again = server.post("/v1/chat/completions", {"messages": told, "functions": [WEATHER], "max_tokens": 20})
        assert again.json()["choices"][0]["message"]["content"] == "Rain."
    named = {**settings, "function_call": {"name": "get_weather"}, "max_tokens": 200, "temperature": 0}
    engine.processor = None
    (choice,) = server.post("/v1/chat/completions", named).json()["choices"]
    assert choice["message"]["function_call"]["name"] == "get_weather"

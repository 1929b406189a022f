"""What clients of OpenAI's, Anthropic's and vLLM's servers send to chats: obeyed, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

HELLO = [{"role": "user", "content": "Hello"}]
PIXEL = "iVBORw0KGgo="
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "string", "pattern": r"^[ab]\d$"}},
    "required": ["id"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
# The paths of the APIs, what a short request there has, and the text of an answer.
APIS: dict[str, tuple[dict[str, Any], Any]] = {
    "/v1/completions": ({"prompt": "x", "max_tokens": 60}, lambda a: a["choices"][0]["text"]),
    "/completion": ({"prompt": "x", "n_predict": 60}, lambda a: a["content"]),
    "/v1/chat/completions": ({"messages": HELLO, "max_tokens": 60}, lambda a: a["choices"][0]["message"]["content"]),
    "/v1/responses": ({"input": "Hello", "max_output_tokens": 60}, lambda a: a["output"][-1]["content"][0]["text"]),
    "/v1/messages": ({"messages": HELLO, "max_tokens": 60}, lambda a: a["content"][-1]["text"]),
}


def asked(server, path: str, **more: Any) -> Any:
    body, text = APIS[path]
    response = server.post(path, {**body, "temperature": 0, **more})
    assert response.status_code == 200, response.text
    return text(response.json())


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("outer", [True, False], ids=["guided", "structured_outputs"])
def test_forms_of_vllm(server, path: str, outer: bool) -> None:
    def form(name: str, value: Any) -> dict[str, Any]:
        return {f"guided_{name}": value} if outer else {"structured_outputs": {name: value}}

    assert asked(server, path, **form("choice", ["yes", "no"])) in ("yes", "no")
    assert asked(server, path, **form("regex", "(yes|no)!")) in ("yes!", "no!")
    assert asked(server, path, **form("grammar", 'root ::= "yes" | "no"')) in ("yes", "no")
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        assert json.loads(asked(server, path, **form("json", schema)))["id"][0] in "ab"
    for wrong in (form("choice", []), form("json", "{"), form("whitespace_pattern", " ")):
        body = {**APIS[path][0], **wrong}
        response = server.post(path, body)
        assert response.status_code == 400, response.text
        assert next(iter(wrong)) in response.json()["error"]["message"]


@pytest.mark.parametrize("path", APIS)
def test_a_stop_that_is_empty_is_none(server, path: str) -> None:
    name = "stop_sequences" if path == "/v1/messages" else "stop"
    for stop in ("", [""]):
        assert asked(server, path, **{name: stop}) == asked(server, path)


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/chat/completions", {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}),
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}),
        ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
        ("/v1/messages", {"output_format": {"type": "json_schema", "schema": SCHEMA}}),
    ],
)
def test_a_schema_is_held(server, path: str, form: dict[str, Any]) -> None:
    text = json.loads(asked(server, path, **form))["id"]
    assert len(text) == 2 and text[0] in "ab" and text[1].isdecimal()


def test_allowed_tools(server, engine) -> None:
    others = {"name": "get_time", "parameters": {"type": "object"}}
    weather = {"name": "get_weather", "parameters": CITY}
    for path, tools, choice in (
        (
            "/v1/chat/completions",
            [{"type": "function", "function": one} for one in (weather, others)],
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"function": weather}]}},
        ),
        (
            "/v1/responses",
            [{"type": "function", **one} for one in (weather, others)],
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
        ),
    ):
        body = {**APIS[path][0], "tools": tools, "tool_choice": choice, "temperature": 0}
        answer = json.dumps(server.post(path, body).json()["choices" if "chat" in path else "output"])
        assert "get_weather" in answer and "get_time" not in answer


def test_a_picture(server, engine) -> None:
    """One that a tool gives becomes a line; one that a person asks about is an error that says so."""
    seen: list[str] = []

    def look(ids: Any, logits: Any) -> None:
        seen.append(engine.vocab.detokenize(ids))

    engine.processor = look
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    chat = [*HELLO, {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "read", "input": {}}]}]
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "a.png"}, picture]}
    asked(server, "/v1/messages", messages=[*chat, {"role": "user", "content": [result]}], max_tokens=1)
    call = {"type": "function_call", "call_id": "c", "name": "read", "arguments": "{}"}
    output = [{"type": "input_text", "text": "a.png"}, {"type": "input_image", "image_url": "data:"}]
    items = [*HELLO, call, {"type": "function_call_output", "call_id": "c", "output": output}]
    server.post("/v1/responses", {"input": items, "max_output_tokens": 1}).raise_for_status()
    assert sum("a.png" in text and "was left out" in text for text in seen) >= 2
    for path, body in (
        ("/v1/messages", {"messages": [{"role": "user", "content": [picture]}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": output}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    ):
        response = server.post(path, {**APIS[path][0], **body})
        assert response.status_code == 400 and "text only" in response.json()["error"]["message"]


class TestItems:
    """What Codex and others replay in /v1/responses."""

    def prompt(self, server, engine, items: list[Any], **more: Any) -> str:
        seen: list[str] = []
        engine.processor = lambda ids, logits: seen.append(engine.vocab.detokenize(ids))
        response = server.post("/v1/responses", {"input": items, "max_output_tokens": 1, **more})
        assert response.status_code == 200, response.text
        return seen[0]

    def test_what_is_kept(self, server, engine) -> None:
        refusal = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "Not that."}]}
        told = self.prompt(
            server,
            engine,
            [
                *HELLO,
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "x"},
                refusal,
                {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": "*** Begin"},
                {"type": "custom_tool_call_output", "call_id": "a", "output": "patched"},
                {"type": "local_shell_call", "call_id": "b", "action": {"type": "exec", "command": ["ls"]}},
                {"type": "local_shell_call_output", "call_id": "b", "output": "a.py"},
                {"type": "computer_call", "call_id": "d", "action": {"type": "screenshot"}},
                {"type": "computer_call_output", "call_id": "d", "output": {"type": "computer_screenshot"}},
                {"type": "function_call", "call_id": "c", "namespace": "git", "name": "log", "arguments": '{"n": '},
                {"type": "function_call_output", "call_id": "c", "output": None},
                *HELLO,
            ],
        )
        assert "type computer_screenshot was left out" in told
        for text in ("Not that.", '"patch"', "*** Begin", "patched", '"local_shell"', '"ls"', "a.py", '"git__log"'):
            assert text in told, text

    @pytest.mark.parametrize("kind", ["web_search_call", "file_search_call", "code_interpreter_call", "mcp_list_tools"])
    def test_what_the_server_of_others_did_is_skipped(self, server, engine, kind: str) -> None:
        item = {"type": kind, "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}}
        assert self.prompt(server, engine, [*HELLO, item]) == self.prompt(server, engine, HELLO)

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "this server stores none"),
            ({"input": [{"type": "riddle"}]}, "'riddle'"),
            ({"input": []}, "input has no message"),
            ({"input": "x", "tools": [{"type": "custom", "name": "patch"}]}, "not 'custom': describe it as a function"),
            ({"input": "x", "tools": [{"type": "namespace", "name": "x", "tools": [5]}]}, "tools[0].tools must be"),
            ({"input": "x", "tools": [{"type": "riddle"}]}, "not 'riddle'"),
        ],
    )
    def test_what_is_refused(self, server, body: dict[str, Any], words: str) -> None:
        response = server.post("/v1/responses", body)
        assert response.status_code == 400 and words in response.json()["error"]["message"], response.text

    def test_empty_input(self, server, engine) -> None:
        assert "Be brief." in self.prompt(server, engine, [], instructions="Be brief.")

    @pytest.mark.parametrize("stream", [False, True])
    def test_tools_in_a_namespace(self, client, engine, stream: bool) -> None:
        inner = {"type": "function", "name": "get_weather", "parameters": CITY}
        tools: Any = [{"type": "namespace", "name": "mcp", "tools": [inner]}, {"type": "web_search"}]
        engine.says(CALL.replace("get_weather", "mcp__get_weather"))
        answer = client.responses.create(model="m", input="x", tools=tools, stream=stream)
        (call,) = (list(answer)[-1].response if stream else answer).output
        assert (call.namespace, call.name, json.loads(call.arguments)) == ("mcp", "get_weather", {"city": "Oslo"})


def test_blocks_of_texts(server, engine) -> None:
    """Anthropic's documents and results of searches; what its own servers did is skipped."""
    seen: list[str] = []
    engine.processor = lambda ids, logits: seen.append(engine.vocab.detokenize(ids))
    document = {"type": "document", "title": "Rain", "source": {"type": "text", "data": "It rains."}}
    parts = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "It snows."}]}}
    found = {
        "type": "search_result",
        "title": "Hail",
        "source": "http://x",
        "content": [{"type": "text", "text": "No."}],
    }
    said = [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, {"type": "text", "text": "Yes."}]
    asked(
        server,
        "/v1/messages",
        max_tokens=1,
        messages=[
            {"role": "user", "content": [document, parts, found]},
            {"role": "assistant", "content": [*said, {"type": "web_search_tool_result", "content": []}]},
            *HELLO,
        ],
    )
    for text in (
        "<title>Rain</title>\nIt rains.",
        "It snows.",
        "<title>Hail</title>\n<source>http://x</source>\nNo.",
        "Yes.",
    ):
        assert text in seen[0]
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PIXEL}}
    response = server.post("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": [pdf]}]})
    assert response.status_code == 400 and "reads no files" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_last_answer_goes_on(server, engine, path: str) -> None:
    engine.says(" a time")
    chat = [*HELLO, {"role": "assistant", "content": "Once upon"}]
    name = "input" if path == "/v1/responses" else "messages"
    assert asked(server, path, **{name: chat}) == " a time"
    two = [*chat, {"role": "assistant", "content": "again"}]
    response = server.post(path, {**APIS[path][0], name: two})
    assert response.status_code == 400
    assert "two messages of the assistant end the chat" in response.json()["error"]["message"]


# Fields of other servers that would change the answer, and a value at which each asks for nothing.
CHANGES: dict[str, tuple[Any, Any]] = {
    "use_beam_search": (True, False),
    "min_tokens": (4, 0),
    "stop_token_ids": ([2], []),
    "bad_words": (["no"], []),
    "allowed_token_ids": ([1, 2], []),
    "include_stop_str_in_output": (True, False),
    "modalities": (["text", "audio"], ["text"]),
}


@pytest.mark.parametrize("path", ["/v1/completions", "/completion", "/v1/chat/completions"])
@pytest.mark.parametrize("name", CHANGES)
def test_fields_that_would_change_the_answer_are_refused_by_name(server, path: str, name: str) -> None:
    asks, nothing = CHANGES[name]
    response = server.post(path, {**APIS[path][0], name: asks})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == name
    for value in (nothing, None):
        assert asked(server, path, **{name: value}) == asked(server, path)


@pytest.mark.parametrize("path", ["/v1/completions", "/completion", "/v1/chat/completions"])
def test_repetition_penalty_is_that_of_the_whole_context(server, engine, path: str) -> None:
    penalty = {"repetition_penalty": 1.7}
    ours = {"repeat_penalty": 1.7, "repeat_last_n": -1}
    assert asked(server, path, **penalty) == asked(server, path, **ours) != asked(server, path)
    assert asked(server, path, **penalty, repeat_penalty=1.0) == asked(server, path)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/apply-template"])
def test_an_answer_is_either_new_or_goes_on(server, path: str) -> None:
    chat = [*HELLO, {"role": "assistant", "content": "Once upon"}]
    both = {"add_generation_prompt": True, "continue_final_message": True}
    response = server.post(path, {"messages": chat, "max_tokens": 1, **both})
    assert response.status_code == 400
    assert "set one of them" in response.json()["error"]["message"]


def test_calls_of_custom_tools_are_kept(server, engine) -> None:
    seen: list[str] = []
    engine.processor = lambda ids, logits: seen.append(engine.vocab.detokenize(ids))
    call = {"id": "a", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    asked(server, "/v1/chat/completions", max_tokens=1, messages=[*HELLO, said, {**HELLO[0], "role": "tool"}])
    assert '"patch"' in seen[0] and "*** Begin" in seen[0]


@pytest.mark.parametrize("path", ["/v1/completions", "/completion", "/v1/chat/completions"])
def test_a_bias_has_an_entry_for_each_token_at_most(server, engine, path: str) -> None:
    biases = [[5, 0.5]] * (len(engine.vocab) + 1)
    response = server.post(path, {**APIS[path][0], "logit_bias": biases})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logit_bias"
    asked(server, path, logit_bias=biases[1:], max_tokens=1)

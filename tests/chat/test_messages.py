"""Messages as people give them: checked, named in errors, never guessed."""

from __future__ import annotations

import json

import pytest

from pyllm.chat.messages import closed_json, plain_messages
from pyllm.chat.types import Message, ToolCall, ToolFunction
from pyllm.errors import InvalidArgumentError


def call(arguments="{}", **more):
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}, **more}


def test_dicts_and_messages_are_the_same():
    asked = ToolCall("c1", ToolFunction("f", '{"x": 1}'))
    messages = [
        Message("system", "be brief"),
        Message("user", [{"type": "text", "text": "Hello"}]),
        Message("assistant", tool_calls=(asked,), reasoning_content="hm"),
        Message("tool", "42", name="f", tool_call_id="c1"),
        Message("assistant", "It is 42."),
    ]
    plain = plain_messages(messages)
    assert plain == plain_messages([message.to_dict() for message in messages])
    assert plain[1]["content"] == [{"type": "text", "text": "Hello"}]
    assert plain[2]["tool_calls"] == [asked.to_dict()] and plain[2]["reasoning_content"] == "hm"
    assert messages[1].text == "Hello" and str(messages[2]) == ""


def test_arguments_may_be_objects():
    (plain,) = plain_messages([{"role": "assistant", "content": None, "tool_calls": [call({"x": "é"})]}])
    assert plain["tool_calls"][0]["function"]["arguments"] == '{"x": "é"}'


def test_what_others_leave_empty_does_not_matter():
    message = {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None}
    assert plain_messages([message]) == [{"role": "assistant", "content": "x"}]


def test_objects_of_pydantic():
    chat = pytest.importorskip("openai.types.chat")
    message = chat.ChatCompletionMessage(role="assistant", content="x")
    assert plain_messages([message]) == [{"role": "assistant", "content": "x"}]


@pytest.mark.parametrize(
    "extra",
    [
        {"provider_specific_fields": {"refusal": None}},
        {"reasoning_details": [{"type": "reasoning.text", "text": "x"}]},
        {"cache_control": {"type": "ephemeral"}},
        {"id": "msg_1"},
        {"annotations": [{"type": "url_citation"}]},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_unknown_keys_are_left_aside(extra):
    assert plain_messages([{"role": "assistant", "content": "x", **extra}]) == [{"role": "assistant", "content": "x"}]


def test_reasoning_has_two_names():
    (plain,) = plain_messages([{"role": "assistant", "content": "x", "reasoning": "hm", "reasoning_content": None}])
    assert plain["reasoning_content"] == "hm"


@pytest.mark.parametrize(("role", "content"), [("assistant", None), ("tool", None), ("tool", [])])
def test_an_assistant_or_a_tool_may_say_nothing(role, content):
    (plain,) = plain_messages([{"role": role, "content": content}])
    assert not plain["content"] and plain["content"] is not None


def test_refusals_are_what_was_said():
    for refused in ({"refusal": "No."}, {"content": [{"type": "refusal", "refusal": "No."}]}):
        (plain,) = plain_messages([{"role": "assistant", "content": None, **refused}])
        assert Message(**plain).text == "No."


def test_functions_are_tools():
    """OpenAI's form of calls before there were tools."""
    plain = plain_messages(
        [
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
            {"role": "function", "name": "f", "content": "42"},
        ]
    )
    assert plain[0]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
    assert plain[1] == {"role": "tool", "name": "f", "content": "42"}


@pytest.mark.parametrize("kind", ["image_url", "input_image", "image", "input_audio", "input_file"])
def test_a_picture_that_a_tool_gives_becomes_a_line(kind):
    parts = [{"type": "text", "text": "a.png:"}, {"type": kind, kind: {"url": "data:"}}]
    (plain,) = plain_messages([{"role": "tool", "content": parts}])
    assert plain["content"][0] == parts[0] and kind in plain["content"][1]["text"]
    for role in ("user", "assistant", "system"):
        with pytest.raises(InvalidArgumentError, match=rf"messages\[0\].content\[1\] is of type '{kind}'.*text only"):
            plain_messages([{"role": role, "content": parts}])


WHOLE = '{"a": {"b": "c\\"d\\u00e9 \\ud83d\\ude00 é"}, "l": [1, -2.5e+3, true, null, {"x": []}], "n": 12, "f": "v"}'


@pytest.mark.parametrize("n", range(len(WHOLE) + 1))
def test_arguments_may_end_anywhere(n):
    """A call that max_tokens cut off: what there is of it is kept, as the JSON of an object."""
    (plain,) = plain_messages([{"role": "assistant", "tool_calls": [call(WHOLE[:n])]}])
    found, whole = json.loads(plain["tool_calls"][0]["function"]["arguments"]), json.loads(WHOLE)
    assert list(found) == list(whole)[: len(found)]
    for name in list(found)[:-1]:
        assert found[name] == whole[name]
    json.dumps(found, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("begun", "closed"),
    [
        ("{", "{}"),
        ('{"city": "Os', '{"city": "Os"}'),
        ('{"city": "Os\\', '{"city": "Os"}'),
        ('{"city": "\\ud83d', '{"city": ""}'),
        ('{"a": [1, "x', '{"a": [1, "x"]}'),
        ('{"a": 1, "b', '{"a": 1}'),
        ('{"a": 1, "b": ', '{"a": 1}'),
        ('{"a": 1, "b": tr', '{"a": 1}'),
        ('{"a": 1, "b": -', '{"a": 1}'),
        ("{x", None),
        ('{"a": foo', None),
        ('{"a": 1]', None),
        ("[1", None),
        ("1", None),
        ('{"x":' + "[" * 1000, None),
    ],
)
def test_json_that_ends_early(begun, closed):
    assert closed_json(begun) == closed


def test_the_given_messages_are_left_alone():
    message = {"role": "assistant", "content": None, "tool_calls": [call({"x": 1})]}
    plain_messages([message])
    assert message["tool_calls"][0]["function"]["arguments"] == {"x": 1}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("Hello", "messages must be a list"),
        ({"role": "user", "content": "x"}, "messages must be a list"),
        ([], "messages is empty"),
        ([{"role": "user", "content": "x"}, "y"], r"messages\[1\] must be a message"),
        ([{"content": "x"}], r"messages\[0\]: the role must be one of system, .* not None"),
        ([{"role": "bot", "content": "x"}], "not 'bot'"),
        ([{"role": "user"}], r"messages\[0\]: a message of role 'user' must have a content"),
        ([{"role": "user", "content": None}], "must have a content"),
        ([{"role": "user", "content": 3}], "must be text or a list of parts, not 3"),
        ([{"role": "user", "content": b"x"}], "must be text or a list of parts"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\].content\[0\] must be a part"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\].text must be text, not None"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] is of type 'image_url': .* text only"),
        ([{"role": "user", "content": [{"type": "x"}]}], r"content\[0\] is of type 'x': .* must be 'text'"),
        ([{"role": "user", "contents": "y"}], "must have a content; did you mean 'content' by 'contents'"),
        ([{"role": "user", "content": [{"type": ["text"]}]}], r"content\[0\] is of type"),
        ([{"role": "user", "content": "x", "function_call": {"name": "f"}}], "only an assistant has tool_calls"),
        ([{"role": "assistant", "function_call": {"name": 5}}], r"messages\[0\].function_call.function.name must be"),
        ([{"role": "user", "content": "x", "name": 3}], r"messages\[0\].name must be text, not 3"),
        ([{"role": "user", "content": "x", "tool_calls": [call()]}], "only an assistant has tool_calls"),
        ([{"role": "assistant", "tool_calls": call()}], "tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": ["f"]}], r"tool_calls\[0\] must be a call"),
        ([{"role": "assistant", "tool_calls": [call(type="x")]}], "must be 'function', not 'x'"),
        ([{"role": "assistant", "tool_calls": [call("{x")]}], r"tool_calls\[0\].function.arguments is no JSON"),
        ([{"role": "assistant", "tool_calls": [call('{"x":' + "[" * 100_000)]}], "arguments is no JSON"),
        ([{"role": "assistant", "tool_calls": [call({"x": {1}})]}], r"tool_calls\[0\].function.arguments cannot be"),
        ([{"role": "assistant", "tool_calls": [call({"x": float("nan")})]}], "arguments cannot be written as JSON"),
        ([{"role": "assistant", "tool_calls": [call("[1]")]}], "must be the JSON of an object"),
        ([{"role": "assistant", "tool_calls": [call(id=3)]}], r"tool_calls\[0\].id must be text"),
    ],
)
def test_what_is_wrong(messages, words):
    with pytest.raises(InvalidArgumentError, match=words):
        plain_messages(messages)

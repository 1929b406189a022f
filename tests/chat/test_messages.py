"""Messages as people give them: checked, named in errors, never guessed."""

from __future__ import annotations

import pytest

from pyllm.chat.messages import plain_messages
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
        ([{"role": "assistant", "content": None}], "must have a content"),
        ([{"role": "user", "content": 3}], "must be text or a list of parts, not 3"),
        ([{"role": "user", "content": b"x"}], "must be text or a list of parts"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\].content\[0\] must be a part"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\].text must be text, not None"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] is of type 'image_url': .* text only"),
        ([{"role": "user", "content": [{"type": "x"}]}], "must be 'text', not 'x'"),
        ([{"role": "user", "content": "x", "contents": "y"}], "'contents' .* did you mean 'content'"),
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

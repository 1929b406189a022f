"""Calls of tools: by templates made for them, and by any model at all."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from chat.conftest import CLOCK, WEATHER, user
from chat.test_chat import joined

from pyllm import errors
from pyllm.chat.types import Message

PARIS = {"city": "Paris", "celsius": True}
NAMED = {"type": "function", "function": {"name": "get_time"}}
# How models write that call, by the template that they were trained with; "" is a template without tools.
CALLS = {
    "": '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris", "celsius": true}}</tool_call>',
    "Qwen-Qwen3-0.6B": (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "celsius": true}}\n</tool_call>'
    ),
    "meta-llama-Llama-3.1": '{"name": "get_weather", "parameters": {"city": "Paris", "celsius": true}}',
    "mistralai-Mistral-Nemo": (
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "celsius": true}, "id": "123456789"}]'
    ),
    "Qwen3-Coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=celsius>\ntrue\n"
        "</parameter>\n</function>\n</tool_call>"
    ),
}


def get_time(zone: Literal["UTC", "CET"]):
    """The time in a zone."""
    return f"noon {zone}"


@pytest.fixture(params=list(CALLS), ids=lambda name: name or "no tools")
def written(request, template):
    """(arguments that choose a template, how a call is written in it)."""
    return {"chat_template": template(request.param)} if request.param else {}, CALLS[request.param]


class TestWritten:
    """The model writes a call; the message has it."""

    def test_whole_and_streamed(self, llm, says, written):
        arguments, text = written
        arguments |= {"tools": [WEATHER, CLOCK], "logits_processor": says(text, text)}
        completion = llm.create_chat_completion(user(), **arguments)
        assert completion.finish_reason == "tool_calls"
        (call,) = completion.tool_calls
        assert (call.name, call.arguments) == ("get_weather", PARIS) and call.id
        assert completion.text == "" and completion.choices[0].raw == text
        chunks = list(llm.stream_chat(user(), **arguments))
        assert chunks[-1].finish_reason == "tool_calls"
        (streamed,) = joined(chunks)["tool_calls"]
        last = chunks[-1].completion.tool_calls[0]
        assert streamed == {"id": last.id, "function": call.function.to_dict()}
        # The arguments come bit by bit: after the first piece, which has the name.
        assert sum(bool(chunk.delta.tool_calls) for chunk in chunks) > 3

    def test_the_result_goes_back(self, llm, says, written):
        arguments, text = written
        arguments |= {"tools": [WEATHER, CLOCK]}
        first = llm.create_chat_completion(user(), logits_processor=says(text), **arguments)
        (call,) = first.tool_calls
        chat = [*user(), first.message, Message("tool", "sunny", name=call.name, tool_call_id="123456789")]
        chat[1] = {**chat[1], "tool_calls": [{**call.to_dict(), "id": "123456789"}]}
        second = llm.create_chat_completion(chat, logits_processor=says("It is sunny."), **arguments)
        assert second.text == "It is sunny." and second.finish_reason == "stop"

    def test_without_a_call(self, llm, says, written):
        arguments, _ = written
        text = "No need to call <tools> or [anything] * 2"
        answer = llm.create_chat_completion(user(), tools=[WEATHER], logits_processor=says(text), **arguments)
        assert answer.text == text and answer.finish_reason == "stop"

    def test_tool_choice_none(self, llm, says, written):
        arguments, text = written
        answer = llm.create_chat_completion(
            user(), tools=[WEATHER], tool_choice="none", logits_processor=says(text), **arguments
        )
        assert answer.tool_calls == () and answer.finish_reason == "stop"


class TestAnyModel:
    """The template knows no tools and the model is random: only the grammar keeps it in form."""

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_tool_choice_required(self, llm, seed):
        arguments = {"tools": [WEATHER, CLOCK], "tool_choice": "required", "seed": seed, "max_tokens": 300}
        completion = llm.create_chat_completion(user(), temperature=1.5, **arguments)
        assert completion.finish_reason == "tool_calls" and completion.message.content is None
        (call,) = completion.tool_calls
        if call.name == "get_time":
            assert set(call.arguments) == {"zone"} and call.arguments["zone"] in ("UTC", "CET")
        else:
            assert call.name == "get_weather" and set(call.arguments) == {"city", "celsius"}
            assert call.arguments["city"] in ("Paris", "Oslo") and isinstance(call.arguments["celsius"], bool)

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_tool_choice_by_name(self, llm, seed):
        arguments = {"tools": [WEATHER, CLOCK], "tool_choice": NAMED, "seed": seed, "max_tokens": 300}
        completion = llm.create_chat_completion(user(), **arguments)
        assert [call.name for call in completion.tool_calls] == ["get_time"]
        # All are described all the same, so that the prompt begins as those before.
        plain = llm.create_chat_completion(user(), tools=[WEATHER, CLOCK], max_tokens=1)
        assert completion.usage.prompt_tokens == plain.usage.prompt_tokens

    def test_of_a_template_that_knows_tools(self, llm, says, template):
        arguments = {"chat_template": template("Qwen-Qwen3-0.6B"), "tools": [WEATHER, CLOCK], "tool_choice": NAMED}
        # The grammar lets no other name pass: what the script wants cannot be.
        with pytest.raises(errors.PyllmError):
            llm.create_chat_completion(
                user(), logits_processor=says(CALLS["Qwen-Qwen3-0.6B"]), max_tokens=50, **arguments
            )
        text = '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>'
        completion = llm.create_chat_completion(user(), logits_processor=says(text), **arguments)
        assert [call.name for call in completion.tool_calls] == ["get_time"]

    def test_several_calls(self, llm, says):
        text = CALLS[""] + '\n<tool_call>{"name": "get_time", "arguments": {"zone": "UTC"}}</tool_call>'
        arguments = {"tools": [WEATHER, CLOCK], "parallel_tool_calls": True, "logits_processor": says(text, text)}
        completion = llm.create_chat_completion(user(), **arguments)
        assert [call.name for call in completion.tool_calls] == ["get_weather", "get_time"]
        assert len({call.id for call in completion.tool_calls}) == 2
        chunks = list(llm.stream_chat(user(), **arguments))
        assert [call["function"]["name"] for call in joined(chunks)["tool_calls"]] == ["get_weather", "get_time"]

    def test_only_one_where_there_may_be_one(self, llm, template, says):
        text = CALLS["Qwen-Qwen3-0.6B"]
        completion = llm.create_chat_completion(
            user(),
            tools=[WEATHER],
            parallel_tool_calls=False,
            chat_template=template("Qwen-Qwen3-0.6B"),
            logits_processor=says(f"{text}\n{text}"),
        )
        assert len(completion.tool_calls) == 1

    def test_calls_that_were_cut(self, llm, says):
        completion = llm.create_chat_completion(
            user(), tools=[WEATHER], tool_choice="required", max_tokens=50, logits_processor=says(CALLS[""])
        )
        assert completion.finish_reason == "length" and len(completion.tool_calls) == 1
        with pytest.raises(errors.InvalidArgumentError, match="the arguments of get_weather are not complete JSON"):
            _ = completion.tool_calls[0].arguments

    def test_text_that_only_begins_like_a_call(self, llm, says):
        for text in ("a <", "a <tool_", "1 < 2"):
            completion = llm.create_chat_completion(user(), tools=[WEATHER], logits_processor=says(text, text))
            assert completion.text == text and completion.finish_reason == "stop"
            chunks = list(llm.stream_chat(user(), tools=[WEATHER], logits_processor=says(text)))
            assert joined(chunks)["content"] == text

    def test_a_chat_with_calls_and_no_tools(self, llm, says):
        call = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": '{"zone": "UTC"}'}}
        chat = [
            *user(),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "noon", "tool_call_id": "c1"},
        ]
        seen = []
        llm.create_chat_completion(chat, max_tokens=1, logits_processor=lambda ids, logits: seen.append(ids.copy()))
        text = llm.detokenize(seen[0])
        assert '<tool_call>{"name": "get_time", "arguments": {"zone": "UTC"}}</tool_call>' in text
        assert "<tool_response>noon</tool_response>" in text

    def test_samplers_of_ones_own(self, llm):
        from pyllm import Chain
        from pyllm.core.samplers import Greedy

        with pytest.raises(errors.InvalidArgumentError, match="need one of their own"):
            llm.create_chat_completion(user(), tools=[WEATHER], sampler=Chain(Greedy()))


class TestRuns:
    def test_calls_are_carried_out(self, llm, says):
        call = '<tool_call>{"name": "get_time", "arguments": {"zone": "UTC"}}</tool_call>'
        run = llm.run_tools(user("Time?"), tools=[get_time, WEATHER], logits_processor=says(call, "It is noon."))
        assert run.text == "It is noon." == str(run) and run.rounds == 1
        roles = [message["role"] for message in run.messages]
        assert roles == ["user", "assistant", "tool", "assistant"]
        result = run.messages[2]
        assert result.content == "noon UTC" and result.tool_call_id == run.messages[1].tool_calls[0].id

    def test_what_has_no_function_is_for_the_caller(self, llm, says):
        run = llm.run_tools(user(), tools=[get_time, WEATHER], logits_processor=says(CALLS[""]))
        assert run.completion.finish_reason == "tool_calls" and run.rounds == 0
        assert run.completion.tool_calls[0].name == "get_weather"

    def test_what_is_not_offered_is_not_called(self, llm, says):
        other = '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'
        called = []

        def rm():
            called.append(1)

        # The grammar stands in the way; the script cannot go on.
        with pytest.raises(errors.PyllmError):
            llm.run_tools(user(), tools=[get_time], logits_processor=says(other))
        assert called == [] and rm.__name__ == "rm"

    def test_exceptions_are_results(self, llm, says):
        def fail(zone: Literal["UTC"]):
            raise RuntimeError("out of order")

        call = '<tool_call>{"name": "fail", "arguments": {"zone": "UTC"}}</tool_call>'
        run = llm.run_tools(user(), tools=[fail], logits_processor=says(call, "Sorry."))
        assert run.messages[2].content == "Error: RuntimeError: out of order" and run.text == "Sorry."

    def test_rounds_of_calls_are_limited(self, llm, says):
        call = '<tool_call>{"name": "get_time", "arguments": {"zone": "UTC"}}</tool_call>'
        run = llm.run_tools(user(), tools=[get_time], max_rounds=2, logits_processor=says(call, call, "Enough."))
        assert run.rounds == 2 and run.text == "Enough."

    def test_a_demand_is_for_the_first_answer(self, llm):
        run = llm.run_tools(user(), tools=[get_time], tool_choice="required", max_rounds=1, max_tokens=300, seed=1)
        assert run.rounds == 1 and run.messages[2].content in ("noon UTC", "noon CET")

    def test_the_list_is_left_alone(self, llm, says):
        messages = user()
        llm.run_tools(messages, tools=[get_time], logits_processor=says("Hi"))
        assert messages == user()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"max_rounds": 0}, "max_rounds must be an integer of at least 1, not 0"),
            ({"stream": True}, "stream has no place"),
            ({"n": 2}, "n has no place"),
            ({"tool_choice": "any"}, "tool_choice must be"),
        ],
    )
    def test_wrong_arguments(self, llm, arguments, words):
        with pytest.raises(errors.InvalidArgumentError, match=words):
            llm.run_tools(user(), tools=[get_time], **arguments)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.slow)])
def test_real_models_without_tools_in_their_template(name, smollm2_path):
    from pyllm import Llama

    with Llama(name, n_ctx=1024, n_threads=1) as llm:
        asked = {"tools": [WEATHER, CLOCK], "tool_choice": "required", "temperature": 0, "max_tokens": 100}
        completion = llm.create_chat_completion(user("What is the weather in Paris, in Celsius?"), **asked)
        assert completion.finish_reason == "tool_calls"
        assert json.loads(completion.tool_calls[0].function.arguments) == completion.tool_calls[0].arguments
        assert completion.tool_calls[0].name == "get_weather" and completion.tool_calls[0].arguments["city"] == "Paris"

"""Every template that comes with llama.cpp can be chatted with, tools and all."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat.conftest import CLOCK, TEMPLATES, WEATHER, user

from pyllm.chat.request import ChatRequest
from pyllm.chat.types import Message, ToolCall, ToolFunction
from pyllm.errors import ChatTemplateError

NAMED = {"type": "function", "function": {"name": "get_time"}}
# Its prompt ends with "▁", which a tokenizer such as the tiny one cannot tell from a space.
BLANK = "Spark2.5"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
@pytest.mark.parametrize("choice", ["auto", "none", "required", NAMED], ids=["auto", "none", "required", "named"])
def test_tools(llm, path: Path, choice):
    arguments = {"chat_template": path, "tools": [WEATHER, CLOCK], "tool_choice": choice}
    request = ChatRequest(llm, user(), arguments)
    assert len(request.ids) > 0
    guide = request.completion_arguments.get("grammar")
    # In some formats nothing marks where a call that need not be begins.
    assert guide is not None or choice in ("auto", "none")
    if guide is None:
        return
    try:
        sampler = guide.sampler(llm.vocab)
    except ChatTemplateError:
        assert BLANK in path.stem
        return
    assert not sampler.closed
    assert guide.is_lazy == (choice == "auto")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_calls_and_results(llm, path: Path):
    call = ToolCall("abcdef123", ToolFunction("get_time", '{"zone": "UTC"}'))
    messages = [
        *user("What time is it?"),
        Message("assistant", tool_calls=(call,)),
        Message("tool", "It is noon.", name="get_time", tool_call_id="abcdef123"),
    ]
    text = llm.detokenize(ChatRequest(llm, messages, {"chat_template": path, "tools": [WEATHER, CLOCK]}).ids)
    assert "It is noon." in text and "get_time" in text and "UTC" in text

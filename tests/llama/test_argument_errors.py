"""Errors about arguments name the argument, down to the part of it that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from pyllm import Llama
from pyllm.errors import InvalidArgumentError, PromptTooLongError

HELLO = {"role": "user", "content": "the cat"}


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llama(tiny_model, n_ctx=256, n_threads=1) as llm:
        yield llm


@pytest.mark.parametrize(
    ("messages", "arguments", "param"),
    [
        ([], {}, "messages"),
        ([HELLO, 5], {}, "messages[1]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "messages[0].content[0]"),
        ([HELLO], {"tools": [{"type": "function", "function": {"name": 5}}]}, "tools[0].function.name"),
        ([HELLO], {"tool_choice": "required"}, "tool_choice"),
        ([HELLO], {"top_p": 2}, "top_p"),
        ([HELLO], {"samplers": ["none"]}, "samplers"),
        ([HELLO], {"stop": 5}, "stop"),
        ([HELLO], {"response_format": {"type": "json_schema"}}, "response_format"),
        ([HELLO], {"json_schema": "{"}, "json_schema"),
    ],
)
def test_the_argument_is_named(llm: Llama, messages: Any, arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        llm.create_chat_completion(messages, max_tokens=1, **arguments)
    assert caught.value.param == param


def test_a_prompt_that_is_too_long_has_its_numbers(llm: Llama) -> None:
    prompt = llm.tokenize("the cat " * 200)
    with pytest.raises(PromptTooLongError) as caught:
        llm(prompt)
    assert (caught.value.n_tokens, caught.value.n_ctx) == (len(prompt), llm.context.n_ctx_seq)

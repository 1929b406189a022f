"""How completions look in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from pyllm import Llama, Model
from pyllm.chat.types import ChatChoice, ChatCompletion, Message, ToolCall, ToolFunction
from pyllm.types import Choice, Completion, Timings, Usage

EVIL = "<script>alert(1)</script> <b>bold</b> & 'so' \"on\"\n  two\u202espaces"


class Reader(HTMLParser):
    """The text of a page, and its tags, which must be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.open = "", [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def completion(*texts: str) -> Completion:
    choices = tuple(Choice(text, (1, 2, 3), "length", 0, i) for i, text in enumerate(texts))
    return Completion(choices, Usage(5, 3 * len(texts)), Timings(1.0, 100.0, 3), model="<m>.gguf")


def test_a_completion_is_its_text_and_a_line_about_it() -> None:
    page = Reader(completion(EVIL)._repr_html_())
    assert EVIL in page.text, "as it was written, with its spaces and line breaks"
    assert set(page.tags) == {"div"}, "and none of it became markup"
    assert "3 tokens, length" in page.text and "<m>.gguf" in page.text
    assert "5 + 3 tokens" in page.text and "30.0 tokens/s" in page.text


def test_several_choices() -> None:
    page = Reader(completion("first", "second")._repr_html_()).text
    assert page.index("first") < page.index("0: 3 tokens") < page.index("second") < page.index("1: 3 tokens")


@pytest.mark.parametrize("arguments", ['{"city": "<Rome>"}', '{"city": '])
def test_an_answer_of_a_chat(arguments: str) -> None:
    call = ToolCall("call_1", ToolFunction("weather<", arguments))
    message = Message("assistant", EVIL, reasoning_content="I <think>", tool_calls=(call,))
    result = ChatCompletion((ChatChoice(message, "tool_calls", tokens=(1, 2)),), Usage(5, 2), model="m.gguf")
    page = Reader(result._repr_html_())
    assert EVIL in page.text and "I <think>" in page.text and f"weather<({arguments})" in page.text
    assert set(page.tags) == {"div", "details", "summary", "code"}
    assert "tool_calls" in page.text and "tokens/s" not in page.text, "a result of no time has no speed"


def test_an_answer_without_content() -> None:
    message = Message("assistant", None, tool_calls=(ToolCall("a", ToolFunction("f", "{}")),))
    assert "f({})" in Reader(ChatCompletion((ChatChoice(message, "tool_calls"),), Usage(1, 1))._repr_html_()).text


def test_what_a_real_call_gives(tiny_model: Model) -> None:
    llm = Llama(tiny_model, n_ctx=128, n_threads=1, chat_template="chatml")
    result = llm("the more people", max_tokens=4, temperature=0)
    assert result.text in Reader(result._repr_html_()).text
    answer = llm.create_chat_completion([{"role": "user", "content": "the"}], max_tokens=4)
    assert answer.text in Reader(answer._repr_html_()).text
    llm.close()

"""The templates that llama.cpp knows by name: as Jinja they write what llama.cpp writes."""

from __future__ import annotations

import pytest

from pyllm.chat.named_templates import named_template
from pyllm.chat.templates import TemplateStore, check_template
from pyllm.core.chat import ChatTemplates
from pyllm.core.chat_template import apply_template, builtin_templates
from pyllm.errors import ChatTemplateError, InvalidArgumentError

# llama.cpp writes a content twice here, or leaves blanks out in one place and not in another.
OTHERS = {"llama2-sys-strip", "yandex"}
CHAT = [
    {"role": "system", "content": "Be brief.\n\nAnd kind."},
    {"role": "user", "content": " Hello, {{ world }} <b> "},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "\tWell.\n"},
    {"role": "user", "content": "Äpfel 'und' \"Birnen\""},
]


@pytest.mark.parametrize("name", sorted(set(builtin_templates()) - OTHERS))
def test_a_name_writes_what_llama_cpp_writes(name: str) -> None:
    source = named_template(name)
    assert source is not None
    templates = ChatTemplates(template=source)
    for chat in (CHAT, CHAT[1:], CHAT[:2], CHAT[1:4]):
        for add in (True, False):
            expected = apply_template(name, chat, add_assistant=add)
            assert templates.apply(chat, add_generation_prompt=add).prompt == expected


@pytest.mark.parametrize("name", [*OTHERS, "llama33", "This is not a chat template, it is"])
def test_other_names_are_errors_that_name_those_there_are(tiny_model, name: str) -> None:
    for check in (check_template, TemplateStore(tiny_model).get):
        with pytest.raises(InvalidArgumentError, match=r"chatml, .*llama3, .*zephyr"):
            check(name)


def test_a_template_with_a_mistake_is_an_error_before_there_is_a_model() -> None:
    with pytest.raises(ChatTemplateError):
        check_template("{% if %}")


def test_a_model_chats_with_a_named_template(tiny_model) -> None:
    prompt = TemplateStore(tiny_model).get("llama3").apply(CHAT[1:2]).prompt
    assert prompt == apply_template("llama3", CHAT[1:2])


def test_a_role_without_a_place_is_an_error() -> None:
    templates = ChatTemplates(template=named_template("gemma"))
    with pytest.raises(ChatTemplateError, match="no place for a message of assistant"):
        templates.apply([{"role": "assistant", "content": "x"}, {"role": "assistant", "content": "x"}])

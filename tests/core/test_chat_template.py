"""llama.cpp's own chat templates."""

import pytest

from pyllm import errors
from pyllm.core.chat_template import apply_template, builtin_templates

TALK = [{"role": "system", "content": "Be brief."}, ("user", "Grüße 😀")]


def test_by_name_and_by_source(tiny_model):
    assert "chatml" in builtin_templates()
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGrüße 😀<|im_end|>\n"
    assert apply_template("chatml", TALK, add_assistant=False) == expected
    assert apply_template("chatml", TALK) == expected + "<|im_start|>assistant\n"
    assert apply_template(tiny_model.chat_template(), TALK) == expected + "<|im_start|>assistant\n"


def test_every_template_takes_every_length():
    for name in builtin_templates():
        for n in (0, 1, 5000):
            text = apply_template(name, [("user", "x" * n)])
            assert "x" * n in text


@pytest.mark.parametrize("template", ["", "nonsense", "{{ messages }}", "a\0b"])
def test_templates_that_are_not_known(template):
    with pytest.raises(errors.InvalidArgumentError):
        apply_template(template, TALK)


@pytest.mark.parametrize("message", [{"role": "user"}, "user", ("user",), None, ("user", "a\0b")])
def test_invalid_messages(message):
    with pytest.raises((errors.InvalidArgumentError, TypeError)):
        apply_template("chatml", [message])

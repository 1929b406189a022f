"""Messages to prompts: every template of the sources, the arguments, what is refused and how."""

import gc
import resource
import threading

import pytest
from support.chats import FOLDER, TEMPLATES, conversations, templates, tools

from pyllm import errors
from pyllm.core.chat import ChatPrompt, ChatTemplates

HI = [{"role": "user", "content": "Hi"}]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def ask(source: str, messages=HI, **arguments) -> ChatPrompt:
    return ChatTemplates(template=source).apply(messages, **arguments)


# ---- templates


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_of_the_sources_renders(name):
    refused = []
    for kind, (messages, some_tools) in conversations().items():
        try:
            prompt = templates(name).apply(messages, tools=some_tools)
        except errors.ChatTemplateError as error:
            refused.append(kind)
            assert "refuses this: " in str(error) and error.line
            continue
        assert "How is  the weather?" in prompt.prompt or kind == "parts"
        assert "".join(text for text, _ in prompt.parts) == prompt.prompt
    assert set(refused) <= ({"results"} if name == "google-gemma-2-2b-it" else set())


def test_a_models_own_template(smollm2):
    own = ChatTemplates(smollm2)
    assert own.is_explicit and own.model is smollm2
    assert own.source == smollm2.chat_template() and own.source_for("tool_use") == ""
    assert own.apply(HI).prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_a_model_without_a_template_gets_chatml(make_model):
    own = ChatTemplates(make_model(FOLDER / "ggml-vocab-llama-spm.gguf", vocab_only=True))
    assert not own.is_explicit
    assert own.apply(HI).prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_given_template_goes_before_the_models(smollm2):
    assert ChatTemplates(smollm2, template="{{ bos_token }}|{{ messages[0].content }}").apply(HI).prompt.endswith("|Hi")


def test_bos_and_eos_without_a_model():
    made = ChatTemplates(template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", bos="<B>", eos="<E>")
    assert made.apply(HI).prompt == "<B>Hi<E>"


def test_capabilities():
    assert templates("Qwen-Qwen3-0.6B").caps["supports_tools"] is True
    assert templates("google-gemma-2-2b-it").caps["supports_tools"] is False
    assert templates("Qwen-Qwen3-0.6B").supports_thinking
    assert not templates("Qwen-Qwen2.5-7B-Instruct").supports_thinking


def test_neither_model_nor_template():
    with pytest.raises(errors.InvalidArgumentError, match="neither"):
        ChatTemplates()
    with pytest.raises(errors.InvalidArgumentError, match="empty"):
        ChatTemplates(template="")
    with pytest.raises(errors.InvalidArgumentError, match="NUL"):
        ChatTemplates(template="a\0b")
    with pytest.raises(errors.InvalidArgumentError, match="variants"):
        templates("Qwen3-Coder").source_for("tools")


# ---- arguments


def test_variables_of_the_template():
    source = "{{ a }}|{{ b.c }}|{{ l[1] }}|{{ none is none }}|{{ messages[0].content }}"
    given = {"a": "x", "b": {"c": 1.5}, "l": [1, True], "none": None}
    assert ask(source, chat_template_kwargs=given).prompt == "x|1.5|True|True|Hi"


def test_thinking_is_switched():
    prompts = [templates("Qwen-Qwen3-0.6B").apply(HI, enable_thinking=on) for on in (True, False)]
    assert "<think>" not in prompts[0].prompt
    assert prompts[1].prompt.endswith("<think>\n\n</think>\n\n")
    assert prompts[0].supports_thinking
    assert (prompts[0].thinking_start_tag, prompts[0].thinking_end_tags) == ("<think>", ("</think>",))


def test_reasoning_stays_in_the_content_on_demand():
    text = "<think>hm</think>yes"
    apply = templates("Qwen-Qwen3-0.6B").apply
    assert apply(HI).parse(text) == {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    assert apply(HI, reasoning_format="none").parse(text) == {"role": "assistant", "content": text}


def test_the_time_is_given():
    source = "{{ strftime_now('%Y-%m-%d') }} {{ date_string }}"
    assert ask(source, now=1_700_000_000).prompt == "2023-11-14 14 Nov 2023"
    assert ask(source, now=1_700_000_000, chat_template_kwargs={"date_string": "x"}).prompt == "2023-11-14 x"


def test_without_generation_prompt():
    assert templates("Qwen3-Coder").apply(HI, add_generation_prompt=False).prompt.endswith("Hi<|im_end|>\n")


def test_a_message_is_continued():
    messages = [*HI, {"role": "assistant", "content": "The answer", "reasoning_content": "Easy."}]
    apply = templates("Qwen-Qwen3-0.6B").apply
    for how in (True, "content"):
        prompt = apply(messages, continue_final_message=how)
        assert prompt.prompt.endswith("<think>\nEasy.\n</think>\n\nThe answer")
        assert prompt.parse(" is 4.")["content"] == "The answer is 4."
    prompt = apply(
        [*HI, {"role": "assistant", "content": "", "reasoning_content": "Easy"}], continue_final_message=True
    )
    assert prompt.prompt.endswith("Easy")
    assert prompt.parse(" peasy.</think>4")["reasoning_content"].strip() == "Easy peasy."


def test_tools_bring_a_grammar():
    apply = templates("Qwen-Qwen3-0.6B").apply
    lazy = apply(HI, tools=tools())
    assert lazy.grammar_lazy and lazy.grammar_triggers[0][0] == "word" and "root ::=" in lazy.grammar
    assert "<tool_call>" in lazy.preserved_tokens
    forced = apply(HI, tools=tools(), tool_choice="required")
    assert forced.grammar and not forced.grammar_lazy
    assert apply(HI, tools=tools(), tool_choice="none").grammar == ""


def test_a_schema_brings_a_grammar():
    prompt = templates("Qwen3-Coder").apply(
        HI, json_schema='{"type": "object", "properties": {"a": {"type": "integer"}}}'
    )
    assert "integer" in prompt.grammar and not prompt.grammar_lazy


def test_messages_may_be_any_mappings_and_have_nulls():
    from types import MappingProxyType

    message = MappingProxyType({"role": "assistant", "content": "Yes", "tool_calls": None, "reasoning_content": None})
    assert ask(CHATML, (*HI, message)).prompt.endswith("assistant\nYes<|im_end|>\n")


def test_any_text_comes_through():
    for text in ("", "\0", "naïve 語 🙂", "{{ x }}{% if %}", '"\\\n', "a" * 100_000):
        assert ask("{{ messages[0].content }}", [{"role": "user", "content": text}]).prompt == text


# ---- what is refused


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([{"content": "x"}], r"messages\[0\] needs a \"role\""),
        ([*HI, {"role": "", "content": "x"}], r"messages\[1\] needs a \"role\""),
        ([*HI, {"role": "user"}], r"messages\[1\] has the role 'user' and needs a \"content\""),
        ([*HI, "x"], r"messages\[1\] must be a mapping, not str"),
        ([*HI, {"role": "user", "content": 3}], r"messages\[1\]: .*'content' type"),
        ([*HI, {"role": "user", "content": [{"text": "x"}]}], r"messages\[1\]: .*type"),
        ([*HI, {"role": "user", "content": [{"type": "image_url"}]}], r"messages\[1\]: .*Unsupported content part"),
        ([*HI, {"role": "user", "content": [3]}], r"messages\[1\]: "),
        ([*HI, {"role": "assistant"}], r"messages\[1\]: .*'content' or 'tool_calls'"),
        ([*HI, {"role": "assistant", "tool_calls": [{}]}], r"messages\[1\]: .*tool call type"),
        ([*HI, {"role": "assistant", "tool_calls": {}}], r"messages\[1\]: tool_calls must be a list"),
        ([*HI, {"role": "user", "content": {1, 2}}], r"messages\[1\] cannot be written as JSON"),
        ([*HI, {"role": "user", "content": "\ud800"}], r"messages\[1\] cannot be written as JSON"),
        ([*HI, {"role": "user", "content": "x", "n": float("nan")}], r"messages\[1\] cannot be written as JSON"),
    ],
)
def test_invalid_messages(messages, match):
    with pytest.raises(errors.InvalidArgumentError, match=match):
        ask(CHATML, messages)


def test_a_list_in_itself_is_refused():
    content = []
    content.append(content)
    with pytest.raises(errors.InvalidArgumentError, match=r"messages\[0\] cannot be written as JSON"):
        ask(CHATML, [{"role": "user", "content": content}])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"tools": [{"function": {}}]}, errors.InvalidArgumentError, r"tools\[0\]: .*type"),
        ({"tools": [*tools(), {"type": "function", "function": {}}]}, errors.InvalidArgumentError, r"tools\[2\]: "),
        ({"tools": [3]}, errors.InvalidArgumentError, r"tools\[0\] must be a mapping"),
        ({"tools": {"type": "function"}}, TypeError, "tools must be a list"),
        ({"tool_choice": "always"}, errors.InvalidArgumentError, "'auto', 'none', 'required', not 'always'"),
        ({"tool_choice": {"type": "function"}}, errors.InvalidArgumentError, "tool_choice"),
        ({"reasoning_format": "maybe"}, errors.InvalidArgumentError, "reasoning_format"),
        ({"continue_final_message": "tools"}, errors.InvalidArgumentError, "continue_final_message"),
        ({"continue_final_message": True}, errors.InvalidArgumentError, "the role 'user'"),
        ({"json_schema": "{"}, errors.InvalidArgumentError, "json_schema is no JSON"),
        ({"json_schema": '{"type": "nonsense"}'}, errors.InvalidArgumentError, "nonsense"),
        ({"json_schema": {"type": "object"}}, TypeError, "json_schema must be text"),
        ({"grammar": "root ::= x", "tools": tools()}, errors.InvalidArgumentError, "grammar with tools"),
        ({"chat_template_kwargs": {"x": object()}}, errors.InvalidArgumentError, r"chat_template_kwargs\['x'\]"),
        ({"now": float("nan")}, errors.InvalidArgumentError, "now"),
        ({"now": -1}, errors.InvalidArgumentError, "now"),
    ],
)
def test_invalid_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        templates("Qwen3-Coder").apply(HI, **arguments)


def test_messages_are_a_list():
    for messages in ("Hi", {"role": "user"}, None, 3):
        with pytest.raises(TypeError, match="list of mappings"):
            templates("Qwen3-Coder").apply(messages)


def test_what_cannot_be_continued():
    calls = conversations()["results"][0][:2]
    with pytest.raises(errors.InvalidArgumentError, match="tool calls cannot be continued"):
        templates("Qwen3-Coder").apply(calls, tools=tools(), continue_final_message=True)
    with pytest.raises(errors.InvalidArgumentError, match="only an answer can be continued"):
        templates("Qwen3-Coder").apply([], continue_final_message=True)


def test_arguments_of_a_call_that_are_no_json():
    call = {"type": "function", "function": {"name": "add", "arguments": "{'a'"}}
    with pytest.raises(errors.InvalidArgumentError, match="arguments as JSON"):
        templates("Qwen3-Coder").apply([*HI, {"role": "assistant", "content": "", "tool_calls": [call]}])


def test_a_refusal_has_the_templates_own_words():
    source = "line one\n{% if messages|length > 1 %}\n  {{ raise_exception('Only one, please!') }}\n{% endif %}"
    with pytest.raises(
        errors.ChatTemplateError, match=r"refuses this: Only one, please! \(line 3, column \d+"
    ) as caught:
        ask(source, HI * 2)
    assert caught.value.line == 3
    assert isinstance(caught.value, ValueError)


def test_an_error_while_it_runs_says_where():
    with pytest.raises(errors.ChatTemplateError, match="line 2, column") as caught:
        ask("a\n{{ messages[0].content | nonsense }}")
    assert (caught.value.line, "nonsense" in str(caught.value)) == (2, True)


@pytest.mark.parametrize(
    ("source", "line"),
    [("a\nb {{ 'x", 2), ("{{ 'ü' }}\n\n{{ '\\q' }}", 3), ("{% for", 1), ("a\n{#", 2), ("{{ a b }}", 1)],
)
def test_a_template_that_cannot_be_read_says_where(source, line):
    with pytest.raises(errors.ChatTemplateError) as caught:
        ChatTemplates(template=source)
    assert caught.value.line == line and caught.value.column >= 1


def test_a_prompt_is_not_made_by_itself():
    with pytest.raises(TypeError, match="ChatTemplates"):
        ChatPrompt()


def test_a_closed_model(make_model, tiny_models):
    model = make_model(tiny_models["llama"])
    own = ChatTemplates(model)
    model.close()
    assert own.apply(HI).prompt
    with pytest.raises(errors.ClosedError):
        ChatTemplates(model)


# ---- threads and memory


def test_threads_share_templates():
    shared, found = templates("Qwen-Qwen3-0.6B"), {}

    def work(i: int) -> None:
        for _ in range(5):
            prompt = shared.apply([{"role": "user", "content": f"number {i}"}], tools=tools())
            found.setdefault(i, set()).add((prompt.prompt, prompt.parse(f"answer {i}")["content"]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found[i]) for i in range(4)] == [1] * 4
    for i in range(4):
        ((prompt, answer),) = found[i]
        assert f"number {i}<" in prompt and answer == f"answer {i}"


@pytest.mark.slow
def test_memory_does_not_grow():
    shared = templates("Qwen-Qwen3-0.6B")

    def work(n: int) -> None:
        for _ in range(n):
            shared.apply(HI, tools=tools()).parse('<tool_call>\n{"name": "add", "arguments": {}}', partial=True)
            with pytest.raises(errors.ChatTemplateError):
                ChatTemplates(template="{{ '")
        gc.collect()

    work(200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work(1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024


def test_the_inside_of_the_templates_is_as_in_the_sources():
    """chat_marks.hpp repeats a struct that chat.h only names."""
    source = (FOLDER.parent / "common" / "chat.cpp").read_text(encoding="utf-8")
    begin = source.index("struct common_chat_templates {")
    lines = [line.split("//")[0].split() for line in source[begin : source.index("};", begin)].splitlines()[1:]]
    assert [line for line in lines if line] == [
        ["bool", "add_bos;"],
        ["bool", "add_eos;"],
        ["bool", "has_explicit_template;"],
        ["std::unique_ptr<common_chat_template>", "template_default;"],
        ["std::unique_ptr<common_chat_template>", "template_tool_use;"],
    ]

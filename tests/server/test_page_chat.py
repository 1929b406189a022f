"""The chat of the page, in a real Chromium on real servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browsers import Tab
from served import Prompted, Served, quiet, wait_for

pytestmark = pytest.mark.slow
TEMPLATES = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "models" / "templates"


# ---- chatting


def test_an_answer_streams_in_and_is_counted(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.says("the cat sat")
    assert web.ask("What did the cat do?") == "the cat sat"
    note = web.page.locator(".message.assistant .note").inner_text()
    assert "tokens/s" in note and "prompt " in note and "first after" in note
    assert web.page.locator(".message.user .body").inner_text() == "What did the cat do?"
    assert web.page.locator("#status").inner_text().startswith("The answer has ended")
    assert web.page.locator("#model option").all_inner_texts() == ["tiny"]


def test_pieces_are_shown_as_they_come(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.slowly(0.02)
    web.say("go on")
    body = web.page.locator(".message.assistant .body")
    body.filter(has_text=" ").wait_for()
    first = body.inner_text()
    web.until("n => document.querySelector('.assistant .body').innerText.length > n", len(first))
    assert body.inner_text().startswith(first.rstrip()[:5])
    web.page.get_by_role("button", name="Stop").click()
    web.answered()


def test_stop_frees_the_slot_and_keeps_what_was_written(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.slowly()
    web.say("go on")
    web.page.locator(".message.assistant .markdown").wait_for()
    wait_for(lambda: engine.metrics().n_running == 1)
    web.page.get_by_role("button", name="Stop").click()
    quiet(engine)
    text = web.answered()
    assert text
    assert "stopped by you" in web.page.locator(".message.assistant .note").inner_text()
    engine.processor = None
    engine.says("well")
    assert web.ask("And now?") == "well"


def test_escape_stops_and_so_does_closing_the_tab(web: Tab, other, server: Served, engine: Prompted) -> None:
    web.open()
    engine.slowly()
    web.say("go on")
    wait_for(lambda: engine.metrics().n_running == 1)
    web.page.keyboard.press("Escape")
    quiet(engine)
    with other(server) as second:
        second.open()
        second.say("go on")
        second.page.locator(".message.assistant .markdown").wait_for()
        assert engine.metrics().n_running == 1
    quiet(engine)


def test_regenerate_and_edit(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.says("one")
    web.ask("first")
    engine.says("two")
    web.page.get_by_role("button", name="Regenerate").click()
    web.page.get_by_text("two", exact=True).wait_for()
    assert web.answered() == "two"
    engine.says("three")
    web.ask("second")
    assert web.page.locator(".message").count() == 4
    engine.says("four")
    web.page.locator(".message.user").first.get_by_role("button", name="Edit").click()
    web.page.get_by_label("Text of the message").fill("other")
    web.page.locator(".edit").get_by_role("button", name="Send").click()
    web.page.get_by_text("four", exact=True).wait_for()
    assert web.page.locator(".message .body").all_inner_texts() == ["other", "four"]
    web.answered()
    web.page.locator(".message.assistant").get_by_role("button", name="Edit").click()
    web.page.get_by_label("Text of the message").fill("five")
    web.page.get_by_role("button", name="Save").click()
    assert web.page.locator(".message .body").all_inner_texts() == ["other", "five"]


def test_parameters_and_the_system_message_are_sent(web: Tab, engine: Prompted) -> None:
    web.open()
    web.page.get_by_text("System message").click()
    web.page.get_by_label("System message", exact=True).and_(web.page.locator("textarea")).fill("Be brief.")
    web.page.get_by_role("button", name="Parameters", exact=True).click()
    assert web.page.get_by_label("Temperature").get_attribute("placeholder") == "0.8"
    web.page.get_by_label("Temperature").fill("0.25")
    web.page.get_by_label("Max tokens").fill("4")
    web.page.get_by_label("Stop texts").fill("END\n\nFIN")
    web.page.get_by_label("Other fields").fill('{"ignore_eos": true, "logit_bias": {"2": -100}}')
    with web.page.expect_request("**/v1/chat/completions") as asked:
        web.ask("Hello")
    body = asked.value.post_data_json
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    expected = {"temperature": 0.25, "max_tokens": 4, "stop": ["END", "FIN"], "logit_bias": {"2": -100}}
    assert {name: body[name] for name in expected} == expected
    assert "top_p" not in body and body["model"] == "tiny"
    assert "cut off" in web.page.locator(".message.assistant .note").inner_text()
    web.open()
    web.page.get_by_role("button", name="Parameters", exact=True).click()
    assert web.page.get_by_label("Temperature").input_value() == "0.25"


def test_what_is_wrong_with_a_parameter_is_said(web: Tab) -> None:
    web.open()
    web.page.get_by_role("button", name="Parameters", exact=True).click()
    problem = web.page.locator("#parameters-problem")
    for label, value, told in (
        ("Top p", "2", "Top p must be a number from 0 to 1."),
        ("Top k", "1.5", "Top k must be a whole number at least 0."),
        ("Other fields", "{", "Other fields must be a JSON object"),
        ("Other fields", '{"stream": false}', "“stream” is what this page says itself"),
    ):
        web.page.get_by_label(label).fill(value)
        assert told in problem.inner_text()
        web.page.get_by_label(label).fill("")
        assert problem.inner_text() == ""
    web.page.get_by_label("Top p").fill("2")
    asked = len(web.asked)
    web.say("Hello")
    assert "Top p" in web.page.locator(".message.user .note").inner_text()
    assert len(web.asked) == asked


def test_reasoning_is_folded(start, other, engine: Prompted) -> None:
    (template,) = TEMPLATES.glob("Qwen-Qwen3-0.6B*.jinja")
    with other(start(engine, chat_template=template.read_text(encoding="utf-8"))) as web:
        web.open()
        engine.says("<think>\nrain is **wet**\n</think>\n\nIt is wet.")
        web.ask("How is rain?")
        reasoning = web.page.locator("details.reasoning")
        assert web.page.locator(".message.assistant .body > .markdown").inner_text() == "It is wet."
        assert reasoning.get_attribute("open") is None
        reasoning.locator("summary").click()
        assert reasoning.locator("strong").inner_text() == "wet"
        with web.page.expect_request("**/v1/chat/completions") as asked:
            web.ask("Really?")
        assert asked.value.post_data_json["messages"][1] == {"role": "assistant", "content": "It is wet."}
        web.open()
        web.page.locator("#conversations .title").click()
        assert "rain is" in web.page.locator("details.reasoning").first.text_content()


def test_calls_of_tools_are_shown(web: Tab, engine: Prompted) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]
    web.open()
    web.page.get_by_role("button", name="Parameters", exact=True).click()
    web.page.get_by_label("Other fields").fill(json.dumps({"tools": tools}))
    engine.says('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>')
    web.ask("How is the weather?")
    call = web.page.locator("details.call")
    assert call.locator("summary").inner_text() == "Call of get_weather"
    assert json.loads(call.locator("pre").inner_text()) == {"city": "Oslo"}
    web.open()
    web.page.locator("#conversations .title").click()
    assert json.loads(call.locator("pre").inner_text()) == {"city": "Oslo"}


# ---- conversations


def test_conversations_outlive_the_page(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.says("the dog")
    web.ask("Who is it?")
    web.page.get_by_role("button", name="New chat").click()
    engine.says("the sun")
    web.ask("What shines?")
    web.open()
    titles = web.page.locator("#conversations .title")
    assert titles.all_inner_texts() == ["What shines?", "Who is it?"]
    titles.nth(1).click()
    assert web.page.locator(".message .body").all_inner_texts() == ["Who is it?", "the dog"]
    web.page.get_by_role("button", name="Rename Who is it?").click()
    web.page.get_by_role("textbox", name="Name").fill("A dog")
    web.page.keyboard.press("Enter")
    web.page.get_by_role("button", name="A dog", exact=True).wait_for()
    web.page.locator("#conversations li").filter(has_text="What shines?").hover()
    web.page.get_by_role("button", name="Delete What shines?").click()
    web.page.locator("dialog").get_by_role("button", name="Delete").click()
    titles.nth(1).wait_for(state="detached")
    web.open()
    assert titles.all_inner_texts() == ["A dog"]


def test_an_answer_that_comes_is_kept_when_the_page_goes(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.slowly(0.02)
    web.say("go on")
    kept = "document.querySelector('.assistant .markdown') && Object.values(localStorage).some(one => one.length > 300)"
    web.until(kept)
    web.open()
    quiet(engine)
    web.page.locator("#conversations .title").first.click()
    bodies = web.page.locator(".message .body").all_inner_texts()
    assert bodies[0] == "go on" and len(bodies[1]) > 5


def test_a_deleted_conversation_stays_deleted(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.slowly()
    web.say("go on")
    web.page.locator(".message.assistant .markdown").wait_for()
    web.page.locator("#conversations li").hover()
    web.page.get_by_role("button", name="Delete go on").click()
    web.page.locator("dialog").get_by_role("button", name="Delete").click()
    quiet(engine)
    assert web.page.locator(".message").count() == 0
    web.open()
    assert web.page.locator("#conversations li").count() == 0


def test_export_and_import(web: Tab, other, server: Served, engine: Prompted, tmp_path) -> None:
    web.open()
    engine.says("the moon")
    web.ask("What is it?")
    with web.page.expect_download() as download:
        web.page.get_by_role("button", name="Export").click()
    path = tmp_path / "conversations.json"
    download.value.save_as(path)
    (kept,) = json.loads(path.read_text())["conversations"]
    assert [message["content"] for message in kept["messages"]] == ["What is it?", "the moon"]
    with other(server) as second:
        second.open()
        second.page.locator("#import-file").set_input_files(path)
        second.page.get_by_role("button", name="What is it?", exact=True).click()
        assert second.page.locator(".message .body").all_inner_texts() == ["What is it?", "the moon"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("hello", "it is not JSON"),
        ("[1]", "its format is not"),
        ('{"format": "pyllm-conversations", "version": 9, "conversations": []}', "has version 9"),
        ('{"format": "pyllm-conversations", "version": 1}', "no list"),
        ('{"format": "pyllm-conversations", "version": 1, "conversations": [{}]}', "Conversation 1 has no messages"),
        (
            '{"format": "pyllm-conversations", "version": 1, "conversations": [{"id": "a",'
            ' "messages": [{"role": 3}]}]}',
            "message 1 has the role 3",
        ),
        (
            '{"format": "pyllm-conversations", "version": 1,'
            ' "conversations": [{"id": "a", "messages": [{"role": "user", "content": {"html": "x"}}]}]}',
            "content is not text",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(web: Tab, tmp_path, content: str, told: str) -> None:
    web.open()
    path = tmp_path / "file.json"
    path.write_text(content)
    web.page.locator("#import-file").set_input_files(path)
    problem = web.page.locator("#storage-problem")
    problem.filter(has_text=told).wait_for()
    assert web.page.locator("#conversations li").count() == 0

"""The chat of the page, in a real Chromium on real servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.browsers import Tab
from support.engines import Prompted, wait_until_idle
from support.servers import Served
from support.waiting import wait_for

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
    wait_until_idle(engine)
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
    wait_until_idle(engine)
    with other(server) as second:
        second.open()
        second.say("go on")
        second.page.locator(".message.assistant .markdown").wait_for()
        assert engine.metrics().n_running == 1
    wait_until_idle(engine)


def test_escape_stops_wherever_the_focus_is(web: Tab, engine: Prompted) -> None:
    """The button that was pressed goes while the answer comes; keys must not go with it."""
    web.open()
    engine.says("one")
    web.ask("first")
    engine.slowly()
    for leave in ("null", "document.activeElement.blur()", "document.getElementById('theme').focus()"):
        web.page.get_by_role("button", name="Regenerate").click()
        wait_for(lambda: engine.metrics().n_running == 1)
        web.page.evaluate(leave)
        web.page.keyboard.press("Escape")
        wait_until_idle(engine)
        web.answered()
        assert "stopped by you" in web.page.locator(".message.assistant .note").inner_text()
    web.page.get_by_role("button", name="Regenerate").click()
    wait_for(lambda: engine.metrics().n_running == 1)
    assert web.page.evaluate("document.activeElement.id") == "input"
    # What is open in front of the chat is closed, and nothing else.
    web.page.get_by_role("button", name="Parameters", exact=True).click()
    web.page.keyboard.press("Escape")
    assert web.page.get_by_role("complementary", name="Parameters").is_hidden()
    assert engine.metrics().n_running == 1
    web.page.keyboard.press("Escape")
    wait_until_idle(engine)


def test_escape_stops_the_inspector(web: Tab, engine: Prompted) -> None:
    web.open("tokens")
    engine.slowly()
    web.page.get_by_label("Tokens", exact=True).and_(web.page.locator("input")).fill("2000")
    web.page.get_by_label("Prompt", exact=True).fill("the cat")
    web.page.get_by_role("button", name="Generate").click()
    wait_for(lambda: engine.metrics().n_running == 1)
    web.page.evaluate("document.activeElement.blur()")
    web.page.keyboard.press("Escape")
    wait_until_idle(engine)
    web.generated()


def test_an_answer_that_was_cut_off_goes_on(web: Tab, engine: Prompted) -> None:
    web.open()
    web.page.get_by_role("button", name="Parameters", exact=True).click()
    web.page.get_by_label("Max tokens").fill("3")
    engine.says("the cat sat on the mat")
    begun = web.ask("Where?")
    assert "the cat sat on the mat".startswith(begun) and len(begun) < 20
    assert "cut off" in web.page.locator(".message.assistant .note").inner_text()
    # It is known when the page comes back, too.
    web.page.reload()
    web.page.get_by_role("button", name="Parameters", exact=True).click()
    web.page.get_by_label("Max tokens").fill("")
    engine.says(" and the rest")
    with web.page.expect_request("**/v1/chat/completions") as asked:
        web.page.get_by_role("button", name="Continue").click()
    assert web.answered() == f"{begun} and the rest"
    body = asked.value.post_data_json
    assert body["messages"] == [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": begun}]
    assert body["continue_final_message"] is True
    assert web.page.locator(".message").count() == 2
    assert web.page.get_by_role("button", name="Continue").count() == 0
    web.page.reload()
    assert web.bodies == ["Where?", f"{begun} and the rest"]


def test_an_answer_that_was_stopped_goes_on(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.slowly()
    web.say("go on")
    web.page.locator(".message.assistant .markdown").wait_for()
    web.page.keyboard.press("Escape")
    begun = web.answered()
    engine.says(" well")
    web.page.get_by_role("button", name="Continue").click()
    web.page.locator(".message.assistant").filter(has_text="well").wait_for()
    assert web.answered().startswith(begun[:5])


def test_a_new_chat_leaves_a_running_answer_alone(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.slowly(0.02)
    web.say("go on")
    web.page.locator(".message.assistant .markdown").wait_for()
    running = web.page.locator("#conversations .running")
    assert running.count() == 1
    web.page.get_by_role("button", name="New chat").click()
    assert web.page.locator(".message").count() == 0
    assert web.page.get_by_role("button", name="Send").is_visible()
    web.say("a second one")
    wait_for(lambda: engine.metrics().n_running == 2)
    assert running.count() == 2
    # Each has its own end.
    web.page.keyboard.press("Escape")
    wait_for(lambda: engine.metrics().n_running == 1)
    web.answered()
    running.nth(1).wait_for(state="detached")
    assert running.count() == 1
    web.page.locator("#conversations .title").filter(has_text="go on").click()
    body = web.page.locator(".message.assistant .body")
    n = len(body.inner_text())
    web.until("n => document.querySelector('.assistant .body').innerText.length > n", n)
    web.page.get_by_role("button", name="Stop").click()
    wait_until_idle(engine)
    text = web.answered()
    running.wait_for(state="detached")
    # Nothing was lost or came twice while nobody looked.
    web.page.reload()
    assert web.bodies == ["go on", text]


def test_what_goes_wrong_behind_ones_back_is_seen_later(start, other, tiny_model) -> None:
    with Prompted(tiny_model, n_ctx=512, n_parallel=1, n_threads=1) as engine:
        server = start(engine)
        with other(server) as web:
            web.open()
            engine.slowly(0.05)
            web.say("go on")
            web.page.locator(".message.assistant .markdown").wait_for()
            web.page.get_by_role("button", name="New chat").click()
            server.stop()
            web.page.locator("#conversations .running").wait_for(state="detached")
            web.page.locator("#conversations .title").click()
            assert web.page.locator(".message").last.locator(".note").inner_text() != ""
            web.complaints.clear()


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
    assert web.bodies == ["other", "four"]
    web.answered()
    web.page.locator(".message.assistant").get_by_role("button", name="Edit").click()
    web.page.get_by_label("Text of the message").fill("five")
    web.page.get_by_role("button", name="Save").click()
    assert web.bodies == ["other", "five"]


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

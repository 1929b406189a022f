"""Conversations of the page: kept, found, told apart by their addresses, and their messages in versions."""

from __future__ import annotations

import json
import re

import pytest
from support.browsers import Tab
from support.engines import Prompted, wait_until_idle
from support.servers import Served

pytestmark = pytest.mark.slow


# ---- versions


def versions(web: Tab) -> list[str]:
    return web.page.locator(".versions").all_inner_texts()


def regenerate(web: Tab, engine: Prompted, text: str) -> None:
    engine.says(text)
    web.page.get_by_role("button", name="Regenerate").click()
    web.page.get_by_text(text, exact=True).wait_for()
    web.answered()


def test_answers_are_kept_on_regenerate(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.says("one")
    web.ask("first")
    assert versions(web) == []
    regenerate(web, engine, "two")
    regenerate(web, engine, "three")
    group = web.page.get_by_role("group", name="Version 3 of 3")
    assert group.is_visible()
    back = web.page.get_by_role("button", name="Previous version")
    on = web.page.get_by_role("button", name="Next version")
    assert on.is_disabled()
    back.click()
    assert web.bodies == ["first", "two"]
    # The focus stays where one goes on.
    assert web.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Previous version"
    web.page.keyboard.press("Enter")
    assert web.bodies == ["first", "one"]
    assert (
        back.is_disabled() and web.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Next version"
    )
    # What is asked now goes on from what is shown.
    engine.says("four")
    with web.page.expect_request("**/v1/chat/completions") as asked:
        web.ask("second")
    assert [message["content"] for message in asked.value.post_data_json["messages"]] == ["first", "one", "second"]
    on.click()
    assert web.bodies == ["first", "two"]
    back.click()
    assert web.bodies == ["first", "one", "second", "four"]
    web.page.reload()
    web.page.locator(".message").nth(3).wait_for()
    assert web.bodies == ["first", "one", "second", "four"]
    assert [re.sub(r"\s", "", text) for text in versions(web)] == ["‹1/3›"]


def test_questions_and_answers_are_kept_on_edit(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.says("one")
    web.ask("first")
    engine.says("two")
    web.page.locator(".message.user").get_by_role("button", name="Edit").click()
    web.page.get_by_label("Text of the message").fill("other")
    web.page.locator(".edit").get_by_role("button", name="Send").click()
    web.page.get_by_text("two", exact=True).wait_for()
    web.answered()
    web.page.locator(".message.assistant").get_by_role("button", name="Edit").click()
    web.page.get_by_label("Text of the message").fill("mine")
    web.page.get_by_role("button", name="Save").click()
    assert web.bodies == ["other", "mine"]
    assert len(versions(web)) == 2
    web.page.locator(".message.assistant").get_by_role("button", name="Previous version").click()
    assert web.bodies == ["other", "two"]
    web.page.locator(".message.user").get_by_role("button", name="Previous version").click()
    assert web.bodies == ["first", "one"]


def test_versions_go_with_a_file(web: Tab, other, server: Served, engine: Prompted, tmp_path) -> None:
    web.open()
    engine.says("one")
    web.ask("first")
    regenerate(web, engine, "two")
    with web.page.expect_download() as download:
        web.page.get_by_role("button", name="Export").click()
    path = tmp_path / "conversations.json"
    download.value.save_as(path)
    with other(server) as second:
        second.open()
        second.page.locator("#import-file").set_input_files(path)
        second.page.get_by_role("button", name="first", exact=True).click()
        assert second.bodies == ["first", "two"]
        second.page.get_by_role("button", name="Previous version").click()
        assert second.bodies == ["first", "one"]


def test_a_failed_attempt_leaves_the_answer_that_was_there(start, other, tiny_model) -> None:
    with Prompted(tiny_model, n_ctx=512, n_parallel=1, n_threads=1) as engine:
        server = start(engine)
        with other(server) as web:
            web.open()
            engine.says("one")
            web.ask("first")
            server.stop()
            web.page.get_by_role("button", name="Regenerate").click()
            web.page.locator(".note.wrong").wait_for()
            assert web.bodies == ["first", "one"]
            assert versions(web) == []
            web.complaints.clear()


OLD = {
    "id": "old",
    "title": "",
    "system": "Be brief.",
    "updated": 1,
    "messages": [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "I.", "note": "2 tokens"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ],
}


def test_conversations_of_before_are_read(web: Tab, engine: Prompted) -> None:
    """Those that had no versions of messages yet, as this page kept them."""
    web.open()
    web.page.evaluate("one => localStorage.setItem('pyllm.conversation.old', JSON.stringify(one))", OLD)
    web.open()
    web.page.get_by_role("button", name="Who?", exact=True).click()
    assert web.bodies == ["Who?", "I.", "Why?", "So."]
    regenerate(web, engine, "well")
    assert web.bodies == ["Who?", "I.", "Why?", "well"]
    web.page.get_by_role("button", name="Previous version").click()
    assert web.bodies == ["Who?", "I.", "Why?", "So."]


# ---- addresses


def test_each_conversation_has_an_address(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.says("the dog")
    web.ask("Who is it?")
    first = web.page.url
    assert re.search(r"#chat/[0-9a-f-]{32,36}$", first)
    assert web.page.title() == "Who is it? – pyllm"
    web.page.get_by_role("button", name="New chat").click()
    assert web.page.url.endswith("#chat")
    engine.says("the sun")
    web.ask("What shines?")
    assert web.page.url != first
    web.page.reload()
    web.page.locator(".message").nth(1).wait_for()
    assert web.bodies == ["What shines?", "the sun"]
    web.page.get_by_role("button", name="Who is it?", exact=True).click()
    assert web.page.url == first
    web.page.go_back()
    web.page.get_by_text("the sun", exact=True).wait_for()
    web.page.goto(first)
    web.page.get_by_text("the dog", exact=True).wait_for()
    assert web.page.locator("#conversations [aria-current]").inner_text() == "Who is it?"
    # The other view leads back to it.
    web.page.get_by_role("tab", name="Tokens").click()
    assert web.page.url.endswith("#tokens")
    web.page.get_by_role("tab", name="Chat").click()
    assert web.page.url == first
    assert web.bodies == ["Who is it?", "the dog"]


def test_an_address_of_nothing_is_said(web: Tab, engine: Prompted) -> None:
    web.open()
    web.page.goto(f"{web.url}/#chat/nothing")
    web.page.get_by_text("This chat is not in this browser.").wait_for()
    engine.says("well")
    assert web.ask("Hello") == "well"


# ---- search, and files of one


def test_search(web: Tab, engine: Prompted) -> None:
    web.open()
    assert web.page.get_by_role("searchbox").is_hidden()
    for question, answer in (("Who is it?", "a Dog that barks"), ("What shines?", "the sun")):
        engine.says(answer)
        web.ask(question)
        web.page.get_by_role("button", name="New chat").click()
    found = web.page.locator("#conversations .name")
    search = web.page.get_by_role("searchbox", name="Search the chats")
    search.fill("dog THAT")
    assert found.all_inner_texts() == ["Who is it?"]
    assert "a Dog that barks" in web.page.locator("#conversations .place").inner_text()
    assert web.page.locator("#status").inner_text() == "1 chats found"
    search.fill("shines")
    assert found.all_inner_texts() == ["What shines?"]
    search.fill("elephant")
    assert found.count() == 0
    assert web.page.get_by_text("No chat has these words.").is_visible()
    search.fill("")
    assert found.count() == 2


def test_one_conversation_as_a_file(web: Tab, engine: Prompted, tmp_path) -> None:
    web.open()
    engine.says("the **moon**")
    web.ask("What is it?")
    web.page.get_by_role("button", name="New chat").click()
    engine.says("another")
    web.ask("And this?")
    with web.page.expect_download() as download:
        web.chosen("What is it?", "Export as Markdown")
    assert download.value.suggested_filename == "What-is-it.md"
    download.value.save_as(tmp_path / "one.md")
    assert (tmp_path / "one.md").read_text(encoding="utf-8") == (
        "# What is it?\n\n## You\n\nWhat is it?\n\n## Answer\n\nthe **moon**\n"
    )
    with web.page.expect_download() as download:
        web.chosen("What is it?", "Export as JSON")
    download.value.save_as(tmp_path / "one.json")
    (kept,) = json.loads((tmp_path / "one.json").read_text())["conversations"]
    assert [message["content"] for message in kept["messages"]] == ["What is it?", "the **moon**"]


def test_the_menu_by_keyboard(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.says("the moon")
    web.ask("What is it?")
    engine.slowly()
    web.say("go on")
    button = web.page.get_by_role("button", name="More about What is it?", exact=True)
    button.focus()
    web.page.keyboard.press("Enter")
    focused = "document.activeElement.textContent"
    assert web.page.evaluate(focused) == "Rename"
    web.page.keyboard.press("ArrowUp")
    assert web.page.evaluate(focused) == "Delete"
    web.page.keyboard.press("ArrowDown")
    assert web.page.evaluate(focused) == "Rename"
    # Escape closes the menu; the answer goes on.
    web.page.keyboard.press("Escape")
    web.page.locator(".menu").wait_for(state="detached")
    assert web.page.evaluate("document.activeElement.getAttribute('aria-label')") == "More about What is it?"
    assert engine.metrics().n_running == 1
    web.page.keyboard.press("Escape")
    web.page.get_by_role("complementary", name="Conversations").wait_for(state="hidden")
    web.page.keyboard.press("Escape")
    wait_until_idle(engine)


# ---- kept


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
    assert web.bodies == ["Who is it?", "the dog"]
    web.chosen("Who is it?", "Rename")
    web.page.get_by_role("textbox", name="Name").fill("A dog")
    web.page.keyboard.press("Enter")
    web.page.get_by_role("button", name="A dog", exact=True).wait_for()
    web.chosen("What shines?", "Delete")
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
    wait_until_idle(engine)
    web.page.locator("#conversations .title").first.click()
    bodies = web.bodies
    assert bodies[0] == "go on" and len(bodies[1]) > 5


def test_a_deleted_conversation_stays_deleted(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.slowly()
    web.say("go on")
    web.page.locator(".message.assistant .markdown").wait_for()
    web.chosen("go on", "Delete")
    web.page.locator("dialog").get_by_role("button", name="Delete").click()
    wait_until_idle(engine)
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
        assert second.bodies == ["What is it?", "the moon"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("hello", "it is not JSON"),
        ("[1]", "its format is not"),
        ('{"format": "pyllm-conversations", "version": 9, "conversations": []}', "has version 9"),
        ('{"format": "pyllm-conversations", "version": 2}', "no list"),
        (
            '{"format": "pyllm-conversations", "version": 2, "conversations": [{"id": "a", "leaf": 0,'
            ' "messages": [{"role": "user", "id": 0, "parent": 0}]}]}',
            "message 1: parent is no message before it",
        ),
        (
            '{"format": "pyllm-conversations", "version": 2, "conversations": [{"id": "a", "leaf": 7,'
            ' "messages": [{"role": "user", "id": 0, "parent": null}]}]}',
            "leaf is no message of it",
        ),
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

"""Text files that go with a message of the page."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.browsers import Tab
from support.engines import Prompted

pytestmark = pytest.mark.slow


def attach(web: Tab, *files: tuple[str, bytes]) -> None:
    payloads = [{"name": name, "mimeType": "", "buffer": content} for name, content in files]
    web.page.locator("#attach-file").set_input_files(payloads)


def parts_of(asked: Any) -> list[str]:
    parts = asked.value.post_data_json["messages"][-1]["content"]
    assert {part["type"] for part in parts} == {"text"}
    return [part["text"] for part in parts]


def test_a_file_is_sent_between_marks(web: Tab, engine: Prompted) -> None:
    web.open()
    with web.page.expect_file_chooser() as chooser:
        web.page.get_by_role("button", name="Attach text files").click()
    assert chooser.value.is_multiple()
    # Marks within the text do not end it.
    text = "# Notes\r\n```c\nint ä;\n```\n````\nmore\n"
    attach(web, ("notes.md", text.encode()), ("b.txt", b"second"))
    chips = web.page.locator("#files .chip .name")
    assert chips.all_inner_texts() == ["notes.md", "b.txt"]
    engine.says("yes")
    with web.page.expect_request("**/v1/chat/completions") as asked:
        web.ask("What is this?")
    assert parts_of(asked) == [
        "File: notes.md\n`````\n# Notes\n```c\nint ä;\n```\n````\nmore\n`````\n",
        "File: b.txt\n```\nsecond\n```\n",
        "What is this?",
    ]
    # The model has them: the server took the parts for one text.
    assert web.page.locator(".message.assistant .body").inner_text() == "yes"
    assert chips.count() == 0
    shown = web.page.locator(".message.user details.file")
    assert shown.locator("summary").all_inner_texts() == ["notes.md 35 B", "b.txt 6 B"]
    shown.first.locator("summary").click()
    assert "int ä;" in shown.first.locator("pre").inner_text()
    web.page.reload()
    assert shown.count() == 2
    # They stay with the question when that is written anew.
    web.page.locator(".message.user").get_by_role("button", name="Edit").click()
    web.page.get_by_label("Text of the message").fill("And now?")
    with web.page.expect_request("**/v1/chat/completions") as asked:
        web.page.locator(".edit").get_by_role("button", name="Send").click()
    assert len(parts_of(asked)) == 3
    web.answered()


def test_files_are_dropped(web: Tab, engine: Prompted) -> None:
    web.open()
    web.page.evaluate(
        """() => {
            const area = document.getElementById("view-chat");
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File(["dropped text"], "d.txt"));
            for (const name of ["dragover", "drop"]) {
                area.dispatchEvent(new DragEvent(name, { dataTransfer, bubbles: true, cancelable: true }));
            }
        }"""
    )
    web.page.locator(".chip").wait_for()
    assert web.page.locator(".dropping").count() == 0
    engine.says("yes")
    # A file alone says enough.
    with web.page.expect_request("**/v1/chat/completions") as asked:
        web.page.get_by_role("button", name="Send").click()
    assert parts_of(asked) == ["File: d.txt\n```\ndropped text\n```\n"]
    web.page.get_by_text("yes", exact=True).wait_for()
    assert web.page.locator("#conversations .name").inner_text() == "d.txt"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.bin", b"\xff\xfe\x00", "not text in UTF-8"),
        ("a.bin", b"text\x00text", "not text in UTF-8"),
        ("a.txt", b"x" * (256 * 1024 + 1), "a file may have 256 KiB"),
    ],
)
def test_what_cannot_be_attached_is_said(web: Tab, name: str, content: bytes, told: str) -> None:
    web.open()
    attach(web, (name, content), ("good.txt", b"good"))
    web.page.locator("#files-problem").filter(has_text=told).wait_for()
    assert name in web.page.locator("#files-problem").inner_text()
    assert web.page.locator(".chip .name").all_inner_texts() == ["good.txt"]
    web.page.get_by_role("button", name="Remove good.txt").click()
    assert web.page.locator(".chip").count() == 0


def test_files_have_a_limit_together(web: Tab) -> None:
    web.open()
    attach(web, *((f"{i}.txt", b"x" * (200 * 1024)) for i in range(3)))
    web.page.locator("#files-problem").filter(has_text="“2.txt” was left out").wait_for()
    assert web.page.locator(".chip").count() == 2
    attach(web, ("3.txt", b"x" * (200 * 1024)))
    web.page.locator("#files-problem").filter(has_text="“3.txt” was left out").wait_for()
    assert web.page.locator(".chip").count() == 2


def test_a_name_cannot_become_markup(web: Tab, engine: Prompted) -> None:
    web.open()
    attach(web, ('<img src=x onerror="hacked=1">.txt', b"<script>hacked=1</script>"))
    engine.says("yes")
    web.ask("What?")
    assert web.page.evaluate("typeof hacked") == "undefined"
    assert web.page.locator("img, #log script").count() == 0
    kept = web.page.evaluate("Object.values(localStorage).find(one => one.includes('hacked'))")
    assert json.loads(kept)["messages"][0]["files"][0]["text"] == "<script>hacked=1</script>"

"""Blocks of Anthropic's messages that stand for text: texts, documents, results of a search."""

from __future__ import annotations

from typing import Any

from pyllm.chat.messages import left_out
from pyllm.server.errors import invalid
from pyllm.server.fields import Fields

# Where the text of a document can be; others are files, here or elsewhere.
_SOURCES = ("text", "content")


def blocks_of(content: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """The blocks of a list, each with its name in errors.

    Raises:
        APIError: It is no list of objects.
    """
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise invalid(where, f"{where} must be text or a list of blocks")
    return [(f"{where}[{i}]", block) for i, block in enumerate(content)]


def text_of(block: dict[str, Any], where: str, *, of_tool: bool = False) -> str:
    """The text that a block stands for.

    Args:
        block: The block.
        where: Its name in errors.
        of_tool: Whether it is a part of a tool's result: a line says there what was left out, as no later turn of the
            chat can be without it.

    Raises:
        APIError: It stands for no text; or it is a document that is no plain text.
    """
    fields, kind = Fields(block, f"{where}."), block.get("type")
    if of_tool and isinstance(kind, str) and not _is_text(block):
        return left_out(kind)
    if kind == "document":
        return _document(fields, where, of_tool)
    if kind == "search_result":
        found = blocks_of(fields.need("content"), f"{where}.content")
        texts = [text_of(one, at, of_tool=of_tool) for at, one in found]
        head = {"title": fields.text("title"), "source": fields.text("source")}
        return _marked("search_result", head, "\n".join(texts))
    if kind != "text" or not isinstance(block.get("text"), str):
        raise invalid(where, f"{where} must be a block of type 'text', not {str(kind)[:40]!r}: text only")
    text: str = block["text"]
    return text


def _is_text(block: dict[str, Any]) -> bool:
    """Whether it is of a kind that can be text."""
    source = block.get("source")
    if block["type"] == "document" and isinstance(source, dict):
        return source.get("type") in _SOURCES
    return block["type"] in ("text", "search_result", "document")


def _document(fields: Fields, where: str, of_tool: bool) -> str:
    source = fields.object("source")
    kind = source.text("type")
    if kind == "text":
        source.need("data")
        text = source.text("data") or ""
    elif kind == "content":
        content = source.need("content")
        if not isinstance(content, str):
            found = blocks_of(content, f"{where}.source.content")
            content = "\n".join(text_of(one, at, of_tool=of_tool) for at, one in found)
        text = content
    else:
        message = (
            f"{where}.source.type must be 'text' or 'content', not {str(kind)[:40]!r}: this server reads no files, and "
            "fetches none"
        )
        raise invalid(f"{where}.source.type", message)
    return _marked("document", {"title": fields.text("title"), "context": fields.text("context")}, text)


def _marked(name: str, head: dict[str, str | None], text: str) -> str:
    """A text between marks, so that the model sees where it begins and ends, and what it is."""
    lines = [f"<{key}>{value}</{key}>" for key, value in head.items() if value]
    return "\n".join([f"<{name}>", *lines, text, f"</{name}>"])

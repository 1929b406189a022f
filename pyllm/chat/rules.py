"""The rules that llama.cpp writes for the answer to a prompt, with what has to be different in them here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pyllm.core.chat import ChatPrompt
from pyllm.structured import Grammar

# The schema with which a prompt is made that has to have a form: its rule is replaced by those of the form.
FORM_SCHEMA = json.dumps({"const": "the form"})
_FORM_RULE = re.compile(r'^([\w-]+) ::= "\\"the form\\""(?: space)?$', re.MULTILINE)
# A rule's name, or what may look like one: texts, character classes, tokens by name and comments.
_GBNF_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|<[^>\n]*>|#[^\n]*|\{[^}]*\}|([A-Za-z][\w-]*)')
# llama.cpp writes a repetition of nothing, though a lazy grammar begins with what has triggered it.
_EMPTY_CALLS = re.compile(r"\(([\w-]+)\? space\)\+")


def answer_rules(prompt: ChatPrompt, *, calls: bool = False, form: Grammar | None = None) -> str:
    """The rules for an answer, in GBNF; "" where llama.cpp has none for the prompt.

    Args:
        prompt: The prompt.
        calls: The answer is a call: the model cannot talk first, for as long as it likes.
        form: The form of the content, where the prompt was made with :data:`FORM_SCHEMA`.
    """
    rules = _EMPTY_CALLS.sub(r"(\1 space)+", prompt.grammar)
    if calls and rules:
        rules = _without_content(rules, json.loads(prompt.parser)["parsers"])
    found = _FORM_RULE.search(rules)
    if form is None or found is None:
        return rules
    # The framing is the template's, such as reasoning and channels. What is in it is held by the rules of completions.
    names = _GBNF_TOKEN.sub(lambda token: f"form-{token[0]}" if token[1] else token[0], form.text)
    return f"{_FORM_RULE.sub(f'{found[1]} ::= form-{form.root}', rules)}\n{names}"


def _without_content(rules: str, nodes: list[dict[str, Any]]) -> str:
    """The same rules, with nothing in the places where llama.cpp's parser reads content."""
    for node in nodes:
        if node["type"] != "rule":
            continue
        for inner in _below(nodes, node["child"]):
            child = nodes[inner["child"]] if inner.get("tag") == "content" else {}
            if child.get("type") == "rule":
                # It may be used for reasoning too: only its use in this rule is empty.
                body = re.compile(rf"^({re.escape(node['name'])} ::= .*?)\b{re.escape(child['name'])}(?![\w-])", re.M)
                rules = body.sub(r'\1""', rules)
    for node in nodes:
        if node.get("tag") == "content":
            rules = re.sub(rf"^until-{node['child']} ::= .*$", f'until-{node["child"]} ::= ""', rules, flags=re.M)
    return rules


def _below(nodes: list[dict[str, Any]], index: int) -> Iterator[dict[str, Any]]:
    """A node of the parser and those in it, but not what is in rules with a name."""
    node = nodes[index]
    if node["type"] == "rule":
        return
    yield node
    for child in (*node.get("children", ()), *([node["child"]] if "child" in node else [])):
        yield from _below(nodes, child)

"""A scored text and an HTML parser that is strict."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from pyllm import eval

VOID = {"input", "meta", "br"}


class Tree(HTMLParser):
    """Elements with attributes and text; wrong nesting is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[dict] = []
        self.elements: list[dict] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {[element['tag'] for element in self.open]}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "own": ""}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open[-1]['tag']}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data
        if self.open:
            self.open[-1]["own"] += data

    def find(self, tag=None, kind=None):
        return [
            element
            for element in self.elements
            if tag in (None, element["tag"]) and (kind is None or kind in (element["attrs"].get("class") or "").split())
        ]


@pytest.fixture
def parse():
    """`parse(picture)`: the tree of its HTML, after checks that hold for every picture."""

    def parse(picture) -> Tree:
        html = picture if isinstance(picture, str) else picture._repr_html_()
        tree = Tree(html)
        assert {element["tag"] for element in tree.elements} <= {
            "form", "style", "div", "span", "table", "tr", "td", "th", "i", "b", "label", "input",
        }  # fmt: skip
        for element in tree.elements:
            for name, value in element["attrs"].items():
                assert not name.startswith("on")
                assert "url(" not in (value or "")
        assert len(tree.find("form")) == len(tree.find("style")) == 1
        return tree

    return parse


NASTY = '</span></form><script>alert("1")</script> & \u202eabc\n<img src=x onerror=y> 🙂 ü'


@pytest.fixture
def scored(tiny_model):
    """A scored text full of what could break a page."""
    return eval.logprobs(tiny_model, NASTY, top_k=5, n_threads=1)

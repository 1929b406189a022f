"""The Markdown of answers, in a real Chromium."""

from __future__ import annotations

import pytest
from browsers import Tab

pytestmark = pytest.mark.slow


MARKDOWN = """# Title

Some *emphasis*, **strong _nested_ text**, `code <b>`, ~~gone~~ and snake_case_names, 2 * 3 * 4.

1. one
2. two
   - inner **a**
   - inner b

     more of b
3. three

- a

- b

> quoted
> > twice

| a | b |
|---|--:|
| 1 | `x` |

```python
def f():
    return "```"
```
[a link](https://example.org/a_b) and https://example.org/x_(y). ![alt](https://example.org/p.png)
***
last\\* line
with a break"""


def test_markdown(web: Tab) -> None:
    web.open()
    page = web.page
    page.evaluate(
        """async text => {
            const { Markdown } = await import("./ui/markdown.js");
            for (const size of [text.length, 1, 3, 7]) {
                const root = document.createElement("div");
                root.className = "markdown";
                root.id = `by${size}`;
                const markdown = new Markdown(root);
                for (let i = 0; i < text.length; i += size) markdown.append(text.slice(i, i + size));
                document.body.append(root);
            }
        }""",
        MARKDOWN,
    )
    whole = page.evaluate(f"document.getElementById('by{len(MARKDOWN)}').innerHTML")
    for size in (1, 3, 7):
        assert page.evaluate(f"document.getElementById('by{size}').innerHTML") == whole
    for markup in (
        "<h3>Title</h3>",
        "<em>emphasis</em>",
        "<strong>strong <em>nested</em> text</strong>",
        "<code>code &lt;b&gt;</code>",
        "<del>gone</del> and snake_case_names, 2 * 3 * 4.",
        "<li>two<ul><li>inner <strong>a</strong></li>",
        "<blockquote><p>quoted</p><blockquote><p>twice</p></blockquote></blockquote>",
        '<td class="right"><code>x</code></td>',
        'return "```"',
        '<a href="https://example.org/a_b" target="_blank" rel="noopener noreferrer nofollow">a link</a>',
        ">https://example.org/x_(y)</a>.",
        "Picture: alt</a>",
        "<hr>",
        "last* line<br>with a break",
    ):
        assert markup in whole


def test_a_long_answer_is_not_drawn_anew(web: Tab) -> None:
    """Blocks that are complete stay the nodes they were, and the text of a program grows in one node."""
    web.open()
    kept = web.page.evaluate(
        """async () => {
            const { Markdown } = await import("./ui/markdown.js");
            const root = document.createElement("div");
            let added = 0;
            new MutationObserver(() => {});
            const markdown = new Markdown(root);
            markdown.append("# Title\\n\\nFirst paragraph.\\n\\n```c\\nint x;");
            markdown.append("\\n");
            const [title, first, code] = root.children;
            const text = code.querySelector("code").firstChild;
            for (let i = 0; i < 5000; i++) markdown.append(" word\\n");
            const same = [title, first, code].every((node, i) => root.children[i] === node);
            return [same, code.querySelector("code").firstChild === text, text.data.split("word").length];
        }"""
    )
    assert kept == [True, True, 5001]


@pytest.mark.parametrize(
    "text",
    [
        "*" * 20000,
        "[" * 20000,
        "`a" * 10000,
        "**a " * 5000,
        "_a" * 10000,
        "> " * 5000,
        "- " * 5000,
        "|" * 20000 + "\n|-|",
    ],
    ids=["stars", "brackets", "ticks", "strong", "lines", "quotes", "lists", "table"],
)
def test_no_text_keeps_the_page_busy(web: Tab, text: str) -> None:
    """Where a reader of Markdown looks ahead from each mark to the end, these take minutes: the page would hang."""
    web.open()
    length = web.page.evaluate(
        """async text => {
            const { Markdown } = await import("./ui/markdown.js");
            const root = document.createElement("div");
            new Markdown(root).append(text);
            return root.textContent.length;
        }""",
        text,
    )
    assert length >= 0

"""The Markdown of answers, in a real Chromium."""

from __future__ import annotations

import pytest
from support.browsers import Tab
from support.engines import Prompted

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


FORMULAS = r"""Inline $x^2$ and \(y_1\), prices of $5 and $6, `$a$`, \$z\$.

$$
\frac{a}{b}
- \pmb{c}
$$

- \[ \fcolorbox{red}{yellow}{$d$} \]

> $$e$$

$\wrong{$ and \(never closed"""

PROGRAMS = """```python
def f():  # twice
    return "text"
```

1. In a list:

   ```js
   const x = 1;
   ```

```nosuchlanguage
plain <b>
```

    indented
"""

NAMED = "A [name][1] first.\n\nText.\n\n[1]: https://example.org/later\n\nThe end."

DRAWN = """async ([name, text, sizes]) => {
    const { Markdown } = await import("./ui/markdown.js");
    const roots = [];
    for (const size of [text.length, ...sizes]) {
        const root = document.createElement("div");
        root.className = "markdown";
        root.id = `${name}${roots.push(root)}`;
        const markdown = new Markdown(root);
        for (let i = 0; i < text.length; i += size) markdown.append(text.slice(i, i + size));
        markdown.finish();
        document.body.append(root);
    }
}"""


def drawn(web: Tab, text: str) -> str:
    """The markup of a text, which is the same in whatever pieces the text comes."""
    web.open()
    web.page.evaluate(DRAWN, ["drawn", text, [1, 3, 7]])
    # What draws formulas and programs is loaded with the first.
    web.until("[...document.querySelectorAll('.math:not(.open, .wrong)')].every(one => one.querySelector('.katex'))")
    if "```python" in text:
        web.until("document.querySelector('.hljs-keyword') !== null")
    whole, *others = [web.page.evaluate(f"document.getElementById('drawn{n}').innerHTML") for n in range(1, 5)]
    for other in others:
        assert other == whole
    return str(whole).replace("\n<", "<").replace(">\n", ">")


def test_markdown(web: Tab) -> None:
    whole = drawn(web, MARKDOWN)
    for markup in (
        "<h3>Title</h3>",
        "<em>emphasis</em>",
        "<strong>strong <em>nested</em> text</strong>",
        "<code>code &lt;b&gt;</code>",
        "<del>gone</del> and snake_case_names, 2 * 3 * 4.",
        "<li>two<ul><li><p>inner <strong>a</strong></p></li>",
        "<p>more of b</p>",
        "<blockquote><p>quoted</p><blockquote><p>twice</p></blockquote></blockquote>",
        '<td class="right"><code>x</code></td>',
        "```",
        '<a href="https://example.org/a_b" target="_blank" rel="noopener noreferrer nofollow">a link</a>',
        ">https://example.org/x_(y)</a>.",
        "Picture: alt</a>",
        "<hr>",
        "last* line<br>with a break",
    ):
        assert markup in whole


def test_formulas(web: Tab) -> None:
    """They are set under the strict policy, which is why the console stays empty: the tab is checked afterwards."""
    whole = drawn(web, FORMULAS)
    page = web.page
    formulas = page.locator("#drawn1 .katex annotation").all_text_contents()
    assert formulas == ["x^2", "y_1", r"\frac{a}{b}" + "\n" + r"- \pmb{c}", r"\fcolorbox{red}{yellow}{$d$}", "e"]
    assert page.locator("#drawn1 .katex-display").count() == 3
    assert "prices of $5 and $6, <code>$a$</code>, $z$." in whole
    # What is no formula stays text.
    assert page.locator("#drawn1 .math.wrong").inner_text() == r"\wrong{"
    assert r"(never closed" in whole
    # It looks like one, too: fonts and styles have been loaded, and the fraction is higher than a line.
    page.evaluate("document.fonts.ready.then(() => null)")
    assert page.evaluate("[...document.fonts].some(one => one.family === 'KaTeX_Math' && one.status === 'loaded')")
    heights = "name => document.querySelector(`#drawn1 ${name} .katex-html`).getBoundingClientRect().height"
    assert page.evaluate(heights, ".display") > 1.5 * page.evaluate(heights, ".math")
    # Screen readers are given MathML.
    assert page.locator("#drawn1 math").count() == len(formulas)
    assert page.locator("#drawn1 .katex-html:not([aria-hidden=true])").count() == 0


def test_nothing_is_loaded_that_is_not_needed(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.says("just **text**")
    web.ask("Hello")
    assert not any("katex" in url or "highlight" in url for url in web.asked)


def test_programs_have_colours(web: Tab) -> None:
    drawn(web, PROGRAMS)
    code = web.page.locator("#drawn1 figure.code code")
    assert code.all_text_contents() == ['def f():  # twice\n    return "text"', "const x = 1;", "plain <b>", "indented"]
    assert web.page.locator("#drawn1 figcaption span").all_inner_texts() == ["python", "js", "nosuchlanguage", ""]
    for kind, text in (("keyword", "def"), ("comment", "# twice"), ("string", '"text"')):
        assert web.page.locator(f"#drawn1 .hljs-{kind}").filter(has_text=text).first.is_visible()
    assert code.nth(1).locator(".hljs-keyword").inner_text() == "const"
    assert code.nth(2).locator("span").count() == code.nth(3).locator("span").count() == 0
    colour = "name => getComputedStyle(document.querySelector(`#drawn1 ${name}`)).color"
    assert web.page.evaluate(colour, ".hljs-keyword") != web.page.evaluate(colour, "figure code")


def test_names_of_addresses(web: Tab) -> None:
    assert '<a href="https://example.org/later"' in drawn(web, NAMED)


def test_a_long_answer_is_not_drawn_anew(web: Tab) -> None:
    """Blocks that are complete stay the nodes they were, and a program that grows is added to."""
    web.open()
    kept = web.page.evaluate(
        """async () => {
            const { Markdown } = await import("./ui/markdown.js");
            const root = document.createElement("div");
            const markdown = new Markdown(root);
            markdown.append("# Title\\n\\nFirst $x$ paragraph.\\n\\n```c\\nint x;");
            markdown.append("\\n");
            const [title, first, code] = root.children;
            for (let i = 0; i < 2000; i++) markdown.append(" word\\n");
            markdown.finish();
            const same = [title, first, code].every((node, i) => root.children[i] === node);
            return [same, root.children.length, code.querySelector("code").textContent.split("word").length];
        }"""
    )
    assert kept == [True, 3, 2001]


def test_what_is_drawn_for_an_answer_is_in_proportion_to_it(web: Tab) -> None:
    """Nodes that are made while a text comes word by word: twice the text makes about twice as many, not four times."""
    web.open()
    made = web.page.evaluate(
        """async () => {
            const { Markdown } = await import("./ui/markdown.js");
            const counts = [];
            for (const n of [100, 200]) {
                const root = document.createElement("div");
                let count = 0;
                const observer = new MutationObserver(() => {});
                observer.observe(root, { childList: true, subtree: true });
                const markdown = new Markdown(root);
                for (let i = 0; i < n; i++) {
                    for (const word of ["Some ", "**strong** ", "text ", "`here`.", "\\n\\n"]) markdown.append(word);
                    for (const one of observer.takeRecords()) count += one.addedNodes.length;
                }
                counts.push(count);
            }
            return counts;
        }"""
    )
    assert made[0] > 100
    assert made[1] < 2.2 * made[0]


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
        "$a " * 10000,
        "\\(" * 10000,
        "$$\n" * 2000,
        "[a](" * 5000,
    ],
    ids=lambda text: "".join(sorted(set(text) - {"\n"}))[:6],
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

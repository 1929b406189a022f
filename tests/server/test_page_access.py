"""The page for everybody: keyboards, dark and narrow screens, contrast, names; in a real Chromium."""

from __future__ import annotations

import pytest
from support.browsers import Tab
from support.engines import Prompted
from support.servers import Served

pytestmark = pytest.mark.slow


def test_the_keyboard_alone(web: Tab, engine: Prompted, server: Served) -> None:
    web.open()
    engine.says("the cat")
    page = web.page
    assert page.evaluate("document.activeElement.id") == "input"
    page.keyboard.type("Who?")
    page.keyboard.press("Enter")
    page.locator(".message.assistant .markdown").wait_for()
    web.answered()
    engine.processor = None
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "tab-chat":
            break
        # Wherever one is, it can be seen.
        assert page.evaluate(
            "document.activeElement === document.body || !document.activeElement.matches(':focus-visible')"
            " || getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        )
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-tokens"
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    page.keyboard.type("the cat")
    page.keyboard.press("Control+Enter")
    page.locator(".token:not(.prompt)").first.wait_for()
    web.generated()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('token')"):
            break
    focused = "Number(document.activeElement.dataset.i)"
    assert page.evaluate(focused) == 0
    n_prompt = len(server.state.model.vocab.tokenize("the cat"))
    for _ in range(n_prompt + 1):
        page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == n_prompt + 1
    page.keyboard.press("End")
    assert page.evaluate(focused) == web.tokens.count() - 1
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    for _ in range(n_prompt + 1 - page.evaluate(focused)):
        page.keyboard.press("ArrowRight")
    for _ in range(page.evaluate(focused) - n_prompt - 1):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.classList.contains('alternative')")
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == n_prompt + 1
    page.keyboard.press("Enter")
    while page.evaluate("document.activeElement.getAttribute('aria-current')"):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator(".branch").nth(1).wait_for()
    web.generated()
    assert page.evaluate(focused) == n_prompt + 1
    page.keyboard.press("Escape")
    assert page.locator(".token[aria-selected=true]").count() == 0


def luminance(web: Tab, script: str) -> float:
    channels = web.page.evaluate(
        f"getComputedStyle({script}).backgroundColor.match(/[\\d.]+/g).slice(0, 3).map(Number)"
    )
    return sum(channels) / 3


def test_dark(other, server: Served, engine: Prompted) -> None:
    with other(server, color_scheme="dark") as web:
        web.open()
        assert luminance(web, "document.body") < 60
        web.page.get_by_role("button", name="Theme").click()
        assert luminance(web, "document.body") > 200
        web.open()
        assert luminance(web, "document.body") > 200
    with other(server, color_scheme="light") as web:
        web.open()
        assert luminance(web, "document.body") > 200
        for _ in range(2):
            web.page.get_by_role("button", name="Theme").click()
        assert luminance(web, "document.body") < 60


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = (colour, under) => {
        canvas.fillStyle = `rgb(${under})`;
        canvas.fillRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)];
    };
    const bright = parts => {
        const [r, g, b] = parts.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = element => {
        const chain = [];
        for (let one = element; one; one = one.parentElement) chain.unshift(getComputedStyle(one).backgroundColor);
        return chain.reduce((under, colour) => rgb(colour, under), [255, 255, 255]);
    };
    const low = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility({ opacityProperty: true }) || element.closest(":disabled")) continue;
        const under = behind(element);
        const [a, b] = [bright(rgb(getComputedStyle(element).color, under)), bright(under)].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) low.push([element.className || element.tagName, element.textContent.slice(0, 20), ratio]);
    }
    return low;
}"""


ANSWER = """# the cat

`sat` and > the [x](https://example.org), $x^2$ and $\\wrong$

```python
@decorated(1.5)
class Cat(Animal):
    "Sits."
    def sit(self, *args: int) -> None:  # here
        return len(args) + 1
```

```html
<b class="x">text</b> <!-- so -->
```

```diff
- before
+ after
```"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(other, server: Served, engine: Prompted, scheme: str) -> None:
    """The contrast that WCAG 2 asks for, 4.5, of every text that is shown, tokens of all colours among them."""
    # Without motion no colour is on its way to another one.
    with other(server, color_scheme=scheme, reduced_motion="reduce") as web:
        web.open()
        engine.says(ANSWER)
        web.page.locator("#attach-file").set_input_files([{"name": "a.txt", "mimeType": "", "buffer": b"text"}])
        web.page.locator(".chip").wait_for()
        assert web.page.evaluate(CONTRAST) == []
        web.ask("Who?")
        engine.says(ANSWER)
        web.page.get_by_role("button", name="Regenerate").click()
        web.page.locator(".versions").wait_for()
        web.page.locator(".hljs-keyword").first.wait_for()
        web.page.locator(".katex").first.wait_for()
        web.page.locator("details.file summary").click()
        web.page.get_by_role("searchbox").fill("sat")
        web.page.get_by_role("button", name="More about Who?", exact=True).click()
        engine.processor = None
        assert web.page.evaluate(CONTRAST) == []
        web.page.keyboard.press("Escape")
        web.page.get_by_role("tab", name="Tokens").click()
        web.generate("the cat sat", 30)
        web.page.locator(".token:not(.prompt)").first.click()
        web.page.evaluate(
            "[...document.querySelectorAll('.token')].forEach((one, i) => one.dataset.level = String(i % 8))"
        )
        assert web.page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("width", [360, 800])
def test_little_room(other, server: Served, engine: Prompted, width: int) -> None:
    with other(server, viewport={"width": width, "height": 640}) as web:
        web.open()
        text = "the cat " * 20 + "\n\n```\n" + "x" * 200 + "\n```\n\n$$" + "x + " * 60 + "x$$"
        long_name = {"name": "n" * 100 + ".txt", "mimeType": "", "buffer": b"text"}
        web.page.locator("#attach-file").set_input_files([long_name])
        web.page.locator(".chip").wait_for()
        engine.says(text)
        web.ask("W" * 200)
        engine.says(text)
        web.page.get_by_role("button", name="Regenerate").click()
        web.page.locator(".versions").wait_for()
        web.page.locator(".katex").first.wait_for()
        web.page.locator("#attach-file").set_input_files([long_name])
        web.page.locator(".chip").wait_for()
        engine.processor = None
        fits = """document.documentElement.scrollWidth <= innerWidth && document.body.scrollHeight <= innerHeight
            && [...document.querySelectorAll("main, #scroller, .panel")].every(
                one => one.scrollWidth <= one.clientWidth)"""
        assert web.page.evaluate(fits)
        for name in ("Conversations", "Parameters"):
            web.page.get_by_role("button", name=name, exact=True).click()
            panel = web.page.get_by_role("complementary", name=name)
            assert panel.is_visible()
            assert web.page.evaluate(fits)
            if name == "Conversations":
                web.page.locator("#conversations li").hover()
                web.page.locator("#conversations [aria-haspopup]").click()
                box = web.page.get_by_role("menu").bounding_box()
                assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= 640
                web.page.keyboard.press("Escape")
                web.page.get_by_role("menu").wait_for(state="detached")
            web.page.keyboard.press("Escape")
            assert panel.is_hidden()
        web.page.get_by_role("tab", name="Tokens").click()
        web.generate("the cat", 20)
        web.page.locator(".token:not(.prompt)").first.click()
        assert web.page.evaluate(fits)
        box = web.page.locator(".alternatives").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        # What belongs to a token is seen beside it, and can be put away.
        assert web.page.locator(".token[aria-selected=true]").bounding_box()["y"] < 640
        assert web.page.locator("#details").bounding_box()["y"] < 640
        web.page.get_by_role("button", name="Close the token").click()
        assert web.page.locator(".token[aria-selected=true]").count() == 0
        assert web.page.locator(".alternatives").count() == 0


def test_every_control_has_a_name(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.says("the cat")
    web.ask("Who?")
    web.page.get_by_role("button", name="Parameters", exact=True).click()
    for view in ("Chat", "Tokens"):
        web.page.get_by_role("tab", name=view).click()
        for role in ("button", "textbox", "searchbox", "spinbutton", "combobox", "listbox", "radio", "tab"):
            for control in web.page.get_by_role(role).all():
                name = control.evaluate(
                    "one => one.getAttribute('aria-label') || one.labels?.[0]?.innerText || one.innerText"
                )
                assert name and name.strip(), control

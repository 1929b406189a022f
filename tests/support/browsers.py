"""A real Chromium that looks at servers of the tests, and what it must not do there: ask others, or complain."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from support.servers import Served
from support.waiting import wait_for

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@dataclass
class Tab:
    """A page in a browser, and what has happened there.

    Attributes:
        page: Playwright's page.
        url: The server's address.
        asked: The addresses of all requests.
        complaints: What stood in the console as an error or a warning, and exceptions that nobody caught.
    """

    page: Any
    url: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(60_000)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._said)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, view: str = "chat") -> None:
        """Load the page, and wait until it knows the model."""
        self.page.goto(f"{self.url}/#{view}")
        self.page.reload()
        self.until("document.getElementById('about').textContent !== ''")

    def until(self, script: str, *arguments: Any) -> None:
        """Wait until something is true. Playwright's own way to wait evaluates text, which the policy forbids."""
        wait_for(lambda: self.page.evaluate(script, *arguments), script)

    def check(self) -> None:
        """Nobody else was asked, and nothing went wrong."""
        assert self.asked
        assert [url for url in self.asked if not url.startswith((self.url + "/", "blob:", "data:"))] == []
        assert self.complaints == []

    # ---- the chat

    def say(self, text: str) -> None:
        """Send a message."""
        self.page.get_by_role("textbox", name="Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def answered(self) -> str:
        """Wait until the answer is complete; its text."""
        self.page.wait_for_selector("#send:not(.stop)")
        return self.page.locator(".message.assistant .body").last.inner_text()

    def ask(self, text: str) -> str:
        """Send a message; the answer."""
        count = self.page.locator(".message.assistant").count()
        self.say(text)
        self.until("n => document.querySelectorAll('.message.assistant').length > n", count)
        return self.answered()

    def chosen(self, title: str, item: str) -> None:
        """Choose something from the menu of a conversation in the list."""
        menu = self.page.get_by_role("button", name=f"More about {title}", exact=True)
        self.page.locator("#conversations li").filter(has=menu).hover()
        menu.click()
        self.page.get_by_role("menuitem", name=item).click()

    @property
    def bodies(self) -> list[str]:
        """The texts of the messages that are shown."""
        return self.page.locator(".message .body").all_inner_texts()

    # ---- the inspector

    @property
    def tokens(self) -> Any:
        """The tokens that are shown."""
        return self.page.locator("#strip .token")

    def generate(self, prompt: str, n: int = 8) -> None:
        """Generate so many tokens."""
        self.page.get_by_label("Tokens", exact=True).and_(self.page.locator("input")).fill(str(n))
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        self.page.get_by_role("button", name="Generate").click()
        self.generated()

    def generated(self) -> None:
        """Wait until all tokens are there."""
        self.page.wait_for_selector("#generate:not(.stop)")
        self.page.wait_for_selector("#strip:not([aria-busy=true])")


@contextmanager
def tab(browser: Any, server: Served, **options: Any) -> Iterator[Tab]:
    """A tab of its own profile; afterwards it is checked and closed."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, "locale": "en-US"} | options)
    try:
        tab = Tab(context.new_page(), server.url)
        yield tab
        tab.check()
    finally:
        context.close()

"""Waiting for something that another thread or process does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

# Long: a busy machine takes minutes for what takes a moment elsewhere. It ends before pytest's own limit does.
LIMIT = 300.0


def wait_for(condition: Callable[[], Any], what: str = "the condition", seconds: float = LIMIT) -> Any:
    """Wait until the condition holds, and return its value. After `seconds` the test fails and names `what`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.002)
    return value


def in_threads(*functions: Callable[[], Any]) -> None:
    """Run each function in a thread of its own, wait for all of them, and raise what one of them raised."""
    failures: list[BaseException] = []

    def run(function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures:
        raise failures[0]

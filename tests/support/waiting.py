"""Waiting for something that another thread or process does."""

from __future__ import annotations

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

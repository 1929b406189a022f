"""What has to be done in the thread of the engine, while no step is made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class BetweenSteps:
    """Functions that wait for the end of the step.

    Args:
        wake: The lock of the engine, by which its thread is told that there is something to do.
        check_open: Raises ClosedError when the engine takes nothing any more.
    """

    def __init__(self, wake: threading.Condition, check_open: Callable[[], None]) -> None:
        self._wake = wake
        self._check_open = check_open
        self._waiting: list[tuple[Callable[[], Any], Future[Any]]] = []
        self.thread: threading.Thread | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def run(self, function: Callable[[], T]) -> T:
        """Run a function between two steps, and wait for it.

        Returns:
            What the function returns.

        Raises:
            ClosedError: The engine was closed before.
            Exception: What the function raises; it is no concern of the engine.
        """
        if threading.current_thread() is self.thread:
            return function()
        future: Future[T] = Future()
        with self._wake:
            self._check_open()
            self._waiting.append((function, future))
            self._wake.notify()
        return future.result()

    def carry_out(self) -> None:
        """Run what waits; called by the thread of the engine, which holds no lock."""
        while self._waiting:
            function, future = self._waiting.pop(0)
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def fail(self, error: BaseException) -> None:
        """Nothing will be run any more."""
        while self._waiting:
            self._waiting.pop(0)[1].set_exception(error)

"""How other threads reach the thread of an engine: its lock, calls between two steps, and aborts of a decode."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from pyllm.core.round import Flag

T = TypeVar("T")


class EngineLock(threading.Condition):
    """The lock of an engine; its thread waits here for work.

    Attributes:
        work_available: Set by :meth:`notify`; the thread of the engine reads it while it computes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work_available = Flag()

    def notify(self, n: int = 1) -> None:
        """Wake the thread of the engine."""
        self.work_available.set()
        super().notify(n)


class CallQueue:
    """Functions that the thread of an engine calls between two steps.

    Args:
        lock: The lock of the engine.
        check_open: Raises ClosedError when the engine takes nothing any more.
    """

    def __init__(self, lock: threading.Condition, check_open: Callable[[], None]) -> None:
        self._lock = lock
        self._check_open = check_open
        self._waiting: list[tuple[Callable[[], Any], Future[Any]]] = []
        self.thread: threading.Thread | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def run(self, function: Callable[[], T]) -> T:
        """Call a function between two steps, and wait for it.

        Returns:
            What the function returns.

        Raises:
            ClosedError: The engine was closed before.
            Exception: What the function raises; the engine goes on.
        """
        if threading.current_thread() is self.thread:
            return function()
        future: Future[T] = Future()
        with self._lock:
            self._check_open()
            self._waiting.append((function, future))
            self._lock.notify()
        return future.result()

    def carry_out(self) -> None:
        """Call what waits; for the thread of the engine, which holds no lock."""
        while self._waiting:
            function, future = self._waiting.pop(0)
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def fail(self, error: BaseException) -> None:
        """Nothing will be called any more."""
        while self._waiting:
            self._waiting.pop(0)[1].set_exception(error)


class Cancellable(Protocol):
    """A request: :class:`pyllm.engine.request.Request`, or one for embeddings."""

    cancelled: bool


class AbortableDecode:
    """Aborts a decode when all requests that share it are cancelled.

    Args:
        lock: The lock of the engine. Its thread takes it for a moment at both ends of a decode.
    """

    def __init__(self, lock: threading.Condition) -> None:
        self._lock = lock
        self._requests: tuple[Cancellable, ...] = ()
        self._abort: Callable[[], None] | None = None

    @contextlib.contextmanager
    def __call__(
        self, requests: Iterable[Cancellable], abort: Callable[[], None], clear: Callable[[], None]
    ) -> Iterator[None]:
        """The block computes these requests.

        Args:
            requests: The requests that share the decode.
            abort: Aborts the decode, or the next one if none has begun. Any thread may call it.
            clear: Takes back an abort that came too late, so that the next decode is not aborted.
        """
        with self._lock:
            self._requests, self._abort = tuple(requests), abort
            self.check()
        try:
            yield
        finally:
            with self._lock:
                self._requests, self._abort = (), None
            clear()

    def check(self) -> None:
        """A request was cancelled; the caller holds the lock. The decode goes on while another request shares it."""
        if self._abort is not None and all(request.cancelled for request in self._requests):
            self._abort()


__all__ = ["AbortableDecode", "CallQueue", "EngineLock"]

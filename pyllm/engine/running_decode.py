"""The decode that an engine computes now, so that it can be aborted when all of its requests are cancelled."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol


class Cancellable(Protocol):
    """A request: :class:`pyllm.engine.job.Job`, or one for embeddings."""

    cancelled: bool


class RunningDecode:
    """Aborts a decode when no request that shares it is wanted any more.

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
        """Note what is computed within the block.

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


__all__ = ["RunningDecode"]

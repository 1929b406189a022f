"""Completions for asyncio: each runs in a thread of its own, and ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol, TypeVar

_Whole = TypeVar("_Whole", covariant=True)
_Piece = TypeVar("_Piece", covariant=True)


class Session(Protocol[_Whole, _Piece]):
    """A call of a Llama, which is held ``with`` it."""

    def __enter__(self) -> object: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def finish(self) -> _Whole:
        """Generate all of it."""

    def chunks(self) -> Iterator[_Piece]:
        """Generate it piece by piece."""

    def abort(self) -> None:
        """End it as soon as possible."""

    def check_thread(self) -> None:
        """Refuse to be waited for where it could never begin."""


async def complete(session: Session[_Whole, Any]) -> _Whole:
    """The completion. A cancelled task aborts it."""

    def work() -> Iterator[Any]:
        with session:
            yield session.finish()

    results: list[_Whole] = [item async for item in _in_thread(session, work)]
    return results[0]


def stream(session: Session[Any, _Piece]) -> AsyncIterator[_Piece]:
    """Its chunks. A cancelled task, or a loop that is left, aborts it."""

    def work() -> Iterator[Any]:
        with session:
            yield from session.chunks()

    return _in_thread(session, work)


async def _in_thread(session: Session[Any, Any], work: Callable[[], Iterator[Any]]) -> AsyncIterator[Any]:
    session.check_thread()
    loop = asyncio.get_running_loop()
    # (item, exception); both None at the end.
    queue: asyncio.Queue[tuple[Any, BaseException | None]] = asyncio.Queue()

    def put(item: Any, exception: BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, (item, exception))
        except RuntimeError:
            session.abort()  # the loop is closed: nobody will read it

    def run() -> None:
        try:
            for item in work():
                put(item, None)
        except BaseException as exception:
            put(None, exception)
        else:
            put(None, None)

    threading.Thread(target=run, name="pyllm completion", daemon=True).start()
    try:
        while True:
            item, exception = await queue.get()
            if exception is not None:
                try:
                    raise exception
                finally:
                    # Its traceback has this frame and those of the thread, with views of logits in them.
                    del exception
            if item is None:
                return
            yield item
    finally:
        session.abort()

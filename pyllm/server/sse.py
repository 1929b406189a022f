"""Streams of server-sent events, and what happens when the client does not read them any more."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pyllm.server.active_request import ActiveRequest, Progress, with_progress
from pyllm.server.errors import CLIENT_GONE, APIError, as_api_error, to_json
from pyllm.server.log import note
from pyllm.server.settings import Settings
from pyllm.types import Chunk

_T = TypeVar("_T")

DONE = b"data: [DONE]\n\n"
_PING = b":\n\n"
# Requests may ask for shorter intervals, and must not keep the loop busy with them.
_LEAST_PING = 0.02


def event(content: Any, name: str | None = None) -> bytes:
    """One event with JSON as its data."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + to_json(content) + b"\n\n"


class EventWriter:
    """What the stream of an API consists of: each method gives the next events as bytes, none where that is nothing."""

    def begin(self) -> Iterable[bytes]:
        """Before the first token."""
        return ()

    def progress(self, number: int, progress: Progress) -> Iterable[bytes]:
        """While a prompt is read, where the client wants to know.

        Args:
            number: The number of the prompt.
            progress: How far it has been read.
        """
        raise NotImplementedError

    def chunk(self, number: int, chunk: Chunk) -> Iterable[bytes]:
        """For each chunk; the last one of a prompt has its completion.

        Args:
            number: The number of the prompt.
            chunk: The chunk.
        """
        raise NotImplementedError

    def end(self) -> Iterable[bytes]:
        """Behind the last chunk."""
        return ()

    def failed(self, error: APIError) -> bytes:
        """The event that ends a stream that failed."""
        return event(error.to_dict())


async def stream_events(
    request: Request, active: ActiveRequest, writer: EventWriter, *, progress: bool = False
) -> AsyncGenerator[bytes, None]:
    """The events of a stream of any API. At its end, also an early one, the request's fields of the log line are set.

    Args:
        request: The HTTP request.
        active: What is being generated.
        writer: Writes the events.
        progress: Whether there are reports of prompts that are being read.
    """
    try:
        for data in writer.begin():
            yield data
        async with contextlib.aclosing(with_progress(active, wanted=progress)) as events:
            async for number, found in events:
                found_data = (
                    writer.progress(number, found) if isinstance(found, Progress) else writer.chunk(number, found)
                )
                for data in found_data:
                    yield data
        for data in writer.end():
            yield data
    finally:
        note(request, **active.report())


def stream_response(
    request: Request, active: ActiveRequest, writer: EventWriter, settings: Settings, *, progress: bool | None = False
) -> EventStream:
    """The response whose body :func:`stream_events` makes; see there."""
    events = stream_events(request, active, writer, progress=bool(progress))
    return EventStream(events, settings, active.cancel, failed=writer.failed)


class EventStream(Response):
    """A response that is sent event by event. When the client goes away the events are closed at once.

    Args:
        events: The events as bytes. An exception of theirs becomes the last event.
        settings: The server's.
        close: Called at the end, however it comes, and even if nothing was sent.
        failed: Makes an event of an error. None: in OpenAI's shape.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        settings: Settings,
        close: Callable[[], None],
        *,
        failed: Callable[[APIError], bytes] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.events = events
        self.settings = settings
        self.close = close
        self.failed = failed or _failed
        # The second is for nginx, which would collect them first.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outlet = _Outlet(send)
        watching = asyncio.ensure_future(_gone(receive))
        sending = asyncio.ensure_future(self._send(outlet))
        try:
            done: set[asyncio.Future[None]] = set()
            # A client that reads nothing must not keep its sequence for ever. A timer for each event would cost more.
            while not done and outlet.waiting() < self.settings.timeout:
                done, _ = await asyncio.wait(
                    {watching, sending}, timeout=self.settings.timeout / 8, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            for task in (watching, sending):
                task.cancel()
            results = await asyncio.gather(watching, sending, return_exceptions=True)
            # A generator that never began has no end either.
            self.close()
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, (OSError, TimeoutError)):
                raise result

    async def _send(self, outlet: _Outlet) -> None:
        await outlet.send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        interval = self.settings.ping_interval
        pinging = asyncio.ensure_future(_ping(outlet, interval)) if interval else None
        try:
            async with contextlib.aclosing(self.events) as events:
                while True:
                    # Errors of the events are sent to the client. Errors while sending are dropped: the client is gone.
                    try:
                        data = await anext(events, None)
                    except Exception as error:
                        data = self.failed(as_api_error(error))
                    if data is None:
                        break
                    await outlet.put(data)
            await outlet.put(b"", more=False)
        finally:
            if pinging is not None:
                pinging.cancel()
                await asyncio.gather(pinging, return_exceptions=True)


def _failed(error: APIError) -> bytes:
    return event(error.to_dict())


async def until_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Do some work for a client that waits for it; when it goes away, the work is cancelled.

    Raises:
        APIError: It went away; only the log shows that.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise APIError(CLIENT_GONE, "the client went away", code="client_gone")
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ping(outlet: _Outlet, interval: float) -> None:
    while True:
        await asyncio.sleep(max(interval, _LEAST_PING))
        await outlet.put(_PING)


class _Outlet:
    """The way to the client: for one piece after the other, and with a look at how long one waits to be taken."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self._lock = asyncio.Lock()
        self._since: float | None = None

    async def put(self, data: bytes, more: bool = True) -> None:
        """Send a piece of the body."""
        async with self._lock:
            self._since = time.monotonic()
            await self.send({"type": "http.response.body", "body": data, "more_body": more})
            self._since = None

    def waiting(self) -> float:
        """For how many seconds a piece has waited to be taken."""
        return 0.0 if self._since is None else time.monotonic() - self._since

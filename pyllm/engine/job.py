"""A request on its way through the engine, and what its caller holds of it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pyllm.completion.pieces import as_chunk, as_completion
from pyllm.completion.request import CompletionRequest
from pyllm.engine.channel import Channel, Event
from pyllm.types import Chunk, Completion

if TYPE_CHECKING:
    from pyllm.engine.texts import Text

_log = logging.getLogger("pyllm.engine")

# Whoever waits for a result looks so often whether an event loop still reads, in seconds.
_LOOK = 0.05


class Job:
    """A request that an engine works at.

    It is what :meth:`pyllm.engine.Engine.submit` gives: iterate over it for the chunks of a stream, or wait for
    :meth:`result`. Any thread may :meth:`cancel` it.

    Attributes:
        id: The name of its completion.
        request: What was asked for.
    """

    def __init__(
        self,
        cancel: Callable[[Job], None],
        request: CompletionRequest,
        priority: int,
        listener: Callable[[Event], None] | Channel | None,
        streamed: bool,
    ) -> None:
        self._cancel = cancel
        self.request = request
        self.id = request.id
        self.priority = priority
        self.streamed = streamed
        self.texts: list[Text] = []
        self.submitted = time.perf_counter()
        self.started: float | None = None
        self.first_token: float | None = None
        self.cancelled = False
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        # The way to an event loop, where that takes what there is by itself.
        self.channel = listener if isinstance(listener, Channel) else None
        self._listener = listener.listener if isinstance(listener, Channel) else listener
        self._unread: set[Text] = set()
        # Those that the engine has let go of: nobody shall hear of an end before.
        self._ended: set[Text] = set()
        self._reading = threading.Lock()
        self._done = threading.Event()
        self._completion: Completion | None = None
        self._error: BaseException | None = None

    # ---- for the caller

    def result(self, timeout: float | None = None) -> Completion:
        """Wait until it is complete.

        Raises:
            TimeoutError: It is not, after so many seconds; it goes on.
            Exception: What ended it.
        """
        if not self._wait(timeout):
            raise TimeoutError(f"the request has not ended after {timeout} seconds")
        if self._error is not None:
            raise self._error
        assert self._completion is not None
        return self._completion

    def __iter__(self) -> Iterator[Chunk]:
        """Its chunks as they come; the last one has the completion. A loop that is left cancels it."""
        try:
            while True:
                event = self._events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if event.completion is not None:
                    return
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End it within a step, whether it waits or runs. It gives what it has, with the finish_reason "abort"."""
        self._cancel(self)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        channel = self.channel
        if channel is not None and not self._done.is_set() and channel.post.closed:
            self._read_rest(channel)
        return self._done.is_set()

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to compute; somebody may still have to read what there is."""
        return self.done or all(text.reason is not None for text in self.texts)

    # ---- for the engine

    def begin(self, texts: list[Text]) -> None:
        """These are its texts."""
        self.texts = texts
        self._unread = set(texts)

    def emit(self, text: Text) -> None:
        """Hand on what has become final of a text."""
        if text.reason is not None:
            self._ended.add(text)
        elif not self.streamed:
            return
        if self.channel is None or text.watched:
            self.read(text)
        elif not self.channel.post.put(self.read, text):
            self._desert()
            if text.reason is not None:
                self.read(text)

    def read(self, text: Text) -> None:
        """Make a chunk of what has become final of a text: in its thread, or in the event loop of its channel."""
        with self._reading:
            if text not in self._unread:
                return
            piece = text.piece(ended=text in self._ended)
            if piece is None:
                return
            if piece.finish_reason is not None:
                self._unread.remove(text)
            completion = None if self._unread else self._assembled()
            if completion is not None:
                # Whoever has read the last chunk may ask for the result at once.
                self._completion = completion
                self._done.set()
        self._put(as_chunk(self.request, piece, completion), here=not text.watched)
        if completion is not None:
            self._finish()

    def fail(self, error: BaseException) -> None:
        """It ends with an error."""
        self._error = error
        self._done.set()
        if self.channel is None or self.texts[0].watched:
            self._unread.clear()
            self._put(error)
            self._finish()
        elif not self.channel.post.put(self._fail_there, error):
            self._desert()

    def _fail_there(self, error: BaseException) -> None:
        """The same in the event loop, which may be reading; what had become final comes first."""
        if self.streamed:
            for text in self.texts:
                self.read(text)
        self._unread.clear()
        self._put(error, here=True)
        self._finish()

    def _finish(self) -> None:
        self._done.set()
        # Listeners know their jobs: what such a circle holds, the samplers, would wait for the garbage collector.
        self._listener = None

    def _wait(self, timeout: float | None) -> bool:
        if self.channel is None:
            return self._done.wait(timeout)
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _LOOK if until is None else until - time.monotonic()
            if self._done.wait(max(0.0, min(left, _LOOK))):
                return True
            channel = self.channel
            if channel is not None and (channel.post.is_here or channel.post.closed):
                self._read_rest(channel)
            if left <= 0:
                return self._done.is_set()

    def _read_rest(self, channel: Channel) -> None:
        """Read what its event loop does not read: it is closed, or waits for this."""
        if channel.post.closed:
            self._listener = None
        for text in self.texts:
            if text in self._ended:
                self.read(text)

    def _desert(self) -> None:
        """The event loop is closed: nobody will read it."""
        self._listener = self.channel = None
        self.cancel()

    def _put(self, event: Event, *, here: bool = False) -> None:
        if self.channel is not None and self._listener is not None and not here:
            if not self.channel.post.put(self._listener, event):
                self._desert()
        elif self._listener is not None:
            try:
                self._listener(event)
            except Exception:
                # It was told not to; still, the requests of others must not end by it.
                _log.exception("the listener of %s has failed", self.id)
        elif self.streamed:
            self._events.put(event)

    def _assembled(self) -> Completion:
        now = time.perf_counter()
        first = self.first_token or now
        texts = [text.finished() for text in self.texts]
        prompt_ms, generation_ms = 1000 * (first - (self.started or first)), 1000 * (now - first)
        reports = [text.drafting.report() for text in self.texts if text.drafting is not None]
        speculation = sum(reports[1:], reports[0]) if reports else None
        return as_completion(self.request, texts, self.texts[0].cached, prompt_ms, generation_ms, speculation)

"""A request in an engine: its sequences, and its result or stream."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator

from pyllm.completion.outputs import as_chunk, as_completion
from pyllm.completion.request import CompletionRequest
from pyllm.engine.beam_search import BeamSequence
from pyllm.engine.request_stream import Event, RequestStream
from pyllm.engine.sequence import PromptLogprobs, Sequence
from pyllm.types import Chunk, Completion

_log = logging.getLogger("pyllm.engine")

# Poll interval (s) for detecting a closed event loop.
_POLL_S = 0.05


class Request:
    """A request in an engine: its sequences, and its result or stream.

    It is what :meth:`pyllm.engine.Engine.submit` gives: iterate over it for the chunks of a stream, or wait for
    :meth:`result`. Any thread may :meth:`cancel` it.

    Args:
        completion_request: What was asked for.
        number: The number of its first sequence in the engine; the others follow.
        priority: Smaller ones go first.
        deterministic: Whether it is computed apart from others.
        adapters: Its LoRA adapters and their scales.
        slot: The slot that was asked for, or None.
        streamed: Whether its chunks are wanted as they come.
        listener: Called with each chunk and with the exception that ends it. None: they are kept for iteration.
        cancel: Cancels it in its engine.

    Attributes:
        id: The id of its completion.
        sequences: Its sequences.
    """

    def __init__(
        self,
        completion_request: CompletionRequest,
        *,
        number: int = 0,
        priority: int = 0,
        deterministic: bool = False,
        adapters: Hashable = (),
        slot: int | None = None,
        streamed: bool = True,
        listener: Callable[[Event], None] | RequestStream | None = None,
        cancel: Callable[[Request], None] | None = None,
    ) -> None:
        self._cancel = cancel
        self.completion_request = completion_request
        self.id = completion_request.id
        self.streamed = streamed
        self.sequences: list[Sequence] = []
        for index in range(completion_request.best_of):
            if completion_request.beams is not None:
                sequence: Sequence = BeamSequence(completion_request, index, number + index, priority)
            else:
                sequence = Sequence(completion_request, index, number + index, priority, alone=deterministic)
            sequence.adapters, sequence.wanted_slot = adapters, slot
            sequence.leader = self.sequences[0] if index else None
            self.sequences.append(sequence)
        PromptLogprobs.begin(self.sequences)
        self.submitted = time.perf_counter()
        self.started: float | None = None
        self.first_token: float | None = None
        self.cancelled = False
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.stream = listener if isinstance(listener, RequestStream) else None
        self._listener = listener.listener if isinstance(listener, RequestStream) else listener
        self._unread = set(self.sequences)
        # Sequences that the core has let go of: the end of a sequence is told after that.
        self._ended: set[Sequence] = set()
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

    def take(self) -> list[Event]:
        """The events that have come since the last call, without waiting; for the thread that steps the core."""
        events: list[Event] = []
        while not self._events.empty():
            events.append(self._events.get())
        return events

    def cancel(self) -> None:
        """End it within a step, whether it waits or runs. It gives what it has, with the finish_reason "abort"."""
        if self._cancel is not None:
            self._cancel(self)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        stream = self.stream
        if stream is not None and not self._done.is_set() and stream.notifier.closed:
            self._read_rest(stream)
        return self._done.is_set()

    @property
    def ended(self) -> bool:
        """Whether nothing is left to compute. Chunks may still be unread."""
        return self.done or all(sequence.reason is not None for sequence in self.sequences)

    # ---- for the engine

    def emit(self, sequence: Sequence) -> None:
        """Hand on what has become final of a sequence."""
        if sequence.reason is not None:
            self._ended.add(sequence)
        elif not self.streamed:
            return
        if self.stream is None or sequence.watched:
            self.read(sequence)
        elif not self.stream.notifier.call_soon(self.read, sequence):
            self._desert()
            if sequence.reason is not None:
                self.read(sequence)

    def read(self, sequence: Sequence) -> None:
        """Make a chunk of what has become final of a sequence: in its thread, or in the event loop of its channel."""
        with self._reading:
            if sequence not in self._unread:
                return
            piece = sequence.delta(ended=sequence in self._ended)
            if piece is None:
                return
            if piece.finish_reason is not None:
                self._unread.remove(sequence)
            completion = None if self._unread else self._assembled()
            if completion is not None:
                # The reader of the last chunk may ask for the result at once.
                self._completion = completion
                self._done.set()
        self._put(as_chunk(self.completion_request, piece, completion), here=not sequence.watched)
        if completion is not None:
            self._finish()

    def fail(self, error: BaseException) -> None:
        """It ends with an error."""
        self._error = error
        self._done.set()
        if self.stream is None or self.sequences[0].watched:
            self._unread.clear()
            self._put(error)
            self._finish()
        elif not self.stream.notifier.call_soon(self._fail_there, error):
            self._desert()

    def _fail_there(self, error: BaseException) -> None:
        """The same in the event loop, which may be reading; what had become final comes first."""
        if self.streamed:
            for sequence in self.sequences:
                self.read(sequence)
        self._unread.clear()
        self._put(error, here=True)
        self._finish()

    def _finish(self) -> None:
        self._done.set()
        # Listeners hold their requests: such a circle, and the samplers in it, would wait for the garbage collector.
        self._listener = None

    def _wait(self, timeout: float | None) -> bool:
        if self.stream is None:
            return self._done.wait(timeout)
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL_S if until is None else until - time.monotonic()
            if self._done.wait(max(0.0, min(left, _POLL_S))):
                return True
            stream = self.stream
            if stream is not None and (stream.notifier.is_here or stream.notifier.closed):
                self._read_rest(stream)
            if left <= 0:
                return self._done.is_set()

    def _read_rest(self, stream: RequestStream) -> None:
        """Read what the event loop does not read: it is closed, or waits for this."""
        if stream.notifier.closed:
            self._listener = None
        for sequence in self.sequences:
            if sequence in self._ended:
                self.read(sequence)

    def _desert(self) -> None:
        """The event loop is closed: nothing will be read."""
        self._listener = self.stream = None
        self.cancel()

    def _put(self, event: Event, *, here: bool = False) -> None:
        if self.stream is not None and self._listener is not None and not here:
            if not self.stream.notifier.call_soon(self._listener, event):
                self._desert()
        elif self._listener is not None:
            try:
                self._listener(event)
            except Exception:
                # The requests of others go on.
                _log.exception("the listener of %s has failed", self.id)
        elif self.streamed:
            self._events.put(event)

    def _assembled(self) -> Completion:
        now = time.perf_counter()
        first = self.first_token or now
        sequences = [sequence.finished() for sequence in self.sequences]
        prompt_ms, generation_ms = 1000 * (first - (self.started or first)), 1000 * (now - first)
        reports = [sequence.drafts.report() for sequence in self.sequences if sequence.drafts is not None]
        speculation = sum(reports[1:], reports[0]) if reports else None
        return as_completion(
            self.completion_request, sequences, self.sequences[0].n_cached, prompt_ms, generation_ms, speculation
        )

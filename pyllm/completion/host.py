"""What a generation needs of the object that it is asked of, and the lock that gives one call at a time the context."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from pyllm.errors import StreamOpenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pyllm.completion.cache import PromptCache
    from pyllm.core.context import Context
    from pyllm.core.model import Model
    from pyllm.core.vocab import Vocab
    from pyllm.speculation.lazy import LazySpeculator
    from pyllm.speculation.params import SpeculationParams

    Tokens = Sequence[int] | NDArray[np.integer[Any]]


class GenerationHost(Protocol):
    """What the arguments of a completion are checked against: a Llama or an Engine.

    Attributes:
        model: The model.
        vocab: Its tokenizer.
        context: The context that computes.
        seed: Seed of requests without one. None: a new random one each time.
        cache_prompt: Whether requests reuse the KV cache when they do not say so.
    """

    model: Model
    vocab: Vocab
    context: Context
    seed: int | None
    cache_prompt: bool | None

    def speculation_params(self, value: Any) -> SpeculationParams | None:
        """How a request drafts that was given `value` as ``speculative=``; None: without drafts."""


class CompletionHost(GenerationHost, Protocol):
    """What a completion in the caller's thread needs: a Llama."""

    _cache: PromptCache
    _calls: CallLock
    _speculator: LazySpeculator


class Call:
    """A call that computes, or waits for the CallLock.

    Attributes:
        owner: The conversation that it belongs to, or None.
        aborted: Whether it has to end as soon as possible.
    """

    def __init__(self, owner: str | None = None) -> None:
        self.owner = owner
        self.aborted = False


class CallLock:
    """Lets one call at a time use a context, and lets other threads abort it. An open stream is one call.

    Args:
        context: The context.
        speculator: The drafts, which an abort ends too.
    """

    def __init__(self, context: Context, speculator: LazySpeculator) -> None:
        self._context, self._speculator = context, speculator
        self._lock = threading.Lock()
        self._abort_lock = threading.Lock()
        self._thread: int | None = None
        self._running: Call | None = None
        self._signalled = False

    @property
    def running(self) -> Call | None:
        """The call that has the lock, or None."""
        with self._abort_lock:
            return self._running

    def refuse_open_stream(self) -> None:
        """Refuse to wait for a stream that the calling thread itself has not finished.

        Raises:
            StreamOpenError: The calling thread has one.
        """
        if self._thread == threading.get_ident():
            raise StreamOpenError(
                "a stream of this Llama is still open in this thread: read it to its end or close() it first, "
                "or use a second Llama on the same model"
            )

    def acquire(self, call: Call | None) -> None:
        """Wait for the lock.

        Args:
            call: The call that can be aborted from now on, or None.

        Raises:
            StreamOpenError: The calling thread has an open stream.
        """
        self.refuse_open_stream()
        self._lock.acquire()
        self._thread = threading.get_ident()
        with self._abort_lock:
            self._running = call
            self._signalled = False

    def release(self) -> None:
        """Let the next call begin. An abort that came between two decodes does not reach it."""
        with self._abort_lock:
            self._running = None
            signalled = self._signalled
        try:
            if signalled and not self._context.closed:
                self._context.clear_abort()
                self._speculator.clear_abort()
        finally:
            self._thread = None
            self._lock.release()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have the lock in the block, for work that cannot be aborted."""
        self.acquire(None)
        try:
            yield
        finally:
            self.release()

    def abort(self, call: Call | None) -> None:
        """End a call as soon as possible; None: nothing happens. Takes no lock that is held for long."""
        if call is None:
            return
        with self._abort_lock:
            call.aborted = True
            if self._running is call:
                self._signalled = True
                self._context.abort()
                self._speculator.abort()


__all__ = ["Call", "CallLock", "CompletionHost", "GenerationHost"]

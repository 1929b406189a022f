"""How text gets from the thread of an engine to an event loop: the loop is woken, and reads it itself."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import weakref
from collections import abc
from collections.abc import Callable
from typing import Any

from pyllm.types import Chunk

# What a caller gets: a chunk, or how it ended.
Event = Chunk | BaseException

# A function to call in the event loop, and its argument.
Reader = tuple[Callable[[Any], None], Any]


class LoopNotifier:
    """Wakes an event loop, once for all that is on the way; see :meth:`of`.

    There are two ways: :meth:`call_soon` calls a function in the loop; and a byte written to `wakeup_fd`, which needs
    no GIL, has the loop read the sequences that it watches.

    Args:
        loop: The running loop.

    Attributes:
        wakeup_fd: The descriptor to write to, or None: this loop cannot wait for one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The loop holds the notifier, and should not live as long as it.
        self._loop = weakref.ref(loop)
        self._calls: collections.deque[Reader] = collections.deque()
        self._called = False
        self._watched: dict[object, abc.Sequence[Reader]] = {}
        self.wakeup_fd: int | None = None
        self._listen(loop)

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop) -> LoopNotifier:
        """The notifier of a loop; the first call makes it."""
        notifier = _NOTIFIERS.get(loop)
        if notifier is None:
            notifier = _NOTIFIERS[loop] = LoopNotifier(loop)
        return notifier

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        if os.name == "nt":  # its loops wait for sockets only, and some see too late that this is none
            return
        try:
            reader, writer = os.pipe()
        except OSError:  # too many files are open
            return
        try:
            for fd in (reader, writer):
                os.set_blocking(fd, False)
            loop.add_reader(reader, self._wake_up, reader)
        except Exception:  # not every loop can wait for it
            _close(reader, writer)
            return
        self.wakeup_fd = writer
        # Not when the interpreter ends: engines go on writing, and the number would be that of another file by then.
        weakref.finalize(self, _close, reader, writer).atexit = False

    @property
    def closed(self) -> bool:
        """Whether the loop is closed, so that nothing will be called any more."""
        loop = self._loop()
        return loop is None or loop.is_closed()

    @property
    def is_here(self) -> bool:
        """Whether this is called in the loop, which does nothing else meanwhile."""
        try:
            return asyncio.get_running_loop() is self._loop()
        except RuntimeError:
            return False

    def call_soon(self, function: Callable[[Any], None], argument: Any) -> bool:
        """Call a function in the loop with one argument; False where the loop is closed."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            return False
        self._calls.append((function, argument))
        if not self._called:
            self._called = True
            try:
                loop.call_soon_threadsafe(self._call)
            except RuntimeError:  # it was closed just now
                return False
        return True

    def watch(self, owner: object, sequences: abc.Sequence[Reader]) -> None:
        """Read these sequences at every wakeup: steps without Python compute them.

        Args:
            owner: The MultiStep that computes them; it replaces what it watched before.
            sequences: What reads each sequence, and the sequence; empty where it computes none.
        """
        if sequences:
            self._watched[owner] = sequences
        else:
            self._watched.pop(owner, None)

    # ---- in the loop

    def _wake_up(self, reader: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 4096)
        for sequences in list(self._watched.values()):
            for read, sequence in sequences:
                self._guarded(read, sequence)

    def _call(self) -> None:
        # Before the look at what is there: what comes behind it wakes the loop again.
        self._called = False
        try:
            while self._calls:
                self._guarded(*self._calls.popleft())
        finally:
            # After Ctrl-C the loop may go on all the same.
            if self._calls:
                asyncio.get_running_loop().call_soon(self._call)

    @staticmethod
    def _guarded(function: Callable[[Any], None], argument: Any) -> None:
        try:
            function(argument)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # The other listeners are called all the same.
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": "a listener has failed", "exception": error})


_NOTIFIERS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopNotifier] = weakref.WeakKeyDictionary()


class RequestStream:
    """Delivers the chunks of one request to a listener in an event loop.

    Args:
        notifier: That of the loop.
        listener: Called there with each chunk, and with the exception that ends the request.
    """

    def __init__(self, notifier: LoopNotifier, listener: Callable[[Event], None]) -> None:
        self.notifier = notifier
        self.listener = listener


def _close(reader: int, writer: int) -> None:
    os.close(reader)
    os.close(writer)

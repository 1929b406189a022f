"""How pieces of texts get from the thread of an engine to an event loop: the loop is told, and takes them itself."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from pyllm.types import Chunk

# What a caller gets: a chunk, or how it ended.
Event = Chunk | BaseException

# A function to call in the event loop, and its argument.
Reader = tuple[Callable[[Any], None], Any]


class Post:
    """Wakes an event loop, once for all that is on the way; see :meth:`of`.

    Two ways lead there: what is :meth:`put` is called in the loop, and a byte in the pipe `bell`, which needs no GIL,
    has it look after the texts of the rounds that are being computed.

    Args:
        loop: The loop, which is the one that runs here.

    Attributes:
        bell: The descriptor to write to, or None: this loop cannot wait for it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The loop knows this, and should not live as long as this does.
        self._loop = weakref.ref(loop)
        self._calls: collections.deque[Reader] = collections.deque()
        self._called = False
        self._rounds: dict[object, Sequence[Reader]] = {}
        self.bell: int | None = None
        self._listen(loop)

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop) -> Post:
        """The one of a loop, which is made when it is first asked for."""
        post = _POSTS.get(loop)
        if post is None:
            post = _POSTS[loop] = Post(loop)
        return post

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        if os.name == "nt":  # its loops wait for sockets only, and some see too late that this is none
            return
        try:
            heard, bell = os.pipe()
        except OSError:  # too many files are open
            return
        try:
            for fd in (heard, bell):
                os.set_blocking(fd, False)
            loop.add_reader(heard, self._ring, heard)
        except Exception:  # not every loop can wait for it
            _close(heard, bell)
            return
        self.bell = bell
        # Not when the interpreter ends: engines ring on, and the number would be that of another file by then.
        weakref.finalize(self, _close, heard, bell).atexit = False

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

    def put(self, function: Callable[[Any], None], argument: Any) -> bool:
        """Have a function called in the loop, with this; False where the loop is closed."""
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

    def look_after(self, owner: object, texts: Sequence[Reader]) -> None:
        """These texts are being computed: whenever the bell rings there is more of them.

        Args:
            owner: Who computes them, and nothing else any more.
            texts: What reads each text, and the text; empty where it computes none.
        """
        if texts:
            self._rounds[owner] = texts
        else:
            self._rounds.pop(owner, None)

    # ---- in the loop

    def _ring(self, heard: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(heard, 4096)
        for texts in list(self._rounds.values()):
            for read, text in texts:
                self._guarded(read, text)

    def _call(self) -> None:
        # Before the look at what is there: what comes behind it wakes the loop again.
        self._called = False
        try:
            while self._calls:
                self._guarded(*self._calls.popleft())
        finally:
            # Somebody pressed Ctrl-C, and the loop may go on all the same.
            if self._calls:
                asyncio.get_running_loop().call_soon(self._call)

    @staticmethod
    def _guarded(function: Callable[[Any], None], argument: Any) -> None:
        try:
            function(argument)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # The others have theirs all the same.
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": "a listener has failed", "exception": error})


_POSTS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Post] = weakref.WeakKeyDictionary()


class Channel:
    """The way of one request to its listener in an event loop.

    Args:
        post: Of the loop.
        listener: Called there with each chunk, and with the exception that ends the request.
    """

    def __init__(self, post: Post, listener: Callable[[Event], None]) -> None:
        self.post = post
        self.listener = listener


def _close(heard: int, bell: int) -> None:
    os.close(heard)
    os.close(bell)

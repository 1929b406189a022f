"""The lock of an engine, and the bell for its thread."""

from __future__ import annotations

import threading

from pyllm.core.round import Flag


class Wake(threading.Condition):
    """The lock of an engine, and the bell for its thread.

    Attributes:
        called: Whether somebody has asked for something since it was cleared. The thread sees it while it computes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.called = Flag()

    def notify(self, n: int = 1) -> None:
        """Something has come."""
        self.called.set()
        super().notify(n)

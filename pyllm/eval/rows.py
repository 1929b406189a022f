"""Work on rows of logits, in as many threads as the context computes with.

The kernels and NumPy's reductions release the GIL, so that plain threads share the work. Every helper reads the
rows where llama.cpp put them, and allocates a few numbers for each row.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pyllm.core import kernels

# Fewer rows are done sooner than a thread wakes up.
_ROWS_PER_THREAD = 4

Logits = NDArray[np.float32]


class RowWorkers:
    """Threads that share the rows of an array; close them with :meth:`close` or a ``with`` block.

    Args:
        n_threads: How many, the calling one included.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = max(1, n_threads)
        self._pool = ThreadPoolExecutor(self.n_threads - 1) if self.n_threads > 1 else None

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> RowWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, function: Callable[[int, int], None], n_rows: int) -> None:
        """Call ``function(start, end)`` for parts of the rows that together are all of them."""
        parts = min(self.n_threads, max(1, n_rows // _ROWS_PER_THREAD))
        bounds = [n_rows * i // parts for i in range(parts + 1)]
        if self._pool is None or parts == 1:
            function(0, n_rows)
            return
        others = [self._pool.submit(function, bounds[i], bounds[i + 1]) for i in range(1, parts)]
        try:
            function(bounds[0], bounds[1])
        finally:
            # Also after an error: nobody may read the rows once the caller goes on to the next decode.
            errors = [other.exception() for other in others]
        for error in errors:
            if error is not None:
                raise error

    def logsumexp(self, logits: Logits) -> NDArray[np.float64]:
        """log(sum(exp(row))) of each row: float64, shape (n,)."""
        result = np.empty(len(logits), np.float64)

        def part(start: int, end: int) -> None:
            result[start:end] = kernels.logsumexp(logits[start:end])

        self.run(part, len(logits))
        return result

    def argmax(self, logits: Logits) -> NDArray[np.int64]:
        """The most likely token of each row, the first of equal ones: int64, shape (n,)."""
        result = np.empty(len(logits), np.int64)

        def part(start: int, end: int) -> None:
            result[start:end] = logits[start:end].argmax(axis=1)

        self.run(part, len(logits))
        return result

    def entropy(self, logits: Logits) -> NDArray[np.float64]:
        """Entropy of each row in nats: float64, shape (n,)."""
        result = np.empty(len(logits), np.float64)

        def part(start: int, end: int) -> None:
            result[start:end] = kernels.entropy(logits[start:end])

        self.run(part, len(logits))
        return result

    def top_k(self, logits: Logits, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The k most likely tokens of each row and their log-probabilities, both of shape (n, k)."""
        ids, values = np.empty((len(logits), k), np.int32), np.empty((len(logits), k), np.float32)

        def part(start: int, end: int) -> None:
            ids[start:end], values[start:end] = kernels.top_k_logprobs(logits[start:end], k)

        self.run(part, len(logits))
        return ids, values

    def ranks(self, logits: Logits, rows: NDArray[np.int64], tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """How many tokens of ``logits[rows[i]]`` are more likely than ``tokens[i]``: int32, shape (n,)."""
        result = np.empty(len(rows), np.int32)

        def part(start: int, end: int) -> None:
            # Rows may be wanted several times and in any order: each is looked at where it lies.
            for i in range(start, end):
                row = logits[rows[i] : rows[i] + 1]
                result[i : i + 1] = kernels.token_ranks(row, tokens[i : i + 1])

        self.run(part, len(rows))
        return result

"""Vectors in the engine: requests that wait for theirs, and decodes with texts of several requests at once."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.core.threadpool import ThreadPool
from pyllm.embedding.asks import Ask, Vectors
from pyllm.embedding.embedder import Embedder
from pyllm.engine.adapters import AdapterSet
from pyllm.engine.pace import Pace
from pyllm.engine.running_decode import RunningDecode
from pyllm.engine.scheduler import Task
from pyllm.enums import PoolingType
from pyllm.errors import DecodeAborted
from pyllm.params import ContextParams

_MOST_TEXTS = 64


class VectorJob:
    """A request for vectors on its way through an engine.

    Args:
        ask: What is to be computed.
        adapters: The LoRA adapters it is computed with, and their scales.
        listener: Called in the thread of the engine when it has ended; it must be quick and raise nothing.

    Attributes:
        cancelled: Whether somebody called it off.
        apart: Whether it has decodes of its own: one has failed that it shared, and who is to blame is not known.
    """

    def __init__(self, ask: Ask[Any], adapters: AdapterSet, listener: Callable[[], None] | None) -> None:
        self.ask = ask
        self.adapters = adapters
        self.cancelled = self.apart = False
        self._found: list[NDArray[np.float32] | None] = [None] * len(ask.texts)
        self._taken = 0
        self._n_left = len(ask.texts)
        self._listener = listener
        self._done = threading.Event()
        self._error: BaseException | None = None

    # ---- for the caller

    def result(self, timeout: float | None = None) -> Vectors:
        """Wait for the vectors of the texts, in their order.

        Raises:
            TimeoutError: They are not there after so many seconds; it goes on.
            DecodeAborted: It was cancelled.
            Exception: What ended it.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"the vectors are not there after {timeout} seconds")
        if self._error is not None:
            raise self._error
        return [vector for vector in self._found if vector is not None]

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._done.is_set()

    # ---- for the engine

    @property
    def kind(self) -> tuple[object, AdapterSet]:
        """Texts of requests with the same kind can be computed in one decode."""
        return self.ask.pooling, self.adapters

    @property
    def begun(self) -> bool:
        """Whether a part of it has been computed, or is being so."""
        return self._taken > 0

    def peek(self) -> int | None:
        """Tokens of the next text that nobody has begun to compute."""
        return len(self.ask.texts[self._taken]) if self._taken < len(self.ask.texts) else None

    def take(self) -> int:
        """The number of that text, which is being computed from now on."""
        self._taken += 1
        return self._taken - 1

    def give_back(self, index: int) -> None:
        """A text was not computed after all."""
        self._taken = min(self._taken, index)

    def found(self, index: int, vector: NDArray[np.float32]) -> None:
        """A text has its vector."""
        if self._found[index] is None:
            self._found[index] = vector
            self._n_left -= 1
        if self._n_left == 0:
            self.end()

    def end(self, error: BaseException | None = None) -> None:
        """It has ended."""
        if not self.done:
            self._error = error
            self._done.set()
            if self._listener is not None:
                self._listener()


class SharedEmbedder(Embedder):
    """An embedder whose contexts compute with the threads of an engine.

    Args:
        model: The model.
        params: Settings of the contexts.
        threadpool: The threads, or None for threads of their own.
    """

    def __init__(self, model: Model, params: ContextParams, threadpool: ThreadPool | None) -> None:
        super().__init__(model, params)
        self._threadpool = threadpool

    def _new_context(self, **arguments: Any) -> Context:
        context = super()._new_context(**arguments)
        if self._threadpool is not None:
            context.attach_threadpool(self._threadpool)
        return context


class VectorQueue:
    """Requests for vectors, computed portion by portion by the thread of the engine.

    Requests of one kind share decodes, a text of each in turn, so that a short request is through soon beside a long
    one; kinds take turns. Callers hold the lock of the engine for :meth:`submit` and :meth:`cancel`; all else is for
    its thread.

    Args:
        embedder: What computes them; nobody else uses it to compute.
        pace: How many tokens a portion has while texts are being generated.
        decoding: Aborts a decode when all requests that share it are cancelled.

    Attributes:
        n_texts: Texts that were computed.
        n_tokens: Their tokens.
        n_steps: Portions that were computed.
        turn: Whether the step has a portion of vectors, and prompts wait.
    """

    def __init__(self, embedder: Embedder, pace: Pace, decoding: RunningDecode) -> None:
        self.embedder = embedder
        self._decoding = decoding
        self.n_texts = self.n_tokens = self.n_steps = 0
        self.turn = False
        self._pace = pace
        self._new: list[VectorJob] = []
        self._cancels: list[VectorJob] = []
        self._jobs: list[VectorJob] = []
        self._picked: list[tuple[VectorJob, int]] = []
        self._steps: Generator[int, None, Vectors] | None = None
        self._n_left = 0
        self._beside = False
        self._most: int | None = None
        self._warm: set[PoolingType] = set()

    def __bool__(self) -> bool:
        """Whether there is something to do."""
        return bool(self._jobs or self._new or self._cancels)

    @property
    def n_jobs(self) -> int:
        """Requests that have not ended."""
        return len(self._jobs) + len(self._new)

    @property
    def waiting(self) -> list[VectorJob]:
        """Requests of which nothing has been computed."""
        return [*(job for job in list(self._jobs) if not job.begun), *self._new]

    def submit(self, job: VectorJob) -> None:
        """A request has come."""
        self._new.append(job)

    def cancel(self, job: VectorJob) -> None:
        """A request is not wanted any more."""
        if not job.done and not job.cancelled:
            job.cancelled = True
            self._cancels.append(job)
            self._decoding.check()

    # ---- for the thread of the engine

    def take_in(self) -> int:
        """What callers have asked for since the last step; how many requests were cancelled."""
        for job in self._new:
            if job.ask.texts:
                self._jobs.append(job)
            else:
                job.end()
        self._new.clear()
        cancelled = [job for job in self._cancels if not job.done]
        self._cancels.clear()
        for job in cancelled:
            self._remove(job, DecodeAborted("the embedding was aborted", function="llama_decode"))
        return len(cancelled)

    def plan(self, tasks: list[Task]) -> bool:
        """Decide whether the step has a portion of vectors: always, but that they and prompts take turns.

        Args:
            tasks: What else there is to compute.
        """
        self._beside = any(task.n_left == 1 for task in tasks)
        prompts = any(task.n_left > 1 for task in tasks)
        self.turn = bool(self._jobs) and not (prompts and self.turn)
        return self.turn

    def step(self, beside_ms: float) -> int:
        """Compute the next portion.

        Args:
            beside_ms: How long the rest of the step took.

        Returns:
            int: How many requests have failed.
        """
        if self._beside:
            self._pace.measured(1, 0, beside_ms)
        self._most = self._pace.n_prompt if self._beside else None
        started = time.perf_counter()
        try:
            if self._steps is None:
                self._begin()
            assert self._steps is not None
            jobs = {job for job, _ in self._picked}
            with self._decoding(jobs, self.embedder.cancel, self.embedder.clear_abort):
                n = next(self._steps)
            self._measured(n, 1000 * (time.perf_counter() - started))
            if self._n_left <= 0:
                self._finish()
        except Exception as error:
            if isinstance(error, DecodeAborted) and all(job.cancelled for job, _ in self._picked):
                self._drop()  # the requests end when their cancellation is taken in
                return 0
            return self._failed(error)
        return 0

    def fail(self, error: BaseException) -> None:
        """Nothing will be computed any more."""
        self._drop()
        for job in [*self._jobs, *self._new]:
            job.end(error)
        self._jobs.clear()
        self._new.clear()
        self._cancels.clear()

    def close(self) -> None:
        """Free the contexts."""
        self.embedder.close()

    def problems(self) -> list[str]:
        """Contradictions between the requests and the texts that are being computed, as sentences."""
        found = []
        if bool(self._picked) != (self._steps is not None):
            found.append(f"{len(self._picked)} texts are picked, and decodes are {'not ' * (not self._steps)}under way")
        if self._picked and all(job.done for job, _ in self._picked):
            found.append("texts are computed, and all their requests have ended")
        if any(job not in self._jobs and not job.done for job, _ in self._picked):
            found.append("a text is computed, and its request is not among those that have not ended")
        return found

    # ---- how

    def _begin(self) -> None:
        """Pick texts for the next decodes."""
        first, *rest = self._jobs
        self._jobs = [*rest, first]  # the next kind has its turn; others look at this list meanwhile
        room = self.embedder.n_batch(first.ask.pooling)
        if self._most is not None:
            room = min(room, self._most)
        others = [job for job in self._jobs[:-1] if job.kind == first.kind and not job.apart]
        turns = deque([first] if first.apart else [first, *others])
        while turns and len(self._picked) < _MOST_TEXTS:
            job = turns.popleft()
            length = job.peek()
            if length is None or (self._picked and length > room):
                continue
            self._picked.append((job, job.take()))
            room -= length
            turns.append(job)
        texts = [job.ask.texts[index] for job, index in self._picked]
        self._n_left = sum(map(len, texts))
        self._steps = self.embedder.steps(texts, first.ask.pooling, adapters=first.adapters, most=self._portion)

    def _portion(self) -> int:
        return self._n_left if self._most is None else self._most

    def _measured(self, n: int, ms: float) -> None:
        pooling = self._picked[0][0].ask.pooling
        # The first one has waited for its context.
        if pooling in self._warm:
            self._pace.measured(0, n, ms)
        self._warm.add(pooling)
        self.n_tokens += n
        self.n_steps += 1
        self._n_left -= n

    def _finish(self) -> None:
        """All of the picked texts were computed."""
        assert self._steps is not None
        try:
            self._n_left -= next(self._steps)
            return  # a decode was made again
        except StopIteration as end:
            vectors: Vectors = end.value
        picked, self._picked, self._steps = self._picked, [], None
        self.n_texts += len(picked)
        for (job, index), vector in zip(picked, vectors, strict=True):
            job.found(index, vector)
        self._jobs = [job for job in self._jobs if not job.done]

    def _failed(self, error: BaseException) -> int:
        """What a decode has raised ends its request; where it was for several, each tries again by itself."""
        # The frames of its traceback hold arrays.
        traceback.clear_frames(error.__traceback__)
        picked = list(dict.fromkeys(job for job, _ in self._picked if not job.done))
        self._drop()
        for job in picked:
            if len(picked) > 1:
                job.apart = True
            else:
                self._remove(job, error)
        return len(picked) if len(picked) == 1 else 0

    def _remove(self, job: VectorJob, error: BaseException) -> None:
        """A request ends; what is being computed for nobody else is thrown away."""
        job.end(error)
        self._jobs = [other for other in self._jobs if not other.done]
        if self._picked and all(other.done for other, _ in self._picked):
            self._drop()

    def _drop(self) -> None:
        """Throw away what is being computed."""
        if self._steps is not None:
            self._steps.close()
        for job, index in self._picked:
            job.give_back(index)
        self._picked, self._steps = [], None

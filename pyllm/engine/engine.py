"""Engine: many requests at once on one model. One thread owns the context, and callers hand it requests."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.request import CompletionRequest
from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.engine.cache import SequenceCache
from pyllm.engine.job import Event, Job
from pyllm.engine.lane import Lane
from pyllm.engine.metrics import Counters, Metrics
from pyllm.engine.pace import Pace
from pyllm.engine.runner import Runner
from pyllm.engine.scheduler import Limits, Task, plan
from pyllm.engine.texts import Text
from pyllm.errors import ClosedError, InvalidArgumentError, NoKVSlotError, PyllmError
from pyllm.params import ContextParams, ModelParams, given, split_arguments
from pyllm.types import Completion

Prompt = str | bytes | Sequence[int] | NDArray[np.integer[Any]]

MAX_SEQUENCES = 256
DEFAULT_N_CTX = 4096


class QueueFullError(PyllmError, RuntimeError):
    """More requests wait than the engine was told to hold; try again later."""


class Engine:
    """Generates many texts at once, and lets requests come and go at any time.

    Args:
        model: As for :class:`pyllm.Llama`.
        n_ctx: Size of the KV cache in tokens, for all texts together. None: the length the model was trained with,
            at most 4096, for each of `n_parallel` texts.
        n_parallel: Texts that are computed at once.
        n_batch: Tokens of one step.
        n_prompt: Tokens of prompts in a step while texts are being generated, at most.
        target_ms: How long running texts may wait for their next token while prompts are read. None: as long as
            `n_prompt` tokens take.
        max_queued: Requests that may wait; more are refused with QueueFullError. None: any number.
        max_queued_tokens: Tokens of prompts that may wait.
        cache_prompt: Whether requests share what is computed of equal beginnings, unless they say otherwise.
        seed: Seed for every request that names none. None: a new random one each time.
        **params: Every argument of :class:`pyllm.core.model.Model` and :class:`pyllm.core.context.Context`.

    Raises:
        UnknownArgumentError: A keyword exists in neither.
        ModelLoadError: llama.cpp could not load the file.
        InvalidArgumentError: A number is out of range, or the model cannot generate texts.

    Example:
        >>> with Engine("smollm2", n_parallel=8) as engine:
        ...     completions = engine.generate(["One,", "Two,", "Three,"], max_tokens=16)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model = "smollm2",
        *,
        n_ctx: int | None = None,
        n_parallel: int = 8,
        n_batch: int = 2048,
        n_prompt: int = 512,
        target_ms: float | None = None,
        max_queued: int | None = None,
        max_queued_tokens: int | None = None,
        cache_prompt: bool = True,
        seed: int | None = None,
        **params: Any,
    ) -> None:
        for name, value, most in (
            ("n_parallel", n_parallel, MAX_SEQUENCES), ("n_batch", n_batch, None), ("n_prompt", n_prompt, None)
        ):  # fmt: skip
            _check_count(name, value, most)
        if n_batch < n_parallel:
            raise InvalidArgumentError(f"n_batch={n_batch} must have room for a token of n_parallel={n_parallel} texts")
        if target_ms is not None and not target_ms > 0:
            raise InvalidArgumentError(f"target_ms must be greater than 0, or None, not {target_ms!r}")
        of_model, of_context = split_arguments(params, "Engine()", ModelParams, ContextParams, owner=Engine)
        self._owns_model = not isinstance(model, Model)
        if isinstance(model, Model):
            if of_model:
                raise InvalidArgumentError(f"the model is loaded already; {', '.join(of_model)} would do nothing")
            self.model = model
        else:
            from pyllm import hub

            self.model = Model(hub.resolve(model), **given(ModelParams(**of_model)))
        try:
            self.context = self._make_context(n_ctx, n_parallel, n_batch, of_context)
        except BaseException:
            if self._owns_model:
                self.model.close()
            raise
        self.vocab = self.model.vocab
        self.seed = seed
        self.cache_prompt: bool | None = cache_prompt
        self.n_parallel = n_parallel
        self.max_queued, self.max_queued_tokens = max_queued, max_queued_tokens
        self._pace = Pace(n_batch, target_ms, n_prompt)
        self._cache = SequenceCache(self.context.memory, self.context.n_ctx)
        self._runner = Runner(self.context)
        self._lane = Lane(lambda: self._lane_context(of_context))
        self._counters = Counters()
        self._wake = threading.Condition()
        self._new: list[Job] = []
        self._cancels: list[Job] = []
        self._texts: dict[int, Text] = {}  # by the number of the task
        self._jobs: dict[Text, Job] = {}
        self._numbers = 0
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="pyllm engine", daemon=True)
        self._thread.start()

    def _make_context(self, n_ctx: int | None, n_parallel: int, n_batch: int, of_context: dict[str, Any]) -> Context:
        if self.model.has_encoder or not self.model.has_decoder:
            raise InvalidArgumentError("an engine needs a model that goes on with a text; this one has an encoder")
        if n_ctx is None:
            n_ctx = n_parallel * min(self.model.n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)
        # Idle sequences keep prompts for later; they take no room but cells.
        n_sequences = min(MAX_SEQUENCES, 2 * n_parallel + 8)
        for name in ("n_seq_max", "kv_unified", "swa_full"):
            if name in of_context:
                raise InvalidArgumentError(f"the engine sets {name} itself, from n_parallel")
        return Context(
            self.model,
            n_ctx=n_ctx,
            n_seq_max=n_sequences,
            kv_unified=True,
            swa_full=True,
            n_batch=n_batch,
            **of_context,
        )

    def _lane_context(self, of_context: dict[str, Any]) -> Context:
        context = Context(self.model, n_ctx=self.context.n_ctx, n_seq_max=1, **of_context)
        if self.context.threadpool is not None:
            context.attach_threadpool(self.context.threadpool)
        return context

    # ---- for callers

    def submit(
        self,
        prompt: Prompt,
        *,
        priority: int = 0,
        stream: bool = True,
        deterministic: bool = False,
        listener: Callable[[Event], None] | None = None,
        **arguments: Any,
    ) -> Job:
        """Hand in a request, and go on.

        Args:
            prompt: Text or token ids.
            priority: Smaller ones go first.
            stream: Whether its chunks are wanted as they come, and not only the whole.
            deterministic: The same seed and arguments give the same text again, whatever else the engine does. Such
                requests run one after another, beside all others, and share no prompts.
            listener: Called with each chunk, and with the exception that ends it, in the engine's thread instead of
                keeping them for an iteration; it must be quick and raise nothing.
            **arguments: Those of :meth:`pyllm.Llama.create_completion`.

        Returns:
            Job: The request on its way.

        Raises:
            QueueFullError: Too many wait.
            InvalidArgumentError: An argument is out of range, or the prompt does not fit.
            ClosedError: The engine has been closed.
        """
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise InvalidArgumentError(f"priority must be an integer, not {priority!r}")
        request = CompletionRequest(self, prompt, arguments)  # type: ignore[arg-type]
        if request.overflow.rule != "error":
            raise InvalidArgumentError(f"overflow={request.overflow.rule!r} is for a Llama: here a text ends instead")
        if request.echo and request.logprobs is not None:
            raise InvalidArgumentError("log-probabilities of the prompt are for a Llama: here only those of the answer")
        job = Job(self, request, priority, listener, stream)
        with self._wake:
            self._check_open()
            self._check_queue(request)
            self._counters.requests += 1
            for index in range(request.best_of):
                self._numbers += 1
                text = Text(request, index, self._numbers, priority, alone=deterministic)
                job.texts.append(text)
            self._new.append(job)
            self._wake.notify()
        return job

    def complete(self, prompt: Prompt, **arguments: Any) -> Completion:
        """One request, from beginning to end; see :meth:`submit`."""
        job = self.submit(prompt, stream=False, **arguments)
        try:
            return job.result()
        except BaseException:
            job.cancel()
            raise

    def generate(self, prompts: Iterable[Prompt], *, progress: bool = False, **arguments: Any) -> list[Completion]:
        """Many requests, all with the same arguments.

        Args:
            prompts: Texts or token ids.
            progress: Show a bar on stderr; needs the extra ``cli``.
            **arguments: Those of :meth:`submit`.

        Returns:
            list[Completion]: In the order of the prompts.
        """
        jobs: list[Job] = []
        try:
            for prompt in prompts:
                jobs.append(self.submit(prompt, stream=False, **arguments))
            if not progress:
                return [job.result() for job in jobs]
            from rich.console import Console
            from rich.progress import track

            return [job.result() for job in track(jobs, "texts", console=Console(stderr=True))]
        except BaseException:
            for job in jobs:
                job.cancel()
            raise

    def metrics(self) -> Metrics:
        """What it is doing and has done."""
        with self._wake:
            texts = list(self._texts.values())
            waiting_jobs = sum(len(job.texts) for job in self._new)
            counters = self._counters
            running = [text for text in texts if text.task.seq is not None]
            return Metrics(
                n_waiting=len(texts) - len(running) + waiting_jobs,
                n_running=len(running),
                n_cells=self._cache.ledger.n_cells,
                n_cells_used=self._cache.ledger.used,
                n_cells_running=min(sum(text.task.n_computed for text in running), self._cache.ledger.used),
                n_requests=counters.requests,
                n_rejected=counters.rejected,
                n_cancelled=counters.cancelled,
                n_failed=counters.failed,
                n_prompt_tokens=counters.prompt_tokens,
                n_cached_tokens=counters.cached_tokens,
                n_generated_tokens=counters.generated_tokens,
                n_preempted=counters.preempted,
                n_steps=counters.steps,
            )

    def detokenize(self, tokens: Any) -> str:
        """Turn token ids into text."""
        return self.vocab.detokenize(tokens, unparse_special=True)

    def close(self) -> None:
        """Stop: requests that have not ended fail with ClosedError. Closing twice is allowed."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self._lane.close()
            self.context.close()
            if self._owns_model:
                self.model.close()

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._closing

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Engine {self.model!r}, n_parallel={self.n_parallel}{', closed' if self._closing else ''}>"

    def _speculation(self, wanted: Any) -> None:
        """What CompletionRequest asks a Llama for."""
        if wanted not in (None, False):
            raise InvalidArgumentError("speculation is for a Llama: an engine computes many texts at once instead")

    def _cancel(self, job: Job) -> None:
        with self._wake:
            if not job.done and not job.cancelled:
                job.cancelled = True
                self._cancels.append(job)
                self._wake.notify()

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedError("this Engine has been closed")

    def _check_queue(self, request: CompletionRequest) -> None:
        waiting = [text for text in self._texts.values() if text.task.seq is None]
        n = len({text.request.id for text in waiting}) + len(self._new)
        if self.max_queued is not None and n >= max(self.max_queued, 1):
            self._counters.rejected += 1
            raise QueueFullError(f"{n} requests wait already, and max_queued={self.max_queued}")
        if self.max_queued_tokens is not None:
            tokens = sum(text.task.n_left for text in waiting) + sum(len(job.request.ids) for job in self._new)
            if tokens and tokens + len(request.ids) > self.max_queued_tokens:
                self._counters.rejected += 1
                raise QueueFullError(
                    f"prompts of {tokens} tokens wait already, this one has {len(request.ids)}, and "
                    f"max_queued_tokens={self.max_queued_tokens}"
                )

    # ---- the thread of the engine

    def _loop(self) -> None:
        error: BaseException = ClosedError("the Engine was closed before the request had ended")
        try:
            while True:
                with self._wake:
                    while not (self._closing or self._new or self._cancels or self._texts):
                        self._wake.wait()
                    if self._closing:
                        break
                    self._take_in()
                self._step()
        except BaseException as cause:
            error = cause
        finally:
            with self._wake:
                self._closing = True
                jobs = [*{*self._jobs.values()}, *self._new]
                self._texts.clear()
                self._jobs.clear()
                self._new.clear()
            for job in jobs:
                job.fail(error)

    def _take_in(self) -> None:
        """What callers have asked for since the last step."""
        for job in self._new:
            for text in job.texts:
                self._texts[text.task.id] = text
                self._jobs[text] = job
        self._new.clear()
        for job in self._cancels:
            if not job.done:
                self._counters.cancelled += 1
                self._end([text for text in job.texts if text.reason is None], "abort")
        self._cancels.clear()
        for text in list(self._texts.values()):
            if text.request.limit == 0:
                self._end([text], "length")

    def _step(self) -> None:
        alone = [text for text in self._texts.values() if text.alone]
        if alone:
            self._step_alone(alone)
        tasks = [text.task for text in self._texts.values() if not text.alone]
        if tasks:
            self._step_together(tasks)

    def _step_alone(self, texts: list[Text]) -> None:
        text, n, chosen = self._lane.step(texts)
        job = self._jobs[text]
        job.started = job.started or time.perf_counter()
        if text.row.n_generated == 0:
            self._counters.prompt_tokens += n
        if chosen:
            self._deliver([text], time.perf_counter())

    def _step_together(self, tasks: list[Task]) -> None:
        cache, counters = self._cache, self._counters
        limits = Limits(
            n_sequences=self.context.n_seq_max,
            n_running=self.n_parallel,
            n_batch=self._pace.n_batch,
            n_prompt=self._pace.n_prompt,
        )
        decision = plan(
            [task for task in tasks if task.seq is None],
            [task for task in tasks if task.seq is not None],
            list(cache.idle),
            cache.ledger,
            cache.tree,
            limits,
        )
        for number in decision.preempt:
            cache.drop(self._texts[number].task)
            counters.preempted += 1
        self._end([self._texts[number] for number in decision.full], "length")
        for seq in decision.evict:
            cache.evict(seq)
        for admission in decision.admit:
            text = self._texts[admission.id]
            cache.start(text.task, admission)
            job = self._jobs[text]
            if text.row.n_generated == 0:
                counters.cached_tokens += admission.n_reused
                text.cached = admission.n_reused
            job.started = job.started or time.perf_counter()
        rows = [(self._texts[number], n) for number, n in decision.rows]
        if rows:
            self._compute(rows)

    def _compute(self, rows: list[tuple[Text, int]]) -> None:
        cache, counters = self._cache, self._counters
        started = time.perf_counter()
        try:
            ready = self._runner.decode(rows)
        except NoKVSlotError:
            self._make_way([text for text, _ in rows])
            return
        for text, n in rows:
            reading = text.task.n_computed < text.n_prompt
            cache.computed(text.task, n)
            if reading:
                counters.prompt_tokens += n
        self._runner.sample(ready)
        now = time.perf_counter()
        n_texts = sum(n == 1 for _, n in rows)
        self._pace.measured(n_texts, sum(n for _, n in rows if n > 1), 1000 * (now - started))
        counters.steps += 1
        self._deliver([text for text, _ in ready], now)

    def _deliver(self, texts: list[Text], now: float) -> None:
        """Hand on what these texts have got."""
        for text in texts:
            job = self._jobs[text]
            job.first_token = job.first_token or now
            self._counters.generated_tokens += text.row.n_generated - text.n_counted
            text.n_counted = text.row.n_generated
            if text.error is not None:
                self._fail(job, text.error)
            elif text.reason is not None:
                self._end([text], text.reason)
            else:
                job.emit(text)

    def _make_way(self, texts: list[Text]) -> None:
        """llama.cpp has no room although cells are free: it keeps more than was counted. The last one waits."""
        last = max(texts, key=lambda text: text.task.rank)
        if len(texts) > 1:
            self._cache.drop(last.task)
            self._counters.preempted += 1
        elif self._cache.idle:
            self._cache.clear()
        else:
            self._end([last], "length")

    def _end(self, texts: list[Text], reason: Any) -> None:
        for text in texts:
            text.reason = reason
            if self._texts.pop(text.task.id, None) is not None:
                self._leave(text)
                self._jobs.pop(text).emit(text)

    def _leave(self, text: Text) -> None:
        if text.alone:
            self._lane.forget(text)
        elif text.task.seq is not None:
            self._cache.keep(text.task)

    def _fail(self, job: Job, error: BaseException) -> None:
        """An error ends its request, and no other."""
        # The frames of its traceback hold views of logits, which would keep the context from being closed.
        traceback.clear_frames(error.__traceback__)
        self._counters.failed += 1
        for text in job.texts:
            if self._texts.pop(text.task.id, None) is not None:
                self._leave(text)
                self._jobs.pop(text, None)
        job.fail(error)


def _check_count(name: str, value: Any, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        limits = "at least 1" if most is None else f"from 1 to {most}"
        raise InvalidArgumentError(f"{name} must be an integer, {limits}, not {value!r}")

"""Engine: many requests at once on one model. One thread owns the context, and callers hand it requests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import loading
from pyllm.completion.request import CompletionRequest
from pyllm.core.context import Context
from pyllm.core.introspection import not_pickled
from pyllm.core.model import Model
from pyllm.engine.adapters import AdapterMethods, Adapters
from pyllm.engine.beams import BeamLane, BeamText
from pyllm.engine.between import BetweenSteps
from pyllm.engine.cache import SequenceCache
from pyllm.engine.channel import Channel
from pyllm.engine.drafts import Drafts
from pyllm.engine.embedding import EngineEmbedding, bare, products, vector_queue
from pyllm.engine.host import HostCache, check_host_bytes
from pyllm.engine.job import Event, Job
from pyllm.engine.lane import Lane
from pyllm.engine.metrics import Counters, Metrics, look
from pyllm.engine.pace import Pace
from pyllm.engine.prompt_record import PromptRecord
from pyllm.engine.running_decode import RunningDecode
from pyllm.engine.sizes import MAX_SEQUENCES, context_params, default_n_ctx
from pyllm.engine.slot_files import SlotMethods
from pyllm.engine.slots import Slots
from pyllm.engine.steps import Steps
from pyllm.engine.texts import Text
from pyllm.engine.wake import Wake
from pyllm.errors import ClosedError, InvalidArgumentError, InvariantError, PyllmError
from pyllm.lora import Lora
from pyllm.params import ContextParams, ModelParams, given, split_arguments
from pyllm.speculation.params import SpeculationParams, arguments_for
from pyllm.types import Completion

Prompt = str | bytes | Sequence[int] | NDArray[np.integer[Any]]


class QueueFullError(PyllmError, RuntimeError):
    """More requests wait than the engine was told to hold; try again later."""


class Engine(EngineEmbedding, AdapterMethods, SlotMethods):
    """Generates many texts at once, and lets requests come and go at any time.

    Args:
        model: As for :class:`pyllm.Llama`.
        n_ctx: Size of the KV cache in tokens, for all texts together. None: the length the model was trained with,
            at most 4096, for each of `n_parallel` texts.
        n_parallel: Texts that are computed at once.
        kv_unified: Whether all texts share one cache, and one of them may fill it: what is equal takes room once, and
            where it is full texts stop and go on later. Each token then is compared with the cells of all texts, which
            costs time. Otherwise each of them has ``n_ctx / n_parallel`` tokens of its own.
        n_batch: Tokens of one step.
        n_prompt: Tokens of prompts in a step while texts are being generated, at most.
        target_ms: How long running texts may wait for their next token while prompts are read. None: as long as
            `n_prompt` tokens take.
        max_queued: Requests that may wait; more are refused with QueueFullError. None: any number.
        max_queued_tokens: Tokens of prompts that may wait.
        cache_prompt: Whether requests share what is computed of equal beginnings, unless they say otherwise.
        host_cache_bytes: Bytes of the host's memory for texts that had to leave the KV cache, so that they need not be
            computed again. None: an eighth of what is free, 8 GiB at most. 0: nothing is kept.
        seed: Seed for every request that names none. None: a new random one each time.
        lora: LoRA adapters for every request that names none, as for :class:`pyllm.Llama`. With a scale of 0 one is
            only loaded, and requests can name it.
        draft: A draft model, as for :class:`pyllm.Llama`.
        speculative: How drafts are made for requests that do not say it, as for :class:`pyllm.Llama`.
        speculate_up_to: Drafts are made while so many texts run, and none while more do, which fill the batch already.
        embeddings: Make vectors as well, in contexts of their own; see :meth:`embed`. A model that was made for vectors
            makes only these; False: it generates texts all the same, if it can. None: what it was made for.
        check_memory: Refuse a model or a context that does not fit into memory, before anything is allocated.
        **params: Every argument of :class:`pyllm.core.model.Model` and :class:`pyllm.core.context.Context`.

    Raises:
        UnknownArgumentError: A keyword exists in neither.
        ModelLoadError: llama.cpp could not load the file.
        InsufficientMemoryError: It would not fit into memory.
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
        kv_unified: bool = False,
        n_batch: int = 2048,
        n_prompt: int = 512,
        target_ms: float | None = None,
        max_queued: int | None = None,
        max_queued_tokens: int | None = None,
        cache_prompt: bool = True,
        host_cache_bytes: int | None = None,
        seed: int | None = None,
        lora: Lora | None = None,
        draft: str | os.PathLike[str] | Model | None = None,
        speculative: Any = None,
        speculate_up_to: int = 1,
        embeddings: bool | None = None,
        check_memory: bool = True,
        **params: Any,
    ) -> None:
        for name, value, most in (
            ("n_parallel", n_parallel, MAX_SEQUENCES), ("n_batch", n_batch, None), ("n_prompt", n_prompt, None)
        ):  # fmt: skip
            _check_count(name, value, most)
        if n_batch < n_parallel:
            raise InvalidArgumentError(
                f"n_batch={n_batch} must have room for a token of n_parallel={n_parallel} texts", param="n_batch"
            )
        if target_ms is not None and not target_ms > 0:
            raise InvalidArgumentError(
                f"target_ms must be greater than 0, or None, not {target_ms!r}", param="target_ms"
            )
        host_bytes = check_host_bytes(host_cache_bytes)
        of_model, of_context = split_arguments(params, "Engine()", ModelParams, ContextParams, owner=Engine)
        self._owns_model = not isinstance(model, Model)
        if self._owns_model:
            of_model = arguments_for(speculative) | of_model
        self.model, fitted = loading.open_model(
            model,
            of_model,
            context_params(n_ctx, n_parallel, kv_unified, n_batch, of_context),
            check=check_memory,
            default_n_ctx=lambda model: default_n_ctx(model, n_parallel),
        )
        try:
            self.generates, embeds = products(self.model, embeddings)
            self._adapters = Adapters(self.model, lora)
            self.context = Context(self.model, **given(fitted if self.generates else bare(fitted)))
            layers = of_model.get("n_gpu_layers")
            self._drafts = Drafts(self.context, draft, speculative, speculate_up_to, n_gpu_layers=layers)
        except BaseException:
            if self._owns_model:
                self.model.close()
            raise
        self.vocab = self.model.vocab
        self.seed = seed
        self.cache_prompt: bool | None = cache_prompt
        self.n_parallel = n_parallel
        self.max_queued, self.max_queued_tokens = max_queued, max_queued_tokens
        for_vectors = ContextParams(**of_context, n_ctx=None if self.generates else n_ctx)
        self._wake = Wake()
        self._decoding = RunningDecode(self._wake)
        pace = Pace(n_batch, target_ms, n_prompt)
        self._vectors = vector_queue(self.context, for_vectors, pace, self._decoding) if embeds else None
        # The memory of a recurrent model cannot be cut: what it holds is taken over as a whole.
        whole = self.model.is_recurrent or self.model.is_hybrid
        # What is saved of a sliding window is what the end of the text looks at.
        self._host = HostCache(self.context.state, host_bytes, whole=whole or self.model.n_swa > 0)
        self._cache = SequenceCache(
            self.context.memory,
            self.context.n_ctx,
            self._host,
            n_sequences=self.context.n_seq_max,
            n_each=None if kv_unified else self.context.n_ctx_seq,
            window=self.model.n_swa,
        )
        self._slots = Slots(n_parallel)
        self._context_params = fitted
        self._lane = Lane(
            lambda: self._own_context(ContextParams(**of_context | {"n_ctx": self.context.n_ctx_seq, "n_seq_max": 1}))
        )
        fixed = {name: value for name, value in of_context.items() if value is not None}
        self._beams = BeamLane(
            lambda sizes: self._own_context(
                loading.with_n_ctx(self.model, replace(sizes, **fixed), of_model, check=check_memory)
            )
        )
        self._counters = Counters()
        self._steps = Steps(
            self.context,
            self._cache,
            self._slots,
            self._drafts,
            self._vectors,
            self._lane,
            self._beams,
            Pace(n_batch, target_ms, n_prompt),
            self._counters,
            self._decoding,
            called=self._wake.called,
            n_parallel=n_parallel,
            whole=whole,
        )
        self._texts = self._steps.texts
        self._between = BetweenSteps(self._wake, self._check_open)
        self._adapters.load = self._between.run
        self._new: list[Job] = []
        self._cancels: list[Job] = []
        self._numbers = 0
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="pyllm engine", daemon=True)
        self._between.thread = self._thread
        self._thread.start()

    def _own_context(self, params: ContextParams) -> Context:
        """A context for requests that are computed apart from the others."""
        context = Context(self.model, **given(params))
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
        lora: Lora | None = None,
        slot: int | None = None,
        listener: Callable[[Event], None] | Channel | None = None,
        **arguments: Any,
    ) -> Job:
        """Hand in a request, and go on.

        Args:
            prompt: Text or token ids.
            priority: Smaller ones go first.
            stream: Whether its chunks are wanted as they come, and not only the whole.
            deterministic: The same seed and arguments give the same text again, whatever else the engine does. Such
                requests run one after another, beside all others, and share no prompts.
            lora: The LoRA adapters of this request, as for :class:`pyllm.Llama`, or names of files that are loaded.
                An empty one: none. None: those of the engine. What is loaded stays loaded.
            slot: The slot that it is computed in, if that is free then; see :meth:`slots`. None, or -1: any.
            listener: Called with each chunk, and with the exception that ends it, in the engine's thread instead of
                keeping them for an iteration; it must be quick and raise nothing. With a Channel, in an event loop.
            **arguments: Those of :meth:`pyllm.Llama.create_completion`. A beam search runs beside the other requests,
                in a context of its own that is made when it is needed; its chunks come when the search is complete.

        Returns:
            Job: The request on its way.

        Raises:
            QueueFullError: Too many wait.
            InvalidArgumentError: An argument is out of range, the prompt does not fit, or the sampler belongs to a
                request that has not ended.
            AdapterError: An adapter is none, or not one for this model.
            ClosedError: The engine has been closed.
        """
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise InvalidArgumentError(f"priority must be an integer, not {priority!r}", param="priority")
        if not self.generates:
            raise InvalidArgumentError(f"{self.model.path!r} makes vectors and no texts: ask it with embed()")
        request = CompletionRequest(self, prompt, arguments)  # type: ignore[arg-type]
        if request.overflow.rule != "error":
            raise InvalidArgumentError(
                f"overflow={request.overflow.rule!r} is for a Llama: here a text ends instead", param="overflow"
            )
        adapters, wanted_slot = self._adapters.chosen(lora), self._slots.wanted(slot)
        job = Job(self, request, priority, listener, stream)
        with self._wake:
            self._check_open()
            self._check_queue(len(request.ids))
            self._check_sampler(request)
            self._counters.requests += 1
            texts = []
            for index in range(request.best_of):
                self._numbers += 1
                if request.beams is not None:
                    text: Text = BeamText(request, index, self._numbers, priority)
                else:
                    text = Text(request, index, self._numbers, priority, alone=deterministic)
                text.task.adapters, text.wanted_slot = adapters, wanted_slot
                texts.append(text)
            job.begin(texts)
            PromptRecord.begin(job.texts)
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
            n_new = sum(len(job.texts) for job in self._new)
            return look(
                list(self._texts.values()), n_new, self._cache, self._counters, self._drafts.total, self._vectors
            )

    def check_invariants(self) -> None:
        """Compare the bookkeeping of the KV cache with llama.cpp's memory, between two steps.

        A diagnostic for tests and bug reports: it waits for the step that is running, changes nothing, and takes
        about as long as a step. It compares cells, sequences, slots and drafters with the requests that run.

        Raises:
            InvariantError: They contradict each other, which is a defect of pyllm. ``.problems`` lists how.
            ClosedError: The engine has been closed.
        """
        if problems := self._between.run(self._steps.problems):
            raise InvariantError("; ".join(problems), problems=problems)

    def reset_prefix_cache(self) -> None:
        """Forget the prefixes of ended requests, in the KV cache and in the memory of the host.

        Requests that run go on; the prompts of those to come are computed from their first token.

        Raises:
            ClosedError: The engine has been closed.
        """

        def reset() -> None:
            self._cache.clear()
            self._host.clear()

        self._between.run(reset)

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
            self._drafts.close()
            if self._vectors is not None:
                self._vectors.close()
            self._lane.close()
            self._beams.close()
            self.context.close()
            self._adapters.close()
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

    __reduce__ = not_pickled("its thread and its KV cache belong to this process; make an Engine there")

    def __repr__(self) -> str:
        return f"<Engine {self.model!r}, n_parallel={self.n_parallel}{', closed' if self._closing else ''}>"

    def _speculation(self, wanted: Any) -> SpeculationParams | None:
        """What CompletionRequest asks a Llama for."""
        return self._drafts.params(wanted)

    def _cancel(self, job: Job) -> None:
        with self._wake:
            if not job.done and not job.cancelled:
                job.cancelled = True
                self._cancels.append(job)
                self._decoding.check()
                self._wake.notify()

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedError("this Engine has been closed")

    def _check_queue(self, n_tokens: int) -> None:
        # The thread of the engine takes texts out meanwhile.
        waiting = [text for text in list(self._texts.values()) if text.task.seq is None]
        vectors = [] if self._vectors is None else self._vectors.waiting
        n = len({text.request.id for text in waiting}) + len(self._new) + len(vectors)
        if self.max_queued is not None and n >= max(self.max_queued, 1):
            self._counters.rejected += 1
            raise QueueFullError(f"{n} requests wait already, and max_queued={self.max_queued}")
        if self.max_queued_tokens is not None:
            tokens = sum(text.task.n_left for text in waiting) + sum(len(job.request.ids) for job in self._new)
            tokens += sum(job.ask.n_tokens for job in vectors)
            if tokens and tokens + n_tokens > self.max_queued_tokens:
                self._counters.rejected += 1
                raise QueueFullError(
                    f"prompts of {tokens} tokens wait already, this one has {n_tokens}, and "
                    f"max_queued_tokens={self.max_queued_tokens}"
                )

    def _check_sampler(self, request: CompletionRequest) -> None:
        """A sampler knows what it has chosen, and two texts would mix that up."""
        if request.sampler is None:
            return
        others = [text.request for text in list(self._texts.values())] + [job.request for job in self._new]
        if any(other.sampler is request.sampler for other in others):
            raise InvalidArgumentError(
                "this sampler belongs to a request that has not ended: give each request one of its own, or describe "
                "it by arguments"
            )

    # ---- the thread of the engine

    def _loop(self) -> None:
        error: BaseException = ClosedError("the Engine was closed before the request had ended")
        try:
            while True:
                # While texts go on and nothing has come there is nothing to wait for. What comes now is seen next time.
                if self._wake.called or not self._texts or self._vectors:
                    with self._wake:
                        self._wake.called.clear()
                        work = (self._new, self._cancels, self._texts)
                        while not (self._closing or any(work) or self._between or self._vectors):
                            self._wake.wait()
                        if self._closing:
                            break
                        self._take_in()
                if self._between:
                    self._between.carry_out()
                    self._steps.unsettle()
                self._steps.step()
        except BaseException as cause:
            error = cause
        finally:
            with self._wake:
                self._closing = True
                jobs = [*self._steps.clear(), *self._new]
                self._new.clear()
                self._between.fail(error)
                if self._vectors is not None:
                    self._vectors.fail(error)
            for job in jobs:
                job.fail(error)

    def _take_in(self) -> None:
        """What callers have asked for since the last step."""
        self._steps.take_in(self._new)
        self._new.clear()
        if self._vectors is not None:
            self._counters.cancelled += self._vectors.take_in()
        self._steps.cancel(self._cancels)
        self._cancels.clear()


def _check_count(name: str, value: Any, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        limits = "at least 1" if most is None else f"from 1 to {most}"
        raise InvalidArgumentError(f"{name} must be an integer, {limits}, not {value!r}", param=name)

"""Engine: many requests at once on one model, computed by a thread of its own."""

from __future__ import annotations

import os
import threading
from collections import abc
from collections.abc import Callable, Iterable
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
from pyllm.engine.beam_search import BeamSearchRunner
from pyllm.engine.core import EngineCore
from pyllm.engine.deterministic import DeterministicRunner
from pyllm.engine.drafter_pool import DrafterPool
from pyllm.engine.embedding import EngineEmbedding, bare, embedding_scheduler, products
from pyllm.engine.host_kv_cache import check_host_bytes
from pyllm.engine.metrics import Metrics, collect_metrics
from pyllm.engine.prefill_budget import PrefillBudget
from pyllm.engine.request import Request
from pyllm.engine.request_stream import Event, RequestStream
from pyllm.engine.signals import AbortableDecode, CallQueue, EngineLock
from pyllm.engine.sizes import MAX_SEQUENCES, context_params, default_n_ctx
from pyllm.engine.slot_files import SlotMethods
from pyllm.errors import (
    ClosedError,
    ContextError,
    InvalidArgumentError,
    InvariantError,
    OutOfMemoryError,
    PyllmError,
)
from pyllm.lora import Lora
from pyllm.params import ContextParams, ModelParams, given, split_arguments
from pyllm.speculation.params import SpeculationParams, arguments_for
from pyllm.types import Completion

Prompt = str | bytes | abc.Sequence[int] | NDArray[np.integer[Any]]


class QueueFullError(PyllmError, RuntimeError):
    """More requests wait than the engine was told to hold; try again later."""


class Engine(EngineEmbedding, AdapterMethods, SlotMethods):
    """Generates many texts at once; requests come and go at any time.

    Args:
        model: As for :class:`pyllm.Llama`.
        n_ctx: Size of the KV cache in tokens, for all sequences together. None: the length the model was trained with,
            at most 4096, for each of `n_parallel` sequences.
        n_parallel: Sequences that run at once.
        kv_unified: Whether sequences share one KV cache, and one of them may fill it: equal prefixes take room once,
            and where the cache is full sequences are preempted and go on later. Attention then covers the cells of all
            sequences, which costs time. Otherwise each sequence has ``n_ctx / n_parallel`` tokens of its own.
        n_batch: Tokens of one step.
        n_prompt: Most prefill tokens of a step beside running sequences.
        target_ms: Longest time between two tokens of a running sequence during prefills of others. None: as long as
            `n_prompt` tokens take.
        max_queued: Requests that may wait; more are refused with QueueFullError. None: any number.
        max_queued_tokens: Tokens of prompts that may wait.
        cache_prompt: Whether requests share cached prefixes, unless they say otherwise.
        host_cache_bytes: Bytes of host memory for sequences that leave the KV cache, so that they need not be computed
            again. None: an eighth of what is free, 8 GiB at most. 0: nothing is kept.
        seed: Seed for every request that names none. None: a new random one each time.
        lora: LoRA adapters for every request that names none, as for :class:`pyllm.Llama`. With a scale of 0 one is
            only loaded, and requests can name it.
        draft: A draft model, as for :class:`pyllm.Llama`.
        speculative: How drafts are made for requests that do not say it, as for :class:`pyllm.Llama`.
        speculate_up_to: Drafts are made while at most so many sequences run: more of them fill the batch already.
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
            self._drafters = DrafterPool(self.context, draft, speculative, speculate_up_to, n_gpu_layers=layers)
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
        self._lock = EngineLock()
        self._decoding = AbortableDecode(self._lock)
        budget = PrefillBudget(n_batch, target_ms, n_prompt)
        self._embeddings = embedding_scheduler(self.context, for_vectors, budget, self._decoding) if embeds else None
        self._context_params = fitted
        fixed = {name: value for name, value in of_context.items() if value is not None}
        deterministic = DeterministicRunner(
            lambda: self._own_context(ContextParams(**of_context | {"n_ctx": self.context.n_ctx_seq, "n_seq_max": 1}))
        )
        beams = BeamSearchRunner(
            lambda sizes: self._own_context(
                loading.with_n_ctx(self.model, replace(sizes, **fixed), of_model, check=check_memory)
            )
        )
        self._core = EngineCore(
            self.context,
            PrefillBudget(n_batch, target_ms, n_prompt),
            self._decoding,
            n_running=n_parallel,
            unified=kv_unified,
            host_bytes=host_bytes,
            drafters=self._drafters,
            embeddings=self._embeddings,
            deterministic=deterministic,
            beams=beams,
            work_available=self._lock.work_available,
            make_context=self._new_context,
        )
        self._deterministic, self._beams = deterministic, beams
        self._calls = CallQueue(self._lock, self._check_open)
        self._adapters.load = self._calls.run
        self._new: list[Request] = []
        self._cancels: list[Request] = []
        self._numbers = 0
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="pyllm engine", daemon=True)
        self._calls.thread = self._thread
        self._thread.start()

    def _new_context(self) -> Context:
        """Make the context anew, in the place of one that is of no use any more."""
        old, params = self.context, given(self._context_params)
        threadpool = old.threadpool
        try:
            # The old one stays open meanwhile, where memory allows: callers look at its sizes.
            new = Context(self.model, **params)
        except (ContextError, OutOfMemoryError):
            old.close()
            new = Context(self.model, **params)
        if threadpool is not None:
            new.attach_threadpool(threadpool)
        self.context = new
        old.close()
        return new

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
        listener: Callable[[Event], None] | RequestStream | None = None,
        **arguments: Any,
    ) -> Request:
        """Hand in a request, and go on.

        Args:
            prompt: Sequence or token ids.
            priority: Smaller ones go first.
            stream: Whether its chunks are wanted as they come, and not only the whole.
            deterministic: The same seed and arguments give the same text again, whatever else the engine does. Such
                requests run one after another, beside all others, and share no prompts.
            lora: The LoRA adapters of this request, as for :class:`pyllm.Llama`, or names of files that are loaded.
                An empty one: none. None: those of the engine. What is loaded stays loaded.
            slot: The slot that it is computed in, if that is free then; see :meth:`slots`. None, or -1: any.
            listener: Called with each chunk, and with the exception that ends it, in the engine's thread instead of
                keeping them for an iteration; it must be quick and raise nothing. A RequestStream: in its event loop.
            **arguments: Those of :meth:`pyllm.Llama.create_completion`. A beam search runs beside the other requests,
                in a context of its own that is made when it is needed; its chunks come when the search is complete.

        Returns:
            Request: The request on its way.

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
        asked = CompletionRequest(self, prompt, arguments)
        if deterministic and asked.overflow.rule == "shift":
            raise InvalidArgumentError(
                "a deterministic request cannot be combined with overflow='shift': what a shift keeps depends on when "
                "the context was full",
                param="overflow",
            )
        adapters, wanted_slot = self._adapters.chosen(lora), self._core.slots.wanted(slot)
        with self._lock:
            self._check_open()
            self._check_queue(len(asked.ids))
            self._check_sampler(asked)
            self._core.counters.requests += 1
            request = Request(
                asked,
                number=self._numbers + 1,
                priority=priority,
                deterministic=deterministic,
                adapters=adapters,
                slot=wanted_slot,
                streamed=stream,
                listener=listener,
                cancel=self._cancel,
            )
            self._numbers += len(request.sequences)
            self._new.append(request)
            self._lock.notify()
        return request

    def complete(self, prompt: Prompt, **arguments: Any) -> Completion:
        """One request, from beginning to end; see :meth:`submit`."""
        request = self.submit(prompt, stream=False, **arguments)
        try:
            return request.result()
        except BaseException:
            request.cancel()
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
        requests: list[Request] = []
        try:
            for prompt in prompts:
                requests.append(self.submit(prompt, stream=False, **arguments))
            if not progress:
                return [request.result() for request in requests]
            from rich.console import Console
            from rich.progress import track

            return [request.result() for request in track(requests, "texts", console=Console(stderr=True))]
        except BaseException:
            for request in requests:
                request.cancel()
            raise

    def metrics(self) -> Metrics:
        """What it is doing and has done."""
        with self._lock:
            return collect_metrics(self._core, sum(len(request.sequences) for request in self._new))

    def check_invariants(self) -> None:
        """Compare the bookkeeping of the KV cache with llama.cpp's memory, between two steps.

        A diagnostic for tests and bug reports: it waits for the step that is running, changes nothing, and takes
        about as long as a step. It compares cells, sequences, slots and drafters with the requests that run.

        Raises:
            InvariantError: They contradict each other, which is a defect of pyllm. ``.problems`` lists how.
            ClosedError: The engine has been closed.
        """
        if problems := self._calls.run(self._core.problems):
            raise InvariantError("; ".join(problems), problems=problems)

    def reset_prefix_cache(self) -> None:
        """Forget the prefixes of ended requests, in the KV cache and in the memory of the host.

        Requests that run go on; the prompts of those to come are computed from their first token.

        Raises:
            ClosedError: The engine has been closed.
        """

        def reset() -> None:
            self._core.cache.clear()
            self._core.host.clear()

        self._calls.run(reset)

    def speculation_params(self, value: Any) -> SpeculationParams | None:
        """How a request drafts that is given `value` as ``speculative=``; None: without drafts.

        Raises:
            InvalidArgumentError: There is no such way to draft, or it cannot be done here.
        """
        return self._drafters.params(value)

    def detokenize(self, tokens: Any) -> str:
        """Turn token ids into text."""
        return self.vocab.detokenize(tokens, unparse_special=True)

    def close(self) -> None:
        """Stop: requests that have not ended fail with ClosedError. Closing twice is allowed."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self._drafters.close()
            if self._embeddings is not None:
                self._embeddings.close()
            self._deterministic.close()
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

    def _cancel(self, request: Request) -> None:
        with self._lock:
            if not request.done and not request.cancelled:
                request.cancelled = True
                self._cancels.append(request)
                self._decoding.check()
                self._lock.notify()

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedError("this Engine has been closed")

    def _check_queue(self, n_tokens: int) -> None:
        # The thread of the engine takes texts out meanwhile.
        waiting = [sequence for sequence in list(self._core.sequences.values()) if sequence.seq_id is None]
        vectors = [] if self._embeddings is None else self._embeddings.waiting
        n = len({sequence.request.id for sequence in waiting}) + len(self._new) + len(vectors)
        if self.max_queued is not None and n >= max(self.max_queued, 1):
            self._core.counters.rejected += 1
            raise QueueFullError(f"{n} requests wait already, and max_queued={self.max_queued}")
        if self.max_queued_tokens is not None:
            tokens = sum(sequence.n_left for sequence in waiting) + sum(
                len(request.completion_request.ids) for request in self._new
            )
            tokens += sum(request.ask.n_tokens for request in vectors)
            if tokens and tokens + n_tokens > self.max_queued_tokens:
                self._core.counters.rejected += 1
                raise QueueFullError(
                    f"prompts of {tokens} tokens wait already, this one has {n_tokens}, and "
                    f"max_queued_tokens={self.max_queued_tokens}"
                )

    def _check_sampler(self, request: CompletionRequest) -> None:
        """A sampler knows what it has chosen, and two texts would mix that up."""
        if request.sampler is None:
            return
        others = [sequence.request for sequence in list(self._core.sequences.values())]
        others += [waiting.completion_request for waiting in self._new]
        if any(other.sampler is request.sampler for other in others):
            raise InvalidArgumentError(
                "this sampler belongs to a request that has not ended: give each request one of its own, or describe "
                "it by arguments"
            )

    # ---- the thread of the engine

    def _loop(self) -> None:
        core, lock, embeddings = self._core, self._lock, self._embeddings
        error: BaseException = ClosedError("the Engine was closed before the request had ended")
        try:
            while True:
                # While sequences run and nothing has come, the lock is not needed.
                if lock.work_available or not core.sequences or embeddings:
                    with lock:
                        lock.work_available.clear()
                        while not (self._closing or self._new or self._cancels or self._calls or core.has_work):
                            lock.wait()
                        if self._closing:
                            break
                        self._take_in()
                if self._calls:
                    self._calls.carry_out()
                    core.unsettle()
                core.step()
        except BaseException as cause:
            error = cause
        finally:
            with lock:
                self._closing = True
                requests = [*core.clear(), *self._new]
                self._new.clear()
                self._calls.fail(error)
                if embeddings is not None:
                    embeddings.fail(error)
            for request in requests:
                request.fail(error)

    def _take_in(self) -> None:
        """Hand what callers have asked for since the last step to the core."""
        for request in self._new:
            self._core.add_request(request)
        self._new.clear()
        if self._embeddings is not None:
            self._core.counters.cancelled += self._embeddings.take_in()
        for request in self._cancels:
            self._core.abort(request)
        self._cancels.clear()


def _check_count(name: str, value: Any, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        limits = "at least 1" if most is None else f"from 1 to {most}"
        raise InvalidArgumentError(f"{name} must be an integer, {limits}, not {value!r}", param=name)

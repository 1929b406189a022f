"""What an engine does with embeddings: the methods of a Llama, computed by its own thread beside the texts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.embedding.asks import Ask
from pyllm.embedding.embedder import Embedder, EmbeddingCall
from pyllm.embedding.methods import EmbeddingMethods
from pyllm.engine.adapters import Adapters
from pyllm.engine.embedding_scheduler import EmbeddingScheduler, EmbeddingTask, SharedEmbedder
from pyllm.engine.prefill_budget import PrefillBudget
from pyllm.engine.signals import AbortableDecode, EngineLock
from pyllm.errors import InvalidArgumentError
from pyllm.params import ContextParams

if TYPE_CHECKING:
    from pyllm.engine.core import EngineCore

T = TypeVar("T")

# Results with more numbers than that are made in a thread, so that the event loop goes on meanwhile.
_MANY_TEXTS = 16
_BARE_TOKENS = 32


class EngineEmbedding(EmbeddingMethods):
    """The part of an engine that embeds and reranks."""

    model: Model
    context: Context
    _embeddings: EmbeddingScheduler | None
    _adapters: Adapters
    _lock: EngineLock
    _core: EngineCore
    _thread: threading.Thread
    if TYPE_CHECKING:

        def _check_open(self) -> None: ...

        def _check_queue(self, n_tokens: int) -> None: ...

    @property
    def embeds(self) -> bool:
        """Whether it can be asked for vectors."""
        return self._embeddings is not None

    def _embedder(self) -> Embedder:
        self._check_open()
        if self._embeddings is None:
            raise InvalidArgumentError("this Engine generates texts only: make it with embeddings=True")
        return self._embeddings.embedder

    def _asked(self, ask: Ask[T], job: EmbeddingCall | None = None) -> T:
        vector_job = self._submit_vectors(ask)
        try:
            return ask.finish(vector_job.result())
        except BaseException:
            self._cancel_vectors(vector_job)
            raise

    async def acompute(self, make: Callable[[Embedder], Ask[T]]) -> T:
        """See :meth:`pyllm.Llama.acompute`. No thread waits for it."""
        embedder, loop = self._embedder(), asyncio.get_running_loop()
        ended = asyncio.Event()

        def notify() -> None:
            try:
                loop.call_soon_threadsafe(ended.set)
            except RuntimeError:  # the loop is closed: nobody waits for it
                pass

        # Tokenizing takes a while, in which the loop shall go on.
        ask = await asyncio.to_thread(make, embedder)
        job = self._submit_vectors(ask, notify)
        try:
            await ended.wait()
        except asyncio.CancelledError:
            self._cancel_vectors(job)
            raise
        vectors = job.result(0)
        return ask.finish(vectors) if len(vectors) <= _MANY_TEXTS else await asyncio.to_thread(ask.finish, vectors)

    def _submit_vectors(self, ask: Ask[Any], listener: Callable[[], None] | None = None) -> EmbeddingTask:
        assert self._embeddings is not None
        if threading.current_thread() is self._thread:
            raise InvalidArgumentError("this is the thread that would compute it: ask from another one")
        job = EmbeddingTask(ask, self._adapters.chosen(None), listener)
        with self._lock:
            self._check_open()
            self._check_queue(ask.n_tokens)
            self._core.counters.requests += 1
            self._embeddings.submit(job)
            self._lock.notify()
        return job

    def _cancel_vectors(self, job: EmbeddingTask) -> None:
        assert self._embeddings is not None
        with self._lock:
            self._embeddings.cancel(job)
            self._lock.notify()


def products(model: Model, embeddings: bool | None) -> tuple[bool, bool]:
    """What an engine makes of a model.

    Args:
        model: The model.
        embeddings: What the caller says: True: vectors. False: no vectors. None: vectors if it was made for them.

    Returns:
        tuple[bool, bool]: Whether it generates texts, and whether it makes vectors.

    Raises:
        InvalidArgumentError: It can do neither, or not what is wanted.
    """
    architecture = model.meta("general.architecture")
    if model.has_encoder and model.has_decoder:
        raise InvalidArgumentError(f"{model.path!r} is an encoder-decoder model: engines have no use for it")
    writes = model.has_decoder and model.meta(f"{architecture}.attention.causal") != "false"
    if embeddings is False:
        if not writes:
            raise InvalidArgumentError(f"{model.path!r} makes vectors and no texts: embeddings=False leaves nothing")
        return True, False
    # The file says how vectors of its tokens become one: it was made for that, and not for texts.
    if not writes or model.meta(f"{architecture}.pooling_type") not in (None, "0"):
        return False, True
    return True, bool(embeddings)


def bare(params: ContextParams) -> ContextParams:
    """For the context of an engine that generates no texts: as small as can be."""
    n = _BARE_TOKENS
    return replace(params, n_ctx=n, n_batch=n, n_ubatch=n, n_seq_max=1, swa_full=None, kv_unified=None)


def embedding_scheduler(
    context: Context, params: ContextParams, pace: PrefillBudget, decoding: AbortableDecode
) -> EmbeddingScheduler:
    """What makes the vectors of an engine.

    Args:
        context: The engine's own, whose threads compute them.
        params: How their contexts are made.
        pace: How many tokens they get while texts are being generated.
        decoding: Aborts a decode when all requests that share it are cancelled.
    """
    return EmbeddingScheduler(SharedEmbedder(context.model, params, context.threadpool), pace, decoding)

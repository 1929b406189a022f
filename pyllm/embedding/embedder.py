"""Embedder: contexts that turn token ids into vectors, beside the context that generates text."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import enums
from pyllm.core.adapter import LoraAdapter
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.enums import AttentionType, PoolingType
from pyllm.errors import ClosedError, DecodeAborted, InvalidArgumentError, PyllmError
from pyllm.params import ContextParams, given

Vectors = list[NDArray[np.float32]]

_TOKENS_AT_ONCE = 512
_FEW_TOKENS = 64
_TEXTS_AT_ONCE = 64
_LOGITS_BYTES = 128 << 20
_N_CTX_UNKNOWN = 512
# What these contexts decide by themselves.
_OWN = ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "embeddings", "pooling_type", "kv_unified")
_CLASSIFIER = ("cls.weight", "cls.output.weight")
_POSITIONS = "position_embd.weight"


class EmbeddingCall:
    """A computation that another thread can call off with :meth:`Embedder.cancel`."""

    def __init__(self) -> None:
        self.cancelled = False

    def check(self) -> None:
        """Raise DecodeAborted when it was called off."""
        if self.cancelled:
            raise DecodeAborted("the embedding was aborted", function="llama_decode")


@dataclass(frozen=True, slots=True)
class _PooledContext:
    """A context, and the longest text that it takes."""

    context: Context
    longest: int


class Embedder:
    """Turns token ids into vectors, many texts in each decode.

    It makes a context for each pooling type that is asked for, when it is asked for, and a larger one in its place when
    a text needs it: nothing is taken for texts that never come. Threads wait for each other.

    Args:
        model: The model; it stays open.
        params: Settings of the contexts. ``n_ctx`` is the most tokens of a text, ``n_batch`` how many are computed at
            once; sizes that only generation needs are ignored.
    """

    def __init__(self, model: Model, params: ContextParams) -> None:
        self.model = model
        self.params = params
        self._lock = threading.Lock()
        self._contexts: dict[PoolingType, _PooledContext] = {}
        self._closed = False
        self._state_lock = threading.Lock()
        self._job: EmbeddingCall | None = None
        self._context: Context | None = None

    def close(self) -> None:
        """Free the contexts, after the decode that is running. Closing twice is allowed."""
        with self._state_lock:
            self._closed = True
            pooled = list(self._contexts.values())
            self._contexts.clear()
        for one in pooled:
            one.context.close()

    def cancel(self, job: EmbeddingCall | None = None) -> None:
        """Call a computation off; it raises DecodeAborted. Takes no lock that is held for long.

        Args:
            job: Which one; None: the one that is running, if there is one.
        """
        with self._state_lock:
            job = self._job if job is None else job
            if job is None:
                return
            job.cancelled = True
            if self._job is job and self._context is not None:
                self._context.abort()

    def clear_abort(self) -> None:
        """Take back a :meth:`cancel` that came when the decode was done, so that the next one is not aborted."""
        with self._state_lock:
            for one in self._contexts.values():
                one.context.clear_abort()

    # ---- what the model can do

    @property
    def limit(self) -> int:
        """Most tokens of a text: n_ctx where it was given, else the length the model was trained with."""
        trained = self.model.n_ctx_train or _N_CTX_UNKNOWN
        asked = self.params.n_ctx or trained
        # Where positions are learned there are no others.
        beyond = asked > trained and self._tensors is not None and _POSITIONS not in self._tensors
        return asked if beyond else min(asked, trained)

    def n_batch(self, pooling: PoolingType) -> int:
        """About how many tokens are computed at once: n_batch where it was given."""
        asked = self.params.n_batch or self.params.n_ubatch
        if not asked:
            asked = _TOKENS_AT_ONCE
            if not self._is_causal or pooling not in (PoolingType.LAST, PoolingType.RANK):
                # llama.cpp keeps room for the logits of every token.
                asked = max(_FEW_TOKENS, min(asked, _LOGITS_BYTES // (4 * self.model.n_vocab)))
        return min(asked, self.limit)

    @property
    def _is_causal(self) -> bool:
        if self.model.has_encoder:
            return False
        if self.params.attention_type is not None:
            return enums.coerce(AttentionType, self.params.attention_type, "attention_type") != AttentionType.NON_CAUSAL
        return self.model.meta(f"{self.model.meta('general.architecture')}.attention.causal") != "false"

    @property
    def is_reranker(self) -> bool:
        """Whether the model has a head that gives scores."""
        if self._own_pooling() == PoolingType.RANK or self.model.cls_labels:
            return True
        # Older files do not say it; but the tensors are there.
        return self._tensors is not None and not self._tensors.isdisjoint(_CLASSIFIER)

    @cached_property
    def _tensors(self) -> frozenset[str] | None:
        """Names of the tensors in the file; None for a model that was not loaded from one file."""
        from pyllm.core.gguf import GGUFReader

        try:
            with GGUFReader(self.model.path) as reader:
                return frozenset(tensor.name for tensor in reader.tensors)
        except (OSError, PyllmError):
            return None

    def _own_pooling(self) -> PoolingType:
        number = self.model.meta(f"{self.model.meta('general.architecture')}.pooling_type")
        try:
            return PoolingType(int(number or 0))
        except ValueError:
            return PoolingType.NONE

    def pooling(self, asked: PoolingType | int | str | None) -> PoolingType:
        """The pooling type to use.

        Args:
            asked: What the caller asks for. None: what ``params`` says, then what the model says, then the mean.

        Raises:
            InvalidArgumentError: There is no such type, or the model cannot do it.
        """
        name = os.path.basename(self.model.path)
        if self.model.has_encoder and self.model.has_decoder:
            raise InvalidArgumentError(f"{name!r} is an encoder-decoder model: it has no vectors of texts")
        if asked is None:
            asked = self.params.pooling_type
        pooling = PoolingType.UNSPECIFIED if asked is None else enums.coerce(PoolingType, asked, "pooling")
        if pooling == PoolingType.UNSPECIFIED:
            pooling = self._own_pooling()
            if pooling == PoolingType.RANK:
                raise InvalidArgumentError(
                    f"{name!r} is a reranker: it scores pairs of texts. Use rerank(), or name a pooling"
                )
            if pooling == PoolingType.NONE:
                return PoolingType.MEAN
        if pooling == PoolingType.RANK and not self.is_reranker:
            raise InvalidArgumentError(
                f"{name!r} has no head that gives scores: pooling='rank' and rerank() need a reranker"
            )
        return pooling

    # ---- computing

    def compute(
        self,
        texts: Sequence[NDArray[np.int32]],
        pooling: PoolingType,
        *,
        adapters: tuple[tuple[LoraAdapter, float], ...] = (),
        job: EmbeddingCall | None = None,
    ) -> Vectors:
        """The vectors of texts, as llama.cpp gives them.

        Args:
            texts: Token ids of each, int32, at least 1 and at most :attr:`limit` of them.
            pooling: See :meth:`pooling`.
            adapters: The LoRA adapters to use, with their scales.
            job: What :meth:`cancel` is called with.

        Returns:
            list: For each text float32 of shape (n_embd,); with NONE (n_tokens, n_embd), with RANK (n_cls_out,).

        Raises:
            InvalidArgumentError: The model cannot be asked for that.
            DecodeAborted: It was called off.
            ContextError: There is no memory for a context of that size.
        """
        steps = self.steps(texts, pooling, adapters=adapters, job=job)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: Vectors = end.value
                return result

    def steps(
        self,
        texts: Sequence[NDArray[np.int32]],
        pooling: PoolingType,
        *,
        adapters: tuple[tuple[LoraAdapter, float], ...] = (),
        job: EmbeddingCall | None = None,
        most: Callable[[], int] | None = None,
    ) -> Generator[int, None, Vectors]:
        """As :meth:`compute`, decode by decode. Nobody else can compute until it has ended or is closed.

        Args:
            texts: See :meth:`compute`.
            pooling: See :meth:`compute`.
            adapters: See :meth:`compute`.
            job: See :meth:`compute`.
            most: Asked before each decode how many tokens of a text that can be cut may be in it.

        Yields:
            int: Tokens of the decode that was made.

        Returns:
            list: See :meth:`compute`.
        """
        job = EmbeddingCall() if job is None else job
        if not texts:
            return []
        result: Vectors = []
        with self._lock:
            with self._state_lock:
                self._job = job
            try:
                context = self._prepared(pooling, max(map(len, texts)))
                if context.adapters != adapters:
                    context.set_adapters(adapters)
                n_tokens = context.n_ctx if self._splits(context, pooling) else self.n_batch(pooling)
                for pack in packs([len(text) for text in texts], n_tokens=n_tokens, n_seq=context.n_seq_max):
                    result += yield from self._pack(context, [texts[i] for i in pack], pooling, job, most)
            finally:
                with self._state_lock:
                    self._job = self._context = None
        return result

    def _prepared(self, pooling: PoolingType, longest: int) -> Context:
        """The context for such texts, made now if there is none."""
        one = self._contexts.get(pooling)
        if one is None:
            one = self._replace(pooling, self.n_batch(pooling), splits=False)
        context = one.context
        if pooling == PoolingType.CLS and self._sees_behind(context):
            raise InvalidArgumentError(
                "pooling='cls' takes the vector of the first token, which in this model knows nothing of the others: "
                "use 'last' or 'mean', or make the Llama with attention_type='non_causal'",
                param="pooling",
            )
        if longest > one.longest:
            size = self.n_batch(pooling)
            while size < longest:
                size *= 2
            one = self._replace(pooling, min(size, max(self.limit, longest)), splits=self._splits(one.context, pooling))
        with self._state_lock:
            self._context = one.context
        return one.context

    def _replace(self, pooling: PoolingType, longest: int, *, splits: bool) -> _PooledContext:
        old = self._contexts.pop(pooling, None)
        if old is not None:
            old.context.close()  # first, so that there are never two
        if self._closed:
            raise ClosedError("the Llama has been closed")
        arguments = {name: value for name, value in given(self.params).items() if name not in _OWN}
        longest = _rounded(longest)
        n_batch = _rounded(self.n_batch(pooling)) if splits else longest
        # A recurrent state is kept for every sequence, and they are computed one by one.
        recurrent = self.model.is_recurrent or self.model.is_hybrid
        context = self._new_context(
            **arguments,
            n_ctx=longest,
            n_batch=n_batch,
            n_ubatch=n_batch,
            n_seq_max=1 if recurrent else min(_TEXTS_AT_ONCE, n_batch),
            kv_unified=True,
            embeddings=True,
            pooling_type=pooling,
        )
        one = _PooledContext(context, longest)
        with self._state_lock:
            if not self._closed:
                self._contexts[pooling] = one
                return one
        context.close()
        raise ClosedError("the Llama has been closed")

    def _new_context(self, **arguments: Any) -> Context:
        return Context(self.model, **arguments)

    def _sees_behind(self, context: Context) -> bool:
        """Whether tokens see those before them only. An encoder sees all, whatever its context says."""
        return context.has_memory and context.causal_attn and not self.model.has_encoder

    def _splits(self, context: Context, pooling: PoolingType) -> bool:
        """Whether a text may be computed in several portions."""
        return self._sees_behind(context) and pooling != PoolingType.MEAN

    def _pack(
        self,
        context: Context,
        texts: list[NDArray[np.int32]],
        pooling: PoolingType,
        job: EmbeddingCall,
        most: Callable[[], int] | None,
    ) -> Generator[int, None, Vectors]:
        """The vectors of texts that the context has room for at once."""
        while True:
            job.check()
            if self._closed:
                raise ClosedError("the Llama has been closed")
            try:
                return (yield from self._decoded(context, texts, pooling, most))
            except DecodeAborted:
                # It may have been meant for another job, which had just ended by itself.
                job.check()

    def _decoded(
        self,
        context: Context,
        texts: list[NDArray[np.int32]],
        pooling: PoolingType,
        most: Callable[[], int] | None,
    ) -> Generator[int, None, Vectors]:
        if context.has_memory:
            context.memory.clear(data=False)
        lengths = np.array([len(text) for text in texts])
        ends = np.cumsum(lengths)
        tokens = np.concatenate(texts)
        pos = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
        seq_ids = np.repeat(np.arange(len(texts), dtype=np.int32), lengths)
        splits = self._splits(context, pooling)
        most = most if splits else None
        if pooling in (PoolingType.LAST, PoolingType.RANK) and splits:
            # Only the last tokens have a vector to give. The others are computed without outputs: where embeddings are
            # on, llama.cpp makes an output of every token, with the logits of its whole vocabulary.
            last = np.zeros(len(tokens), np.bool_)
            last[ends - 1] = True
            context.set_embeddings(False)
            try:
                yield from self._decode(context, tokens[~last], pos[~last], seq_ids[~last], "none", most)
            finally:
                context.set_embeddings(True)
            # All in one decode: llama.cpp knows the vectors of the last one only.
            yield from self._decode(context, tokens[last], pos[last], seq_ids[last], "all", None)
        else:
            rows = yield from self._decode(context, tokens, pos, seq_ids, "all", most)
            if pooling == PoolingType.NONE:
                return [part.copy() for part in np.split(rows, ends[:-1])]
        return [context.embeddings_seq(i) for i in range(len(texts))]

    def _decode(
        self,
        context: Context,
        tokens: NDArray[np.int32],
        pos: NDArray[np.int32],
        seq_ids: NDArray[np.int32],
        outputs: str,
        most: Callable[[], int] | None,
    ) -> Generator[int, None, NDArray[np.float32]]:
        """Compute tokens in as many decodes as it takes; the vectors of all, where the context does not pool."""
        rows = [np.empty((0, context.model.n_embd_out), np.float32)]
        start = 0
        while start < len(tokens):
            step = context.n_batch if most is None else max(1, min(context.n_batch, most()))
            part = slice(start, start + step)
            batch = Batch.from_arrays(tokens[part], pos=pos[part], seq_ids=seq_ids[part], outputs=outputs)
            if self.model.has_encoder:
                context.encode(batch)
            else:
                context.decode(batch)
            if context.pooling_type == PoolingType.NONE:
                rows.append(context.embeddings.copy())
            start += step
            yield len(tokens[part])
        return np.concatenate(rows)


def _rounded(n: int) -> int:
    """A size that the number of sequences divides, which llama.cpp's graph of a mean must have."""
    return n if n <= _TEXTS_AT_ONCE else -(-n // _TEXTS_AT_ONCE) * _TEXTS_AT_ONCE


def packs(lengths: Sequence[int], *, n_tokens: int, n_seq: int) -> Iterator[range]:
    """Cut a row of texts into packs.

    Args:
        lengths: Tokens of each text.
        n_tokens: Most tokens of a pack. A text that is longer is a pack of its own.
        n_seq: Most texts of a pack.

    Yields:
        range: The indices of the texts of a pack; each text is in one, in order.
    """
    first = total = 0
    for i, length in enumerate(lengths):
        if i > first and (total + length > n_tokens or i - first >= n_seq):
            yield range(first, i)
            first, total = i, 0
        total += length
    if first < len(lengths):
        yield range(first, len(lengths))

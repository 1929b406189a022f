"""What a Llama does with embeddings: vectors of texts, and documents ranked for a query."""

from __future__ import annotations

import asyncio
import numbers
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ClosedError, InvalidArgumentError

if TYPE_CHECKING:
    from pyllm.core.context import Context
    from pyllm.core.model import Model
    from pyllm.embedding.embedder import Embedder, Job
    from pyllm.embedding.inputs import Text, Texts
    from pyllm.embedding.types import EmbeddingResponse, EncodingFormat, RerankResult
    from pyllm.embedding.vectors import Normalize
    from pyllm.embedding.windows import Overflow
    from pyllm.enums import PoolingType
    from pyllm.params import ContextParams

    Pooling = PoolingType | Literal["mean", "cls", "last", "rank", "none"] | None

T = TypeVar("T")

_TEXTS_OF_A_BLOCK = 256
_ARGUMENTS = ("pooling", "normalize", "overflow", "dimensions", "parse_special")
# Two threads that are the first to embed must not make two embedders.
_making = threading.Lock()


class EmbeddingMethods:
    """The part of :class:`pyllm.Llama` that embeds and reranks, with contexts of its own beside the one that writes."""

    model: Model
    context: Context
    context_params: ContextParams
    _embedder_made: Embedder | None = None

    # ---- vectors

    @overload
    def embed(
        self,
        input: Text | Texts,
        *,
        pooling: Literal["mean", "cls", "last", "rank"] | None = None,
        normalize: Normalize = True,
        overflow: Overflow = "error",
        dimensions: int | None = None,
        parse_special: bool = False,
    ) -> NDArray[np.float32]: ...

    @overload
    def embed(
        self,
        input: Text | Texts,
        *,
        pooling: PoolingType | Literal["none"],
        normalize: Normalize = True,
        overflow: Overflow = "error",
        dimensions: int | None = None,
        parse_special: bool = False,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]: ...

    def embed(
        self,
        input: Text | Texts,
        *,
        pooling: Pooling = None,
        normalize: Normalize = True,
        overflow: Overflow = "error",
        dimensions: int | None = None,
        parse_special: bool = False,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """The vectors of texts.

        They are computed in a context of their own, many texts in each decode. Text can be generated meanwhile;
        :meth:`pyllm.Llama.abort` ends both. The
        LoRA adapters of :attr:`context` are used here too. Which texts are computed together changes the last bits.

        Args:
            input: A text (str, UTF-8 bytes, or token ids, which are taken as they are), or several in any iterable.
            pooling: How the vectors of tokens become one: "mean", "cls" (that of the first), "last", "rank" (the
                scores of a classification head) or "none". None: the ``pooling_type`` of the Llama, else the model's
                own, else "mean".
            normalize: True or "euclidean": to length 1. False: as they are. "taxicab": absolute values sum up to 1.
                "max_absolute": the largest absolute value becomes 32760. A number: as llama.cpp's programs count
                them, -1 none, 0 max_absolute, and from 1 on the p of a p-norm. Scores are never normalised.
            overflow: For a text that is longer than the model can read: "error"; "truncate" computes its beginning;
                "mean" computes windows of about equal length and takes their mean, weighted by their lengths, before
                it is normalised. Tokens that the model puts around every text stand around each window.
            dimensions: Keep so many numbers of each vector, before it is normalised, for models that were trained so
                (Matryoshka).
            parse_special: Read names of control tokens in texts as these tokens. Leave it off for texts of others.

        Returns:
            float32, C-contiguous, in the order of the input: shape (n, n_embd), or (n_embd,) for a single text; with
            "rank" the model's number of scores in the place of n_embd. With "none" a list of arrays of shape
            (n_tokens, n_embd), or one such array.

        Raises:
            InvalidArgumentError: A text is empty, longer than the model can read, or no text; or an argument is out of
                range, or nothing that this model can do.
            EmbeddingError: A vector is not finite, or is zero and cannot be normalised.
            DecodeAborted: It was aborted.

        Wraps ``llama_decode`` and ``llama_get_embeddings_seq``.
        """
        vectors, _, alone = self._embedded(
            input,
            pooling=pooling,
            normalize=normalize,
            overflow=overflow,
            dimensions=dimensions,
            parse_special=parse_special,
        )
        result: NDArray[np.float32] | list[NDArray[np.float32]] = vectors[0] if alone else vectors
        return result

    def iter_embed(
        self, input: Texts, *, block_size: int = _TEXTS_OF_A_BLOCK, **arguments: Any
    ) -> Iterator[NDArray[np.float32] | list[NDArray[np.float32]]]:
        """As :meth:`embed`, for more texts than fit into memory.

        Args:
            input: Any iterable of texts; it is read block by block.
            block_size: Texts in a block.
            **arguments: Those of :meth:`embed`.

        Yields:
            float32, shape (k, n_embd), with k = block_size but for the last block; with "none" lists.
        """
        from pyllm.embedding.inputs import is_one

        _check_positive("block_size", block_size)
        if is_one(input):
            raise InvalidArgumentError("iter_embed() takes several texts: put a single one into a list")
        if isinstance(input, Mapping) or not isinstance(input, Iterable):
            raise InvalidArgumentError(f"iter_embed() takes several texts in any iterable, not {type(input).__name__}")
        _check_arguments(arguments, "iter_embed()")
        return self._blocks(iter(input), block_size, arguments)

    def _blocks(self, texts: Iterator[Text], block_size: int, arguments: dict[str, Any]) -> Iterator[Any]:
        done = 0
        while block := list(islice(texts, block_size)):
            yield self._embedded(block, **arguments, name=partial(_numbered, first=done))[0]
            done += len(block)

    def create_embedding(
        self,
        input: Text | Texts,
        *,
        model: str | None = None,
        encoding_format: EncodingFormat = "float",
        dimensions: int | None = None,
        **arguments: Any,
    ) -> EmbeddingResponse:
        """As :meth:`embed`, in the shape of OpenAI's API.

        Args:
            input: See :meth:`embed`.
            model: The name to put into the response; None: that of the model's file.
            encoding_format: "float": lists of numbers. "base64": the bytes of float32, little-endian, in base64.
            dimensions: See :meth:`embed`.
            **arguments: Those of :meth:`embed`, but for pooling "none": a text has one vector here.

        Returns:
            EmbeddingResponse: The vectors as arrays too, at ``.data[i].vector``.

        Raises:
            InvalidArgumentError: As :meth:`embed`.
        """
        _check_arguments(arguments, "create_embedding()")
        return self._created(input, model, encoding_format, dimensions=dimensions, **arguments)

    def _created(
        self, input: Text | Texts, model: str | None, encoding_format: EncodingFormat, **arguments: Any
    ) -> EmbeddingResponse:
        from pyllm.embedding.types import Embedding, EmbeddingResponse, EmbeddingUsage

        if encoding_format not in ("float", "base64"):
            raise InvalidArgumentError(f"encoding_format={encoding_format!r} is not one of 'float', 'base64'")
        vectors, n_tokens, _ = self._embedded(input, **arguments)
        if isinstance(vectors, list):
            raise InvalidArgumentError("with pooling='none' a text has a vector for each token: use embed()")
        return EmbeddingResponse(
            tuple(Embedding(i, vector, encoding_format) for i, vector in enumerate(vectors)),
            EmbeddingUsage(n_tokens),
            os.path.basename(self.model.path) if model is None else model,
        )

    # ---- documents

    def rerank(
        self,
        query: str | bytes,
        documents: Iterable[str | bytes],
        *,
        top_n: int | None = None,
        return_documents: bool = False,
        by: Literal["model", "embedding"] = "model",
        overflow: Literal["error", "truncate"] = "error",
    ) -> list[RerankResult]:
        """Order documents by how well they answer a query.

        Args:
            query: What is asked.
            documents: The texts to order. What is written in them, or in the query, never becomes a control token.
            top_n: Give the best ones only.
            return_documents: Put the documents into the results.
            by: "model": by the head of a reranker, which reads query and document together, in the format of its own
                template. "embedding": by the cosine between the vectors of query and document, with any model that
                embeds.
            overflow: For a pair that is longer than the model can read: "error", or "truncate": the document ends
                where the room does.

        Returns:
            list: The best document first; equally good ones in their order.

        Raises:
            InvalidArgumentError: The model is no reranker, a text is too long or is no text, or the query is empty.

        Wraps ``llama_get_embeddings_seq``.
        """
        return self._reranked(
            query, documents, top_n=top_n, return_documents=return_documents, by=by, overflow=overflow
        )

    # ---- asyncio

    async def aembed(self, input: Text | Texts, **arguments: Any) -> Any:
        """As :meth:`embed`, for asyncio. It runs in a thread; a cancelled task aborts it within a step."""
        _check_arguments(arguments, "aembed()")

        def work(job: Job) -> Any:
            vectors, _, alone = self._embedded(input, **arguments, job=job)
            return vectors[0] if alone else vectors

        return await self._in_thread(work)

    async def acreate_embedding(
        self,
        input: Text | Texts,
        *,
        model: str | None = None,
        encoding_format: EncodingFormat = "float",
        **arguments: Any,
    ) -> EmbeddingResponse:
        """As :meth:`create_embedding`, for asyncio; see :meth:`aembed`."""
        _check_arguments(arguments, "acreate_embedding()")
        return await self._in_thread(lambda job: self._created(input, model, encoding_format, **arguments, job=job))

    async def arerank(
        self, query: str | bytes, documents: Iterable[str | bytes], **arguments: Any
    ) -> list[RerankResult]:
        """As :meth:`rerank`, for asyncio; see :meth:`aembed`."""
        return await self._in_thread(lambda job: self._reranked(query, documents, job=job, **arguments))

    async def _in_thread(self, work: Callable[[Job], T]) -> T:
        from pyllm.embedding.embedder import Job

        job, embedder = Job(), self._embedder()
        try:
            return await asyncio.to_thread(work, job)
        except asyncio.CancelledError:
            embedder.cancel(job)
            raise

    # ---- how

    def _embedder(self) -> Embedder:
        with _making:
            if self.context.closed:
                raise ClosedError("the Llama has been closed")
            if self._embedder_made is None:
                from pyllm.embedding.embedder import Embedder

                self._embedder_made = Embedder(self.model, self.context_params)
            return self._embedder_made

    def _abort_embedding(self) -> None:
        embedder = self._embedder_made
        if embedder is not None:
            embedder.cancel()

    def _close_embedder(self) -> None:
        with _making:
            embedder, self._embedder_made = self._embedder_made, None
        if embedder is not None:
            embedder.close()

    def _embedded(
        self,
        input: Text | Texts,
        *,
        pooling: Pooling = None,
        normalize: Normalize = True,
        overflow: Overflow = "error",
        dimensions: int | None = None,
        parse_special: bool = False,
        name: Callable[[int], str] | None = None,
        job: Job | None = None,
    ) -> tuple[Any, int, bool]:
        """The vectors, how many tokens they took, and whether it was one text alone."""
        from pyllm.embedding.inputs import several, tokens_of
        from pyllm.embedding.vectors import check_dimensions, norm_of, normalized
        from pyllm.embedding.windows import check_overflow, plan
        from pyllm.enums import PoolingType

        name = _numbered if name is None else name
        embedder = self._embedder()
        kind = embedder.pooling(pooling)
        norm = norm_of(normalize)
        check_overflow(overflow)
        scores = kind == PoolingType.RANK
        if overflow == "mean" and kind in (PoolingType.RANK, PoolingType.NONE):
            raise InvalidArgumentError(f"pooling={kind.name.lower()!r} has no mean of windows: use overflow='truncate'")
        if scores and dimensions is not None:
            raise InvalidArgumentError("pooling='rank' gives scores, which have no dimensions to cut")
        n_embd = len(self.model.cls_labels) or 1 if scores else self.model.n_embd_out
        kept = check_dimensions(dimensions, n_embd)
        texts, alone = several(input)
        tokens = [
            tokens_of(self.model.vocab, text, name(i), parse_special=parse_special) for i, text in enumerate(texts)
        ]
        windows = plan(tokens, self.model.vocab, embedder.limit, overflow, name)
        found = embedder.compute(windows.windows, kind, adapters=self.context.adapters, job=job)
        vectors = windows.combined(found)
        if kind == PoolingType.NONE:
            rows = [
                normalized(each[:, :kept], norm, partial("token {1} of {0}".format, name(i)))
                for i, each in enumerate(vectors)
            ]
            return rows, windows.n_tokens, alone
        stacked = np.stack(vectors) if vectors else np.empty((0, n_embd), np.float32)
        return normalized(stacked[:, :kept], None if scores else norm, name), windows.n_tokens, alone

    def _reranked(
        self,
        query: str | bytes,
        documents: Iterable[str | bytes],
        *,
        top_n: int | None = None,
        return_documents: bool = False,
        by: str = "model",
        overflow: Literal["error", "truncate"] = "error",
        job: Job | None = None,
    ) -> list[RerankResult]:
        from pyllm.embedding.types import RerankResult
        from pyllm.embedding.windows import check_overflow

        check_overflow(overflow, ("error", "truncate"))
        if by not in ("model", "embedding"):
            raise InvalidArgumentError(f"by={by!r} is not one of 'model', 'embedding'")
        if top_n is not None:
            _check_positive("top_n", top_n)
        if isinstance(documents, (str, bytes)):
            raise InvalidArgumentError("documents must be several texts: put a single one into a list")
        if isinstance(documents, Mapping) or not isinstance(documents, Iterable):
            raise InvalidArgumentError(f"documents must be several texts, not {type(documents).__name__}")
        texts = list(documents)
        for name, text in [("the query", query), *((f"document {i}", text) for i, text in enumerate(texts))]:
            if not isinstance(text, (str, bytes)):
                raise InvalidArgumentError(f"{name} must be str or bytes, not {type(text).__name__}")
        if not query:
            raise InvalidArgumentError("the query is empty")
        score = self._scores_by_model if by == "model" else self._scores_by_embedding
        scores = score(query, texts, overflow, job)
        best = np.argsort(-scores, kind="stable")[:top_n]
        return [RerankResult(int(i), float(scores[i]), texts[i] if return_documents else None) for i in best]

    def _scores_by_model(
        self, query: str | bytes, documents: Sequence[str | bytes], overflow: str, job: Job | None
    ) -> NDArray[np.float32]:
        from pyllm.embedding.rerank import PairFormat
        from pyllm.embedding.vectors import normalized
        from pyllm.enums import PoolingType

        embedder = self._embedder()
        embedder.pooling(PoolingType.RANK)
        form, limit = PairFormat(self.model), embedder.limit
        pairs = []
        for i, document in enumerate(documents):
            tokens = form.tokens(query, document)
            if len(tokens) > limit:
                if overflow == "error":
                    raise InvalidArgumentError(
                        f"the query with document {i} has {len(tokens)} tokens, and at most {limit} can be computed at "
                        "once; overflow='truncate' cuts the document"
                    )
                tokens = form.truncated(query, document, limit, i)
            pairs.append(tokens)
        found = embedder.compute(pairs, PoolingType.RANK, adapters=self.context.adapters, job=job)
        scores = np.stack(found) if found else np.empty((0, 1), np.float32)
        return normalized(scores, None, "document {}".format)[:, 0]

    def _scores_by_embedding(
        self, query: str | bytes, documents: Sequence[str | bytes], overflow: Any, job: Job | None
    ) -> NDArray[np.float32]:
        if not documents:
            return np.empty(0, np.float32)
        vectors, _, _ = self._embedded([query, *documents], overflow=overflow, name=_query_or_document, job=job)
        scores: NDArray[np.float32] = np.clip(vectors[1:] @ vectors[0], -1.0, 1.0)
        return scores


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise InvalidArgumentError(f"{name} must be an integer of at least 1, not {value!r}")


def _numbered(index: int, first: int = 0) -> str:
    return f"text {first + index}"


def _query_or_document(index: int) -> str:
    return f"document {index - 1}" if index else "the query"


def _check_arguments(arguments: dict[str, Any], function: str) -> None:
    for name in arguments:
        if name not in _ARGUMENTS:
            from pyllm.params import unknown_argument

            raise unknown_argument(name, _ARGUMENTS, function)

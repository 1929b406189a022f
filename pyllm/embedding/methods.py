"""What a Llama does with embeddings: vectors of texts, and documents ranked for a query."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ClosedError, InvalidArgumentError

if TYPE_CHECKING:
    from pyllm.core.context import Context
    from pyllm.core.model import Model
    from pyllm.embedding.asks import Ask
    from pyllm.embedding.embedder import Embedder, EmbeddingCall
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
        from pyllm.embedding.asks import check_positive
        from pyllm.embedding.inputs import is_one

        check_positive("block_size", block_size)
        if is_one(input):
            raise InvalidArgumentError("iter_embed() takes several texts: put a single one into a list")
        if isinstance(input, Mapping) or not isinstance(input, Iterable):
            raise InvalidArgumentError(f"iter_embed() takes several texts in any iterable, not {type(input).__name__}")
        _check_arguments(arguments, "iter_embed()")
        return self._blocks(iter(input), block_size, arguments)

    def _blocks(self, texts: Iterator[Text], block_size: int, arguments: dict[str, Any]) -> Iterator[Any]:
        from pyllm.embedding.asks import numbered

        done = 0
        while block := list(islice(texts, block_size)):
            yield self._embedded(block, **arguments, name=partial(numbered, first=done))[0]
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
        from pyllm.embedding.asks import response_ask

        _check_arguments(arguments, "create_embedding()")
        arguments["dimensions"] = dimensions
        return self._asked(response_ask(self._embedder(), input, model, encoding_format, **arguments))

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
        from pyllm.embedding.asks import ranks_ask

        ask = ranks_ask(
            self._embedder(),
            query,
            documents,
            top_n=top_n,
            return_documents=return_documents,
            by=by,
            overflow=overflow,
        )
        return self._asked(ask)

    # ---- asyncio

    async def aembed(self, input: Text | Texts, **arguments: Any) -> Any:
        """As :meth:`embed`, for asyncio. It runs in a thread; a cancelled task aborts it within a step."""
        from pyllm.embedding.asks import vectors_ask

        _check_arguments(arguments, "aembed()")
        vectors, _, alone = await self.acompute(lambda asked: vectors_ask(asked, input, **arguments))
        return vectors[0] if alone else vectors

    async def acreate_embedding(
        self,
        input: Text | Texts,
        *,
        model: str | None = None,
        encoding_format: EncodingFormat = "float",
        **arguments: Any,
    ) -> EmbeddingResponse:
        """As :meth:`create_embedding`, for asyncio; see :meth:`aembed`."""
        from pyllm.embedding.asks import response_ask

        _check_arguments(arguments, "acreate_embedding()")
        return await self.acompute(lambda asked: response_ask(asked, input, model, encoding_format, **arguments))

    async def arerank(
        self, query: str | bytes, documents: Iterable[str | bytes], **arguments: Any
    ) -> list[RerankResult]:
        """As :meth:`rerank`, for asyncio; see :meth:`aembed`."""
        from pyllm.embedding.asks import ranks_ask

        return await self.acompute(lambda asked: ranks_ask(asked, query, documents, **arguments))

    async def acompute(self, make: Callable[[Embedder], Ask[T]]) -> T:
        """Have something computed, for asyncio; see :meth:`aembed`.

        Args:
            make: Called in a thread with what computes vectors; makes what is asked of it, with the functions of
                :mod:`pyllm.embedding.asks`.

        Returns:
            The result of the ask.
        """
        from pyllm.embedding.embedder import EmbeddingCall

        job, embedder = EmbeddingCall(), self._embedder()
        try:
            return await asyncio.to_thread(lambda: self._asked(make(embedder), job))
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

    def _asked(self, ask: Ask[T], job: EmbeddingCall | None = None) -> T:
        """Have an ask computed, and wait for it."""
        found = self._embedder().compute(ask.texts, ask.pooling, adapters=self.context.adapters, job=job)
        return ask.finish(found)

    def _embedded(
        self, input: Text | Texts, *, job: EmbeddingCall | None = None, **arguments: Any
    ) -> tuple[Any, int, bool]:
        """The vectors, how many tokens they took, and whether it was one text alone."""
        from pyllm.embedding.asks import vectors_ask

        return self._asked(vectors_ask(self._embedder(), input, **arguments), job)


def _check_arguments(arguments: dict[str, Any], function: str) -> None:
    for name in arguments:
        if name not in _ARGUMENTS:
            from pyllm.params import unknown_argument

            raise unknown_argument(name, _ARGUMENTS, function)

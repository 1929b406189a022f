"""What is asked of an embedder, checked before it is computed: the texts, and what becomes of their vectors."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyllm.core.model import Model
from pyllm.embedding.inputs import Text, Texts, several, tokens_of
from pyllm.embedding.rerank import PairFormat
from pyllm.embedding.types import Embedding, EmbeddingResponse, EmbeddingUsage, EncodingFormat, RerankResult
from pyllm.embedding.vectors import Normalize, check_dimensions, norm_of, normalized
from pyllm.embedding.windows import Overflow, check_overflow, plan
from pyllm.enums import PoolingType
from pyllm.errors import InvalidArgumentError, TextTooLongError

T = TypeVar("T")
Vectors = list[NDArray[np.float32]]
Pooling = PoolingType | Literal["mean", "cls", "last", "rank", "none"] | None


class Asked(Protocol):
    """Who can be asked for vectors; :class:`pyllm.embedding.embedder.Embedder` is one."""

    model: Model

    @property
    def limit(self) -> int:
        """Most tokens of a text."""

    def pooling(self, asked: PoolingType | int | str | None) -> PoolingType:
        """The pooling type to use."""


@dataclass(frozen=True)
class Ask(Generic[T]):
    """What is to be computed, and what its result is made of.

    Attributes:
        texts: Token ids of each text, int32.
        pooling: How vectors of tokens become one.
        finish: From the vectors of the texts, in their order, to the result. It may raise EmbeddingError.
    """

    texts: list[NDArray[np.int32]]
    pooling: PoolingType
    finish: Callable[[Vectors], T]

    @property
    def n_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.texts))


def counted(ask: Ask[T]) -> Ask[tuple[T, int]]:
    """The same, with the number of tokens beside the result."""
    return Ask(ask.texts, ask.pooling, lambda found: (ask.finish(found), ask.n_tokens))


def numbered(index: int, first: int = 0) -> str:
    """What a text is called in messages."""
    return f"text {first + index}"


def vectors_ask(
    asked: Asked,
    input: Text | Texts,
    *,
    pooling: Pooling = None,
    normalize: Normalize = True,
    overflow: Overflow = "error",
    dimensions: int | None = None,
    parse_special: bool = False,
    name: Callable[[int], str] | None = None,
    blank: bool = False,
    most: int | None = None,
) -> Ask[tuple[Any, int, bool]]:
    """Vectors; see :meth:`pyllm.Llama.embed`.

    The result has the vectors, how many tokens they took, and whether it was one text alone.

    Args:
        asked: Computes them.
        input: See there.
        pooling: See there.
        normalize: See there.
        overflow: See there.
        dimensions: See there.
        parse_special: See there.
        name: What to call a text in messages, by its place.
        blank: Whether a text without tokens of its own has the vector of those that the model puts around every text.
        most: Tokens at which texts end, where that is less than the model can read.
    """
    called = numbered if name is None else name
    model = asked.model
    kind = asked.pooling(pooling)
    norm = norm_of(normalize)
    check_overflow(overflow)
    scores = kind == PoolingType.RANK
    if overflow == "mean" and kind in (PoolingType.RANK, PoolingType.NONE):
        raise InvalidArgumentError(
            f"pooling={kind.name.lower()!r} has no mean of windows: use overflow='truncate'", param="pooling"
        )
    if scores and dimensions is not None:
        raise InvalidArgumentError("pooling='rank' gives scores, which have no dimensions to cut", param="pooling")
    n_embd = len(model.cls_labels) or 1 if scores else model.n_embd_out
    kept = check_dimensions(dimensions, n_embd)
    texts, alone = several(input)
    tokens = [
        tokens_of(model.vocab, text, called(i), parse_special=parse_special, blank=blank)
        for i, text in enumerate(texts)
    ]
    windows = plan(tokens, model.vocab, asked.limit if most is None else min(most, asked.limit), overflow, called)

    def finish(found: Vectors) -> tuple[Any, int, bool]:
        vectors = windows.combined(found)
        if kind == PoolingType.NONE:
            rows = [
                normalized(each[:, :kept], norm, partial("token {1} of {0}".format, called(i)))
                for i, each in enumerate(vectors)
            ]
            return rows, windows.n_tokens, alone
        stacked = np.stack(vectors) if vectors else np.empty((0, n_embd), np.float32)
        return normalized(stacked[:, :kept], None if scores else norm, called), windows.n_tokens, alone

    return Ask(windows.windows, kind, finish)


def response_ask(
    asked: Asked, input: Text | Texts, model: str | None, encoding_format: EncodingFormat, **arguments: Any
) -> Ask[EmbeddingResponse]:
    """Vectors in the shape of OpenAI's API; see :meth:`pyllm.Llama.create_embedding`."""
    if encoding_format not in ("float", "base64"):
        raise InvalidArgumentError(
            f"encoding_format={encoding_format!r} is not one of 'float', 'base64'", param="encoding_format"
        )
    ask = vectors_ask(asked, input, **arguments)
    if ask.pooling == PoolingType.NONE:
        raise InvalidArgumentError("with pooling='none' a text has a vector for each token: use embed()")
    name = os.path.basename(asked.model.path) if model is None else model

    def finish(found: Vectors) -> EmbeddingResponse:
        vectors, n_tokens, _ = ask.finish(found)
        items = tuple(Embedding(i, vector, encoding_format) for i, vector in enumerate(vectors))
        return EmbeddingResponse(items, EmbeddingUsage(n_tokens), name)

    return Ask(ask.texts, ask.pooling, finish)


def ranks_ask(
    asked: Asked,
    query: str | bytes,
    documents: Iterable[str | bytes],
    *,
    top_n: int | None = None,
    return_documents: bool = False,
    by: str = "model",
    overflow: Literal["error", "truncate"] = "error",
) -> Ask[list[RerankResult]]:
    """Documents ranked for a query; see :meth:`pyllm.Llama.rerank`."""
    check_overflow(overflow, ("error", "truncate"))
    if by not in ("model", "embedding"):
        raise InvalidArgumentError(f"by={by!r} is not one of 'model', 'embedding'", param="by")
    if top_n is not None:
        check_positive("top_n", top_n)
    if isinstance(documents, (str, bytes)):
        raise InvalidArgumentError("documents must be several texts: put a single one into a list", param="documents")
    if isinstance(documents, Mapping) or not isinstance(documents, Iterable):
        raise InvalidArgumentError(
            f"documents must be several texts, not {type(documents).__name__}", param="documents"
        )
    texts = list(documents)
    for name, text in [("the query", query), *((f"document {i}", text) for i, text in enumerate(texts))]:
        if not isinstance(text, (str, bytes)):
            raise InvalidArgumentError(f"{name} must be str or bytes, not {type(text).__name__}", param=name)
    if not query:
        raise InvalidArgumentError("the query is empty")
    ask = (_scores_by_model if by == "model" else _scores_by_embedding)(asked, query, texts, overflow)

    def finish(found: Vectors) -> list[RerankResult]:
        scores = ask.finish(found)
        best = np.argsort(-scores, kind="stable")[:top_n]
        return [RerankResult(int(i), float(scores[i]), texts[i] if return_documents else None) for i in best]

    return Ask(ask.texts, ask.pooling, finish)


def check_positive(name: str, value: Any) -> None:
    """Raise InvalidArgumentError unless this is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise InvalidArgumentError(f"{name} must be an integer of at least 1, not {value!r}", param=name)


def _scores_by_model(
    asked: Asked, query: str | bytes, documents: Sequence[str | bytes], overflow: str
) -> Ask[NDArray[np.float32]]:
    asked.pooling(PoolingType.RANK)
    form, limit = PairFormat(asked.model), asked.limit
    pairs = []
    for i, document in enumerate(documents):
        tokens = form.tokens(query, document)
        if len(tokens) > limit:
            if overflow == "error":
                raise TextTooLongError(
                    f"the query with document {i} has {len(tokens)} tokens, and at most {limit} can be computed at "
                    "once; overflow='truncate' cuts the document",
                    index=i,
                    n_tokens=len(tokens),
                    limit=limit,
                )
            tokens = form.truncated(query, document, limit, i)
        pairs.append(tokens)

    def finish(found: Vectors) -> NDArray[np.float32]:
        scores = np.stack(found) if found else np.empty((0, 1), np.float32)
        return normalized(scores, None, "document {}".format)[:, 0]

    return Ask(pairs, PoolingType.RANK, finish)


def _scores_by_embedding(
    asked: Asked, query: str | bytes, documents: Sequence[str | bytes], overflow: Any
) -> Ask[NDArray[np.float32]]:
    if not documents:
        return Ask([], PoolingType.NONE, lambda found: np.empty(0, np.float32))
    ask = vectors_ask(asked, [query, *documents], overflow=overflow, name=_query_or_document)

    def finish(found: Vectors) -> NDArray[np.float32]:
        vectors, _, _ = ask.finish(found)
        scores: NDArray[np.float32] = np.clip(vectors[1:] @ vectors[0], -1.0, 1.0)
        return scores

    return Ask(ask.texts, ask.pooling, finish)


def _query_or_document(index: int) -> str:
    return f"document {index - 1}" if index else "the query"

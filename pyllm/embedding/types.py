"""What embedding and reranking give back: frozen dataclasses, which are mappings in the shape of web APIs too."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyllm.types import Shaped

EncodingFormat = Literal["float", "base64"]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding(Shaped):
    """The vector of one text.

    Attributes:
        index: Its place in the input.
        vector: float32, shape (n_embd,).
        encoding_format: How :attr:`embedding` shows it.
    """

    index: int
    vector: NDArray[np.float32]
    encoding_format: EncodingFormat = "float"

    @property
    def embedding(self) -> list[float] | str:
        """The numbers as a list, or with "base64" their bytes (little-endian float32) in base64."""
        if self.encoding_format == "base64":
            return base64.b64encode(self.vector.astype("<f4").tobytes()).decode("ascii")
        numbers: list[float] = self.vector.tolist()
        return numbers

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {"object": "embedding", "index": self.index, "embedding": self.embedding}


@dataclass(frozen=True, slots=True)
class EmbeddingUsage:
    """Tokens that were computed.

    Attributes:
        prompt_tokens: Tokens of all texts, as they were computed: after cutting, and in all windows.
    """

    prompt_tokens: int

    @property
    def total_tokens(self) -> int:
        """The same: nothing is generated."""
        return self.prompt_tokens

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {"prompt_tokens": self.prompt_tokens, "total_tokens": self.total_tokens}


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingResponse(Shaped):
    """The vectors of texts; a mapping in the shape of OpenAI's API too.

    Attributes:
        data: One for each text, in their order.
        usage: How many tokens that took.
        model: Name of the model's file.
    """

    data: tuple[Embedding, ...]
    usage: EmbeddingUsage
    model: str = ""

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        return {
            "object": "list",
            "data": [item.to_dict() for item in self.data],
            "model": self.model,
            "usage": self.usage.to_dict(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class RerankResult(Shaped):
    """One document and how well it answers the query.

    Attributes:
        index: Its place among the documents.
        relevance_score: Higher is better. From a reranker what its head gives, often a number of any size; by
            embedding a cosine.
        document: The document, where it was asked for.
    """

    index: int
    relevance_score: float
    document: str | bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        """In the shape of Jina's API."""
        result: dict[str, Any] = {"index": self.index, "relevance_score": self.relevance_score}
        if self.document is not None:
            text = self.document if isinstance(self.document, str) else self.document.decode("utf-8", "replace")
            result["document"] = {"text": text}
        return result

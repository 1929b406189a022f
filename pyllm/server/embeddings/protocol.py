"""What requests for vectors and for ranks say."""

from __future__ import annotations

from typing import Any

from pyllm.server.errors import invalid
from pyllm.server.fields import Fields, is_ids

_MOST_TEXTS = 2048


class EmbeddingAsk:
    """A request for vectors.

    Args:
        body: The JSON object.

    Attributes:
        inputs: Texts, or token ids.
        arguments: Those of :meth:`pyllm.Llama.create_embedding`.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        fields = Fields(body)
        self.inputs = _inputs(fields, fields.first("input", "content"))
        encoding = fields.text("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise fields.wrong("encoding_format", "'float' or 'base64'")
        self.arguments: dict[str, Any] = {"encoding_format": encoding}
        dimensions = fields.integer("dimensions", 1)
        if dimensions is not None:
            self.arguments["dimensions"] = dimensions


class RerankAsk:
    """A request for ranks.

    Args:
        body: The JSON object.

    Attributes:
        query: What is asked.
        documents: The texts to order.
        arguments: Those of :meth:`pyllm.Llama.rerank`.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        fields = Fields(body)
        fields.need("query")
        self.query: str = fields.text("query") or ""
        name = fields.first("documents", "texts")
        documents = fields.need(name)
        if not isinstance(documents, list) or not documents or len(documents) > _MOST_TEXTS:
            raise fields.wrong(name, f"a list of 1 to {_MOST_TEXTS} texts")
        # Jina's clients send objects with a text.
        texts: list[Any] = [one.get("text") if isinstance(one, dict) else one for one in documents]
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise invalid(f"{name}[{i}]", f"{name}[{i}] must be text")
        self.documents: list[str] = texts
        self.arguments: dict[str, Any] = {"return_documents": fields.flag("return_documents")}
        top_n = fields.integer("top_n", 1)
        if top_n is not None:
            self.arguments["top_n"] = top_n


def _inputs(fields: Fields, name: str) -> list[str | list[int]]:
    value = fields.need(name)
    if isinstance(value, str) or is_ids(value):
        return [value]
    if not isinstance(value, list) or not value or len(value) > _MOST_TEXTS:
        raise fields.wrong(name, f"a text, token ids, or a list of 1 to {_MOST_TEXTS} of these")
    for i, one in enumerate(value):
        if not (isinstance(one, str) or is_ids(one)):
            raise invalid(f"{name}[{i}]", f"{name}[{i}] must be a text or a list of token ids")
    return value

"""What requests for vectors and for ranks say."""

from __future__ import annotations

from typing import Any

from pyllm.server.errors import invalid
from pyllm.server.fields import Fields, is_ids
from pyllm.server.native.prompts import check_mixed

_MOST_TEXTS = 2048
_EUCLIDEAN = 2
_LARGEST_NORM = 100


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


class NativeEmbeddingAsk:
    """A request for vectors in the shape of llama-server.

    Args:
        body: The JSON object.

    Attributes:
        inputs: Texts, or lists of token ids and texts.
        normalize: The norm by which vectors are divided, as llama.cpp counts them.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        fields = Fields(body)
        name = fields.first("input", "content")
        value = fields.need(name)
        if isinstance(value, list) and not any(type(one) is int for one in value):
            self.inputs = [_content(one, f"{name}[{i}]") for i, one in enumerate(value)]
        else:
            self.inputs = [_content(value, name)]
        if not 1 <= len(self.inputs) <= _MOST_TEXTS:
            raise fields.wrong(name, f"a text, token ids, or a list of 1 to {_MOST_TEXTS} of these")
        norm = fields.integer("embd_normalize", -1, _LARGEST_NORM)
        self.normalize = _EUCLIDEAN if norm is None else norm


class RerankAsk:
    """A request for ranks.

    Args:
        body: The JSON object.

    Attributes:
        query: What is asked.
        documents: The texts to order.
        tei: Whether the answer has the shape of TEI, as the request has.
        return_text: Whether that has the texts, too.
        arguments: Those of :meth:`pyllm.Llama.rerank`.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        fields = Fields(body)
        fields.need("query")
        self.query: str = fields.text("query") or ""
        name = fields.first("documents", "texts")
        self.tei = "texts" in fields
        self.return_text = self.tei and fields.flag("return_text")
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


def _content(value: Any, name: str) -> Any:
    """A text, or a list of token ids and texts; in an object, or in parts, as in messages of a chat."""
    if isinstance(value, dict):
        key = "content" if "content" in value else "prompt_string"
        name, value = f"{name}.{key}", value.get(key)
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            texts = [part.get("text") if part.get("type") == "text" else None for part in value]
            if any(not isinstance(text, str) for text in texts):
                raise invalid(name, f"{name} must be text: this server takes nothing else")
            value = "".join(map(str, texts))
    return check_mixed(value, name, "a text, or a list of token ids and texts")


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

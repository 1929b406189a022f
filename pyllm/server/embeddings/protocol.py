"""What requests for vectors and for ranks say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyllm.errors import TextTooLongError
from pyllm.server.errors import TOO_LONG, APIError, invalid
from pyllm.server.fields import Fields
from pyllm.server.native.prompts import check_mixed

_MOST_TEXTS = 2048
_EUCLIDEAN = 2
_LARGEST_NORM = 100
# Of TEI, Jina and Ollama: true and false; of Cohere and NIM: words.
_TRUNCATES = {True: True, False: False, "END": True, "NONE": False}


class Inputs:
    """The texts of a request for vectors, and how long they may be.

    Args:
        fields: The request.

    Attributes:
        texts: Texts, or lists of token ids and texts.
        arguments: Those of :func:`pyllm.embedding.asks.vectors_ask` that are about the texts.
        truncates: Whether the beginning of a text stands for all of it where that is too long.
        most: Tokens at which texts end. None: where the model cannot read on.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, fields: Fields) -> None:
        self.field = fields.first("input", "content")
        value = fields.need(self.field)
        self._several = isinstance(value, list) and not (value and type(value[0]) is int)
        if not self._several:
            value = [value]
        if not 1 <= len(value) <= _MOST_TEXTS:
            raise fields.wrong(self.field, f"a text, token ids, or a list of 1 to {_MOST_TEXTS} of these")
        self.texts = [_content(one, self.where(i)) for i, one in enumerate(value)]
        self.truncates = _truncates(fields)
        self.most = fields.integer("truncate_prompt_tokens", -1)
        if self.most == 0:
            raise fields.wrong("truncate_prompt_tokens", "at least 1, or -1 for as many as the model can read")
        if self.most is not None:
            if self.truncates is False:
                raise invalid("truncate", "truncate must not be false where truncate_prompt_tokens is given")
            self.truncates = True
            self.most = None if self.most < 0 else self.most

    def where(self, index: int) -> str:
        """The name of a text: what of the request it is."""
        return f"{self.field}[{index}]" if self._several else self.field

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`pyllm.embedding.asks.vectors_ask`."""
        overflow = "truncate" if self.truncates else "error"
        return {"overflow": overflow, "most": self.most, "name": self.where, "blank": True}


class EmbeddingAsk:
    """A request for vectors.

    Args:
        body: The JSON object.

    Attributes:
        inputs: The texts.
        arguments: Those of :meth:`pyllm.Llama.create_embedding`.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        fields = Fields(body)
        self.inputs = Inputs(fields)
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
        inputs: The texts.
        normalize: The norm by which vectors are divided, as llama.cpp counts them.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        fields = Fields(body)
        self.inputs = Inputs(fields)
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
        if not self.query:
            raise invalid("query", "query is empty: there is nothing to rank for")
        self.field = name = fields.first("documents", "texts")
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
        overflow = "truncate" if _truncates(fields) else "error"
        self.arguments: dict[str, Any] = {"return_documents": fields.flag("return_documents"), "overflow": overflow}
        top_n = fields.integer("top_n", 1)
        if top_n is not None:
            self.arguments["top_n"] = top_n

    def where(self, index: int) -> str:
        """The name of a document: what of the request it is."""
        return f"{self.field}[{index}]"


def _truncates(fields: Fields) -> bool | None:
    value = fields.get("truncate")
    if value is None:
        return None
    key = value.upper() if isinstance(value, str) else value
    if not isinstance(key, (bool, str)) or key not in _TRUNCATES:
        raise fields.wrong("truncate", 'true, false, "END" or "NONE"')
    return _TRUNCATES[key]


def _content(value: Any, name: str) -> Any:
    """A text, or a list of token ids and texts; in an object, or in parts, as in messages of a chat."""
    if isinstance(value, dict):
        if value.get("multimodal_data"):
            raise invalid(name, f"{name}.multimodal_data: this server takes texts only")
        key = "content" if "content" in value else "prompt_string"
        name, value = f"{name}.{key}", value.get(key)
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            texts = [part.get("text") if part.get("type") == "text" else None for part in value]
            if any(not isinstance(text, str) for text in texts):
                raise invalid(name, f"{name} must be text: this server takes nothing else")
            value = "".join(map(str, texts))
    if isinstance(value, list) and not value:
        raise invalid(name, f"{name} is an empty list: there is nothing to embed")
    return check_mixed(value, name, "a text, or a list of token ids and texts")


def text_too_long(error: TextTooLongError, where: Callable[[int], str], name: str) -> APIError:
    """The error for a text with more tokens than the model can read at once.

    Args:
        error: The error.
        where: The name of a text: what of the request it is.
        name: What the model is called.
    """
    limit = f"and {name!r} reads at most {error.limit} at once"
    if error.index is None:
        param, rest = "query", f"{limit}, with a document: shorten it"
    else:
        param = where(error.index)
        rest = f'{limit}: split it, or send "truncate": true to have only its beginning read'
    return APIError(
        400,
        f"{param} is too large: it has {error.n_tokens} tokens, {rest}",
        param=param,
        code=TOO_LONG,
        kind="exceed_context_size_error",
        numbers={"n_prompt_tokens": error.n_tokens, "n_ctx": error.limit},
    )

"""Pairs of a query and a document, as the model was trained to read them."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from pyllm.core.model import Model
from pyllm.enums import TokenAttr
from pyllm.errors import InvalidArgumentError, TextTooLongError

_PLACES = re.compile(r"\{(query|document)\}")


class PairFormat:
    """How a model reads a query with a document: by its template named "rerank", or with its own tokens around them.

    What comes from the query or a document never becomes a control token.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self.vocab = model.vocab
        self.template = model.chat_template("rerank")
        self._spans = _spans(model, self.template) if self.template is not None else []

    def tokens(self, query: str | bytes, document: str | bytes) -> NDArray[np.int32]:
        """Token ids of a pair, int32, shape (n,)."""
        if self.template is None:
            return self._joined(self._plain(query), self._plain(document))
        texts = {b"query": _bytes(query), b"document": _bytes(document)}
        parts: list[NDArray[np.int32]] = []
        for span in self._spans:
            if isinstance(span, int):
                parts.append(np.array([span], np.int32))
            elif text := re.sub(rb"\{(query|document)\}", lambda found: texts[found[1]], span):
                parts.append(self._plain(text))
        return np.concatenate(parts)

    def truncated(self, query: str | bytes, document: str | bytes, limit: int, index: int) -> NDArray[np.int32]:
        """The same with as much of the document's beginning as fits.

        Raises:
            TextTooLongError: The query alone is too long.
        """
        tokens = self.tokens(query, document)
        inner = self._plain(document)
        keep = len(inner)
        while len(tokens) > limit:
            keep -= len(tokens) - limit
            if keep < 1:
                n_query = len(self.tokens(query, b""))
                raise TextTooLongError(
                    f"the query takes {n_query} tokens, which leaves no room for document {index}: "
                    f"at most {limit} can be computed at once",
                    n_tokens=n_query,
                    limit=limit,
                )
            if self.template is None:
                tokens = self._joined(self._plain(query), inner[:keep])
            else:
                tokens = self.tokens(query, self.vocab.detokenize_bytes(inner[:keep]))
        return tokens

    def _plain(self, text: str | bytes) -> NDArray[np.int32]:
        return self.vocab.tokenize_array(text, add_special=False, parse_special=False)

    def _joined(self, query: NDArray[np.int32], document: NDArray[np.int32]) -> NDArray[np.int32]:
        vocab = self.vocab
        bos = [vocab.bos] if vocab.add_bos else []
        end = vocab.eos if vocab.eos is not None else vocab.sep
        eos = [end] if vocab.add_eos else []
        sep = [vocab.sep] if vocab.add_sep else []
        around = [[token for token in tokens if token is not None] for tokens in (bos, eos + sep, eos)]
        before, between, behind = (np.array(tokens, np.int32) for tokens in around)
        return np.concatenate((before, query, between, document, behind))


def _spans(model: Model, template: str) -> list[bytes | int]:
    """A template, cut at the control tokens that it names itself: ids, and texts with the places to fill."""
    vocab = model.vocab
    # As llama.cpp finds them: the longest first.
    marked = np.flatnonzero(vocab.attrs & (TokenAttr.CONTROL | TokenAttr.UNKNOWN))
    named = {text: int(token) for token in marked if (text := vocab.text(int(token))) and text in template}
    if missing := {"query", "document"} - set(_PLACES.findall(template)):
        raise InvalidArgumentError(f"the model's template 'rerank' has no place for {{{missing.pop()}}}")
    if not named:
        return [template.encode()]
    pattern = "|".join(map(re.escape, sorted(named, key=len, reverse=True)))
    return [named[part] if part in named else part.encode() for part in re.split(f"({pattern})", template) if part]


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text

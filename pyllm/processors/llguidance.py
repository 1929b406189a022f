"""Bitmasks from llguidance: JSON schemas, regular expressions, Lark grammars (``pip install llguidance``)."""

from __future__ import annotations

import json
import weakref
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pyllm.core.vocab import Vocab
from pyllm.enums import TokenAttr
from pyllm.errors import GrammarError, SamplerError
from pyllm.processors.bitmask import BitmaskSource, check_vocab, import_library, refused

_tokenizers: weakref.WeakKeyDictionary[Vocab, Any] = weakref.WeakKeyDictionary()


class LLGuidance(BitmaskSource):
    """A bitmask source from llguidance.

    Args:
        grammar: A grammar in llguidance's own format or in its Lark dialect, or an ``LLMatcher``, which this object
            then advances. See :meth:`json_schema` and :meth:`regex` for the rest.
        vocab: The tokenizer of the model.

    Raises:
        GrammarError: The grammar is wrong; the message is llguidance's.
        MissingDependencyError: llguidance is not installed.
    """

    def __init__(self, grammar: Any, vocab: Vocab) -> None:
        super().__init__(vocab)
        llguidance = import_llguidance()
        if isinstance(grammar, llguidance.LLMatcher):
            self.matcher = grammar
        else:
            self.matcher = llguidance.LLMatcher(tokenizer(vocab), grammar, log_level=0)
        if self.matcher.is_error():
            raise GrammarError(f"llguidance refuses the grammar: {self.matcher.get_error()}")

    @classmethod
    def json_schema(cls, schema: str | dict[str, Any], vocab: Vocab, **options: Any) -> Self:
        """Text that is JSON of a schema.

        Args:
            schema: The JSON schema, as text or as a dict.
            vocab: The tokenizer of the model.
            **options: Those of ``LLMatcher.grammar_from_json_schema``.
        """
        text = schema if isinstance(schema, str) else json.dumps(schema)
        matcher = import_llguidance().LLMatcher
        try:
            grammar = matcher.grammar_from_json_schema(text, **options)
        except ValueError as cause:
            raise GrammarError(f"llguidance refuses the schema: {cause}") from cause
        return cls(grammar, vocab)

    @classmethod
    def regex(cls, pattern: str, vocab: Vocab) -> Self:
        """Text that matches a regular expression as a whole."""
        return cls(import_llguidance().LLMatcher.grammar_from_regex(pattern), vocab)

    def _check(self) -> None:
        if self.matcher.is_error():
            raise SamplerError(f"llguidance reports an error: {self.matcher.get_error()}")

    def _fill(self, mask: NDArray[np.int32]) -> None:
        self.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()

    def _accept(self, token: int) -> None:
        # A matcher that consumed what it does not allow stays in error for good: ask first.
        if self.matcher.validate_tokens([token]) != 1:
            self._check()
            raise refused(token, self.vocab)
        self.matcher.consume_token(token)
        self._check()

    def _reset(self) -> None:
        if not self.matcher.reset():
            self._check()

    def _rollback(self, n: int) -> None:
        before = self.matcher.deep_copy()
        if not self.matcher.rollback(n):
            reason = self.matcher.get_error().partition("\n<state>")[0]
            self.matcher = before  # it would stay in error for good
            raise SamplerError(f"llguidance cannot go back by {n} tokens: {reason}")

    def _finished(self) -> bool:
        self._check()
        return bool(self.matcher.is_stopped())

    def _copy_matcher(self, source: Self) -> None:
        self.matcher = source.matcher.deep_copy()


def tokenizer(vocab: Vocab) -> Any:
    """The ``LLTokenizer`` for a vocabulary. It takes about a second to make, and is kept as long as `vocab` is.

    It calls ``llama_tokenize`` with the address of the vocabulary: do not use it after the model was closed.
    """
    if check_vocab(vocab) not in _tokenizers:
        pieces = vocab.pieces()
        attrs = vocab.attrs
        # A control token is not the text it is spelled with; llguidance knows it by a byte that no text contains.
        for token in np.flatnonzero(attrs & (TokenAttr.CONTROL | TokenAttr.USER_DEFINED)):
            piece = pieces[token]
            if attrs[token] & TokenAttr.CONTROL or (piece.startswith(b"<") and piece.endswith(b">")):
                pieces[token] = b"\xff" + piece
        eos = vocab.eos if vocab.eos is not None else vocab.eog_tokens[0]
        _tokenizers[vocab] = import_llguidance().LLTokenizer.from_llamacpp(
            tokens=pieces,
            vocab_ptr=vocab.address,
            tokenize_fptr=vocab.tokenize_address,
            eos_token=eos,
            slices=None,
        )
    return _tokenizers[vocab]


def import_llguidance() -> Any:
    return import_library("llguidance", "llguidance")


__all__ = ["LLGuidance", "tokenizer"]

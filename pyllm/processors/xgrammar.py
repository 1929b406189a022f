"""Bitmasks from xgrammar: JSON schemas, regular expressions, EBNF (``pip install xgrammar``; it needs PyTorch)."""

from __future__ import annotations

import json
import weakref
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pyllm.core.vocab import Vocab
from pyllm.errors import GrammarError, InvalidArgumentError, SamplerError
from pyllm.processors.bitmask import BitmaskSource, check_vocab, import_library, refused

_compilers: weakref.WeakKeyDictionary[Vocab, Any] = weakref.WeakKeyDictionary()


class XGrammar(BitmaskSource):
    """A bitmask source from xgrammar.

    Args:
        grammar: A ``CompiledGrammar``, a ``GrammarMatcher``, which this object then advances, or a grammar as text,
            in xgrammar's EBNF. See :meth:`json_schema` and :meth:`regex` for the rest.
        vocab: The tokenizer of the model.

    Raises:
        GrammarError: The grammar is wrong; the message is xgrammar's.
        MissingDependencyError: xgrammar is not installed.
    """

    def __init__(self, grammar: Any, vocab: Vocab) -> None:
        super().__init__(vocab)
        xgrammar = import_xgrammar()
        if isinstance(grammar, xgrammar.GrammarMatcher):
            self.matcher = grammar
            return
        if isinstance(grammar, str):
            grammar = compiled(vocab, "compile_grammar", grammar)
        if not isinstance(grammar, xgrammar.CompiledGrammar):
            raise InvalidArgumentError(
                f"a CompiledGrammar, a GrammarMatcher or a grammar as text is needed, not {type(grammar).__name__}"
            )
        self.matcher = xgrammar.GrammarMatcher(grammar)

    @classmethod
    def json_schema(cls, schema: str | dict[str, Any], vocab: Vocab, **options: Any) -> Self:
        """Text that is JSON of a schema.

        Args:
            schema: The JSON schema, as text or as a dict.
            vocab: The tokenizer of the model.
            **options: Those of ``GrammarCompiler.compile_json_schema``.
        """
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return cls(compiled(vocab, "compile_json_schema", text, **options), vocab)

    @classmethod
    def regex(cls, pattern: str, vocab: Vocab) -> Self:
        """Text that matches a regular expression as a whole."""
        return cls(compiled(vocab, "compile_regex", pattern), vocab)

    def _fill(self, mask: NDArray[np.int32]) -> None:
        if not self.matcher.fill_next_token_bitmask(mask[None]):
            mask[:] = -1  # False: everything is allowed, and nothing was written

    def _accept(self, token: int) -> None:
        if not self.matcher.accept_token(token):
            raise refused(token, self.vocab)

    def _reset(self) -> None:
        self.matcher.reset()

    def _rollback(self, n: int) -> None:
        try:
            self.matcher.rollback(n)
        except (RuntimeError, ValueError) as cause:
            raise SamplerError(f"xgrammar cannot go back by {n} tokens: {cause}") from cause

    def _finished(self) -> bool:
        return bool(self.matcher.is_terminated())

    def _copy_matcher(self, source: Self) -> None:
        self.matcher = source.matcher.fork()


def compiled(vocab: Vocab, method: str, text: str, **options: Any) -> Any:
    compile_it = getattr(compiler(vocab), method)
    try:
        return compile_it(text, **options)
    except (RuntimeError, ValueError) as cause:
        raise GrammarError(f"xgrammar refuses the grammar: {cause}") from cause


def compiler(vocab: Vocab) -> Any:
    """The ``GrammarCompiler`` for a vocabulary, kept as long as `vocab` is."""
    if check_vocab(vocab) not in _compilers:
        xgrammar = import_xgrammar()
        # Control tokens are empty here: they are not the text they are spelled with.
        info = xgrammar.TokenizerInfo(
            vocab.pieces(special=False), vocab_size=len(vocab), stop_token_ids=vocab.eog_tokens
        )
        _compilers[vocab] = xgrammar.GrammarCompiler(info)
    return _compilers[vocab]


def import_xgrammar() -> Any:
    return import_library("xgrammar", "xgrammar")


__all__ = ["XGrammar", "compiler"]

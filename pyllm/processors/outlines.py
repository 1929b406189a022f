"""Bitmasks from outlines-core: regular expressions and JSON schemas (``pip install outlines-core``)."""

from __future__ import annotations

import copy
import json
import weakref
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pyllm.core.vocab import Vocab
from pyllm.errors import GrammarError, InvalidArgumentError, SamplerError
from pyllm.processors.bitmask import BitmaskSource, check_vocab, import_library, refused

_vocabularies: weakref.WeakKeyDictionary[Vocab, Any] = weakref.WeakKeyDictionary()


class OutlinesCore(BitmaskSource):
    """A bitmask source from outlines-core.

    Args:
        guide: An ``Index``, or a ``Guide``, which this object then advances. See :meth:`regex` and
            :meth:`json_schema`, which make one.
        vocab: The tokenizer of the model.
        max_rollback: How far :meth:`rollback` can go, in tokens, where an index is given.

    Raises:
        MissingDependencyError: outlines-core is not installed.
    """

    def __init__(self, guide: Any, vocab: Vocab, *, max_rollback: int = 32) -> None:
        super().__init__(vocab)
        outlines_core = import_outlines_core()
        if not isinstance(guide, (outlines_core.Index, outlines_core.Guide)):
            raise InvalidArgumentError(f"an Index or a Guide is needed, not {type(guide).__name__}")
        self.guide = outlines_core.Guide(guide, max_rollback) if isinstance(guide, outlines_core.Index) else guide

    @classmethod
    def regex(cls, pattern: str, vocab: Vocab) -> Self:
        """Text that matches a regular expression as a whole. Making the index takes seconds for large vocabularies.

        Raises:
            GrammarError: The pattern is wrong, or nothing in the vocabulary can match it.
        """
        tokens = vocabulary(vocab)
        try:
            index = import_outlines_core().Index(pattern, tokens)
        except (ValueError, RuntimeError) as cause:
            raise GrammarError(f"outlines-core refuses the pattern: {cause}") from cause
        return cls(index, vocab)

    @classmethod
    def json_schema(cls, schema: str | dict[str, Any], vocab: Vocab) -> Self:
        """Text that is JSON of a schema.

        Raises:
            GrammarError: outlines-core cannot make a pattern of it.
        """
        build_regex_from_schema = import_library("outlines_core.json_schema", "outlines-core").build_regex_from_schema
        text = schema if isinstance(schema, str) else json.dumps(schema)
        try:
            pattern = build_regex_from_schema(text)
        except (ValueError, TypeError, RuntimeError) as cause:
            raise GrammarError(f"outlines-core refuses the schema: {cause}") from cause
        return cls.regex(pattern, vocab)

    def _fill(self, mask: NDArray[np.int32]) -> None:
        self.guide.write_mask_into(mask.ctypes.data, mask.size, mask.itemsize)

    def _accept(self, token: int) -> None:
        try:
            self.guide.advance(token, False)
        except ValueError as cause:
            raise refused(token, self.vocab, str(cause)) from cause

    def _reset(self) -> None:
        self.guide.reset()

    def _rollback(self, n: int) -> None:
        try:
            self.guide.rollback_state(n)
        except ValueError as cause:
            raise SamplerError(f"outlines-core cannot go back by {n} tokens: {cause}") from cause

    def _copy_matcher(self, source: Self) -> None:
        self.guide = copy.deepcopy(source.guide)


def vocabulary(vocab: Vocab) -> Any:
    """The ``Vocabulary`` for a tokenizer, kept as long as `vocab` is."""
    if check_vocab(vocab) not in _vocabularies:
        eos = vocab.eos if vocab.eos is not None else min(vocab.eog_tokens)
        eog = {*vocab.eog_tokens, eos}
        tokens: dict[bytes, list[int]] = {}
        for token, piece in enumerate(vocab.pieces(special=False)):
            if piece and token not in eog:
                tokens.setdefault(piece, []).append(token)
        _vocabularies[vocab] = import_outlines_core().Vocabulary(eos, tokens)
    return _vocabularies[vocab]


def import_outlines_core() -> Any:
    return import_library("outlines_core", "outlines-core")


__all__ = ["OutlinesCore", "vocabulary"]

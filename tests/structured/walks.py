"""Texts of a grammar, found by walking through llama.cpp's own engine at random."""

from __future__ import annotations

import random

import numpy as np

from pyllm.core.samplers import Grammar as GrammarSampler
from pyllm.structured import Grammar
from pyllm.structured.matching import _END, _FIRST, _byte_model

_ROW = np.zeros(_FIRST + 256, np.float32)
# Bytes that tend to bring a text to its end.
_CLOSING = {_FIRST + byte for byte in b'"}]'}


def text_of(grammar: Grammar, seed: int, limit: int = 600) -> str | None:
    """A text that follows the grammar, of ASCII characters where there is a choice.

    None when it has not ended within the limit, or is no UTF-8.
    """
    chooser = random.Random(seed)
    sampler = GrammarSampler(_byte_model().vocab, grammar.text, grammar.root)
    data = bytearray()
    for _ in range(limit):
        ids, logits, _, _ = sampler.apply(_ROW)
        possible = [int(token) for token in ids[logits > -np.inf] if token == _END or token > _FIRST]
        assert possible, f"the grammar leads nowhere after {bytes(data)!r}"
        allowed = [token for token in possible if token < _FIRST + 128] or possible
        ending = [token for token in allowed if token == _END or token in _CLOSING]
        token = chooser.choice(ending if ending and chooser.random() < 0.3 else allowed)
        if token == _END:
            try:
                return data.decode()
            except UnicodeDecodeError:
                return None
        data.append(token - _FIRST)
        sampler.accept(token)
    return None


def texts_of(grammar: Grammar, count: int, limit: int = 600) -> list[str]:
    """Several texts, of as many walks as it takes."""
    found: list[str] = []
    for seed in range(4 * count):
        text = text_of(grammar, seed, limit)
        if text is not None:
            found.append(text)
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} of {4 * count} texts came to an end")

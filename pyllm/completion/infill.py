"""Prompts that ask for the middle of a text, made of the model's own tokens for that."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError


def infill_prompt(
    vocab: Vocab, prefix: str | bytes, suffix: str | bytes, *, suffix_first: bool = False
) -> NDArray[np.int32]:
    """The tokens after which a model writes what belongs between two texts.

    Control tokens do not count in them: code may contain their names.

    Args:
        vocab: The tokenizer of the model.
        prefix: The text before the gap.
        suffix: The text behind it.
        suffix_first: Put the suffix before the prefix, for models that were trained so. Some of them, such as
            Codestral, have no token for the middle: it follows the prefix then.

    Raises:
        InvalidArgumentError: The model has no such tokens.
    """
    tokens = {"prefix": vocab.fim_pre, "suffix": vocab.fim_suf, "middle": vocab.fim_mid}
    missing = [name for name, token in tokens.items() if token is None and not (name == "middle" and suffix_first)]
    if missing:
        hint = "call it without suffix"
        if missing == ["middle"]:
            hint += ", or with spm_infill=True if it was trained to see the suffix before the prefix"
        raise InvalidArgumentError(f"this model cannot fill in: it has no tokens for {', '.join(missing)}; {hint}")
    before = [vocab.fim_pre, *vocab.tokenize(prefix, add_special=False)]
    behind = [vocab.fim_suf, *vocab.tokenize(suffix, add_special=False)]
    begin = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    end = [] if vocab.fim_mid is None else [vocab.fim_mid]
    parts = [*behind, *before] if suffix_first else [*before, *behind]
    return np.array([*begin, *parts, *end], np.int32)

"""Prompts that ask for the middle of a text, made of the model's own tokens for that."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError


def infill_prompt(vocab: Vocab, prefix: str | bytes, suffix: str | bytes) -> NDArray[np.int32]:
    """The tokens after which a model writes what belongs between two texts.

    Control tokens do not count in them: code may contain their names.

    Raises:
        InvalidArgumentError: The model has no such tokens.
    """
    tokens = {"prefix": vocab.fim_pre, "suffix": vocab.fim_suf, "middle": vocab.fim_mid}
    missing = [name for name, token in tokens.items() if token is None]
    if missing:
        raise InvalidArgumentError(
            f"this model cannot fill in: it has no tokens for {', '.join(missing)}; call it without suffix"
        )
    begin = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    return np.array(
        [
            *begin,
            vocab.fim_pre,
            *vocab.tokenize(prefix, add_special=False).tolist(),
            vocab.fim_suf,
            *vocab.tokenize(suffix, add_special=False).tolist(),
            vocab.fim_mid,
        ],
        np.int32,
    )

"""What can be embedded: one text or several, as text or as token ids."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from pyllm.core.vocab import Vocab
from pyllm.embedding.windows import parts_of
from pyllm.errors import InvalidArgumentError

Text = str | bytes | bytearray | memoryview | Sequence[int] | NDArray[np.integer[Any]]
"""Text, or the ids of its tokens."""

Texts = Iterable[Text]


def is_text(value: object) -> TypeGuard[str | bytes | bytearray | memoryview]:
    """Whether this is text and not token ids: str, or UTF-8 in any kind of bytes."""
    return isinstance(value, (str, bytes, bytearray)) or (isinstance(value, memoryview) and value.format == "B")


def is_one(value: object) -> TypeGuard[Text]:
    """Whether this is one text (or the token ids of one), and not several."""
    if is_text(value):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu"
    return isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], numbers.Integral)


def several(value: Text | Texts, what: str = "input") -> tuple[list[Text], bool]:
    """The texts as a list, and whether it was one alone.

    Raises:
        InvalidArgumentError: It is neither text nor tokens nor several of these.
    """
    if is_one(value):
        return [value], True
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise InvalidArgumentError(
            f"{what} must be text, token ids, or a list of these, not {type(value).__name__}", param=what
        )
    texts: list[Any] = list(value)
    return texts, False


def tokens_of(vocab: Vocab, text: Text, name: str, *, parse_special: bool, blank: bool = False) -> NDArray[np.int32]:
    """The token ids of a text, with those that the model puts around every text; ids pass through, checked.

    Args:
        vocab: The tokenizer.
        text: Text or ids.
        name: What to call it in messages.
        parse_special: Whether names of control tokens in the text count as these.
        blank: Whether the tokens that the model puts around every text are enough.

    Returns:
        NDArray: int32, shape (n,), with n > 0.

    Raises:
        InvalidArgumentError: It is empty, or something else than text or ids of this vocabulary.
    """
    if is_text(text):
        if not text and not blank:
            raise InvalidArgumentError(f"{name} is empty: there is nothing to embed", param=name)
        tokens = vocab.tokenize_array(text, parse_special=parse_special)
        if len(tokens) == 0 and blank:
            raise InvalidArgumentError(
                f"{name} is empty, and the model puts no tokens around it: it has no vector", param=name
            )
        if len(parts_of(tokens, vocab)[1]) == 0 and not blank:
            raise InvalidArgumentError(f"{name} has no tokens of its own: there is nothing to embed")
        return tokens
    if not is_one(text):
        empty = isinstance(text, (Sequence, np.ndarray)) and len(text) == 0
        raise InvalidArgumentError(
            f"{name} is empty: there is nothing to embed"
            if empty
            else f"{name} must be text or token ids, not {type(text).__name__}",
            param=name,
        )
    try:
        tokens = vocab.as_token_array(cast("Any", text))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name}: {error.args[0]}", param=name) from error
    if len(tokens) == 0:
        raise InvalidArgumentError(f"{name} is empty: there is nothing to embed", param=name)
    return tokens

"""From what the caller has (a Llama, a Model, a Context) to a context in which texts can be scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError
from pyllm.llama import Llama
from pyllm.params import ContextParams, field_names, given, unknown_argument

Scorable = Llama | Model | Context
"""What texts are scored with. A Context is used as it is, and its memory is cleared; for a Llama (whose own context is
left alone, and whose context parameters are taken over) or a Model a context is made and closed again."""

Text = str | bytes | Sequence[int] | NDArray[np.integer[Any]]
"""Text, or the ids of its tokens."""


def model_of(llm: Scorable) -> Model:
    """The model, which must be one that predicts the next token.

    Raises:
        InvalidArgumentError: It is an encoder, an encoder-decoder or a diffusion model.
    """
    if not isinstance(llm, (Llama, Model, Context)):
        raise InvalidArgumentError(f"a Llama, a Model or a Context is needed, not {type(llm).__name__}")
    model = llm if isinstance(llm, Model) else llm.model
    if model.has_encoder or model.is_diffusion:
        kind = "an encoder" if model.has_encoder else "a diffusion"
        raise InvalidArgumentError(f"{model.path!r} is {kind} model: it has no probabilities of a next token")
    return model


@contextmanager
def scoring_context(llm: Scorable, n_ctx: int, arguments: dict[str, Any], **suited: Any) -> Iterator[Context]:
    """A context for scoring, closed afterwards if it was made here.

    Args:
        llm: See :data:`Scorable`.
        n_ctx: Tokens in its memory, if it is made here.
        arguments: Arguments of :class:`pyllm.core.context.Context` that the caller named.
        **suited: Those that suit the purpose; `arguments` go before them, and they before a Llama's own.

    Raises:
        InvalidArgumentError: The model cannot be scored with, or `arguments` were given beside a Context.
    """
    model = model_of(llm)
    if isinstance(llm, Context):
        if arguments:
            raise InvalidArgumentError(f"the context is made already; {', '.join(arguments)} would do nothing")
        _check(llm)
        yield llm
        return
    known = field_names(ContextParams)
    for name in arguments:
        if name not in known or name == "n_ctx":
            raise unknown_argument(name, known, "a context for scoring")
    of_llama = given(llm.context_params) if isinstance(llm, Llama) else {}
    for name in ("embeddings", "pooling_type"):
        of_llama.pop(name, None)
    with Context(model, **{**of_llama, **suited, **arguments, "n_ctx": n_ctx}) as context:
        _check(context)
        yield context


def _check(context: Context) -> None:
    if not context.has_memory or not context.causal_attn:
        raise InvalidArgumentError(
            f"{context.model.path!r} is an encoder model: it has no probabilities of a next token"
        )


def tokens_of(vocab: Vocab, text: Text, *, parse_special: bool, add_special: bool = True) -> NDArray[np.int32]:
    """Token ids of a text; ids pass through, checked.

    Returns:
        NDArray: int32, shape (n,).
    """
    if isinstance(text, (str, bytes)):
        return vocab.tokenize_array(text, add_special=add_special, parse_special=parse_special)
    return vocab.as_token_array(text)


def is_text(value: Any) -> bool:
    """Whether this is one text (or the token ids of one), and not several."""
    if isinstance(value, (str, bytes)):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return len(value) > 0 and isinstance(value[0], (int, np.integer))

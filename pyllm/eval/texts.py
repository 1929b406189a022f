"""Score texts: every token of one, or continuations of prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pyllm.core.context import Context
from pyllm.errors import InvalidArgumentError
from pyllm.eval.contexts import Scorable, Text, model_of, tokens_of
from pyllm.eval.scorer import DEFAULT_N_SEQ, Scorer, pairs
from pyllm.eval.types import Score, TokenLogprobs


def logprobs(
    llm: Scorable,
    text: Text,
    *,
    top_k: int = 0,
    n_ctx: int | None = None,
    overlap: int | None = None,
    parse_special: bool = True,
    **context_arguments: Any,
) -> TokenLogprobs:
    """The probability of every token of a text, with its rank and the entropy at its place.

    The first token has none. A model that begins texts with a token of its own (BOS) gets it, and so has a
    probability for each token of the text itself.

    Args:
        llm: A Llama, a Model or a Context; see :class:`pyllm.eval.Scorer`.
        text: Text, or token ids, which are taken as they are.
        top_k: Also keep the k most likely tokens for each place.
        n_ctx: Most tokens computed as one. None: the length the model was trained with, at most 4096. A longer text
            is scored in windows, and each token but the first once.
        overlap: Tokens that a later window sees again before those it scores. None: half of n_ctx. If the model
            begins texts with BOS, that takes the place of the first of them.
        parse_special: Whether texts such as ``<|im_start|>`` are control tokens.
        **context_arguments: Arguments of :class:`pyllm.core.context.Context`, e.g. ``n_threads=4``.

    Returns:
        TokenLogprobs: Arrays with an entry for each token.

    Raises:
        InvalidArgumentError: The model is an encoder, or a number is out of range.
    """
    return logprobs_many(
        llm, [text], top_k=top_k, n_ctx=n_ctx, overlap=overlap, parse_special=parse_special, **context_arguments
    )[0]


def logprobs_many(
    llm: Scorable,
    texts: Iterable[Text],
    *,
    top_k: int = 0,
    n_ctx: int | None = None,
    overlap: int | None = None,
    parse_special: bool = True,
    **context_arguments: Any,
) -> list[TokenLogprobs]:
    """As :func:`logprobs`, for several texts; beginnings that they share are computed once.

    Returns:
        list[TokenLogprobs]: One for each text, in their order.
    """
    if isinstance(texts, (str, bytes)):
        raise InvalidArgumentError("texts must be several: put a single one into a list, or use logprobs()")
    vocab = model_of(llm).vocab
    all_tokens = [tokens_of(vocab, text, parse_special=parse_special) for text in texts]
    if n_ctx is None and not isinstance(llm, Context):
        n_ctx = _enough(llm, max((len(tokens) for tokens in all_tokens), default=1), longest=4096)
    with Scorer(llm, n_ctx=n_ctx, **_fit(len(all_tokens)), **context_arguments) as scorer:
        return scorer.logprobs(all_tokens, top_k=top_k, overlap=overlap)


def score(
    llm: Scorable,
    prompts: Text | Sequence[Text],
    continuations: Sequence[Text],
    *,
    n_ctx: int | None = None,
    parse_special: bool = True,
    **context_arguments: Any,
) -> list[Score]:
    """The probability of each continuation after its prompt.

    Logits are computed for the continuations only, and beginnings that several sequences share once, in whatever
    order they are given.

    Prompt and continuation are joined and then turned into tokens. Where a token reaches over the border (prompt
    "The answer is " with continuation "yes": " yes" is one token), it is scored with the continuation, and the
    prompt ends before it. Token ids are joined as they are.

    Args:
        llm: A Llama, a Model or a Context; see :class:`pyllm.eval.Scorer`.
        prompts: One for each continuation, or a single one for all.
        continuations: Texts, or token ids.
        n_ctx: Most tokens of prompt and continuation together. None: as many as the longest has, at most what the
            model was trained with.
        parse_special: Whether texts such as ``<|im_start|>`` are control tokens.
        **context_arguments: Arguments of :class:`pyllm.core.context.Context`, e.g. ``n_threads=4``.

    Returns:
        list[Score]: In the order of the continuations. An empty continuation has the log-probability 0.

    Raises:
        InvalidArgumentError: A sequence is too long, or the prompt is empty and the model has no BOS; or the model is
            an encoder.
    """
    sequences = pairs(model_of(llm).vocab, prompts, continuations, parse_special=parse_special)
    if n_ctx is None and not isinstance(llm, Context):
        longest = max((len(tokens) - 1 for tokens, _ in sequences), default=1)
        n_ctx = _enough(llm, longest, longest=longest)
    with Scorer(llm, n_ctx=n_ctx, **_fit(len(sequences)), **context_arguments) as scorer:
        return scorer.score_tokens(sequences)


def _enough(llm: Scorable, n: int, *, longest: int) -> int:
    """As many tokens as are needed, at most what the model was trained with."""
    return max(1, min(n, longest, model_of(llm).n_ctx_train or n))


def _fit(n: int) -> dict[str, Any]:
    # Room for no more sequences than there are texts.
    return {"n_seq_max": max(1, min(n, DEFAULT_N_SEQ))}

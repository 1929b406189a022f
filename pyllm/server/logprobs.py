"""Log-probabilities with the ids and bytes of tokens, in llama-server's shape."""

from __future__ import annotations

from typing import Any

from pyllm.core.vocab import Vocab
from pyllm.types import Logprobs


def token_entries(vocab: Vocab, logprobs: Logprobs) -> list[dict[str, Any]]:
    """One object for each token, with the likeliest tokens at its place.

    Args:
        vocab: The tokenizer of the model.
        logprobs: What was noted.

    Returns:
        list: Objects with ``id``, ``token``, ``bytes``, ``logprob`` and ``top_logprobs``, of which each has the first
        four too, the likeliest first. ``logprob`` is None for the first token of a prompt, which nothing predicts.
        ``token`` is the text; of bytes that are no text by themselves, what is left of it.
    """
    return [
        {
            **_entry(vocab, token, value),
            "top_logprobs": [_entry(vocab, other, its_value) for other, its_value in top],
        }
        for token, value, top in zip(logprobs.ids, logprobs.token_logprobs, logprobs.top_ids, strict=True)
    ]


def _entry(vocab: Vocab, token: int, logprob: float | None) -> dict[str, Any]:
    piece = vocab.token_to_piece(token)
    return {"id": token, "token": piece.decode("utf-8", "ignore"), "bytes": list(piece), "logprob": logprob}

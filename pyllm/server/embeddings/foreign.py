"""Token ids that a client sends, and how to see that they come from another tokenizer."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pyllm.core.vocab import Vocab
from pyllm.server.errors import APIError, invalid
from pyllm.server.native.prompts import mixed_ids

# A list that was cut in the middle of words loses some of its ids at its ends when its text is tokenized again.
_LOST_AT_ENDS = 4
# A client's own tokenizer may differ from llama.cpp's in a few places.
_LOST = 0.05


def own_tokens(vocab: Vocab, value: str | list[Any], where: str, *, any_ids: bool = False) -> str | list[int]:
    """A text as it is, or the ids in a list of ids and texts.

    Args:
        vocab: The tokenizer of the model.
        value: The text or the list.
        where: What of the request it is.
        any_ids: Whether ids are taken that the tokenizer of the model would never give.

    Raises:
        APIError: The ids are those of another tokenizer.
    """
    if isinstance(value, str):
        return value
    ids = [one for one in value if not isinstance(one, str)]
    if ids and max(ids) >= len(vocab):
        raise _foreign(where, f"has the token id {max(ids)}, and those of this model go from 0 to {len(vocab) - 1}")
    if not any_ids and len(ids) == len(value) and is_foreign(vocab, ids):
        raise _foreign(where, "has token ids that no text has in this model, and /embeddings takes them all the same")
    return mixed_ids(vocab, value, add_special=True, parse_special=False)


def is_foreign(vocab: Vocab, ids: list[int]) -> bool:
    """Whether another tokenizer has made these ids: they are not those of the text that they stand for in this one.

    What the model's own tokenizer has made is the same again, but where it was cut to pieces. A few ids tell nothing.
    """
    if len(ids) <= _LOST_AT_ENDS:
        return False
    text = vocab.detokenize_bytes(ids)
    allowed = max(_LOST_AT_ENDS, _LOST * len(ids))
    counts = Counter(ids)
    # The names of control tokens may have been such tokens, or text.
    return all(
        (counts - Counter(vocab.tokenize(text, add_special=False, parse_special=special))).total() > allowed
        for special in (False, True)
    )


def _foreign(where: str, what: str) -> APIError:
    message = (
        f"{where} {what}: another tokenizer has made them. Send texts; LangChain's OpenAIEmbeddings does so with "
        "check_embedding_ctx_length=False"
    )
    return invalid(where, message, code="invalid_token_ids")

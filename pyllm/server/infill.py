"""Prompts that ask for the middle of a file, among excerpts of other files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyllm.core.vocab import Vocab
from pyllm.server.errors import APIError
from pyllm.server.prompts import check_mixed, mixed_ids
from pyllm.server.wire import Wire

_TEXT = "a text, or a list of token ids and texts"
# What llama-server calls the project and the file: models were trained with such names before their texts.
_PROJECT, _FILE, _EXCERPT = "myproject\n", "filename\n", "tmp"
# Between excerpts where the model has no token for that.
_BETWEEN = "\n\n--- snippet ---\n\n"


class Excerpt(Wire):
    """A part of another file."""

    text: str
    filename: str | None = None


def infill_ids(
    vocab: Vocab,
    input_prefix: Any,
    input_suffix: Any,
    prompt: str,
    excerpts: Iterable[Excerpt],
    *,
    n_batch: int,
    n_ctx: int,
    n_predict: int,
    suffix_first: bool = False,
) -> list[int]:
    """The prompt: excerpts of other files, then prefix and suffix behind their marks, then the mark of the middle.

    Of prefix and suffix what is nearest to the gap is taken, so that they fit a batch, three to one; of the excerpts
    the last ones that fit the rest of the context.

    Args:
        vocab: The tokenizer of the model.
        input_prefix: The text before the gap, or token ids and texts.
        input_suffix: The text behind it.
        prompt: What the middle begins with.
        excerpts: Parts of other files.
        n_batch: Tokens of a batch.
        n_ctx: Tokens of the context.
        n_predict: Tokens of a text when nothing else is asked for.
        suffix_first: Put the suffix before the prefix.

    Raises:
        APIError: The prefix or the suffix is no text (400), or the model cannot fill in (501).
    """
    check_model(vocab)
    assert vocab.fim_pre is not None and vocab.fim_suf is not None and vocab.fim_mid is not None
    before_gap = check_mixed(input_prefix, "input_prefix", _TEXT)
    behind_gap = check_mixed(input_suffix, "input_suffix", _TEXT)
    begun = vocab.tokenize(prompt, add_special=False, parse_special=True)
    prefix = mixed_ids(vocab, before_gap, add_special=False, parse_special=False)
    suffix = mixed_ids(vocab, behind_gap, add_special=False, parse_special=False)
    quarter = n_batch // 4
    prefix = prefix[max(0, len(prefix) - 3 * quarter) :]
    suffix = suffix[: max(0, quarter - 2 - len(begun))]
    before, behind = [vocab.fim_pre, *prefix, *begun], [vocab.fim_suf, *suffix]
    begin = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    extra = _excerpt_ids(excerpts, vocab)
    extra = extra[max(0, len(extra) - max(0, n_ctx - n_batch - 2 * n_predict)) :]
    parts = [*behind, *before] if suffix_first else [*before, *behind]
    return [*begin, *extra, *parts, vocab.fim_mid]


def check_model(vocab: Vocab) -> None:
    """Raise the error that says that a model cannot fill in.

    Raises:
        APIError: It has no tokens for that (501).
    """
    tokens = {"prefix": vocab.fim_pre, "suffix": vocab.fim_suf, "middle": vocab.fim_mid}
    missing = [name for name, token in tokens.items() if token is None]
    if missing:
        message = f"this model cannot fill in: it has no tokens for {', '.join(missing)}"
        raise APIError(501, message, code="unsupported")


def _excerpt_ids(excerpts: Iterable[Excerpt], vocab: Vocab) -> list[int]:
    def plain(text: str) -> list[int]:
        return vocab.tokenize(text, add_special=False, parse_special=False)

    found = [] if vocab.fim_rep is None else [vocab.fim_rep, *plain(_PROJECT)]
    for one in excerpts:
        name = one.filename or _EXCERPT
        head = plain(_BETWEEN) if vocab.fim_sep is None else [vocab.fim_sep, *plain(f"{name}\n")]
        found += [*head, *plain(one.text)]
    return found if vocab.fim_sep is None else [*found, vocab.fim_sep, *plain(_FILE)]

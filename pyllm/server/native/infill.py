"""Prompts that ask for the middle of a file, among excerpts of other files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyllm.core.vocab import Vocab
from pyllm.server.errors import APIError, invalid
from pyllm.server.fields import Fields
from pyllm.server.native.prompts import check_mixed, mixed_ids

_TEXT = "a text, or a list of token ids and texts"
# What llama-server calls the project and the file: models were trained with such names before their texts.
_PROJECT, _FILE, _EXCERPT = "myproject\n", "filename\n", "tmp"
# Between excerpts where the model has no token for that.
_BETWEEN = "\n\n--- snippet ---\n\n"


@dataclass(frozen=True, slots=True)
class Infill:
    """What an infill request asks for.

    Attributes:
        prefix: The text before the gap.
        suffix: The text behind it.
        prompt: What the middle begins with.
        extra: Names and texts of other files.
    """

    prefix: str | list[Any]
    suffix: str | list[Any]
    prompt: str
    extra: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, fields: Fields) -> Infill:
        """Read it from a request.

        Raises:
            APIError: A field is missing or wrong.
        """
        prefix, suffix = (check_mixed(fields.need(name), name, _TEXT) for name in ("input_prefix", "input_suffix"))
        return cls(prefix, suffix, fields.text("prompt") or "", _extra(fields))

    def ids(self, vocab: Vocab, *, n_batch: int, n_ctx: int, n_predict: int, suffix_first: bool = False) -> list[int]:
        """The prompt: excerpts of other files, then prefix and suffix behind their marks, then the mark of the middle.

        Of prefix and suffix what is nearest to the gap is taken, so that they fit a batch, three to one; of the
        excerpts the last ones that fit the rest of the context.

        Args:
            vocab: The tokenizer of the model.
            n_batch: Tokens of a batch.
            n_ctx: Tokens of the context.
            n_predict: Tokens of a text when nothing else is asked for.
            suffix_first: Put the suffix before the prefix.
        """
        check_model(vocab)
        assert vocab.fim_pre is not None and vocab.fim_suf is not None and vocab.fim_mid is not None
        prompt = vocab.tokenize(self.prompt, add_special=False, parse_special=True)
        prefix = mixed_ids(vocab, self.prefix, add_special=False, parse_special=False)
        suffix = mixed_ids(vocab, self.suffix, add_special=False, parse_special=False)
        quarter = n_batch // 4
        prefix = prefix[max(0, len(prefix) - 3 * quarter) :]
        suffix = suffix[: max(0, quarter - 2 - len(prompt))]
        before, behind = [vocab.fim_pre, *prefix, *prompt], [vocab.fim_suf, *suffix]
        begin = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
        extra = self._excerpts(vocab)
        extra = extra[max(0, len(extra) - max(0, n_ctx - n_batch - 2 * n_predict)) :]
        parts = [*behind, *before] if suffix_first else [*before, *behind]
        return [*begin, *extra, *parts, vocab.fim_mid]

    def _excerpts(self, vocab: Vocab) -> list[int]:
        def plain(text: str) -> list[int]:
            return vocab.tokenize(text, add_special=False, parse_special=False)

        found = [] if vocab.fim_rep is None else [vocab.fim_rep, *plain(_PROJECT)]
        for name, text in self.extra:
            head = plain(_BETWEEN) if vocab.fim_sep is None else [vocab.fim_sep, *plain(f"{name}\n")]
            found += [*head, *plain(text)]
        return found if vocab.fim_sep is None else [*found, vocab.fim_sep, *plain(_FILE)]


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


def _extra(fields: Fields) -> tuple[tuple[str, str], ...]:
    value = fields.get("input_extra")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise fields.wrong("input_extra", "a list of objects with text and filename")
    found = []
    for i, one in enumerate(value):
        if not isinstance(one, dict):
            raise invalid(f"input_extra[{i}]", f"input_extra[{i}] must be an object with text and filename")
        inner = Fields(one, f"input_extra[{i}].")
        inner.need("text")
        found.append((inner.text("filename") or _EXCERPT, inner.text("text") or ""))
    return tuple(found)

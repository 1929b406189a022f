"""`Grammar`: what a text must look like, in GBNF."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm.errors import GrammarError, InvalidArgumentError

if TYPE_CHECKING:
    from pyllm.core.sampler import Sampler
    from pyllm.core.vocab import Vocab


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in GBNF, and from when on it holds.

    Without triggers it holds from the first token. With triggers it is *lazy*: any text is allowed until one of them
    appears, and from there on the grammar holds.

    Attributes:
        text: The rules.
        root: The rule that the whole text must follow.
        trigger_patterns: Regular expressions (ECMAScript), each searched in all that was generated. The grammar holds
            from the first group that matched something, or else from the beginning of the match.
        trigger_tokens: Token ids; the grammar holds from such a token on, which is the first it sees.
        control_tokens: Whether control tokens, such as ``<|im_start|>``, may stand for the text that is their name.
            False keeps them out: what is read as text then is what the grammar has allowed. None: False where the
            grammar holds from the first token on and names no tokens itself.

    Example:
        >>> Grammar('root ::= "yes" | "no"')
        >>> Grammar('root ::= "<tool>" [a-z]+ "</tool>"', trigger_patterns=("<tool>",))
    """

    text: str
    root: str = "root"
    trigger_patterns: tuple[str, ...] = ()
    trigger_tokens: tuple[int, ...] = ()
    control_tokens: bool | None = None

    def __post_init__(self) -> None:
        for name in ("text", "root"):
            if not isinstance(getattr(self, name), str):
                raise InvalidArgumentError(f"{name} of a grammar must be text, not {getattr(self, name)!r}")
            if any("\ud800" <= c <= "\udfff" for c in getattr(self, name)):
                raise GrammarError(f"{name} of a grammar holds half of a surrogate pair, which is no character")
        for name, kind, what in (("trigger_patterns", str, "texts"), ("trigger_tokens", numbers.Integral, "token ids")):
            value = getattr(self, name)
            if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
                raise InvalidArgumentError(f"{name} must be a tuple, not {value!r}", param=name)
            items = tuple(value)
            if not all(isinstance(item, kind) for item in items):
                raise InvalidArgumentError(f"{name} must be {what}, not {items!r}", param=name)
            object.__setattr__(self, name, items)

    @property
    def is_lazy(self) -> bool:
        """Whether it waits for a trigger."""
        return bool(self.trigger_patterns or self.trigger_tokens)

    def sampler(self, vocab: Vocab) -> Sampler:
        """A sampler that holds one text to it."""
        from pyllm.core import samplers

        return samplers.Grammar(
            vocab,
            self.text,
            self.root,
            trigger_patterns=self.trigger_patterns,
            trigger_tokens=self.trigger_tokens,
        )

    def check(self) -> None:
        """See whether it can be used, without a model.

        Raises:
            GrammarError: It cannot; the message names line and column.
        """
        from pyllm.core.gbnf import check

        check(self.text, self.root)

    def matches(self, text: str | bytes) -> bool:
        """Whether a whole text follows the rules. llama.cpp's own engine decides, byte by byte.

        Triggers are left aside, and tokens that the grammar names by id or name match nothing.
        """
        from pyllm.structured.matching import matches

        return matches(self, text)

"""What holds an answer to its form: a grammar that may have to wait until reasoning is over, and a budget for that."""

from __future__ import annotations

from dataclasses import dataclass

from pyllm.core.sampler import Sampler
from pyllm.core.vocab import Vocab
from pyllm.errors import ChatTemplateError, PyllmError
from pyllm.structured import Grammar


@dataclass(frozen=True, slots=True)
class Guide(Grammar):
    """A grammar together with what it needs to know of the prompt and of reasoning.

    Attributes:
        beginning: Tokens at the end of the prompt that belong to the answer already.
        prefilled: The rules begin with that text.
        reasoning_start: Tokens that open a block of reasoning; empty where the model knows none.
        reasoning_ends: Sequences of tokens, each of which closes it.
        reasoning_budget: Tokens that it may have, or None.
        waits: The grammar holds only outside of reasoning.
    """

    beginning: tuple[int, ...] = ()
    prefilled: bool = False
    reasoning_start: tuple[int, ...] = ()
    reasoning_ends: tuple[tuple[int, ...], ...] = ()
    reasoning_budget: int | None = None
    waits: bool = False

    def check(self) -> None:
        """See :meth:`pyllm.structured.Grammar.check`; without rules there is nothing to check."""
        if self.text:
            Grammar.check(self)

    def sampler(self, vocab: Vocab) -> Sampler:
        """The sampler that does all this, for one answer."""
        from pyllm.core.reasoning import Reasoning
        from pyllm.core.samplers import Grammar as GrammarSampler

        grammar = None
        if self.text:
            grammar = GrammarSampler(
                vocab,
                self.text,
                self.root,
                trigger_patterns=self.trigger_patterns,
                trigger_tokens=self.trigger_tokens,
            )
            if self.prefilled:
                try:
                    for token in self.beginning:
                        grammar.accept(token)
                except PyllmError as error:
                    raise ChatTemplateError(
                        "the answer must not begin as the prompt ends: with the response_prefix or the message that "
                        f"goes on, or else with what the chat template begins it with ({error})"
                    ) from error
        knows_reasoning = self.reasoning_start and self.reasoning_ends
        if grammar is not None and not (knows_reasoning and (self.waits or self.reasoning_budget is not None)):
            return grammar
        return Reasoning(
            vocab,
            self.reasoning_start,
            self.reasoning_ends,
            budget=self.reasoning_budget,
            beginning=self.beginning,
            grammar=grammar,
            waits=self.waits,
            replays=self.is_lazy,
        )

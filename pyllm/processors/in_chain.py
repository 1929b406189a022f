"""A logits processor as a member of a chain of samplers."""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pyllm.core.python_sampler import Candidates
from pyllm.errors import InvalidArgumentError
from pyllm.processors.base import LogitsProcessor, as_processors, process, reset


class ProcessorSampler:
    """What :class:`pyllm.core.python_sampler.PythonSampler` needs to run a logits processor at any place of a chain.

    The processor sees a row of n_vocab logits, in which tokens that samplers before it have dropped are at minus
    infinity; they stay dropped.

    Args:
        processor: The processor.
        n_vocab: Size of the vocabulary.
        prompt: Tokens that come before those the chain accepts. Leave it out when the prompt itself is accepted.

    Example:
        >>> Chain(TopK(40), PythonSampler(ProcessorSampler(no_e, len(vocab), prompt=ids)), Dist(1))
    """

    def __init__(self, processor: LogitsProcessor, n_vocab: int, prompt: NDArray[np.int32] | list[int] = ()) -> None:  # type: ignore[assignment]
        if n_vocab < 1:
            raise InvalidArgumentError(f"n_vocab must be at least 1, not {n_vocab}")
        self.processors = as_processors(processor)
        self.row = np.empty(n_vocab, np.float32)
        self.ids = np.asarray(prompt, np.int32)
        self.n_prompt = self.n = len(self.ids)

    def apply(self, candidates: Candidates) -> None:
        """Run the processor on the candidates."""
        array = candidates.array
        ids = array["id"]
        self.row.fill(-np.inf)
        self.row[ids] = array["logit"]
        so_far = self.ids[: self.n]
        so_far.flags.writeable = False
        process(self.processors, so_far, self.row)
        array["logit"] = self.row[ids]
        candidates.sorted = True  # as far as it is still true, which is checked

    def accept(self, token: int) -> None:
        """The text goes on with this token."""
        if self.n == len(self.ids):
            self.ids = np.concatenate([self.ids, np.empty(max(64, self.n), np.int32)])
        self.ids[self.n] = token
        self.n += 1

    def reset(self) -> None:
        """The text begins anew, after the prompt."""
        self.n = self.n_prompt
        reset(self.processors)

    def clone(self) -> Self:
        """An independent copy; processors that keep state need a method ``clone()`` of their own."""
        other = copy.copy(self)
        other.row, other.ids = self.row.copy(), self.ids.copy()
        other.processors = [p.clone() if hasattr(p, "clone") else p for p in self.processors]
        return other


__all__ = ["ProcessorSampler"]

"""Sources of bitmasks: what may come next, one bit for each token of the vocabulary."""

from __future__ import annotations

import importlib
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pyllm.core.kernels import allocate_token_bitmask, apply_token_bitmask
from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError, SamplerError
from pyllm.extras import missing


class BitmaskSource:
    """The base of all bitmask sources: a matcher of another library, and what it needs to know of the vocabulary.

    A source follows one text. Use it as a logits processor, ``llm(prompt, logits_processor=source)``, which begins
    anew with each text, or as a member of a chain, ``Chain(Bitmask(source), Temp(0.8), Dist(1))``, whose ``reset()``
    begins anew.

    Where the matcher allows the end of the text, every token that ends a generation is allowed. When the matcher is
    finished nothing else is, so the text ends there.

    Args:
        vocab: The tokenizer of the model.

    Raises:
        InvalidArgumentError: That is no Vocab, or the model has no token that ends a text.
    """

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = check_vocab(vocab)
        self.n_vocab = len(vocab)
        self.eog = frozenset(vocab.eog_tokens)
        eos = vocab.eos if vocab.eos is not None else min(self.eog, default=None)
        if eos is None:
            raise InvalidArgumentError("this model has no token that ends a text, so no text could be held to a form")
        self.eos = eos
        self.eog |= {eos}
        self._mask: NDArray[np.int32] | None = None
        self._n_seen: int | None = None
        self._ended = False

    # ---- what a chain calls

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Set the bits of the tokens that may come next.

        Args:
            mask: int32, C-contiguous, shape (ceil(n_vocab / 32),).

        Raises:
            SamplerError: The matcher is in an error state.
            ClosedError: The model has been closed.
        """
        _ = self.vocab.address  # the libraries keep the pointer: never use it after a close
        if self._ended or self._finished():
            mask[:] = 0
            may_end = True
        else:
            self._fill(mask)
            may_end = bool(mask[self.eos // 32] >> (self.eos % 32) & 1)
        if may_end:
            for token in self.eog:
                mask[token // 32] |= np.array(1 << (token % 32), np.uint32).view(np.int32)

    def accept(self, token: int) -> None:
        """The text goes on with this token.

        Raises:
            SamplerError: The matcher does not allow it.
        """
        _ = self.vocab.address
        if token in self.eog:
            self._ended = True
        elif self._ended or self._finished():
            raise SamplerError(f"the text is finished, and token {token} cannot follow")
        else:
            self._accept(int(token))

    def reset(self) -> None:
        """A new text begins."""
        self._ended = False
        self._n_seen = None
        self._reset()

    def rollback(self, n: int) -> None:
        """Take back the last n tokens that were accepted.

        Raises:
            SamplerError: There are not so many.
        """
        if n < 0:
            raise InvalidArgumentError(f"n must be at least 0, not {n}")
        if n and self._ended:
            self._ended = False
            n -= 1
        if n:
            self._rollback(n)

    def clone(self) -> Self:
        """A source that goes on from the same state, independent from now on."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._mask = None
        copy._copy_matcher(self)
        return copy

    @property
    def finished(self) -> bool:
        """True when nothing but the end of the text may follow."""
        return self._ended or self._finished()

    # ---- what a processor does

    def __call__(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        if self._n_seen is None or len(ids) < self._n_seen:
            self.reset()
        else:
            for token in ids[self._n_seen :].tolist():
                self.accept(token)
        self._n_seen = len(ids)
        if len(logits) != self.n_vocab:
            raise InvalidArgumentError(
                f"this source was made for a vocabulary of {self.n_vocab} tokens, and the logits are of {len(logits)}: "
                "make one with the vocab of this model"
            )
        if self._mask is None:
            self._mask = allocate_token_bitmask(1, self.n_vocab)[0]
        self.fill(self._mask)
        apply_token_bitmask(logits, self._mask)

    # ---- what subclasses say

    def _fill(self, mask: NDArray[np.int32]) -> None:
        raise NotImplementedError

    def _accept(self, token: int) -> None:
        raise NotImplementedError

    def _reset(self) -> None:
        raise NotImplementedError

    def _rollback(self, n: int) -> None:
        raise NotImplementedError

    def _finished(self) -> bool:
        return False

    def _copy_matcher(self, source: Self) -> None:
        raise NotImplementedError


def check_vocab(vocab: Any) -> Vocab:
    """The tokenizer itself.

    Raises:
        InvalidArgumentError: It is something else; a Llama and a Model have one.
    """
    if not isinstance(vocab, Vocab):
        raise InvalidArgumentError(f"a Vocab is needed, such as llm.vocab, not {type(vocab).__name__}")
    return vocab


def refused(token: int, vocab: Vocab, reason: str = "") -> SamplerError:
    """The error for a token that a matcher does not allow."""
    return SamplerError(
        f"token {token} ({vocab.token_to_piece(token)!r}) does not fit the form of the text{reason and ': ' + reason}"
    )


def import_library(module: str, package: str) -> Any:
    """Import what a source is made of, when it is first needed."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise missing(f"this needs {package}", package) from cause


__all__ = ["BitmaskSource"]

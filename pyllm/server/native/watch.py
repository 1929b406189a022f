"""What looks at each token of a text: probabilities after sampling, and llama-server's rules for its end."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.sampler import Chain
from pyllm.core.vocab import Vocab
from pyllm.sampling import accept_prompt


class Watch:
    """A stopping criterion for one text.

    Args:
        vocab: The tokenizer of the model.
        chain: Samplers as those of the text, to ask them for probabilities; no text may have them. None: nothing is
            asked.
        n_probs: How many tokens to name for each place.
        most_ms: A text that takes longer ends at its next new line; 0: never.
        n_indent: A text ends at a line that is indented less; its indentation is the last of it.

    Attributes:
        entries: For each token an object as llama-server makes them.
        limited: Whether a rule of this has ended the text.
        cut: How many characters of the text stay, where the rule of indentation has ended it.
    """

    def __init__(
        self, vocab: Vocab, *, chain: Chain | None = None, n_probs: int = 0, most_ms: int = 0, n_indent: int = 0
    ) -> None:
        self.vocab = vocab
        self.chain = chain
        self.n_probs = n_probs
        self.most_ms = most_ms
        self.n_indent = n_indent
        self.entries: list[dict[str, Any]] = []
        self.limited = False
        self.cut: int | None = None
        self._started: float | None = None
        # Blanks at the beginning of the line so far; None behind them.
        self._indent: int | None = None
        self._text = b""

    def __call__(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> bool:
        token, now = int(ids[-1]), time.perf_counter()
        if self._started is None:
            self._started = now
            if self.chain is not None:
                accept_prompt(self.chain, ids[:-1])
        if self.chain is not None:
            self.entries.append(self._entry(self.chain, token, logits))
            self.chain.accept(token)
        piece = self.vocab.token_to_piece(token, special=False)
        late = bool(self.most_ms) and b"\n" in piece and 1000 * (now - self._started) > self.most_ms
        self.limited = (bool(self.n_indent) and self._is_out(piece)) or late
        return self.limited

    def _is_out(self, piece: bytes) -> bool:
        """Whether a line begins too far to the left; an empty one does."""
        for i, byte in enumerate(piece):
            if self._indent is not None:
                if byte in b" \t":
                    self._indent += 1
                elif self._indent < self.n_indent:
                    self.cut = len((self._text + piece[:i]).decode("utf-8", "replace"))
                    return True
                else:
                    self._indent = None
            if byte == ord("\n"):
                self._indent = 0
        self._text += piece
        return False

    def _entry(self, chain: Chain, token: int, logits: NDArray[np.float32]) -> dict[str, Any]:
        ids, _, probabilities, selected = chain.apply(logits)
        if len(ids) > 1 and not probabilities.any():
            # The likeliest was taken without asking how likely it is.
            probabilities = (ids == selected).astype(np.float32)
        best = np.argsort(-probabilities, kind="stable")[: self.n_probs]
        named = zip(ids[best].tolist(), probabilities[best].tolist(), strict=True)
        own = probabilities[ids == token]
        return {
            **self._named(token, float(own[0]) if len(own) else 0.0),
            "top_probs": [self._named(one, prob) for one, prob in named if prob > 0],
        }

    def _named(self, token: int, prob: float) -> dict[str, Any]:
        piece = self.vocab.token_to_piece(token)
        return {"id": token, "token": piece.decode("utf-8", "ignore"), "bytes": list(piece), "prob": prob}

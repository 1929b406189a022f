"""Log-probabilities of the tokens of a text, in the shape of OpenAI's completions."""

from __future__ import annotations

import codecs

import numpy as np
from numpy.typing import NDArray

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.kernels import token_logprobs, top_k_logprobs
from pyllm.core.vocab import Vocab
from pyllm.types import Logprobs

# Floats of logits that exist at once while a prompt is scored: 64 MiB.
_MOST_FLOATS = 2**24


class Recorder:
    """Notes the log-probabilities of one text, token by token.

    Args:
        vocab: The tokenizer of the model.
        k: How many of the likeliest tokens to note beside each; 0 notes none.
        special: Which control tokens stand in the text; see :class:`pyllm.core.generation.Generation`.
    """

    def __init__(self, vocab: Vocab, k: int, special: bool | tuple[int, ...] = False) -> None:
        self.vocab = vocab
        self.k = k
        self.special = special
        self.tokens: list[str] = []
        self.offsets: list[int] = []
        self.logprobs: list[float | None] = []
        self.top: list[dict[str, float] | None] = []
        self.n_prompt = 0
        self._n_characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._taken = 0

    def add(self, token: int, row: NDArray[np.float32] | None) -> None:
        """Note a token and the row of logits that predicted it, shape (n_vocab,); no row, no numbers."""
        text = self._text(token)
        self.tokens.append(text)
        self.offsets.append(self._n_characters)
        self._n_characters += len(self._decoder.decode(self.vocab.token_to_piece(token, special=self._shown(token))))
        if row is None:
            self.logprobs.append(None)
            self.top.append(None)
            return
        logprob = float(token_logprobs(row, token))
        self.logprobs.append(logprob)
        top: dict[str, float] = {}
        if self.k:
            ids, values = top_k_logprobs(row, self.k)
            for other, value in zip(ids.tolist(), values.tolist(), strict=True):
                # Two tokens may have the same text: the likelier one counts.
                top.setdefault(self._text(other), value)
        top.setdefault(text, logprob)
        self.top.append(top)

    def end_prompt(self, n_characters: int) -> None:
        """What was noted so far is the prompt, which is shown as so many characters."""
        # A tokenizer may put a space before the text: the ends are what agrees.
        extra = self._n_characters - n_characters
        self.offsets = [max(0, offset - extra) for offset in self.offsets]
        self._n_characters = n_characters
        self._decoder.reset()
        self.n_prompt = len(self.tokens)

    def cut(self, n_characters: int) -> None:
        """Forget generated tokens that begin behind the end of the text: those of a stop string."""
        while len(self.tokens) > max(self.n_prompt, self._taken) and self.offsets[-1] >= n_characters:
            for items in (self.tokens, self.offsets, self.logprobs, self.top):
                items.pop()

    @property
    def mean(self) -> float:
        """The mean log-probability of what was generated."""
        values = [value for value in self.logprobs[self.n_prompt :] if value is not None]
        return float(np.mean(values)) if values else 0.0

    def take(self) -> Logprobs:
        """What was noted since the last time."""
        start, self._taken = self._taken, len(self.tokens)
        return self._slice(start)

    def all(self) -> Logprobs:
        """Everything."""
        return self._slice(0)

    def _slice(self, start: int) -> Logprobs:
        return Logprobs(
            tuple(self.tokens[start:]),
            tuple(self.offsets[start:]),
            tuple(self.logprobs[start:]),
            tuple(self.top[start:]),
        )

    def _shown(self, token: int) -> bool:
        return is_shown(self.special, token)

    def _text(self, token: int) -> str:
        piece = self.vocab.token_to_piece(token, special=True)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def is_shown(special: bool | tuple[int, ...], token: int) -> bool:
    """Whether a control token stands in the text."""
    return special if isinstance(special, bool) else token in special


def score_prompt(context: Context, ids: NDArray[np.int32], recorder: Recorder) -> None:
    """Compute all of a prompt but its last token, into an empty sequence 0, and note what each token had.

    Args:
        context: Its memory for sequence 0 is empty.
        ids: The prompt, int32, shape (n,).
        recorder: Where to note it.
    """
    recorder.add(int(ids[0]), None)
    step = max(1, min(context.n_batch, _MOST_FLOATS // context.n_vocab))
    for start in range(0, len(ids) - 1, step):
        part = ids[start : min(start + step, len(ids) - 1)]
        positions = np.arange(start, start + len(part), dtype=np.int32)
        context.decode(Batch.from_arrays(part, pos=positions, outputs="all"))
        rows = np.asarray(context.logits)
        for i in range(len(part)):
            recorder.add(int(ids[start + i + 1]), rows[i])
        # A view would keep the next decode from enlarging the buffer.
        del rows

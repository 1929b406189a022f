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


class LogprobsCollector:
    """Collects the log-probabilities of one sequence, token by token.

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
        self.ids: list[int] = []
        self.top_ids: list[tuple[tuple[int, float], ...]] = []
        self.n_prompt = 0
        self._n_characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._taken = 0

    def add(self, token: int, row: NDArray[np.float32] | None) -> None:
        """Note a token and the row of logits that predicted it, shape (n_vocab,); no row, no numbers."""
        if row is None:
            self._note(token, None, [], self._shown(token))
            return
        top = top_k_logprobs(row, self.k) if self.k else None
        self._note(token, token_logprobs(row, token), _pairs(top), self._shown(token))

    def add_prompt(self, tokens: NDArray[np.int32], rows: NDArray[np.float32]) -> None:
        """Note tokens of a prompt; the first one of all, which nothing predicts, with :meth:`begin_prompt`.

        Args:
            tokens: int32, shape (n,).
            rows: The logits that predicted them: float32, C-contiguous, shape (n, n_vocab).
        """
        values = token_logprobs(rows, tokens).tolist()
        ids, likeliest = top_k_logprobs(rows, self.k) if self.k else (None, None)
        for i, token in enumerate(tokens.tolist()):
            top = [] if ids is None or likeliest is None else _pairs((ids[i], likeliest[i]))
            self._note(token, values[i], top, True)

    def begin_prompt(self, token: int) -> None:
        """Note the first token of a prompt."""
        self._note(token, None, [], True)

    def add_end(self, row: NDArray[np.float32]) -> None:
        """Note that the model has ended the text: the likeliest of the tokens that do; it has no place in it."""
        candidates = self.vocab.eog_tokens
        token = int(candidates[np.argmax(row[candidates])])
        top = top_k_logprobs(row, self.k) if self.k else None
        self._note(token, token_logprobs(row, token), _pairs(top), False)

    def take_over(self, other: LogprobsCollector) -> None:
        """Begin with all that another one has noted, which is a prompt."""
        self.n_prompt, self._n_characters = other.n_prompt, other._n_characters
        for name in ("tokens", "offsets", "logprobs", "top", "ids", "top_ids"):
            setattr(self, name, list(getattr(other, name)))

    def _note(self, token: int, logprob: float | None, top_ids: list[tuple[int, float]], shown: bool) -> None:
        text = self._text(token)
        self.tokens.append(text)
        self.ids.append(token)
        self.offsets.append(self._n_characters)
        self._n_characters += len(self._decoder.decode(self.vocab.token_to_piece(token, special=shown)))
        if logprob is None:
            self.logprobs.append(None)
            self.top.append(None)
            self.top_ids.append(())
            return
        # As exact as those of the likeliest, so that the likeliest can be told by comparing.
        logprob = float(np.float32(logprob))
        self.logprobs.append(logprob)
        top: dict[str, float] = {}
        for other, value in top_ids:
            # Two tokens may have the same text: the likelier one counts.
            top.setdefault(self._text(other), value)
        top.setdefault(text, logprob)
        self.top.append(top)
        self.top_ids.append(tuple(top_ids))

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
            for items in (self.tokens, self.offsets, self.logprobs, self.top, self.ids, self.top_ids):
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
            tuple(self.ids[start:]),
            tuple(self.top_ids[start:]),
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


def score_prompt(context: Context, ids: NDArray[np.int32], collector: LogprobsCollector) -> None:
    """Compute all of a prompt but its last token, into an empty sequence 0, and note what each token had.

    Args:
        context: Its memory for sequence 0 is empty.
        ids: The prompt, int32, shape (n,).
        collector: Where to note it.
    """
    collector.begin_prompt(int(ids[0]))
    step = rows_at_once(context.n_batch, context.n_vocab)
    for start in range(0, len(ids) - 1, step):
        part = ids[start : min(start + step, len(ids) - 1)]
        positions = np.arange(start, start + len(part), dtype=np.int32)
        context.decode(Batch.from_arrays(part, pos=positions, outputs="all"))
        rows = np.asarray(context.logits)
        collector.add_prompt(ids[start + 1 : start + 1 + len(part)], rows[: len(part)])
        # A view would keep the next decode from enlarging the buffer.
        del rows


def rows_at_once(n: int, n_vocab: int) -> int:
    """How many rows of logits may exist at once, at most n: they are large."""
    return max(1, min(n, _MOST_FLOATS // n_vocab))


def _pairs(top: tuple[NDArray[np.int32], NDArray[np.float32]] | None) -> list[tuple[int, float]]:
    """Ids and log-probabilities, as pairs."""
    return [] if top is None else list(zip(top[0].tolist(), top[1].tolist(), strict=True))

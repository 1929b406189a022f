"""The prefill tokens of a step, so that running sequences get their next tokens in time."""

from __future__ import annotations

_LEAST = 8
# A prefill portion that several requests share cannot be aborted for one of them, so it ends after about so many
# milliseconds; but a portion of fewer tokens than this would cost throughput.
_SHARED_MS = 300
_LEAST_SHARED = 32


class PrefillBudget:
    """Learns the times of steps, and sets the prefill tokens of the next one.

    Args:
        n_batch: Tokens of a step at most.
        target_ms: Time of a step with running sequences; None: no limit.
        n_prompt: Prefill tokens of a step beside running sequences, at most and at first.

    Attributes:
        n_shared: Prefill tokens of a step that several requests share.
    """

    def __init__(self, n_batch: int, target_ms: float | None, n_prompt: int) -> None:
        self.n_batch = n_batch
        self.target_ms = target_ms
        self.most = min(n_prompt, n_batch)
        self.n_prompt = self.most if target_ms is None else min(64, self.most)
        self.n_shared = min(256, n_batch)
        self._step_ms: float | None = None  # without prompts
        self._token_ms: float | None = None  # of a prompt

    def measured(self, n_sequences: int, n_prompt: int, ms: float) -> None:
        """A step has been made.

        Args:
            n_sequences: Sequences that got a token.
            n_prompt: Tokens of prompts.
            ms: How long it took.
        """
        if n_prompt == 0:
            self._step_ms = _mean(self._step_ms, ms)
        elif n_prompt >= _LEAST:
            base = self._step_ms if n_sequences and self._step_ms is not None else 0.0
            self._token_ms = _mean(self._token_ms, max(ms - base, 0.05 * ms) / n_prompt)
        if self._token_ms is None:
            return
        self.n_shared = min(self.n_batch, max(_LEAST_SHARED, int(_SHARED_MS / self._token_ms)))
        if self.target_ms is None:
            return
        left = self.target_ms - (self._step_ms or 0.0)
        # Less than would just fit: what goes on beside it takes time too, and the next tokens see more of the sequence.
        self.n_prompt = max(_LEAST, min(self.most, int(0.7 * left / self._token_ms)))


def _mean(old: float | None, new: float) -> float:
    return new if old is None else 0.7 * old + 0.3 * new

"""What an engine is doing and has done, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metrics:
    """A look at an engine; counts since it was made.

    Attributes:
        n_waiting: Texts that wait for their turn.
        n_running: Texts that are being computed.
        n_cells: Cells of the KV cache.
        n_cells_used: Those that hold something, for running texts or for prompts to come.
        n_cells_running: Those of running texts.
        n_requests: Requests that were accepted.
        n_rejected: Requests that were refused because the queue was full.
        n_cancelled: Requests that were cancelled.
        n_failed: Requests that ended with an error.
        n_prompt_tokens: Tokens of prompts that were computed.
        n_cached_tokens: Tokens of prompts that were in the cache already.
        n_generated_tokens: Tokens generated.
        n_preempted: How often a text had to stop for others.
        n_steps: Steps made.
    """

    n_waiting: int
    n_running: int
    n_cells: int
    n_cells_used: int
    n_cells_running: int
    n_requests: int
    n_rejected: int
    n_cancelled: int
    n_failed: int
    n_prompt_tokens: int
    n_cached_tokens: int
    n_generated_tokens: int
    n_preempted: int
    n_steps: int

    @property
    def kv_utilization(self) -> float:
        """The part of the KV cache that running texts hold, from 0 to 1."""
        return self.n_cells_running / self.n_cells


class Counters:
    """The counts, while they change."""

    def __init__(self) -> None:
        self.requests = self.rejected = self.cancelled = self.failed = 0
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = self.preempted = self.steps = 0

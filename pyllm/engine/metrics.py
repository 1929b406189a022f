"""What an engine is doing and has done, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllm.engine.cache import SequenceCache
    from pyllm.engine.texts import Text
    from pyllm.engine.vectors import VectorQueue
    from pyllm.types import Speculation


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
        n_steps: Steps made, those of embeddings included.
        n_step_texts: Texts in these steps, all together.
        n_tokens_max: Most tokens that a sequence has had.
        n_host_bytes: Bytes of the host's memory that texts take which had to leave the KV cache.
        n_host_hits: How often one of them was brought back.
        n_drafts: Drafts that were computed.
        n_drafted_tokens: Tokens in them.
        n_accepted_tokens: How many of these became part of a text.
        n_embedding: Requests for vectors that wait or are being computed.
        n_embedded_texts: Texts whose vectors were computed; those longer than the model can read count for each window.
        n_embedded_tokens: Their tokens.
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
    n_host_bytes: int = 0
    n_host_hits: int = 0
    n_drafts: int = 0
    n_drafted_tokens: int = 0
    n_accepted_tokens: int = 0
    n_embedding: int = 0
    n_embedded_texts: int = 0
    n_embedded_tokens: int = 0
    n_step_texts: int = 0
    n_tokens_max: int = 0

    @property
    def kv_utilization(self) -> float:
        """The part of the KV cache that running texts hold, from 0 to 1."""
        return self.n_cells_running / self.n_cells


class Counters:
    """The counts, while they change."""

    def __init__(self) -> None:
        self.requests = self.rejected = self.cancelled = self.failed = 0
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = self.preempted = self.steps = 0
        self.step_texts = self.tokens_max = 0


def look(
    texts: Sequence[Text],
    n_new: int,
    cache: SequenceCache,
    counters: Counters,
    drafts: Speculation,
    vectors: VectorQueue | None,
) -> Metrics:
    """What an engine is doing and has done.

    Args:
        texts: Those that wait or run.
        n_new: How many more wait.
        cache: Its sequences.
        counters: Its counts.
        drafts: What was guessed.
        vectors: What makes vectors.
    """
    running = [text for text in texts if text.task.seq is not None]
    return Metrics(
        n_waiting=len(texts) - len(running) + n_new,
        n_running=len(running),
        n_cells=cache.ledger.n_cells,
        n_cells_used=cache.ledger.used,
        n_cells_running=min(sum(text.task.n_computed for text in running), cache.ledger.used),
        n_requests=counters.requests,
        n_rejected=counters.rejected,
        n_cancelled=counters.cancelled,
        n_failed=counters.failed,
        n_prompt_tokens=counters.prompt_tokens,
        n_cached_tokens=counters.cached_tokens,
        n_generated_tokens=counters.generated_tokens,
        n_preempted=counters.preempted,
        n_steps=counters.steps + (0 if vectors is None else vectors.n_steps),
        n_host_bytes=0 if cache.host is None else cache.host.n_bytes,
        n_host_hits=0 if cache.host is None else cache.host.n_hits,
        n_drafts=drafts.drafts,
        n_drafted_tokens=drafts.drafted,
        n_accepted_tokens=drafts.accepted,
        n_embedding=0 if vectors is None else vectors.n_jobs,
        n_embedded_texts=0 if vectors is None else vectors.n_texts,
        n_embedded_tokens=0 if vectors is None else vectors.n_tokens,
        n_step_texts=counters.step_texts,
        n_tokens_max=max([counters.tokens_max, *(text.task.n_computed for text in running)]),
    )

"""Metrics of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm.engine.sequence import SequenceStatus

if TYPE_CHECKING:
    from pyllm.engine.core import EngineCore


@dataclass(frozen=True, slots=True)
class Metrics:
    """A look at an engine; counts since it was made.

    Attributes:
        n_waiting: Waiting sequences.
        n_running: Running sequences.
        n_cells: Cells of the KV cache.
        n_cells_used: Those that are in use, by running sequences or as cached prefixes.
        n_cells_running: Those of running sequences.
        n_requests: Requests that were accepted.
        n_rejected: Requests that were refused because the queue was full.
        n_cancelled: Requests that were cancelled.
        n_failed: Requests that ended with an error.
        n_prompt_tokens: Tokens of prompts that were computed.
        n_cached_tokens: Tokens of prompts that were in the KV cache already.
        n_generated_tokens: Tokens generated.
        n_preempted: How often a running sequence was preempted.
        n_steps: Steps made, those of embeddings included.
        n_step_sequences: Sequences in these steps, all together.
        n_tokens_max: Most tokens that a sequence has had.
        n_recovered: How often a decode failed and the context was made anew.
        n_prefilling: Running sequences whose prompts are in prefill.
        n_host_bytes: Bytes of the host's memory that sequences take which had to leave the KV cache.
        n_host_hits: How often one of them was brought back.
        n_drafts: DrafterPool that were computed.
        n_drafted_tokens: Tokens in them.
        n_accepted_tokens: How many of these became part of a sequence.
        n_embedding: Requests for vectors that wait or are being computed.
        n_embedded_texts: Texts that were embedded; longer ones than the model can read count for each window.
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
    n_step_sequences: int = 0
    n_tokens_max: int = 0
    n_recovered: int = 0
    n_prefilling: int = 0

    @property
    def kv_utilization(self) -> float:
        """The part of the KV cache that running sequences hold, from 0 to 1."""
        return self.n_cells_running / self.n_cells


class Counters:
    """The counts, while they change."""

    def __init__(self) -> None:
        self.requests = self.rejected = self.cancelled = self.failed = 0
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = self.preempted = self.steps = 0
        self.step_sequences = self.tokens_max = self.recovered = 0


def collect_metrics(core: EngineCore, n_new: int) -> Metrics:
    """The metrics of an engine.

    Args:
        core: Its core.
        n_new: Sequences that the core has not been given yet.
    """
    # The thread of the engine changes them meanwhile.
    sequences, cache, counters = list(core.sequences.values()), core.cache, core.counters
    embeddings, drafts = core.embeddings, core.drafters.total
    running = [sequence for sequence in sequences if sequence.seq_id is not None]
    return Metrics(
        n_waiting=len(sequences) - len(running) + n_new,
        n_running=len(running),
        n_prefilling=sum(sequence.status is SequenceStatus.PREFILLING for sequence in running),
        n_cells=cache.cells.n_cells,
        n_cells_used=cache.cells.used,
        n_cells_running=min(sum(sequence.n_computed for sequence in running), cache.cells.used),
        n_requests=counters.requests,
        n_rejected=counters.rejected,
        n_cancelled=counters.cancelled,
        n_failed=counters.failed,
        n_prompt_tokens=counters.prompt_tokens,
        n_cached_tokens=counters.cached_tokens,
        n_generated_tokens=counters.generated_tokens,
        n_preempted=counters.preempted,
        n_steps=counters.steps + (0 if embeddings is None else embeddings.n_steps),
        n_host_bytes=core.host.n_bytes,
        n_host_hits=core.host.n_hits,
        n_drafts=drafts.drafts,
        n_drafted_tokens=drafts.drafted,
        n_accepted_tokens=drafts.accepted,
        n_embedding=0 if embeddings is None else embeddings.n_jobs,
        n_embedded_texts=0 if embeddings is None else embeddings.n_texts,
        n_embedded_tokens=0 if embeddings is None else embeddings.n_tokens,
        n_step_sequences=counters.step_sequences,
        n_recovered=counters.recovered,
        n_tokens_max=max([counters.tokens_max, *(sequence.n_computed for sequence in running)]),
    )

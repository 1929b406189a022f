"""Decodes and samples what the scheduler decided: the only part of the engine that computes in the context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.rows import decode_rows, sample_rows
from pyllm.engine.sequence import Sequence

if TYPE_CHECKING:
    from pyllm.engine.adapters import AdapterSet
    from pyllm.engine.draft_state import Draft


@dataclass(slots=True)
class Ready:
    """Sequences whose next token can be sampled: all of their tokens are computed.

    Attributes:
        sequences: The sequences.
        indices: For each the index of its newest token in the batch.
        places: For each the row of ``context.logits`` of that token.
        tokens: The sampled token of each, None for one that has ended or failed; or None: nothing is sampled so far.
    """

    sequences: list[Sequence] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    tokens: list[int | None] | None = None

    def add(self, sequence: Sequence, index: int, place: int) -> None:
        """Add a sequence."""
        self.sequences.append(sequence)
        self.indices.append(index)
        self.places.append(place)


class ModelRunner:
    """Decodes and samples many sequences at once.

    Args:
        context: The context; nothing else decodes in it.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._batch = Batch(context.n_batch)
        self._adapters: object = ()

    def decode(
        self,
        rows: list[tuple[Sequence, int]],
        drafts: dict[Sequence, Draft] | None = None,
        forks: dict[Sequence, list[Sequence]] | None = None,
    ) -> Ready:
        """Decode tokens of sequences, and sample the next ones where no sequence needs Python.

        Args:
            rows: Sequences, and how many of their tokens. They have the same set of adapters.
            drafts: Draft tokens behind the newest ones of some sequences; every one gets logits.
            forks: Sequences that fork from one of `rows` after this step, and sample from the same logits.

        Returns:
            Ready: The sequences whose tokens are all computed now. Their states have not changed yet.

        Raises:
            NoKVSlotError: There is no room; nothing was computed.
        """
        # Where each sequence has a cache of its own, llama.cpp computes neighbours at once.
        if len(rows) > 1:
            rows = sorted(rows, key=lambda row: row[0].kv_seq_id)
        batch, ready = self._batch.clear(), Ready()
        scored: list[tuple[Sequence, int, int]] = []
        for sequence, n in rows:
            start, is_ready = sequence.n_computed, n == sequence.n_left
            if sequence.prompt_logprobs is not None and sequence.scores:
                wanted = sequence.prompt_logprobs.wanted(start, n)
                scored.append((sequence, n, batch.n_outputs))
                flags = np.zeros(n, bool)
                flags[wanted] = True
                flags[-1] |= is_ready
                batch.add_sequence(sequence.ids[start : start + n], start, sequence.kv_seq_id, outputs=flags)
            elif n == 1:
                batch.add(sequence.ids[start], start, sequence.kv_seq_id, output=is_ready)
            else:
                outputs: Literal["last", "none"] = "last" if is_ready else "none"
                batch.add_sequence(sequence.ids[start : start + n], start, sequence.kv_seq_id, outputs=outputs)
            if is_ready:
                for each in (sequence, *(forks or {}).get(sequence, ())):
                    ready.add(each, len(batch) - 1, batch.n_outputs - 1)
        for sequence, draft in (drafts or {}).items():
            draft.index, draft.place = len(batch), batch.n_outputs
            batch.add_sequence(draft.tokens, len(sequence.ids), sequence.kv_seq_id, outputs="all")
        self._use(rows[0][0])
        self._compute(batch, ready)
        for sequence, n, place in scored:
            assert sequence.prompt_logprobs is not None
            sequence.prompt_logprobs.score(sequence.n_computed, n, self.context, place)
        return ready

    def _compute(self, batch: Batch, ready: Ready) -> None:
        """Decode a batch, and sample in the same call unless a sequence needs Python or has an error."""
        if not ready.sequences or any(sequence.watched or sequence.limit == 0 for sequence in ready.sequences):
            self.context.decode(batch)
            return
        before = self.context.decode_id
        try:
            ready.tokens = decode_rows(
                self.context, batch, [sequence.row for sequence in ready.sequences], ready.indices
            )
        except Exception:
            if self.context.decode_id != before:
                raise
            # A sampler of the caller's was closed, say. Nothing was computed; the other sequences go on.
            self.context.decode(batch)

    def _use(self, sequence: Sequence) -> None:
        """Set the adapters of a sequence, if they differ: llama.cpp builds its graphs anew then."""
        if sequence.adapters != self._adapters:
            self.context.set_adapters(cast("AdapterSet", sequence.adapters))
            self._adapters = sequence.adapters

    def sample(self, ready: Ready) -> None:
        """Sample a token for each sequence, where that has not been done. An error is kept in its ``error``."""
        if ready.tokens is not None:
            for sequence, token in zip(ready.sequences, ready.tokens, strict=True):
                self._tell(sequence, token, None, None)
            return
        raws: dict[Sequence, NDArray[np.float32]] = {}
        seen: dict[Sequence, NDArray[np.float32]] = {}
        chosen: list[tuple[Sequence, int]] = []
        for sequence, index, place in zip(ready.sequences, ready.indices, ready.places, strict=True):
            if sequence.limit == 0:
                sequence.reason = "length"
                continue
            if sequence.watched:
                try:
                    seen[sequence] = self.context.logits[place]
                    raws[sequence] = sequence.edit(seen[sequence])
                except Exception as error:
                    sequence.error = error
                    continue
            chosen.append((sequence, index))
        try:
            tokens = sample_rows(self.context, [sequence.row for sequence, _ in chosen], [index for _, index in chosen])
        except Exception:
            # A sampler of the caller's was closed, say: nothing was sampled. One by one only its sequence fails.
            tokens = [self._token(sequence, index) for sequence, index in chosen]
        for (sequence, _), token in zip(chosen, tokens, strict=True):
            self._tell(sequence, token, raws.get(sequence), seen.get(sequence))
        # The frame of an error holds its caller's: no views of logits may stay there.
        raws.clear()
        seen.clear()

    @staticmethod
    def _tell(
        sequence: Sequence, token: int | None, raw: NDArray[np.float32] | None, row: NDArray[np.float32] | None
    ) -> None:
        """Append a sampled token to its sequence, or end it."""
        if sequence.error is not None:
            return
        if sequence.row.error is not None:
            sequence.error = sequence.row.error
        elif token is None:
            sequence.ended(raw)
        else:
            try:
                sequence.append(token, raw, row)
            except Exception as error:
                sequence.error = error

    def _token(self, sequence: Sequence, index: int) -> int | None:
        try:
            return sample_rows(self.context, [sequence.row], [index])[0]
        except Exception as error:
            sequence.error = error
            return None

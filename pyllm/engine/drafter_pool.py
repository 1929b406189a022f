"""The drafters of an engine: which sequences get drafts, how long, and from which drafter.

Many running sequences fill a batch, and verifying drafts would take time from all of them. So drafts are made only
while few sequences run, when the processor would be idle otherwise.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.core.speculative import DRAFT_TYPES, NGRAM_TYPES, Drafter
from pyllm.engine.draft_state import Draft, DrafterSlot, FeatureTracker
from pyllm.engine.model_runner import ModelRunner, Ready
from pyllm.errors import InvalidArgumentError, NoKVSlotError
from pyllm.speculation.params import SpeculationParams, as_params
from pyllm.speculation.speculator import MTP, Speculator
from pyllm.types import Speculation

if TYPE_CHECKING:
    from pyllm.engine.kv_cache import KVCacheManager
    from pyllm.engine.sequence import Sequence

_log = logging.getLogger("pyllm.engine")

# Prefill tokens of a draft model in one step, so that new requests need not wait for all of its prefill.
PORTION = 128


class DrafterPool:
    """Makes the drafts of the sequences of an engine, in its thread.

    Args:
        context: The context that computes the sequences.
        draft: The draft model, as a Llama takes it, or None.
        default: How to draft for requests that do not say it: True, False, a name, or SpeculationParams. None: with
            the draft model where there is one.
        up_to: While so many sequences run, each has drafts; while more do, none has.
        n_gpu_layers: Of the draft model, where it is loaded here.

    Attributes:
        total: Statistics of the drafts of all sequences.

    Raises:
        VocabularyMismatchError: The draft model has other tokens than the model.
        InvalidArgumentError: There is no such way to draft, or the model cannot check drafts.
    """

    def __init__(
        self,
        context: Context,
        draft: str | os.PathLike[str] | Model | None = None,
        default: Any = None,
        up_to: int = 1,
        *,
        n_gpu_layers: int | None = None,
    ) -> None:
        if isinstance(up_to, bool) or not isinstance(up_to, int) or up_to < 1:
            raise InvalidArgumentError(
                f"speculate_up_to must be an integer, at least 1, not {up_to!r}", param="speculate_up_to"
            )
        if draft is context.model:
            raise InvalidArgumentError("a model cannot draft for itself: it would only compute everything twice")
        self.context = context
        self.up_to = up_to
        self.total = Speculation(0, 0, 0)
        # Sequences that have caches of their own are computed in several micro-batches, and in another order.
        self._apart = context.n_ctx_seq < context.n_ctx
        self.default: SpeculationParams | None = None
        self._options: dict[str, Any] = {"n_gpu_layers": n_gpu_layers}
        self._slots: list[DrafterSlot] = []
        self._features: FeatureTracker | None = None
        self._checked: set[SpeculationParams] = set()
        self._checking = threading.Lock()
        self._model: Model | None = None
        if draft is None and default in (None, False):
            return
        self._refuse_memory()
        first = Speculator(context, draft, False, **self._options)
        self._slots.append(DrafterSlot(first))
        try:
            self._model = first.model
            self.default = first.params(self._model is not None if default is None else default)
            if self.default is not None:
                if first.reads_features(self.default):
                    self._features = FeatureTracker(self._slots.pop())
                self._check(self.default)
                first.drafter_for(self.default)  # its errors are raised now
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free everything that was made here."""
        # The first one owns the draft model.
        for slot in reversed(self._slots):
            slot.speculator.close()
        self._slots.clear()
        if self._features is not None:
            self._features.slot.speculator.close()

    def use(self, context: Context) -> None:
        """Draft for a new context of the same model; what was seen of sequences does not count any more."""
        self.context = context
        for slot in self._all_slots():
            slot.speculator.use(context)
            slot.forget()
        if self._features is not None:
            self._features.seen = self._features.seen[:0]

    # ---- for any thread

    def params(self, value: Any) -> SpeculationParams | None:
        """What `speculative=` of a request says.

        Raises:
            InvalidArgumentError: It says nothing of the kind, or what cannot be done here.
        """
        if value is None:
            return self.default
        params = as_params(value, has_draft=self._model is not None)
        if params is not None:
            self._check(params)
        return params

    def _check(self, params: SpeculationParams) -> None:
        try:
            hash(params)
        except TypeError as cause:
            raise InvalidArgumentError(
                f"speculative: numbers and names are needed, not {params!r}", param="speculative"
            ) from cause
        with self._checking:
            if params in self._checked:
                return
            self._refuse_memory()
            types = params.types or ()
            if MTP in types and self._features is None:
                raise InvalidArgumentError(
                    f"{MTP!r} sees what is computed of all texts, which has to be known before there are any: make "
                    "the engine with speculative='mtp'"
                )
            ngrams = [name for name in types if name not in DRAFT_TYPES]
            # Without a draft model it touches no memory, and its errors are those of names and numbers.
            options = params.options() | {"types": ngrams or NGRAM_TYPES[0]}
            Drafter(self.context, **options)
            if len(self._checked) < 1000:
                self._checked.add(params)

    def _refuse_memory(self) -> None:
        model = self.context.model
        if model.is_recurrent or model.is_hybrid:
            raise InvalidArgumentError(
                "the memory of this model cannot forget its last tokens, which rejected drafts need; in a Llama "
                "copies of it are made for that, and an engine makes none: leave out speculative and draft"
            )

    # ---- for the thread of the engine

    def want(self, sequences: Iterable[Sequence]) -> None:
        """Set how many draft tokens each sequence would verify in the next step."""
        running = [sequence for sequence in sequences if sequence.seq_id is not None]
        # All are computed in one micro-batch: between two of them a sliding window forgets.
        few = len(running) <= (1 if self._apart and self.context.model.n_swa else self.up_to)
        room = self.context.n_ubatch - len(running)
        for sequence in running:
            sequence.n_drafted = min(self._wanted(sequence, len(running)), room) if few else 0
            room -= sequence.n_drafted

    def _wanted(self, sequence: Sequence, n_sequences: int) -> int:
        drafting = sequence.drafts
        if drafting is None or drafting.off or sequence.n_left != 1:
            return 0
        drafting.waits = False
        room = min(sequence.limit - len(sequence.tokens), self.context.n_ctx_seq - sequence.n_computed) - 1
        if room < 1:
            return 0
        try:
            drafter = self._drafter_for(sequence)
        except Exception as error:
            self._give_up(sequence, error)
            return 0
        if self._uses_features(sequence):
            # The drafter sees the first sequence of a batch, which has to be the only one of a step with a draft.
            assert self._features is not None
            if n_sequences > 1 or not self._features.has_seen(sequence.ids[:-1]):
                return 0
        n_max = min(drafting.params.n_max or drafter.n_max, drafter.n_max)
        return min(drafting.pace(n_sequences, n_max).next_length(), n_max, room)

    def _uses_features(self, sequence: Sequence) -> bool:
        return sequence.drafts is not None and MTP in (sequence.drafts.params.types or ())

    def _drafter_for(self, sequence: Sequence) -> Drafter:
        assert sequence.drafts is not None
        params = sequence.drafts.params
        if self._uses_features(sequence):
            # There is one such drafter for all: a request decides the length of its drafts only.
            assert self.default is not None
            params = self.default
        return self._slot_for(sequence).speculator.drafter_for(params)

    def make(self, granted: list[tuple[Sequence, int]]) -> dict[Sequence, Draft]:
        """Draft tokens for sequences; a drafter may have none.

        Args:
            granted: Sequences, and how many tokens at most.
        """
        drafts: dict[Sequence, Draft] = {}
        for sequence, most in granted:
            try:
                tokens = self._draft(sequence, most)
            except Exception as error:
                self._give_up(sequence, error)
                continue
            if tokens:
                drafts[sequence] = Draft(np.array(tokens, np.int32))
        return drafts

    def _draft(self, sequence: Sequence, most: int) -> list[int]:
        assert sequence.drafts is not None
        slot, drafter, ids = self._slot_for(sequence), self._drafter_for(sequence), sequence.ids
        reads = drafter.context is not None and not self._uses_features(sequence)
        sequence.drafts.waits = not slot.follow(sequence, drafter, PORTION if reads else len(ids))
        if not sequence.drafts.waits:
            return drafter.draft(int(ids[-1]), most)
        # This call has it compute what it was shown; the draft itself is of no use.
        drafter.draft(int(ids[len(slot.known)]), 1)
        return []

    @staticmethod
    def decode(
        runner: ModelRunner,
        rows: list[tuple[Sequence, int]],
        drafts: dict[Sequence, Draft],
        forks: dict[Sequence, list[Sequence]],
    ) -> Ready:
        """Decode tokens of sequences and drafts; see :meth:`pyllm.engine.model_runner.ModelRunner.decode`.

        Without room in the KV cache there are no drafts: `drafts` is empty then.
        """
        if drafts:
            try:
                return runner.decode(rows, drafts, forks=forks)
            except NoKVSlotError:
                drafts.clear()
        return runner.decode(rows, forks=forks)

    def computed(self, rows: list[tuple[Sequence, int]], drafts: dict[Sequence, Draft]) -> None:
        """A batch was computed; called before its sequences change."""
        if self._features is None:
            return
        sequence, n = rows[0]
        start = sequence.n_computed
        if len(rows) > 1 and self._apart:
            return
        if not self._uses_features(sequence) or not self._features.has_seen(sequence.ids[:start]):
            return
        tokens = sequence.ids[start : start + n]
        if len(rows) == 1 and sequence in drafts:
            tokens = np.concatenate([tokens, drafts[sequence].tokens])
        try:
            self._features.see(self._drafter_for(sequence), start, tokens)
        except Exception as error:
            self._give_up(sequence, error)

    def verify(self, runner: ModelRunner, cache: KVCacheManager, drafts: dict[Sequence, Draft]) -> None:
        """Sample from the rows of drafts as long as the sampled token is the drafted one.

        Each token is sampled as any other token of the sequence. The first one, behind the computed tokens, was
        sampled before. Rejected tokens are removed from the KV cache.
        """
        for sequence, draft in drafts.items():
            n = sequence.n_computed
            cache.drafted(sequence, len(draft.tokens))
            for i, token in enumerate(draft.tokens.tolist()):
                if len(sequence.ids) <= n + i or sequence.ids[n + i] != token:
                    break
                draft.n_accepted += 1
                if sequence.reason is not None or sequence.error is not None:
                    break
                runner.sample(Ready([sequence], [draft.index + i], [draft.place + i]))
            cache.settle(sequence, draft.n_accepted)
            self._judged(sequence, int(sequence.ids[n - 1]), draft)

    def _judged(self, sequence: Sequence, last: int, draft: Draft) -> None:
        assert sequence.drafts is not None
        made = Speculation(1, len(draft.tokens), draft.n_accepted)
        sequence.drafts.total += made
        self.total += made
        slot = next((one for one in self._all_slots() if one.followed is sequence), None)
        if slot is None or slot.drafter is None:
            return
        accepted = draft.tokens[: draft.n_accepted]
        try:
            slot.drafter.accept(last, accepted)
        except Exception as error:
            self._give_up(sequence, error)
            return
        slot.known = np.concatenate([slot.known, np.array([last], np.int32), accepted])

    def took(self, rows: list[tuple[Sequence, int]], drafts: dict[Sequence, Draft], seconds: float) -> None:
        """Learn the time of a step without prefill."""
        if len(rows) > self.up_to or any(n > 1 for _, n in rows):
            return
        us = int(1e6 * seconds)
        for sequence, _ in rows:
            drafting = sequence.drafts
            pace = None if drafting is None or drafting.waits else drafting.paces.get(len(rows))
            if pace is None:
                continue
            if sequence in drafts:
                pace.add_round(len(drafts[sequence].tokens), drafts[sequence].n_accepted, us)
            else:
                # The time of a step with drafts of other sequences says nothing about one without.
                pace.add_plain(us if not drafts else int(pace.plain_us) or us)

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        for slot in self._all_slots():
            if slot.sequence is sequence:
                slot.sequence = slot.followed = None

    def problems(self, sequences: Collection[Sequence]) -> list[str]:
        """Contradictions between the drafters and the sequences that have not ended."""
        taken = [slot.sequence for slot in self._all_slots() if slot.sequence is not None]
        found = [] if len(set(taken)) == len(taken) else ["a sequence has two drafters"]
        return found + [
            f"a drafter belongs to sequence {one.id}, which has ended" for one in taken if one not in sequences
        ]

    def _all_slots(self) -> list[DrafterSlot]:
        return self._slots if self._features is None else [*self._slots, self._features.slot]

    def _slot_for(self, sequence: Sequence) -> DrafterSlot:
        """The slot of a sequence; it gets a free one when it has none."""
        if self._features is not None and self._uses_features(sequence):
            self._features.slot.sequence = sequence
            return self._features.slot
        slot = next((one for one in self._slots if one.sequence is sequence), None)
        if slot is None:
            slot = next((one for one in self._slots if one.sequence is None or one.sequence.seq_id is None), None)
        if slot is None:
            # There are at most as many as sequences with drafts: other sequences have lost theirs by now.
            assert len(self._slots) < self.up_to
            slot = DrafterSlot(Speculator(self.context, self._model, False, **self._options))
            self._slots.append(slot)
        slot.sequence = sequence
        return slot

    def _give_up(self, sequence: Sequence, error: Exception) -> None:
        """A sequence goes on without drafts: an error of a drafter must not end it."""
        _log.warning("no more drafts for %s: %s: %s", sequence.request.id, type(error).__name__, error)
        assert sequence.drafts is not None
        sequence.drafts.off = True
        sequence.drafts.waits = False
        for slot in self._all_slots():
            if slot.sequence is sequence:
                slot.forget()


__all__ = ["PORTION", "DrafterPool"]

"""Decides what the next step computes: a pure function of the waiting and running sequences and the KV cache.

Nothing here touches a model. The rules:

- Each running sequence gets one token per step. The rest of the step is prefill, in equal shares, so that a short
  prompt finishes soon behind a long one.
- Sequences are admitted by priority, then by arrival, and none overtakes another, so that none starves. One exception:
  a sequence whose prefix is being computed for another one lets others pass until it can share that prefix.
- Where cells are missing, idle sequences are evicted first, the least recently used before others. Then the sequence
  that arrived last is preempted and waits in its old place; it loses time and nothing else.
- A sequence that has the whole cache to itself and needs more ends with finish_reason "length".
- Where few sequences run and none is in prefill, drafts are verified in what is left of the step and of the cache.
  Nothing waits for a draft, and nothing is evicted for it.
- A step computes sequences with one set of adapters: llama.cpp has one set for a whole context. Sets take turns; what
  other sets have in the cache stays there.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyllm.engine.kv_cells import KVCellAllocator
from pyllm.engine.radix_tree import RadixTree, common_length

# A change of adapters makes llama.cpp build its graphs anew, which takes about as long as a short step.
ADAPTER_STEPS = 4


@dataclass(slots=True, eq=False)
class SequenceState:
    """What the scheduler knows of a sequence.

    Attributes:
        id: Its number, unique in the engine.
        ids: All its tokens, prompt and generated: int32, shape (n,).
        order: Smaller ones arrived earlier.
        priority: Smaller ones go first.
        seq_id: Its sequence in the KV cache; None while it waits.
        n_computed: Tokens of it in the KV cache.
        shares: Whether it shares prefixes with other sequences.
        scores: Whether log-probabilities of its prompt are wanted, so that every token of it has to be computed.
        n_drafted: Most draft tokens to verify in the next step.
        adapters: The set of adapters it is computed with. Sequences with different sets share nothing.
        stops: Numbers of tokens at which its prefill pauses for a checkpoint.
    """

    id: int
    ids: NDArray[np.int32]
    order: int
    priority: int = 0
    seq_id: int | None = None
    n_computed: int = 0
    shares: bool = True
    scores: bool = False
    n_drafted: int = 0
    adapters: Hashable = ()
    stops: tuple[int, ...] = ()

    @property
    def rank(self) -> tuple[int, int]:
        """Its place among others: smaller ones go first."""
        return self.priority, self.order

    @property
    def n_left(self) -> int:
        """Tokens to compute until one can be sampled."""
        return len(self.ids) - self.n_computed


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step may do.

    Attributes:
        n_sequences: Sequences of the KV cache.
        n_running: Sequences that run at once.
        n_batch: Tokens of one step.
        n_prompt: Prefill tokens of one step beside running sequences.
        n_shared: Prefill tokens of one step that several sequences share; None: as many as there is room for.
        n_prefilling: So many sequences are in prefill at once, even if the first fills the step.
        n_scored: Prefill tokens of one step with logits.
        n_worth: A sequence waits for a prefix that another one computes if that saves so many tokens.
        n_drafting: Drafts are verified while at most so many sequences run.
        whole: A prefix can only be a whole cached sequence: the memory of the model cannot be cut.
        host_whole: The same for sequences of the host tier.
        checkpoints: Checkpoints are taken, where the next prompt may begin to differ.
    """

    n_sequences: int
    n_running: int
    n_batch: int
    n_prompt: int
    n_prefilling: int = 4
    n_scored: int = 256
    n_worth: int = 32
    n_drafting: int = 0
    whole: bool = False
    host_whole: bool = False
    n_shared: int | None = None
    checkpoints: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence that begins to run.

    Attributes:
        id: Its number.
        seq_id: Its sequence in the KV cache.
        source: The cached sequence that its prefix is copied from, or None; `seq_id` itself where that one is reused.
        n_reused: Tokens of the prefix.
        host: The sequence of the host tier that its prefix is loaded from, or None.
        stops: Numbers of tokens at which its prefill pauses for a checkpoint.
    """

    id: int
    seq_id: int
    source: int | None = None
    n_reused: int = 0
    host: int | None = None
    stops: tuple[int, ...] = ()


@dataclass(slots=True)
class SchedulerOutput:
    """What to do, in this order. Sequences are named by their numbers.

    Attributes:
        preempt: Running sequences that leave the KV cache and wait again.
        full: Sequences that end here: the cache has no room for another token.
        evict: Idle sequences to remove, by their seq_ids.
        admit: Sequences that begin to run.
        rows: Sequences, and how many of their tokens are computed.
        drafts: Sequences, and how many draft tokens are verified at most.
        adapters: The set of adapters of the step.
    """

    preempt: list[int] = field(default_factory=list)
    full: list[int] = field(default_factory=list)
    evict: list[int] = field(default_factory=list)
    admit: list[Admission] = field(default_factory=list)
    rows: list[tuple[int, int]] = field(default_factory=list)
    drafts: list[tuple[int, int]] = field(default_factory=list)
    adapters: Hashable = ()

    @property
    def n_tokens(self) -> int:
        """Tokens of the step."""
        return sum(n for _, n in self.rows) + sum(n for _, n in self.drafts)


def schedule(
    waiting: abc.Sequence[SequenceState],
    running: abc.Sequence[SequenceState],
    idle: abc.Sequence[int],
    cells: KVCellAllocator,
    tree: RadixTree,
    limits: Limits,
    turns: abc.Sequence[Hashable] = (),
    host: RadixTree | None = None,
) -> SchedulerOutput:
    """Decide about one step. The arguments are not changed.

    Args:
        waiting: Sequences outside the KV cache.
        running: Sequences in it.
        idle: The seq_ids of finished sequences that are cached, the least recently used first.
        cells: The cells of the KV cache.
        tree: The tokens of all cached sequences.
        limits: What a step may do.
        turns: Sets of adapters; the step is for the first one that has something to do. Others come behind these.
        host: The tokens of the host tier, by their numbers; None: it is empty.
    """
    if not waiting and (result := _all_generate(running, cells, limits)) is not None:
        return result
    ranked = sorted([*running, *waiting], key=lambda sequence: (sequence.seq_id is None, sequence.rank))
    result = scheduler = None
    for adapters in dict.fromkeys([*turns, *(sequence.adapters for sequence in ranked)]):
        scheduler = _Scheduler(waiting, running, idle, cells, tree, limits, adapters, host)
        result = scheduler.schedule()
        if result.rows or result.preempt or result.full:
            return result
    if scheduler is None or result is None:
        return SchedulerOutput()
    scheduler.last_resort()
    return result


def _all_generate(
    running: abc.Sequence[SequenceState], cells: KVCellAllocator, limits: Limits
) -> SchedulerOutput | None:
    """The output of most steps: one token for each running sequence. None where there is more to do."""
    n = len(running)
    if not 0 < n <= min(limits.n_batch, cells.free):
        return None
    adapters = running[0].adapters
    for sequence in running:
        if (
            sequence.n_left != 1
            or sequence.adapters != adapters
            or sequence.seq_id is None
            or cells.room(sequence.seq_id) < 1
        ):
            return None
        if sequence.n_drafted and n <= limits.n_drafting:
            return None
    ordered = running if n == 1 else sorted(running, key=lambda sequence: sequence.rank)
    return SchedulerOutput(rows=[(sequence.id, 1) for sequence in ordered], adapters=adapters)


class _Scheduler:
    def __init__(
        self,
        waiting: abc.Sequence[SequenceState],
        running: abc.Sequence[SequenceState],
        idle: abc.Sequence[int],
        cells: KVCellAllocator,
        tree: RadixTree,
        limits: Limits,
        adapters: Hashable,
        host: RadixTree | None,
    ) -> None:
        self.waiting = sorted(waiting, key=lambda sequence: sequence.rank)
        self.running = sorted(running, key=lambda sequence: sequence.rank)
        self.idle = list(idle)
        self.before, self.cells = cells, cells.fork()
        self.tree = tree
        self.limits = limits
        self.budget = limits.n_batch
        self.admitted: list[tuple[SequenceState, Admission]] = []
        self.adapters = adapters
        self.host = host
        self.result = SchedulerOutput(adapters=adapters)

    def schedule(self) -> SchedulerOutput:
        self._generate()
        prompts = min(self.budget, self.limits.n_prompt) if self.result.rows else self.budget
        if not self.result.preempt:
            self._admit(prompts)
        self._prefill(prompts)
        self._draft()
        return self.result

    # ---- one token of each sequence

    def _generate(self) -> None:
        for sequence in list(self.running):
            if sequence not in self.running or sequence.n_left != 1 or self.budget == 0:
                continue
            if sequence.adapters != self.adapters:
                continue
            if self._make_room(1, sequence) >= 1:
                self._take(sequence, sequence.seq_id, 1)
            elif self.running == [sequence]:
                self.result.full.append(sequence.id)
                self.running.remove(sequence)

    # ---- admission

    def _admit(self, prompts: int) -> None:
        """Admit sequences, as many as this step has tokens for."""
        for sequence in self.waiting:
            prefilling = [
                min(left, self.limits.n_scored) if one.scores else left for one, _, left in self._prefilling()
            ]
            if len(prefilling) >= self.limits.n_prefilling and sum(prefilling) >= prompts:
                break
            n_reused, source, promised = self._beginning(sequence)
            if promised - n_reused >= self.limits.n_worth:
                continue
            while not self._fits(sequence, n_reused, source) and self._preempt_for(sequence):
                n_reused, source, promised = self._beginning(sequence)
            if not self._fits(sequence, n_reused, source):
                # What could be taken over may be just what is in the way.
                if source not in self.idle or not self._fits(sequence, 0, None):
                    break
                n_reused, source = 0, None
            needed = self._needed(sequence, n_reused)
            host, n_hosted, n_cells = self._in_host(sequence)
            if n_hosted - n_reused >= self.limits.n_worth and self._fits(sequence, 0, None, n_cells):
                n_reused, source, needed = n_hosted, None, self._needed(sequence, 0, n_cells)
            else:
                host = None
            while self.cells.shares and self._spare() < needed and self._evict_one(keep=source):
                pass
            seq = self._seq_id_for(source, n_reused)
            if seq is None:
                break
            if source is not None and seq != source:
                self.cells.copy(source, seq, n_reused)
            elif source is not None:
                self.cells.truncate(source, n_reused)
            elif host is not None:
                self.cells.append(seq, n_reused)
            # A source is there until this step has been carried out.
            if source in self.idle:
                self.idle.remove(source)
            stops = self._stops(sequence, n_reused)
            self.admitted.append((sequence, Admission(sequence.id, seq, source, n_reused, host, stops)))
            self.result.admit.append(self.admitted[-1][1])

    def _beginning(self, sequence: SequenceState) -> tuple[int, int | None, int]:
        """Tokens of the prefix that is cached now, its seq_id, and tokens that could be shared later."""
        if not sequence.shares or sequence.scores:
            return 0, None, 0
        ids = sequence.ids[: len(sequence.ids) - 1]
        whole = self.limits.whole
        n_reused, source, promised = self.tree.best(
            ids,
            self._n_computed,
            sequence.adapters,
            n_whole=self.cells.whole,
            whole=whole,
            checkpoint=self.cells.checkpoint if whole else None,
        )
        for other, _ in self.admitted:
            if other.shares and other.adapters == sequence.adapters and not whole:
                promised = max(promised, common_length(ids, other.ids))
        return n_reused, source, promised

    def _in_host(self, sequence: SequenceState) -> tuple[int | None, int, int]:
        """A sequence of the host tier, how many of its tokens can be used, and the cells that this takes."""
        host = self.host
        if host is None or not sequence.shares or sequence.scores:
            return None, 0, 0
        ids = sequence.ids[: len(sequence.ids) - 1]
        whole = self.limits.host_whole or self.limits.whole
        n, number, _ = host.best(ids, lambda number: len(host.ids(number)[1]), sequence.adapters, whole=whole)
        return number, n, 0 if number is None else len(host.ids(number)[1])

    def _stops(self, sequence: SequenceState, n_reused: int) -> tuple[int, ...]:
        """Where the prefill pauses for checkpoints: where the prompt leaves a known one, and before its last token."""
        if not self.limits.checkpoints or not sequence.shares:
            return ()
        n = len(sequence.ids)
        branches = {n - 1}
        for tree in (self.tree, self.host):
            longest = None if tree is None else next(tree.matches(sequence.ids, sequence.adapters), None)
            branches.add(0 if longest is None else longest[0])
        return tuple(sorted(branch for branch in branches if n_reused < branch < n))

    def _needed(self, sequence: SequenceState, n_reused: int, at_least: int = 0) -> int:
        """Cells of the rest of a prompt, and of one token of each running sequence: else it is preempted at once."""
        others = len(self.running) + len(self.admitted)
        return max(len(sequence.ids) - n_reused, at_least) + (others + 1 if others else 0)

    def _fits(self, sequence: SequenceState, n_reused: int, source: int | None, at_least: int = 0) -> bool:
        if len(self.running) + len(self.admitted) >= self.limits.n_running:
            return False
        if not self.cells.shares:
            return True  # each seq_id has room for the longest sequence
        needed, spare = self._needed(sequence, n_reused, at_least), self._spare()
        return spare >= needed or spare + self._evictable(source) >= needed

    def _preempt_for(self, sequence: SequenceState) -> bool:
        """Preempt the last sequence, if its priority is lower."""
        last = self._last()
        if last is None or last.priority <= sequence.priority:
            return False
        self._preempt(last)
        return True

    def _spare(self) -> int:
        """Free cells, less those that running prefills will need."""
        return self.cells.free - sum(left for _, _, left in self._prefilling())

    def _seq_id_for(self, source: int | None, n_reused: int) -> int | None:
        """A seq_id for a new sequence: a free one, or the least recently used; at last the source itself.

        Where sequences share no cells a copy takes time and room, so the source is reused if little of it is lost.
        """
        in_place = source in self.idle and not self.cells.shares
        if in_place and source is not None and self.cells.length(source) - n_reused < self.limits.n_worth:
            return source
        used = {*self.cells.seq_ids, *self.idle, *(sequence.seq_id for sequence in self.running)}
        used |= {one for _, each in self.admitted for one in (each.seq_id, each.source)}
        for seq in range(self.limits.n_sequences):
            if seq not in used:
                return seq
        if in_place:
            return source
        if self._evict_one(keep=source):
            return self.result.evict[-1]
        return source if source in self.idle else None

    # ---- prefill

    def _prefilling(self) -> list[tuple[SequenceState, int, int]]:
        """Sequences in prefill, their seq_ids, and how many tokens are left."""
        found = [
            (sequence, sequence.seq_id, sequence.n_left)
            for sequence in self.running
            if sequence.n_left > 1 and sequence.seq_id is not None
        ]
        return found + [(sequence, one.seq_id, len(sequence.ids) - one.n_reused) for sequence, one in self.admitted]

    def _prefill(self, budget: int) -> None:
        """Equal shares of the step for all prefills; what a short one leaves goes to the others."""
        mine = [each for each in self._prefilling() if each[0].adapters == self.adapters]
        ordered = sorted(mine, key=lambda each: each[2])
        if self.limits.n_shared is not None and len(ordered) + len(self.result.rows) > 1:
            budget = min(budget, self.limits.n_shared)
        rows = self.limits.n_scored
        for i, (sequence, seq, left) in enumerate(ordered):
            share = min(left, max(1, budget // (len(ordered) - i)), budget)
            if sequence.scores:
                n_scoring = sum(other.scores for other, _, _ in ordered[i:])
                share = min(share, max(1, rows // n_scoring), rows)
            stops = next((one.stops for each, one in self.admitted if each is sequence), sequence.stops)
            start = len(sequence.ids) - left
            share = min([share, *(stop - start for stop in stops if stop > start)])
            share = min(share, self._make_room(share, sequence)) if share else 0
            if share > 0 and (sequence in self.running or any(sequence is one for one, _ in self.admitted)):
                self._take(sequence, seq, share)
                budget -= share
                rows -= share if sequence.scores else 0

    # ---- drafts

    def _draft(self) -> None:
        """Give what is left of the step and the cache to drafts."""
        many = len(self.running) + len(self.admitted) > self.limits.n_drafting
        if many or self.result.preempt or any(n > 1 for _, n in self.result.rows):
            return
        taken = {number for number, _ in self.result.rows}
        for sequence in self.running:
            if sequence.n_left != 1 or sequence.id not in taken or sequence.seq_id is None:
                continue
            n = min(sequence.n_drafted, self.budget, self._spare(), self.cells.room(sequence.seq_id))
            if n > 0:
                self.cells.append(sequence.seq_id, n)
                self.budget -= n
                self.result.drafts.append((sequence.id, n))

    # ---- cells

    def _take(self, sequence: SequenceState, seq: int | None, n: int) -> None:
        assert seq is not None
        self.cells.append(seq, n)
        self.budget -= n
        self.result.rows.append((sequence.id, n))

    def _make_room(self, n: int, sequence: SequenceState) -> int:
        """Free cells for n tokens, if need be by preempting sequences behind this one; how many are free."""
        while self.cells.free < n and self._evict_one():
            pass
        while self.cells.free < n and (last := self._last()) is not None and last.rank > sequence.rank:
            self._preempt(last)
        return self.cells.free

    def _last(self) -> SequenceState | None:
        """The sequence to preempt first; not one whose prefix another sequence takes in this step."""
        sources = {one.source for _, one in self.admitted}
        return next((sequence for sequence in reversed(self.running) if sequence.seq_id not in sources), None)

    def _preempt(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        assert sequence.seq_id is not None
        for row in [row for row in self.result.rows if row[0] == sequence.id]:
            self.result.rows.remove(row)
            self.budget += row[1]
        self.cells.remove(sequence.seq_id)
        self.result.preempt.append(sequence.id)

    def _evict_one(self, keep: int | None = None) -> bool:
        for seq in self.idle:
            if seq != keep:
                self.idle.remove(seq)
                self.cells.remove(seq)
                self.result.evict.append(seq)
                return True
        return False

    def _evictable(self, keep: int | None) -> int:
        """Cells that evicting all idle sequences but one would free."""
        trial = self.cells.fork() if self.idle and self.idle != [keep] else None
        return sum(trial.remove(seq) for seq in self.idle if seq != keep) if trial is not None else 0

    def last_resort(self) -> None:
        """Nothing can be computed: preempt the last sequence, or end the only one."""
        if len(self.running) == 1:
            self.result.full.append(self.running[0].id)
        elif self.running:
            self._preempt(self.running[-1])

    def _n_computed(self, seq: int) -> int:
        """Tokens that can be copied from a seq_id: those from before this step, unless it was given away."""
        if any(seq == one.seq_id for _, one in self.admitted):
            return 0
        return min(self.cells.length(seq), self.before.length(seq))


class AdapterRotation:
    """Sets of adapters take turns: sequences with different sets cannot be computed in one step.

    A set that has running sequences gets `n_steps` steps in a row, then it goes to the end of the line. So none of k
    sets waits for more than (k - 1) · n_steps steps, however many others come.

    Args:
        n_steps: Steps in a row, while others wait for theirs.
    """

    def __init__(self, n_steps: int = ADAPTER_STEPS) -> None:
        self.n_steps = n_steps
        self._line: dict[Hashable, None] = {}
        self._current: Hashable = ()
        self._count = 0

    def order(self, sequences: abc.Sequence[SequenceState]) -> list[Hashable]:
        """The order in which a step tries the sets of these sequences, which are all there are; empty for one set.

        Only sets with running sequences are among them: waiting sequences are admitted in the steps of any set.
        """
        present = {sequence.adapters for sequence in sequences}
        if len(self._line) > len(present):
            self._line = {one: None for one in self._line if one in present}
        if len(present) < 2:
            return []
        running = sorted(
            (sequence for sequence in sequences if sequence.seq_id is not None), key=lambda sequence: sequence.rank
        )
        sets = dict.fromkeys(sequence.adapters for sequence in running)
        self._line |= {one: None for one in sets if one not in self._line}
        ordered: list[Hashable] = [self._current] if self._current in sets and self._count < self.n_steps else []
        return ordered + [one for one in self._line if one in sets and one not in ordered]

    def served(self, adapters: Hashable) -> None:
        """A step was for this set."""
        if adapters != self._current:
            self._current, self._count = adapters, 0
        self._count += 1
        self._line.pop(adapters, None)
        self._line[adapters] = None

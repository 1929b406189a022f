"""What the next step computes: a pure function of what waits, what runs and what the KV cache holds.

Nothing here touches a model. The rules:

- Every text that is being generated gets one token per step, and what is left of the step goes to prompts: in equal
  shares, so that a short one is through soon behind a long one.
- Requests come in by priority and then by arrival, and none overtakes another, so that none starves. Only one whose
  beginning is just being computed for another request lets others pass until it can take that over.
- Where cells are missing, sequences that nobody runs go first, the one unused for longest before others; then the
  request that came last stops running, and waits again in its old place. It loses time and nothing else.
- A request that has the whole cache to itself and needs more has reached its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyllm.engine.ledger import Ledger
from pyllm.engine.prefix import PrefixTree, common_length


@dataclass(slots=True, eq=False)
class Task:
    """What the scheduler knows of a request.

    Attributes:
        id: Its number.
        ids: All its tokens: the prompt and what was generated.
        order: Smaller ones arrived earlier.
        priority: Smaller ones go first.
        seq: The sequence it runs in; None while it waits.
        n_computed: How many of its tokens are in the KV cache.
        shares: Whether its prompt may be taken from other sequences.
    """

    id: int
    ids: NDArray[np.int32]
    order: int
    priority: int = 0
    seq: int | None = None
    n_computed: int = 0
    shares: bool = True

    @property
    def rank(self) -> tuple[int, int]:
        """Its place among others: the smaller goes first."""
        return self.priority, self.order

    @property
    def n_left(self) -> int:
        """Tokens to compute until one can be sampled."""
        return len(self.ids) - self.n_computed


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step may do.

    Attributes:
        n_sequences: Sequences of the context.
        n_running: Requests that run at once.
        n_batch: Tokens of one step.
        n_prompt: Tokens of prompts in one step while texts are being generated.
        n_reading: So many prompts are read at once, even if the first fills the step.
        n_worth: A prompt waits for the beginning that another one computes, if it saves so many tokens.
    """

    n_sequences: int
    n_running: int
    n_batch: int
    n_prompt: int
    n_reading: int = 4
    n_worth: int = 32


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that begins to run.

    Attributes:
        id: Which one.
        seq: In which sequence.
        source: The sequence its beginning is taken from, or None; `seq` itself where that is taken over.
        n_reused: How many tokens.
    """

    id: int
    seq: int
    source: int | None = None
    n_reused: int = 0


@dataclass(slots=True)
class Plan:
    """What to do, in this order.

    Attributes:
        preempt: Requests that stop running and wait again; their sequences are removed.
        full: Requests that end here, because the cache has no room for another token.
        evict: Idle sequences to remove.
        admit: Requests that begin to run.
        rows: Requests, and how many of their tokens are computed.
    """

    preempt: list[int] = field(default_factory=list)
    full: list[int] = field(default_factory=list)
    evict: list[int] = field(default_factory=list)
    admit: list[Admission] = field(default_factory=list)
    rows: list[tuple[int, int]] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Tokens of the step."""
        return sum(n for _, n in self.rows)


def plan(
    waiting: Sequence[Task],
    running: Sequence[Task],
    idle: Sequence[int],
    ledger: Ledger,
    tree: PrefixTree,
    limits: Limits,
) -> Plan:
    """Decide about one step; nothing that was given is changed.

    Args:
        waiting: Requests without a sequence.
        running: Requests with one.
        idle: Sequences that nobody runs, the one unused for longest first.
        ledger: The cells.
        tree: The tokens of all sequences.
        limits: What a step may do.
    """
    return _Planner(waiting, running, idle, ledger, tree, limits).plan()


class _Planner:
    def __init__(
        self,
        waiting: Sequence[Task],
        running: Sequence[Task],
        idle: Sequence[int],
        ledger: Ledger,
        tree: PrefixTree,
        limits: Limits,
    ) -> None:
        self.waiting = sorted(waiting, key=lambda task: task.rank)
        self.running = sorted(running, key=lambda task: task.rank)
        self.idle = list(idle)
        self.ledger = ledger.fork()
        self.tree = tree
        self.limits = limits
        self.budget = limits.n_batch
        self.admitted: list[tuple[Task, Admission]] = []
        self.result = Plan()

    def plan(self) -> Plan:
        self._generate()
        prompts = min(self.budget, self.limits.n_prompt) if self.result.rows else self.budget
        if not self.result.preempt:
            self._admit(prompts)
        self._read(prompts)
        if not self.result.rows and self.running:
            self._last_resort()
        return self.result

    # ---- one token of each text

    def _generate(self) -> None:
        for task in list(self.running):
            if task not in self.running or task.n_left != 1 or self.budget == 0:
                continue
            if self._make_room(1, task) >= 1:
                self._take(task, task.seq, 1)
            elif self.running == [task]:
                self.result.full.append(task.id)
                self.running.remove(task)

    # ---- requests that come in

    def _admit(self, prompts: int) -> None:
        """Let requests in, as many as there is something to compute for in this step."""
        for task in self.waiting:
            reading = [left for _, _, left in self._reading()]
            if len(reading) >= self.limits.n_reading and sum(reading) >= prompts:
                break
            n_reused, source, promised = self._beginning(task)
            if promised - n_reused >= self.limits.n_worth:
                continue
            while not self._fits(task, n_reused, source) and self._stop_one_for(task):
                n_reused, source, promised = self._beginning(task)
            if not self._fits(task, n_reused, source):
                # What could be taken over may be just what is in the way.
                if source not in self.idle or not self._fits(task, 0, None):
                    break
                n_reused, source = 0, None
            needed = self._needed(task, n_reused)
            while self._spare() < needed and self._evict_one(keep=source):
                pass
            seq = self._sequence_for(source)
            if seq is None:
                break
            if source is not None and seq != source:
                self.ledger.copy(source, seq, n_reused)
            elif source is not None:
                self.ledger.truncate(source, n_reused)
            # A source is there until this step has been carried out.
            if source in self.idle:
                self.idle.remove(source)
            self.admitted.append((task, Admission(task.id, seq, source, n_reused)))
            self.result.admit.append(self.admitted[-1][1])

    def _beginning(self, task: Task) -> tuple[int, int | None, int]:
        """What of a prompt can be taken over now, from where, and what could be later."""
        if not task.shares:
            return 0, None, 0
        ids = task.ids[: len(task.ids) - 1]
        n_reused, source, promised = self.tree.best(ids, self._n_computed)
        for other, _ in self.admitted:
            if other.shares:
                promised = max(promised, common_length(ids, other.ids))
        return n_reused, source, promised

    def _needed(self, task: Task, n_reused: int) -> int:
        """Cells of the rest of a prompt, and a token of each request that runs: else it would be stopped at once."""
        others = len(self.running) + len(self.admitted)
        return len(task.ids) - n_reused + (others + 1 if others else 0)

    def _fits(self, task: Task, n_reused: int, source: int | None) -> bool:
        if len(self.running) + len(self.admitted) >= self.limits.n_running:
            return False
        needed, spare = self._needed(task, n_reused), self._spare()
        return spare >= needed or spare + self._evictable(source) >= needed

    def _stop_one_for(self, task: Task) -> bool:
        """Stop the last request that is less urgent."""
        last = self._last()
        if last is None or last.priority <= task.priority:
            return False
        self._preempt(last)
        return True

    def _spare(self) -> int:
        """Free cells that no prompt which is being read will need."""
        return self.ledger.free - sum(left for _, _, left in self._reading())

    def _sequence_for(self, source: int | None) -> int | None:
        """A sequence that nobody has: a new one, or that of the longest unused; at last the source itself."""
        used = {*self.ledger.sequences, *self.idle, *(task.seq for task in self.running)}
        used |= {one for _, each in self.admitted for one in (each.seq, each.source)}
        for seq in range(self.limits.n_sequences):
            if seq not in used:
                return seq
        if self._evict_one(keep=source):
            return self.result.evict[-1]
        return source if source in self.idle else None

    # ---- prompts

    def _reading(self) -> list[tuple[Task, int, int]]:
        """Requests whose prompts are being computed, their sequences, and how many tokens are left."""
        found = [(task, task.seq, task.n_left) for task in self.running if task.n_left > 1 and task.seq is not None]
        return found + [(task, one.seq, len(task.ids) - one.n_reused) for task, one in self.admitted]

    def _read(self, budget: int) -> None:
        """Equal shares of the step for all prompts; what a short one leaves goes to the others."""
        ordered = sorted(self._reading(), key=lambda each: each[2])
        for i, (task, seq, left) in enumerate(ordered):
            share = min(left, max(1, budget // (len(ordered) - i)), budget)
            share = min(share, self._make_room(share, task)) if share else 0
            if share > 0 and (task in self.running or any(task is one for one, _ in self.admitted)):
                self._take(task, seq, share)
                budget -= share

    # ---- cells

    def _take(self, task: Task, seq: int | None, n: int) -> None:
        assert seq is not None
        self.ledger.append(seq, n)
        self.budget -= n
        self.result.rows.append((task.id, n))

    def _make_room(self, n: int, task: Task) -> int:
        """Free cells for n tokens of a request, if need be at the cost of those behind it; how many there are."""
        while self.ledger.free < n and self._evict_one():
            pass
        while self.ledger.free < n and (last := self._last()) is not None and last.rank > task.rank:
            self._preempt(last)
        return self.ledger.free

    def _last(self) -> Task | None:
        """The request that stops running first; not one from which another takes its beginning in this step."""
        sources = {one.source for _, one in self.admitted}
        return next((task for task in reversed(self.running) if task.seq not in sources), None)

    def _preempt(self, task: Task) -> None:
        self.running.remove(task)
        assert task.seq is not None
        for row in [row for row in self.result.rows if row[0] == task.id]:
            self.result.rows.remove(row)
            self.budget += row[1]
        self.ledger.remove(task.seq)
        self.result.preempt.append(task.id)

    def _evict_one(self, keep: int | None = None) -> bool:
        for seq in self.idle:
            if seq != keep:
                self.idle.remove(seq)
                self.ledger.remove(seq)
                self.result.evict.append(seq)
                return True
        return False

    def _evictable(self, keep: int | None) -> int:
        """Cells that would be free if all idle sequences but one were removed."""
        trial = self.ledger.fork() if self.idle and self.idle != [keep] else None
        return sum(trial.remove(seq) for seq in self.idle if seq != keep) if trial is not None else 0

    def _last_resort(self) -> None:
        """Nothing can be computed: the last request gives its cells to the others, or the only one has its end."""
        if len(self.running) == 1:
            self.result.full.append(self.running[0].id)
        else:
            self._preempt(self.running[-1])

    def _n_computed(self, seq: int) -> int:
        """Tokens that can be taken from a sequence; none where this step has put another one there."""
        return 0 if any(seq == one.seq for _, one in self.admitted) else self.ledger.length(seq)

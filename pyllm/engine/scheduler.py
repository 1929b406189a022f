"""What the next step computes: a pure function of what waits, what runs and what the KV cache holds.

Nothing here touches a model. The rules:

- Every text that is being generated gets one token per step, and what is left of the step goes to prompts: in equal
  shares, so that a short one is through soon behind a long one.
- Requests come in by priority and then by arrival, and none overtakes another, so that none starves. Only one whose
  beginning is just being computed for another request lets others pass until it can take that over.
- Where cells are missing, sequences that nobody runs go first, the one unused for longest before others; then the
  request that came last stops running, and waits again in its old place. It loses time and nothing else.
- A request that has the whole cache to itself and needs more has reached its end.
- Where few texts run and no prompt is read, drafted tokens are computed behind their newest ones, in what is left of
  the step and of the cache: for a guess nobody waits and nothing is removed.
- A step computes requests with one set of adapters only: llama.cpp has one for a whole context. Sets take turns; what
  others have in the cache stays there meanwhile.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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
        scores: Whether the logits of its prompt are wanted, so that each of its tokens has to be computed.
        n_drafted: Most drafted tokens that it would have computed behind its newest one in the next step.
        adapters: The set of adapters it is computed with. What was computed with one set is never used with another.
    """

    id: int
    ids: NDArray[np.int32]
    order: int
    priority: int = 0
    seq: int | None = None
    n_computed: int = 0
    shares: bool = True
    scores: bool = False
    n_drafted: int = 0
    adapters: Hashable = ()

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
        n_shared: Tokens of prompts in one step that several requests share; None: as many as there is room for.
        n_reading: So many prompts are read at once, even if the first fills the step.
        n_scored: Tokens of prompts whose logits are wanted, in one step.
        n_worth: A prompt waits for the beginning that another one computes, if it saves so many tokens.
        n_drafting: Drafted tokens are computed while so many requests run, and none while more do.
        whole: A sequence can be taken over as a whole only, as the memory of the model cannot be cut.
        host_whole: A text can be brought back from the host as a whole only.
    """

    n_sequences: int
    n_running: int
    n_batch: int
    n_prompt: int
    n_reading: int = 4
    n_scored: int = 256
    n_worth: int = 32
    n_drafting: int = 0
    whole: bool = False
    host_whole: bool = False
    n_shared: int | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that begins to run.

    Attributes:
        id: Which one.
        seq: In which sequence.
        source: The sequence its beginning is taken from, or None; `seq` itself where that is taken over.
        n_reused: How many tokens.
        host: The text in the memory of the host that its beginning is brought back from, or None.
    """

    id: int
    seq: int
    source: int | None = None
    n_reused: int = 0
    host: int | None = None


@dataclass(slots=True)
class Plan:
    """What to do, in this order.

    Attributes:
        preempt: Requests that stop running and wait again; their sequences are removed.
        full: Requests that end here, because the cache has no room for another token.
        evict: Idle sequences to remove.
        admit: Requests that begin to run.
        rows: Requests, and how many of their tokens are computed.
        drafts: Requests, and how many drafted tokens at most are computed behind their newest ones.
        adapters: The set of adapters that they are computed with.
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


def plan(
    waiting: Sequence[Task],
    running: Sequence[Task],
    idle: Sequence[int],
    ledger: Ledger,
    tree: PrefixTree,
    limits: Limits,
    turns: Sequence[Hashable] = (),
    host: PrefixTree | None = None,
) -> Plan:
    """Decide about one step; nothing that was given is changed.

    Args:
        waiting: Requests without a sequence.
        running: Requests with one.
        idle: Sequences that nobody runs, the one unused for longest first.
        ledger: The cells.
        tree: The tokens of all sequences.
        limits: What a step may do.
        turns: Sets of adapters; the step is for the first one that has something to do. Sets that are not named come
            behind these.
        host: The tokens of the texts in the memory of the host, by their numbers; None: there are none.
    """
    if not waiting and (result := _all_generate(running, ledger, limits)) is not None:
        return result
    ranked = sorted([*running, *waiting], key=lambda task: (task.seq is None, task.rank))
    result = planner = None
    for adapters in dict.fromkeys([*turns, *(task.adapters for task in ranked)]):
        planner = _Planner(waiting, running, idle, ledger, tree, limits, adapters, host)
        result = planner.plan()
        if result.rows or result.preempt or result.full:
            return result
    if planner is None or result is None:
        return Plan()
    planner.last_resort()
    return result


def _all_generate(running: Sequence[Task], ledger: Ledger, limits: Limits) -> Plan | None:
    """The plan of most steps: all texts are being generated, and get a token each. None where there is more to it."""
    n = len(running)
    if not 0 < n <= min(limits.n_batch, ledger.free):
        return None
    adapters = running[0].adapters
    for task in running:
        if task.n_left != 1 or task.adapters != adapters or task.seq is None or ledger.room(task.seq) < 1:
            return None
        if task.n_drafted and n <= limits.n_drafting:
            return None
    ordered = running if n == 1 else sorted(running, key=lambda task: task.rank)
    return Plan(rows=[(task.id, 1) for task in ordered], adapters=adapters)


class _Planner:
    def __init__(
        self,
        waiting: Sequence[Task],
        running: Sequence[Task],
        idle: Sequence[int],
        ledger: Ledger,
        tree: PrefixTree,
        limits: Limits,
        adapters: Hashable,
        host: PrefixTree | None,
    ) -> None:
        self.waiting = sorted(waiting, key=lambda task: task.rank)
        self.running = sorted(running, key=lambda task: task.rank)
        self.idle = list(idle)
        self.before, self.ledger = ledger, ledger.fork()
        self.tree = tree
        self.limits = limits
        self.budget = limits.n_batch
        self.admitted: list[tuple[Task, Admission]] = []
        self.adapters = adapters
        self.host = host
        self.result = Plan(adapters=adapters)

    def plan(self) -> Plan:
        self._generate()
        prompts = min(self.budget, self.limits.n_prompt) if self.result.rows else self.budget
        if not self.result.preempt:
            self._admit(prompts)
        self._read(prompts)
        self._draft()
        return self.result

    # ---- one token of each text

    def _generate(self) -> None:
        for task in list(self.running):
            if task not in self.running or task.n_left != 1 or self.budget == 0:
                continue
            if task.adapters != self.adapters:
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
            reading = [min(left, self.limits.n_scored) if one.scores else left for one, _, left in self._reading()]
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
            host, n_hosted, n_cells = self._in_host(task)
            if n_hosted - n_reused >= self.limits.n_worth and self._fits(task, 0, None, n_cells):
                n_reused, source, needed = n_hosted, None, self._needed(task, 0, n_cells)
            else:
                host = None
            while self.ledger.shares and self._spare() < needed and self._evict_one(keep=source):
                pass
            seq = self._sequence_for(source, n_reused)
            if seq is None:
                break
            if source is not None and seq != source:
                self.ledger.copy(source, seq, n_reused)
            elif source is not None:
                self.ledger.truncate(source, n_reused)
            elif host is not None:
                self.ledger.append(seq, n_reused)
            # A source is there until this step has been carried out.
            if source in self.idle:
                self.idle.remove(source)
            self.admitted.append((task, Admission(task.id, seq, source, n_reused, host)))
            self.result.admit.append(self.admitted[-1][1])

    def _beginning(self, task: Task) -> tuple[int, int | None, int]:
        """What of a prompt can be taken over now, from where, and what could be later."""
        if not task.shares or task.scores:
            return 0, None, 0
        ids = task.ids[: len(task.ids) - 1]
        whole = self.limits.whole
        n_reused, source, promised = self.tree.best(
            ids, self._n_computed, task.adapters, n_whole=self.ledger.whole, whole=whole
        )
        for other, _ in self.admitted:
            if other.shares and other.adapters == task.adapters and not whole:
                promised = max(promised, common_length(ids, other.ids))
        return n_reused, source, promised

    def _in_host(self, task: Task) -> tuple[int | None, int, int]:
        """A text in the memory of the host, how many of its tokens can be used, and the cells that this takes."""
        host = self.host
        if host is None or not task.shares or task.scores:
            return None, 0, 0
        ids = task.ids[: len(task.ids) - 1]
        whole = self.limits.host_whole or self.limits.whole
        n, number, _ = host.best(ids, lambda number: len(host.ids(number)[1]), task.adapters, whole=whole)
        return number, n, 0 if number is None else len(host.ids(number)[1])

    def _needed(self, task: Task, n_reused: int, at_least: int = 0) -> int:
        """Cells of the rest of a prompt, and a token of each request that runs: else it would be stopped at once."""
        others = len(self.running) + len(self.admitted)
        return max(len(task.ids) - n_reused, at_least) + (others + 1 if others else 0)

    def _fits(self, task: Task, n_reused: int, source: int | None, at_least: int = 0) -> bool:
        if len(self.running) + len(self.admitted) >= self.limits.n_running:
            return False
        if not self.ledger.shares:
            return True  # each sequence has room for the longest text
        needed, spare = self._needed(task, n_reused, at_least), self._spare()
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

    def _sequence_for(self, source: int | None, n_reused: int) -> int | None:
        """A sequence that nobody has: a new one, or that of the longest unused; at last the source itself.

        Where sequences share no cells a copy takes time and room, and the source is taken over if little of it is lost.
        """
        in_place = source in self.idle and not self.ledger.shares
        if in_place and source is not None and self.ledger.length(source) - n_reused < self.limits.n_worth:
            return source
        used = {*self.ledger.sequences, *self.idle, *(task.seq for task in self.running)}
        used |= {one for _, each in self.admitted for one in (each.seq, each.source)}
        for seq in range(self.limits.n_sequences):
            if seq not in used:
                return seq
        if in_place:
            return source
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
        mine = [each for each in self._reading() if each[0].adapters == self.adapters]
        ordered = sorted(mine, key=lambda each: each[2])
        if self.limits.n_shared is not None and len(ordered) + len(self.result.rows) > 1:
            budget = min(budget, self.limits.n_shared)
        rows = self.limits.n_scored
        for i, (task, seq, left) in enumerate(ordered):
            share = min(left, max(1, budget // (len(ordered) - i)), budget)
            if task.scores:
                n_scoring = sum(other.scores for other, _, _ in ordered[i:])
                share = min(share, max(1, rows // n_scoring), rows)
            share = min(share, self._make_room(share, task)) if share else 0
            if share > 0 and (task in self.running or any(task is one for one, _ in self.admitted)):
                self._take(task, seq, share)
                budget -= share
                rows -= share if task.scores else 0

    # ---- drafted tokens

    def _draft(self) -> None:
        """What nobody else needs of the step and the cache, for guesses at how texts go on."""
        many = len(self.running) + len(self.admitted) > self.limits.n_drafting
        if many or self.result.preempt or any(n > 1 for _, n in self.result.rows):
            return
        taken = {number for number, _ in self.result.rows}
        for task in self.running:
            if task.n_left != 1 or task.id not in taken or task.seq is None:
                continue
            n = min(task.n_drafted, self.budget, self._spare(), self.ledger.room(task.seq))
            if n > 0:
                self.ledger.append(task.seq, n)
                self.budget -= n
                self.result.drafts.append((task.id, n))

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

    def last_resort(self) -> None:
        """Nothing can be computed: the last request gives its cells to the others, or the only one has its end."""
        if len(self.running) == 1:
            self.result.full.append(self.running[0].id)
        elif self.running:
            self._preempt(self.running[-1])

    def _n_computed(self, seq: int) -> int:
        """Tokens that can be taken from a sequence: those from before this step, unless another one is put there."""
        if any(seq == one.seq for _, one in self.admitted):
            return 0
        return min(self.ledger.length(seq), self.before.length(seq))

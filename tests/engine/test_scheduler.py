"""The scheduler without a model: random arrivals, lengths, cancels and tiny caches; nothing is lost, nobody starves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm.engine.cache import SequenceCache
from pyllm.engine.ledger import Ledger
from pyllm.engine.prefix import PrefixTree, common_length
from pyllm.engine.scheduler import Limits, Plan, Task, plan


class Cells:
    """A KV cache that knows of each cell whose it is."""

    def __init__(self, n_cells: int) -> None:
        self.n_cells = n_cells
        self.cells: list[tuple[int, set[int]]] = []  # position and owners

    def rm(self, seq_id: int, p0: int = -1, p1: int = -1) -> bool:
        for pos, owners in self.cells:
            if pos >= max(p0, 0):
                owners.discard(seq_id)
        self.cells = [cell for cell in self.cells if cell[1]]
        return True

    def cp(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        for pos, owners in self.cells:
            if src in owners and pos < p1:
                owners.add(dst)

    def add(self, seq: int, n: int) -> None:
        start = 1 + max((pos for pos, owners in self.cells if seq in owners), default=-1)
        self.cells += [(start + i, {seq}) for i in range(n)]
        assert len(self.cells) <= self.n_cells, "over-committed"

    def positions(self, seq: int) -> list[int]:
        return sorted(pos for pos, owners in self.cells if seq in owners)


class Machine:
    """Carries plans out as the engine does, with token counts instead of a model."""

    def __init__(self, n_cells: int, limits: Limits) -> None:
        self.cells = Cells(n_cells)
        self.cache = SequenceCache(self.cells, n_cells)
        self.limits = limits
        self.tasks: dict[int, Task] = {}
        self.wanted: dict[int, int] = {}
        self.ended: dict[int, str] = {}
        self.n_steps = self.n_tokens = self.n_preempted = self.n_reused = 0

    def submit(self, ids: list[int], wanted: int, priority: int = 0) -> int:
        number = len(self.tasks) + len(self.ended)
        self.tasks[number] = Task(number, np.array(ids, np.int32), number, priority)
        self.wanted[number] = len(ids) + wanted
        return number

    def cancel(self, number: int) -> None:
        task = self.tasks.pop(number, None)
        if task is not None:
            if task.seq is not None:
                self.cache.keep(task)
            self.ended[number] = "cancelled"

    def step(self) -> Plan:
        waiting = [task for task in self.tasks.values() if task.seq is None]
        running = [task for task in self.tasks.values() if task.seq is not None]
        decision = plan(waiting, running, list(self.cache.idle), self.cache.ledger, self.cache.tree, self.limits)
        for number in decision.preempt:
            self.cache.drop(self.tasks[number])
            self.n_preempted += 1
        for number in decision.full:
            self.end(number, "full")
        for seq in decision.evict:
            self.cache.evict(seq)
        for admission in decision.admit:
            task = self.tasks[admission.id]
            assert task.seq is None
            self.cache.start(task, admission)
            assert self.cells.positions(admission.seq) == list(range(admission.n_reused))
            self.n_reused += admission.n_reused
        assert decision.n_tokens <= self.limits.n_batch
        assert len({number for number, _ in decision.rows}) == len(decision.rows)
        for number, n in decision.rows:
            task = self.tasks[number]
            assert task.seq is not None and 1 <= n <= task.n_left
            self.cells.add(task.seq, n)
            self.cache.computed(task, n)
            assert self.cells.positions(task.seq) == list(range(task.n_computed))
        for number, _ in decision.rows:
            task = self.tasks[number]
            if task.n_left == 0:
                if len(task.ids) >= self.wanted[number]:
                    self.end(number, "done")
                else:
                    task.ids = np.append(task.ids, np.int32(1000 + number))
        assert self.cache.ledger.used == len(self.cells.cells)
        assert len({task.seq for task in self.tasks.values() if task.seq is not None} | set(self.cache.idle)) <= (
            self.limits.n_sequences
        )
        self.n_steps += 1
        self.n_tokens += decision.n_tokens
        return decision

    def end(self, number: int, reason: str) -> None:
        self.cache.keep(self.tasks.pop(number))
        self.ended[number] = reason

    def finish(self, limit: int = 20_000) -> None:
        while self.tasks:
            before = self.n_steps, len(self.ended)
            decision = self.step()
            assert decision.rows or decision.preempt or decision.full or len(self.ended) > before[1], "it stands still"
            assert self.n_steps < limit


def limits(n_running: int = 4, n_batch: int = 16, n_sequences: int = 8, n_prompt: int = 8, n_worth: int = 4) -> Limits:
    return Limits(n_sequences, n_running, n_batch, n_prompt, n_reading=2, n_worth=n_worth)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_nothing_is_lost_and_nobody_starves(data: st.DataObject) -> None:
    n_cells = data.draw(st.integers(12, 80), "cells")
    n_running = data.draw(st.integers(1, 5), "running")
    machine = Machine(
        n_cells,
        limits(
            n_running,
            data.draw(st.integers(n_running, 24), "batch"),
            n_running + data.draw(st.integers(0, 4), "spare sequences"),
            data.draw(st.integers(1, 12), "prompt tokens"),
            data.draw(st.integers(1, 8), "worth"),
        ),
    )
    submitted = 0
    for _ in range(data.draw(st.integers(1, 25), "events")):
        what = data.draw(st.sampled_from(["submit", "submit", "cancel", "step"]))
        if what == "submit":
            ids = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=n_cells - 2))
            machine.submit(ids, data.draw(st.integers(1, 20)), data.draw(st.sampled_from([0, 0, 0, 1, -1])))
            submitted += 1
        elif what == "cancel" and submitted:
            machine.cancel(data.draw(st.integers(0, submitted - 1)))
        else:
            machine.step()
    machine.finish()
    assert len(machine.ended) == submitted
    for seq in list(machine.cache.idle):
        machine.cache.evict(seq)
    assert machine.cells.cells == [] and machine.cache.ledger.used == 0 and len(machine.cache.tree) == 0


def test_a_long_prompt_stops_nobody() -> None:
    machine = Machine(1000, limits(n_batch=32, n_prompt=8))
    short = [machine.submit([i], 50) for i in range(2)]
    machine.step()
    long = machine.submit(list(range(10, 410)), 1)
    for _ in range(40):
        rows = dict(machine.step().rows)
        assert rows[short[0]] == rows[short[1]] == 1
        assert rows.get(long, 0) <= 8
    assert machine.tasks[long].n_computed == 320


def test_a_short_prompt_is_through_soon_behind_a_long_one() -> None:
    machine = Machine(2000, limits(n_batch=16, n_prompt=16))
    machine.submit(list(range(1000)), 1)
    machine.step()
    short = machine.submit([5, 6, 7], 1)
    machine.step()
    assert machine.tasks[short].n_computed == 3


def test_a_prefix_is_computed_once_for_all_who_come_together() -> None:
    machine = Machine(2000, limits(n_running=8, n_batch=64, n_prompt=64, n_sequences=12))
    prefix = list(range(300))
    for i in range(8):
        machine.submit([*prefix, 1000 + i], 3)
    machine.finish()
    assert machine.n_reused == 7 * 300
    assert machine.n_tokens <= 300 + 8 * 4 + 64


def test_a_later_prompt_takes_over_what_an_ended_one_left() -> None:
    machine = Machine(100, limits(n_sequences=4))
    machine.submit(list(range(30)), 2)
    machine.finish()
    machine.submit([*range(30), 99], 1)
    machine.finish()
    assert machine.n_reused == 30


def test_who_comes_first_is_served_first_when_the_cache_is_full() -> None:
    machine = Machine(40, limits(n_running=4, n_batch=40, n_prompt=40))
    numbers = [machine.submit([i] * 8, 20) for i in range(4)]
    machine.finish()
    assert machine.n_preempted > 0
    assert list(machine.ended) == numbers and set(machine.ended.values()) == {"done"}


def test_a_request_that_fills_the_cache_alone_ends() -> None:
    machine = Machine(20, limits())
    machine.submit([1] * 10, 100)
    machine.finish()
    assert machine.ended == {0: "full"}


def test_an_urgent_request_takes_the_place_of_one_that_is_not() -> None:
    machine = Machine(100, limits(n_running=2))
    slow = [machine.submit([i], 40, priority=1) for i in range(2)]
    machine.step()
    urgent = machine.submit([7, 7, 7], 2, priority=0)
    machine.finish()
    assert next(iter(machine.ended)) == urgent
    assert [machine.ended[number] for number in slow] == ["done", "done"]


def test_equal_priority_never_overtakes() -> None:
    machine = Machine(30, limits(n_running=2, n_batch=30, n_prompt=30))
    machine.submit([1] * 20, 5)
    machine.step()
    big = machine.submit([2] * 25, 1)
    small = machine.submit([3], 1)
    machine.finish()
    assert list(machine.ended).index(big) < list(machine.ended).index(small)


def test_plan_changes_nothing() -> None:
    machine = Machine(30, limits())
    for i in range(6):
        machine.submit([i] * 9, 9)
    machine.step()
    cache, tasks = machine.cache, list(machine.tasks.values())
    before = cache.ledger.used, [(t.seq, t.n_computed) for t in tasks], list(cache.idle)
    arguments = (
        [t for t in tasks if t.seq is None], [t for t in tasks if t.seq is not None], list(cache.idle), cache.ledger,
        cache.tree, machine.limits,
    )  # fmt: skip
    first, second = plan(*arguments), plan(*arguments)
    assert first == second
    assert before == (cache.ledger.used, [(t.seq, t.n_computed) for t in tasks], list(cache.idle))


# ---- the ledger and the tree against plain models of themselves


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4), st.integers(0, 12)), max_size=40))
def test_the_ledger_counts_as_cells_do(actions: list[tuple[int, int, int, int]]) -> None:
    ledger, cells = Ledger(60), Cells(60)
    for what, a, b, n in actions:
        if what == 0 and n <= ledger.free:
            ledger.append(a, n)
            cells.add(a, n)
        elif what == 1 and a != b and ledger.length(b) == 0 and n <= ledger.length(a):
            ledger.copy(a, b, n)
            cells.cp(a, b, 0, n)
        elif what == 2:
            before = ledger.free
            assert ledger.truncate(a, n) == ledger.free - before
            cells.rm(a, n, -1)
        else:
            only = sum(1 for _, owners in cells.cells if owners == {a})
            assert ledger.private(a) == only == ledger.fork().remove(a)
        assert ledger.used == len(cells.cells)
        for seq in range(5):
            assert ledger.length(seq) == len(cells.positions(seq))


def test_the_ledger_refuses_what_does_not_fit() -> None:
    ledger = Ledger(4)
    ledger.append(0, 3)
    with pytest.raises(ValueError, match="2 cells are needed and 1 are free"):
        ledger.append(1, 2)
    with pytest.raises(ValueError, match="4 of 3 tokens"):
        ledger.copy(0, 1, 4)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 2), max_size=8)), max_size=20),
    st.lists(st.integers(0, 2), max_size=10),
)
def test_the_tree_finds_what_a_search_through_all_finds(texts: list[tuple[int, list[int]]], ids: list[int]) -> None:
    tree, plain = PrefixTree(), {}
    for seq, text in texts:
        tree.insert(seq, np.array(text, np.int32))
        plain[seq] = np.array(text, np.int32)
        if not text:
            del plain[seq]
    wanted = np.array(ids, np.int32)
    expected = {seq: common_length(wanted, text) for seq, text in plain.items()}
    found = {seq: length for length, seq in tree.matches(wanted)}
    assert found == {seq: length for seq, length in expected.items() if length}
    assert tree.best(wanted, lambda seq: 100)[0] == max(expected.values(), default=0)
    for seq in list(plain):
        tree.remove(seq)
    assert list(tree.matches(wanted)) == [] and not tree._root.children

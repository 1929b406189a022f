"""The scheduler without a model: random arrivals, lengths, cancels and tiny caches; nothing is lost, nobody starves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm.engine.cache import SequenceCache
from pyllm.engine.host import HostCache
from pyllm.engine.ledger import Ledger
from pyllm.engine.prefix import PrefixTree, common_length
from pyllm.engine.scheduler import Limits, Plan, Task, plan
from pyllm.engine.turns import Turns


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

    def pos_min(self, seq_id: int) -> int:
        return min(self.positions(seq_id), default=-1)

    def add(self, seq: int, n: int) -> None:
        start = 1 + max((pos for pos, owners in self.cells if seq in owners), default=-1)
        self.cells += [(start + i, {seq}) for i in range(n)]
        assert len(self.cells) <= self.n_cells, "over-committed"

    def positions(self, seq: int) -> list[int]:
        return sorted(pos for pos, owners in self.cells if seq in owners)


class OwnCells(Cells):
    """A KV cache in which each sequence has cells of its own."""

    def __init__(self, n_cells: int, n_each: int) -> None:
        super().__init__(n_cells)
        self.n_each = n_each

    def cp(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        assert p0 <= 0 and not self.positions(dst), "a part cannot be copied onto other tokens"
        n = len(self.positions(src))
        self.add(dst, n if p1 < 0 else min(n, p1))

    def add(self, seq: int, n: int) -> None:
        super().add(seq, n)
        assert len(self.positions(seq)) <= self.n_each, "over-committed"


class States:
    """What a sequence of cells is as bytes: one for each, which says its position."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    def size(self, seq_id: int) -> int:
        return len(self.cells.positions(seq_id))

    def save(self, seq_id: int) -> bytes:
        return bytes(self.cells.positions(seq_id))

    def load(self, data: bytes, seq_id: int) -> None:
        assert self.cells.positions(seq_id) == []
        self.cells.add(seq_id, len(data))
        assert bytes(self.cells.positions(seq_id)) == data


class Machine:
    """Carries plans out as the engine does, with token counts instead of a model."""

    def __init__(self, n_cells: int, limits: Limits, n_each: int | None = None) -> None:
        self.cells = Cells(n_cells) if n_each is None else OwnCells(n_cells, n_each)
        self.host = HostCache(States(self.cells), 0, whole=limits.whole, least=limits.n_worth)
        self.cache = SequenceCache(self.cells, n_cells, self.host, n_each=n_each)
        self.limits = limits
        self.turns = Turns()
        self.tasks: dict[int, Task] = {}
        self.wanted: dict[int, int] = {}
        self.ended: dict[int, str] = {}
        self.n_steps = self.n_tokens = self.n_preempted = self.n_reused = self.n_lost = 0

    def submit(self, ids: list[int], wanted: int, priority: int = 0, adapters: str = "") -> int:
        number = len(self.tasks) + len(self.ended)
        self.tasks[number] = Task(number, np.array(ids, np.int32), number, priority, adapters=adapters)
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
        decision = plan(
            waiting, running, list(self.cache.idle), self.cache.ledger, self.cache.tree, self.limits,
            self.turns.order(list(self.tasks.values())), self.host.tree
        )  # fmt: skip
        self.cache.expect(decision.admit)
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
            if admission.source is not None:
                assert self.cache.tree.ids(admission.source)[0] == task.adapters
                assert not self.limits.whole or self.cache.ledger.length(admission.source) == admission.n_reused
            if admission.host is not None and self.limits.whole:
                assert len(self.host.tree.ids(admission.host)[1]) == admission.n_reused
            hits = self.host.n_hits
            self.cache.start(task, admission)
            if admission.host is not None and self.host.n_hits == hits:
                assert task.n_computed == 0
                self.n_lost += 1
                continue
            assert self.cells.positions(admission.seq) == list(range(admission.n_reused))
            self.n_reused += admission.n_reused
        assert decision.n_tokens <= self.limits.n_batch
        assert all(self.tasks[number].adapters == decision.adapters for number, _ in decision.rows)
        if decision.rows:
            self.turns.served(decision.adapters)
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
@given(st.data(), st.booleans())
def test_every_request_finishes(data: st.DataObject, unified: bool) -> None:
    longest = data.draw(st.integers(12, 80), "cells")
    n_running = data.draw(st.integers(1, 5), "running")
    n_sequences = n_running + (data.draw(st.integers(0, 4), "spare sequences") if unified else 0)
    machine = Machine(
        longest if unified else longest * n_sequences,
        limits(
            n_running,
            data.draw(st.integers(n_running, 24), "batch"),
            n_sequences,
            data.draw(st.integers(1, 12), "prompt tokens"),
            data.draw(st.integers(1, 8), "worth"),
        ),
        None if unified else longest,
    )
    machine.host.limit = data.draw(st.sampled_from([0, 20, 200]), "bytes of the host")
    machine.limits = replace(machine.limits, whole=data.draw(st.booleans(), "whole"))
    machine.host.whole = machine.limits.whole
    submitted = 0
    for _ in range(data.draw(st.integers(1, 25), "events")):
        what = data.draw(st.sampled_from(["submit", "submit", "cancel", "step"]))
        if what == "submit":
            ids = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=longest - 2))
            priority = data.draw(st.sampled_from([0, 0, 0, 1, -1]))
            # What a text may have is known where each has its own: the engine says so when it is handed in.
            wanted = data.draw(st.integers(1, 20 if unified else min(20, longest - len(ids))))
            machine.submit(ids, wanted, priority, data.draw(st.sampled_from(["", "", "a", "b"])))
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


def test_a_long_prompt_stops_no_other_request() -> None:
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


def test_a_prefix_is_computed_once_for_requests_that_come_together() -> None:
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


def test_requests_are_served_in_order_when_the_cache_is_full() -> None:
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


def test_what_this_step_computes_can_be_taken_over_in_the_next_one() -> None:
    machine = Machine(100, limits(n_running=3, n_batch=16, n_prompt=8, n_worth=4))
    machine.submit([7], 30)
    machine.step()
    first = machine.submit(list(range(10, 19)), 3)
    machine.step()
    assert machine.tasks[first].n_left == 1
    machine.submit([*range(10, 19), 5], 1)
    machine.finish()
    assert machine.n_reused in (8, 9)


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


# ---- sets of adapters


def test_sets_take_turns_and_none_waits_longer_than_all_others_together() -> None:
    machine = Machine(1000, limits(n_running=8, n_batch=32, n_sequences=16))
    for i in range(7):
        machine.submit([i] * 9, 60, adapters="abc"[i % 3])
    waited = dict.fromkeys("abc", 0)
    for i in range(400):
        if i == 40:
            machine.submit([8] * 100, 60, adapters="d")
            waited["d"] = 0
        running = {task.adapters for task in machine.tasks.values() if task.seq is not None}
        served = machine.step().adapters
        for one in waited:
            waited[one] = 0 if one == served or one not in running else waited[one] + 1
            assert waited[one] <= (len(waited) - 1) * machine.turns.n_steps
        if not machine.tasks:
            break
    assert len(machine.ended) == 8


def test_a_set_that_is_alone_goes_on_without_turns() -> None:
    machine = Machine(1000, limits(n_running=8, n_batch=32))
    for i in range(4):
        machine.submit([i] * 5, 20, adapters="a")
    machine.finish()
    assert machine.n_steps <= 25


def test_new_sets_cannot_keep_an_old_one_waiting() -> None:
    machine = Machine(10_000, limits(n_running=8, n_batch=32, n_sequences=16))
    old = machine.submit([1] * 9, 50, adapters="old")
    machine.step()
    for i in range(400):
        if i % 3 == 0:
            machine.submit([2] * 9, 30, adapters=f"new {i}")
        machine.step()
        if old in machine.ended:
            break
    assert machine.ended[old] == "done"


def test_equal_prompts_of_two_sets_are_computed_twice() -> None:
    machine = Machine(1000, limits(n_running=4, n_batch=64, n_prompt=64))
    for adapters in ("a", "b", "a", "b"):
        machine.submit([*range(40), 99], 2, adapters=adapters)
    machine.finish()
    assert machine.n_reused == 2 * 40
    assert machine.n_tokens == 2 * 41 + 2 * 1 + 4 * 2


def test_a_memory_that_cannot_be_cut_is_taken_over_as_a_whole() -> None:
    machine = Machine(1000, replace(limits(), whole=True))
    machine.submit(list(range(30)), 2)
    machine.finish()
    machine.submit([*range(20), 99, 98], 1)  # less than what was computed
    machine.finish()
    assert machine.n_reused == 0
    machine.submit([*range(30), 1000, 1000, 98, 97], 1)
    machine.finish()
    assert machine.n_reused == 32


# ---- the memory of the host


def with_host(n_cells: int, limit: int, whole: bool = False) -> Machine:
    machine = Machine(n_cells, replace(limits(n_batch=64, n_prompt=64), whole=whole))
    machine.host.limit = limit
    return machine


@pytest.mark.parametrize("whole", [False, True])
def test_what_had_to_leave_comes_back(whole: bool) -> None:
    machine = with_host(50, 100, whole)
    texts = [[10 * i + 1] * 40 for i in range(3)]
    for text in texts:
        machine.submit(text, 2)
        machine.finish()
    assert len(machine.host) == 2 and machine.host.n_hits == 0
    last = list(machine.cache.idle)[-1]
    assert machine.cache.tree.ids(last)[1][0] == 21
    more = [*texts[0], 1000, 1000, 7, 7]  # with its answer
    machine.submit(more, 1)
    machine.finish()
    assert (machine.host.n_hits, machine.n_reused, machine.n_lost) == (1, 42, 0)
    # Only a text that can be cut has a beginning to give.
    machine.submit(texts[2][:30], 1)
    machine.finish()
    assert (machine.n_reused, machine.n_lost) == (42 if whole else 42 + 29, 0)


def test_the_memory_of_the_host_is_bounded_and_the_unused_goes_first() -> None:
    machine = with_host(50, 100)
    for i in [0, 1, 2, 0, 3, 4]:
        machine.submit([i] * 40, 1)
        machine.finish()
        assert machine.host.n_bytes <= 100 and machine.host.problems() == []
    assert len(machine.host) == 2
    assert [i for i in range(5) if any(machine.host.tree.matches(np.array([i], np.int32), ""))] == [0, 3]


def test_a_longer_text_takes_the_place_of_its_beginning_and_nothing_is_kept_twice() -> None:
    machine = with_host(60, 1000)
    machine.submit([5] * 20, 1)
    machine.finish()
    machine.cache.clear()
    longer = [*[5] * 20, 1000, *[6] * 19]
    machine.submit(longer, 1)
    machine.finish()
    machine.cache.clear()
    assert (len(machine.host), machine.host.n_bytes) == (1, 41)
    number = machine.submit(longer[:30], 9)
    machine.step()
    machine.cancel(number)
    assert list(machine.cache.idle) != []
    machine.cache.clear()
    assert (len(machine.host), machine.host.n_bytes) == (1, 41)


def test_texts_of_other_adapters_are_not_brought_back() -> None:
    machine = with_host(60, 1000)
    machine.submit([5] * 40, 1, adapters="a")
    machine.finish()
    machine.cache.clear()
    machine.submit([5] * 41, 1, adapters="b")
    machine.finish()
    assert machine.host.n_hits == machine.n_reused == 0
    machine.submit([5] * 41, 1, adapters="a")
    machine.finish()
    assert machine.n_reused == 40


def test_a_preempted_sequence_is_restored_from_the_host() -> None:
    machine = with_host(60, 1000)
    machine.submit([1] * 20, 30)
    machine.submit([2] * 20, 30)
    machine.finish()
    assert machine.n_preempted > 0 and machine.host.n_hits > 0
    assert set(machine.ended.values()) == {"done"}


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
    # No method shows a node that is left without a sequence.
    assert list(tree.matches(wanted)) == [] and not tree._roots

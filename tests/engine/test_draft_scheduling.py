"""Drafted tokens in the plan of a step, without a model: they take what is left, and cost nobody anything."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from engine.test_scheduler import Machine, limits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm.engine.scheduler import Plan, plan


class Drafting(Machine):
    """A machine where requests have drafts, of which some tokens are accepted."""

    def __init__(self, n_cells: int, of_step: Any, draw: Any) -> None:
        super().__init__(n_cells, of_step)
        self.draw = draw
        self.n_drafted = 0

    def step(self) -> Plan:
        running = [task for task in self.tasks.values() if task.seq is not None]
        waiting = [task for task in self.tasks.values() if task.seq is None]
        for task in running:
            task.n_drafted = self.draw(st.integers(0, 12))
        cache = self.cache
        arguments = waiting, running, list(cache.idle), cache.ledger, cache.tree
        with_drafts = plan(*arguments, self.limits)
        without = plan(*arguments, dataclasses.replace(self.limits, n_drafting=0))
        assert without.drafts == []
        assert dataclasses.replace(with_drafts, drafts=[]) == without
        assert with_drafts.n_tokens <= self.limits.n_batch

        granted = {self.tasks[number]: n for number, n in with_drafts.drafts}
        decision = super().step()
        assert decision == with_drafts
        # The text has its newest token now; behind it there is the draft, and some of that is kept.
        for task, n in granted.items():
            self.n_drafted += n
            if task.id not in self.tasks:
                continue  # it has ended with that token
            assert 1 <= n <= task.n_drafted and task.seq is not None
            assert len(running) <= self.limits.n_drafting
            n_tokens = self.draw(st.integers(0, n))  # a draft may be shorter than what was granted
            before = task.n_computed
            self.cells.add(task.seq, n_tokens)
            cache.drafted(task, n_tokens)
            accepted = min(self.draw(st.integers(0, n_tokens)), self.wanted[task.id] - len(task.ids))
            task.ids = np.concatenate([task.ids, np.full(accepted, 1000 + task.id, np.int32)])
            cache.settle(task, accepted)
            assert task.n_computed == before + accepted and task.n_left == 1
            assert self.cells.positions(task.seq) == list(range(task.n_computed))
        assert cache.ledger.used == len(self.cells.cells)
        return decision


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_drafts_take_only_what_is_left(data: st.DataObject) -> None:
    n_cells = data.draw(st.integers(12, 80), "cells")
    n_running = data.draw(st.integers(1, 5), "running")
    of_step = limits(
        n_running,
        data.draw(st.integers(n_running, 24), "batch"),
        n_running + data.draw(st.integers(0, 4), "spare sequences"),
        data.draw(st.integers(1, 12), "prompt tokens"),
        data.draw(st.integers(1, 8), "worth"),
    )
    machine = Drafting(
        n_cells, dataclasses.replace(of_step, n_drafting=data.draw(st.integers(0, 3), "drafting")), data.draw
    )
    submitted = 0
    for _ in range(data.draw(st.integers(1, 20), "events")):
        what = data.draw(st.sampled_from(["submit", "submit", "cancel", "step", "step"]))
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


def wanting(n_cells: int, texts: int, n_drafting: int, n_batch: int = 16) -> tuple[Machine, Plan]:
    """Some texts of four tokens that want drafts of six, and the plan of their next step."""
    machine = Machine(n_cells, dataclasses.replace(limits(n_batch=n_batch), n_drafting=n_drafting))
    for i in range(texts):
        machine.submit([i] * 3, 20)
    for _ in range(3):
        machine.step()
    for task in machine.tasks.values():
        task.n_drafted = 6
    cache = machine.cache
    return machine, plan([], list(machine.tasks.values()), list(cache.idle), cache.ledger, cache.tree, machine.limits)


def test_one_text_gets_what_it_wants() -> None:
    assert wanting(100, 1, 1)[1].drafts == [(0, 6)]


def test_a_second_text_ends_that() -> None:
    assert wanting(100, 2, 1)[1].drafts == []
    assert wanting(100, 2, 2)[1].drafts == [(0, 6), (1, 6)]


def test_not_beside_a_prompt() -> None:
    machine, _ = wanting(100, 1, 2)
    machine.submit([9] * 30, 1)
    for task in machine.tasks.values():
        task.n_drafted = 6
    cache, (first, second) = machine.cache, machine.tasks.values()
    decision = plan([second], [first], list(cache.idle), cache.ledger, cache.tree, machine.limits)
    assert len(decision.rows) == 2 and decision.drafts == []


def test_the_step_has_its_bounds() -> None:
    assert wanting(100, 2, 2, n_batch=10)[1].drafts == [(0, 6), (1, 2)]


def test_a_full_cache_has_no_room_for_guesses() -> None:
    machine, decision = wanting(10, 1, 1)
    free = machine.cache.ledger.free - 1
    assert 0 < free < 6 and decision.drafts == [(0, free)]


def test_idle_sequences_are_not_evicted_for_guesses() -> None:
    machine = Machine(30, dataclasses.replace(limits(), n_drafting=1))
    machine.submit([5] * 20, 1)
    machine.finish()
    number = machine.submit([1, 2], 20)
    machine.step()
    machine.step()
    task = machine.tasks[number]
    task.n_drafted = 12
    cache = machine.cache
    decision = plan([], [task], list(cache.idle), cache.ledger, cache.tree, machine.limits)
    assert decision.evict == [] and decision.drafts == [(number, cache.ledger.free - 1)]

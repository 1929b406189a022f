"""Which models make room for another: decided without any model."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.server.evictions import LoadedModel, MemoryBudget, choose_evictions

RESIDENTS = st.lists(st.tuples(st.integers(0, 100), st.booleans(), st.integers(0, 20)), max_size=6).map(
    lambda rows: [LoadedModel(f"m{i}", *row) for i, row in enumerate(rows)]
)
ROOMS = st.builds(MemoryBudget, st.none() | st.integers(0, 200), st.none() | st.integers(1, 5))


def sizes_without(residents: list[LoadedModel], gone: tuple[str, ...]) -> list[int]:
    return [one.n_bytes for one in residents if one.name not in gone]


@given(st.integers(0, 100), RESIDENTS, ROOMS)
def test_what_goes_is_idle_and_enough_and_not_too_much(
    n_bytes: int, residents: list[LoadedModel], room: MemoryBudget
) -> None:
    gone = choose_evictions(n_bytes, residents, room)
    idle = {one.name for one in residents if one.idle}
    if gone is None:
        # Nothing would have helped.
        assert not room.holds([n_bytes, *sizes_without(residents, tuple(idle))])
        return
    assert set(gone) <= idle
    assert len(set(gone)) == len(gone)
    assert room.holds([n_bytes, *sizes_without(residents, gone)])
    for name in gone:
        kept = tuple(other for other in gone if other != name)
        assert not room.holds([n_bytes, *sizes_without(residents, kept)])


@given(st.integers(0, 100), RESIDENTS, ROOMS)
def test_what_is_used_later_goes_later(n_bytes: int, residents: list[LoadedModel], room: MemoryBudget) -> None:
    gone = choose_evictions(n_bytes, residents, room) or ()
    for one, other in itertools.permutations(residents, 2):
        if one.idle and other.idle and one.n_bytes == other.n_bytes and one.used < other.used:
            # Of two that are equally large the one that was used longer ago goes first.
            assert not (other.name in gone and one.name not in gone)


@given(st.integers(0, 100), RESIDENTS, ROOMS, st.randoms(use_true_random=False))
def test_the_order_of_a_list_does_not_matter(
    n_bytes: int, residents: list[LoadedModel], room: MemoryBudget, random
) -> None:
    residents = [LoadedModel(one.name, one.n_bytes, one.idle, i) for i, one in enumerate(residents)]
    shuffled = random.sample(residents, len(residents))
    assert choose_evictions(n_bytes, residents, room) == choose_evictions(n_bytes, shuffled, room)


@pytest.mark.parametrize(
    ("n_bytes", "room", "gone"),
    [
        (10, MemoryBudget(100, None), ()),
        (10, MemoryBudget(69, None), ("old",)),
        (40, MemoryBudget(69, None), ("old", "middle")),
        # A large one had to go: the small one before it can stay.
        (45, MemoryBudget(80, None), ("middle",)),
        (10, MemoryBudget(None, 3), ("old",)),
        (10, MemoryBudget(None, 1), None),
        (81, MemoryBudget(100, None), None),
        (80, MemoryBudget(100, None), ("old", "middle")),
    ],
)
def test_by_example(n_bytes: int, room: MemoryBudget, gone: tuple[str, ...] | None) -> None:
    residents = [
        LoadedModel("old", 10, True, 1),
        LoadedModel("busy", 20, False, 2),
        LoadedModel("middle", 30, True, 3),
    ]
    assert choose_evictions(n_bytes, residents, room) == gone

"""Which models are evicted for another one: a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Memory that all models together may take.

    Attributes:
        n_bytes: Bytes of memory. None: any number.
        n_models: How many may be loaded at once. None: any number.
    """

    n_bytes: int | None = None
    n_models: int | None = None

    def holds(self, sizes: Iterable[int]) -> bool:
        """Whether models of these sizes, in bytes, fit together."""
        known = list(sizes)
        return (self.n_bytes is None or sum(known) <= self.n_bytes) and (
            self.n_models is None or len(known) <= self.n_models
        )


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that takes memory now.

    Attributes:
        name: Its name.
        n_bytes: Its memory.
        idle: Whether it may be unloaded: no request holds it, and it is not on its way in or out.
        used: When it was asked last; larger is later.
    """

    name: str
    n_bytes: int
    idle: bool
    used: int


def choose_evictions(n_bytes: int, residents: Sequence[LoadedModel], budget: MemoryBudget) -> tuple[str, ...] | None:
    """Choose what to unload so that another model fits.

    Idle ones go, the least recently used first, and none for nothing: with any of them left it would not fit.

    Args:
        n_bytes: Memory of the other model.
        residents: The models that take memory now.
        budget: Memory of all together.

    Returns:
        tuple[str, ...] | None: Names, none of them where it fits as it is. None: it does not fit beside those that
        cannot be unloaded.
    """
    kept = [n_bytes, *(resident.n_bytes for resident in residents)]
    gone: list[LoadedModel] = []
    for resident in sorted((one for one in residents if one.idle), key=lambda one: one.used):
        if budget.holds(kept):
            break
        kept.remove(resident.n_bytes)
        gone.append(resident)
    if not budget.holds(kept):
        return None
    # A large one went after small ones: some of those can stay, those that were used last before others.
    for resident in reversed(gone[:]):
        if budget.holds([*kept, resident.n_bytes]):
            kept.append(resident.n_bytes)
            gone.remove(resident)
    return tuple(resident.name for resident in gone)

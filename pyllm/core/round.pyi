from collections.abc import Iterable, Sequence
from typing import Self

from typing_extensions import disjoint_base

from pyllm.core.context import Context
from pyllm.core.rows import Row

@disjoint_base
class Flag:
    def set(self) -> None: ...
    def clear(self) -> None: ...
    def __bool__(self) -> bool: ...

@disjoint_base
class Round:
    def __new__(
        cls,
        context: Context,
        rows: list[Row],
        seq_ids: Sequence[int],
        positions: Sequence[int],
        limits: Sequence[int],
        *,
        stop: Flag | None = None,
        bells: Iterable[int] = (),
    ) -> Self: ...
    @property
    def context(self) -> Context: ...
    @property
    def rows(self) -> list[Row]: ...
    @property
    def stop(self) -> Flag: ...
    @property
    def n_steps(self) -> int: ...
    def run(self, n_steps: int, ms: float = 100.0) -> int: ...

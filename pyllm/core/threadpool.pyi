from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class ThreadPool:
    def __new__(cls, n_threads: int, *, poll: int = 50, priority: int = 0) -> Self: ...
    @property
    def n_threads(self) -> int: ...

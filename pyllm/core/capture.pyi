from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import disjoint_base

from pyllm.core.batch import Batch
from pyllm.core.context import Context

LAYER_INPUT_ARCHITECTURES: frozenset[str]

@dataclass(frozen=True, slots=True)
class Node:
    name: str
    occurrence: int
    op: str
    type: str
    shape: tuple[int, int, int, int]
    param: float

@disjoint_base
class Capture:
    def __new__(cls, context: Context) -> Self: ...
    @property
    def context(self) -> Context: ...
    def nodes(self, batch: Batch, *, encode: bool = False) -> list[Node]: ...
    def decode(
        self,
        batch: Batch,
        read: Iterable[tuple[str, int]] = (),
        hooks: Iterable[tuple[tuple[str, int], Callable[[NDArray[np.float32]], ArrayLike | None]]] = (),
        *,
        encode: bool = False,
    ) -> tuple[dict[tuple[str, int], NDArray[np.float32]], NDArray[np.int32] | None]: ...
    def layer_inputs(self, batch: Batch, layers: Iterable[int]) -> dict[int, NDArray[np.float32]]: ...

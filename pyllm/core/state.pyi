import enum
import os
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, disjoint_base

from pyllm.core.context import Context

class StateFlags(enum.IntFlag):
    NONE = 0
    PARTIAL_ONLY = 1
    ON_DEVICE = 2

@disjoint_base
class State:
    def __new__(cls, context: Context) -> Self: ...
    def size(self, seq_id: int | None = None, *, flags: int = 0) -> int: ...
    def save(self, seq_id: int | None = None, *, flags: int = 0) -> bytes: ...
    def save_into(self, buffer: Buffer, seq_id: int | None = None, *, flags: int = 0) -> int: ...
    def load(self, data: Buffer, seq_id: int | None = None, *, flags: int = 0, raw: bool = False) -> None: ...
    def save_file(
        self,
        path: str | os.PathLike[str],
        tokens: Sequence[int] | NDArray[np.integer] = (),
        seq_id: int | None = None,
    ) -> int: ...
    def load_file(self, path: str | os.PathLike[str], seq_id: int | None = None) -> list[int]: ...

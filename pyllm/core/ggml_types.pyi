from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

@dataclass(frozen=True, slots=True)
class TypeTraits:
    name: str
    number: int
    block_size: int
    type_size: int
    is_quantized: bool
    dtype: np.dtype[Any] | None
    to_float: bool
    from_float: bool
    requires_imatrix: bool
    @property
    def bits_per_weight(self) -> float: ...

def type_traits(type: str) -> TypeTraits: ...
def all_types() -> list[TypeTraits]: ...
def row_size(type: str, n_per_row: int) -> int: ...
def quantize(
    array: ArrayLike, type: str, imatrix: ArrayLike | None = None, *, n_threads: int = 1
) -> NDArray[np.uint8]: ...
def dequantize(
    data: NDArray[np.uint8] | bytes | bytearray | memoryview,
    type: str,
    n_per_row: int | None = None,
    *,
    n_threads: int = 1,
) -> NDArray[np.float32]: ...

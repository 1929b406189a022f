import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import disjoint_base

DEFAULT_ALIGNMENT: int
TENSOR_TYPES: tuple[str, ...]

@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int

@disjoint_base
class GGUFReader:
    def __new__(cls, path: str | bytes | os.PathLike[str]) -> Self: ...
    @property
    def path(self) -> str: ...
    @property
    def metadata(self) -> dict[str, Any]: ...
    @property
    def tensors(self) -> tuple[TensorInfo, ...]: ...
    @property
    def version(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def data_offset(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def tensor(self, name: str, *, dequantize: bool = False) -> NDArray[Any]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

@disjoint_base
class GGUFWriter:
    def __new__(cls, *, alignment: int = 32) -> Self: ...
    def add(
        self,
        key: str | bytes,
        value: bool | int | float | str | bytes | np.generic | Sequence[Any] | NDArray[Any],
        type: str | None = None,
    ) -> None: ...
    def add_tensor(
        self, name: str | bytes, array: ArrayLike, type: str | None = None, imatrix: ArrayLike | None = None
    ) -> None: ...
    def write(self, path: str | bytes | os.PathLike[str]) -> None: ...

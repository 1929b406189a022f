import os
from collections.abc import Iterable, Mapping
from typing import IO, Any, Self

from typing_extensions import disjoint_base

@disjoint_base
class ModelSource:
    @property
    def name(self) -> str: ...

@disjoint_base
class AddressSource(ModelSource):
    def __init__(self, address: int) -> None: ...

@disjoint_base
class SplitSource(ModelSource):
    def __new__(cls, paths: Iterable[str | os.PathLike[str]]) -> Self: ...

@disjoint_base
class FileSource(ModelSource):
    def __new__(cls, file: IO[bytes]) -> Self: ...

@disjoint_base
class ArraySource(ModelSource):
    def __new__(cls, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Self: ...
    def fill(self, address: int) -> None: ...

def split_path(prefix: str | os.PathLike[str], split_no: int, split_count: int) -> str: ...
def split_prefix(path: str | os.PathLike[str], split_no: int, split_count: int) -> str | None: ...

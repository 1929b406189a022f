from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from pyllm.core.context import Context
from pyllm.core.vocab import Vocab

NGRAM_TYPES: tuple[str, ...]
DRAFT_TYPES: tuple[str, ...]

def check_vocabulary(target: Vocab, draft: Vocab) -> None: ...

@disjoint_base
class Checkpoint:
    def __new__(cls, context: Context) -> Self: ...
    @property
    def n(self) -> int: ...

@disjoint_base
class Drafter:
    def __new__(
        cls,
        target: Context,
        context: Context | None = None,
        *,
        types: str | Iterable[str] | None = None,
        n_max: int | None = None,
        n_min: int | None = None,
        p_min: float = 0.0,
        ngram_size: int | None = None,
        min_hits: int | None = None,
    ) -> Self: ...
    def begin(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> None: ...
    def draft(self, last: int, n_max: int | None = None) -> NDArray[np.int32]: ...
    def accept(self, last: int, accepted: Sequence[int] | NDArray[np.integer[Any]] = ()) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> Literal[None]: ...
    @property
    def closed(self) -> bool: ...
    @property
    def target(self) -> Context: ...
    @property
    def context(self) -> Context | None: ...
    @property
    def types(self) -> tuple[str, ...]: ...
    @property
    def n_max(self) -> int: ...

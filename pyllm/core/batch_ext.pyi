from collections.abc import Sequence
from typing import Literal, Self

from numpy.typing import ArrayLike
from typing_extensions import disjoint_base

from pyllm.core.context import Context

@disjoint_base
class BatchExt:
    def __new__(cls, context: Context) -> Self: ...
    @property
    def context(self) -> Context: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def n_outputs(self) -> int: ...
    def add(
        self,
        tokens: ArrayLike | None = None,
        *,
        pos: ArrayLike | None = None,
        seq_ids: ArrayLike | None = None,
        outputs: Literal["last", "all", "none"] | Sequence[bool] | ArrayLike = "last",
        embeddings: ArrayLike | None = None,
    ) -> Self: ...
    def clear(self) -> Self: ...
    def __len__(self) -> int: ...

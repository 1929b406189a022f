from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.sampler import Sampler
from pyllm.core.speculative import Drafter
from pyllm.core.speculative_pace import Pace

@disjoint_base
class SpeculativeGeneration(Generation):
    def __new__(
        cls,
        context: Context,
        sampler: Sampler,
        *,
        drafter: Drafter,
        past: Sequence[int] | NDArray[np.integer[Any]] = (),
        pace: Pace | None = None,
        limit: int | None = None,
        seq_id: int = 0,
        stop: str | bytes | Iterable[str | bytes] | None = (),
        special: bool | Iterable[int] = False,
    ) -> Self: ...
    @property
    def drafter(self) -> Drafter: ...
    @property
    def pace(self) -> Pace: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def n_drafts(self) -> int: ...
    @property
    def n_drafted(self) -> int: ...
    @property
    def n_accepted(self) -> int: ...
    @property
    def n_decodes(self) -> int: ...
    @property
    def n_paused(self) -> int: ...

from collections.abc import Iterable, Sequence
from typing import Literal

from pyllm.core.sampler import Sampler
from pyllm.core.samplers import Grammar
from pyllm.core.vocab import Vocab

class Reasoning(Sampler):
    def __init__(
        self,
        vocab: Vocab,
        start: Iterable[int],
        ends: Sequence[Sequence[int]],
        *,
        budget: int | None = None,
        forced: Iterable[int] | None = None,
        beginning: Iterable[int] = (),
        grammar: Grammar | None = None,
        waits: bool = True,
        replays: bool = False,
    ) -> None: ...
    @property
    def state(self) -> Literal["idle", "counting", "forcing", "waiting", "done"]: ...
    def force(self) -> bool: ...

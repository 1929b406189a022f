from collections.abc import Iterable
from typing import Self

from typing_extensions import disjoint_base

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.sampler import Sampler
from pyllm.core.text_stream import TextStream

@disjoint_base
class Row:
    def __new__(
        cls, sampler: Sampler, *, stop: Iterable[str | bytes] = (), special: bool | Iterable[int] = False
    ) -> Self: ...
    @property
    def sampler(self) -> Sampler: ...
    @property
    def stream(self) -> TextStream: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def error(self) -> Exception | None: ...
    @property
    def n_generated(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...

def decode_rows(context: Context, batch: Batch, rows: list[Row], indices: list[int]) -> list[int | None]: ...
def sample_rows(context: Context, rows: list[Row], indices: list[int]) -> list[int | None]: ...

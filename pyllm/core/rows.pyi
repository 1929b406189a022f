from collections.abc import Iterable

from pyllm.core.context import Context
from pyllm.core.sampler import Sampler
from pyllm.core.text_stream import TextStream

class Row:
    sampler: Sampler
    stream: TextStream
    finish_reason: str | None
    error: Exception | None
    def __init__(self, sampler: Sampler, *, stop: Iterable[str] = (), special: bool | Iterable[int] = False) -> None: ...
    @property
    def n_generated(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...

def sample_rows(context: Context, rows: list[Row], indices: list[int]) -> list[int | None]: ...

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

@dataclass(frozen=True)
class FitResult:
    n_gpu_layers: int
    n_ctx: int
    tensor_split: tuple[float, ...] | None
    tensor_buft_overrides: dict[str, str]

def fit_params(
    path: str | os.PathLike[str],
    *,
    margins: Iterable[int],
    n_ctx_min: int = 4096,
    model: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
) -> FitResult | None: ...

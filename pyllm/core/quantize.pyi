import os
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

FTYPES: tuple[str, ...]

def quantize(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    ftype: str = "Q8_0",
    *,
    n_threads: int = 0,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    allow_requantize: bool = False,
    quantize_output_tensor: bool = True,
    only_copy: bool = False,
    pure: bool = False,
    keep_split: bool = False,
    dry_run: bool = False,
    imatrix: Mapping[str, NDArray[np.floating]] | None = None,
    kv_overrides: Mapping[str, bool | int | float | str] | None = None,
    tensor_types: Mapping[str, str] | None = None,
    prune_layers: Iterable[int] = (),
    max_buf_size: int | None = None,
) -> list[str]: ...

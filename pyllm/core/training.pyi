from collections.abc import Callable
from typing import Literal, Self, TypedDict, type_check_only

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import disjoint_base

from pyllm.core.context import Context

@type_check_only
class _Epoch(TypedDict):
    train_loss: float
    train_accuracy: float
    train_windows: int
    val_loss: float
    val_accuracy: float
    val_windows: int

def windows(tokens: ArrayLike, n_ctx: int, stride: int | None = None) -> NDArray[np.int32]: ...

@disjoint_base
class Trainer:
    def __new__(
        cls,
        context: Context,
        *,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        param_filter: Callable[[str, tuple[int, ...]], bool] | None = None,
    ) -> Self: ...
    @property
    def context(self) -> Context: ...
    @property
    def parameters(self) -> list[str]: ...
    @property
    def optimizer(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @lr.setter
    def lr(self, value: float) -> None: ...
    def epoch(
        self,
        tokens: ArrayLike,
        *,
        val_split: float = 0.0,
        stride: int | None = None,
        shuffle: int | None = None,
        progress: Callable[[bool, int, int, float], object] | None = None,
    ) -> _Epoch: ...

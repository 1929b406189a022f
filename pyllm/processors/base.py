"""What a logits processor is, and how several of them are run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import InvalidArgumentError, SamplerError

LogitsProcessor = Callable[[NDArray[np.int32], NDArray[np.float32]], "NDArray[np.float32] | None"]


def as_processors(value: LogitsProcessor | Iterable[LogitsProcessor] | None) -> list[LogitsProcessor]:
    """One processor, several or none, as a list.

    Raises:
        InvalidArgumentError: Something in it cannot be called, or is a processor of transformers.
    """
    if value is not None and not callable(value) and not isinstance(value, Iterable):
        raise InvalidArgumentError(f"logits_processor must be a function or several, not {value!r}")
    processors = [] if value is None else [value] if callable(value) else list(value)
    for processor in processors:
        if not callable(processor):
            raise InvalidArgumentError(f"a logits processor must be callable, not {processor!r}")
        if any(cls.__module__.startswith("transformers.") for cls in type(processor).__mro__):
            raise InvalidArgumentError(
                f"{type(processor).__name__} works on batches of tensors: wrap it in pyllm.processors.from_hf()"
            )
    return processors


def process(processors: Sequence[LogitsProcessor], ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
    """Run processors on one row, in their order.

    Args:
        processors: They edit the row, or return another, which is copied into it.
        ids: All tokens so far, int32, shape (n,).
        logits: The row, float32, shape (n_vocab,), edited in place.

    Raises:
        InvalidArgumentError: A processor returned something else than numbers of shape (n_vocab,).
        SamplerError: They leave no token that could be chosen, or numbers that are none.
    """
    for processor in processors:
        result = processor(ids, logits)
        if result is not None and result is not logits:
            write(logits, result, processor)
    # One pass over the row: the maximum is NaN where any logit is.
    if processors and not logits.max() > -np.inf:
        raise SamplerError(
            f"after the logits processors {list(processors)!r} there is a logit that is NaN"
            if np.isnan(logits).any()
            else f"the logits processors {list(processors)!r} forbid every token; to end the text, allow an "
            "end-of-generation token, or use stopping_criteria"
        )


def write(logits: NDArray[np.float32], result: Any, processor: object) -> None:
    """Copy what a processor returned into the row it was given."""
    values = np.asarray(result)
    if values.shape != logits.shape or values.dtype.kind not in "fiu":
        raise InvalidArgumentError(
            f"the logits processor {processor!r} returned {values.dtype} of shape {values.shape}; "
            f"it must be None or numbers of shape {logits.shape}"
        )
    logits[:] = values


def read_only(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """The tokens as processors and stopping criteria see them: a view that cannot be written to."""
    view = ids.view()
    view.flags.writeable = False
    return view


def reset(processors: Iterable[object]) -> None:
    """Tell the processors that a new text begins: those with a method ``reset()``."""
    for processor in processors:
        method = getattr(processor, "reset", None)
        if callable(method):
            method()


def copied(processor: Any) -> Any:
    """A processor for another text at the same time: a copy, if it says that it has a state."""
    if callable(getattr(processor, "clone", None)):
        return processor.clone()
    if not hasattr(processor, "reset"):
        return processor
    try:
        return copy.deepcopy(processor)
    except Exception as cause:
        raise InvalidArgumentError(
            f"the logits processor {processor!r} has a state, and several texts at once need one each: give it a "
            "method clone()"
        ) from cause


__all__ = ["LogitsProcessor", "as_processors", "copied", "process", "read_only", "reset", "write"]

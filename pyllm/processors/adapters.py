"""Processors that were written for other libraries."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import InvalidArgumentError
from pyllm.extras import missing
from pyllm.processors.base import LogitsProcessor, write
from pyllm.processors.base import reset as reset_all


class Adapter:
    """A processor around others; see the functions of this module."""

    def __init__(self, inner: list[Callable[..., Any]]) -> None:
        self.inner = inner

    def reset(self) -> None:
        """Reset the processors that can be."""
        reset_all(self.inner)

    def __call__(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.inner))})"


class HFAdapter(Adapter):
    """Made by :func:`from_hf`."""

    def __init__(self, inner: list[Callable[..., Any]], tensors: str) -> None:
        super().__init__(inner)
        self.torch = import_torch() if tensors == "torch" else None

    def __call__(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        input_ids: Any = ids[None].astype(np.int64)
        row: Any = logits[None]
        if self.torch is not None:
            input_ids, row = self.torch.from_numpy(input_ids), self.torch.from_numpy(row)
        scores = row
        for processor in self.inner:
            scores = processor(input_ids, scores)
            if scores is None:
                raise InvalidArgumentError(f"{processor!r} returned None; transformers' processors return the scores")
            shape = getattr(scores, "shape", None)
            if shape is None or tuple(shape) != tuple(row.shape):
                what = type(scores).__name__ if shape is None else f"scores of shape {tuple(shape)}"
                raise InvalidArgumentError(f"{processor!r} returned {what}, not {tuple(row.shape)}")
        if scores is not row:
            write(logits, as_numpy(scores)[0], self)


class LlamaCppAdapter(Adapter):
    """Made by :func:`from_llama_cpp`."""

    def __call__(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        input_ids = ids.astype(np.intc)
        for processor in self.inner:
            result = processor(input_ids, logits)
            if result is None:
                raise InvalidArgumentError(
                    f"{processor!r} returned None; llama-cpp-python's processors return the scores"
                )
            if result is not logits:
                write(logits, result, processor)


class VLLMAdapter(Adapter):
    """Made by :func:`from_vllm`."""

    def __init__(self, inner: list[Callable[..., Any]], tensors: str) -> None:
        super().__init__(inner)
        self.torch = import_torch() if tensors == "torch" else None
        self.takes_prompt = [count_parameters(processor) == 3 for processor in inner]
        self.n_prompt: int | None = None

    def reset(self) -> None:
        """The ids of the next call are a prompt."""
        self.n_prompt = None
        super().reset()

    def __call__(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        if self.n_prompt is None or len(ids) < self.n_prompt:
            self.n_prompt = len(ids)
        prompt, output = ids[: self.n_prompt].tolist(), ids[self.n_prompt :].tolist()
        row: Any = logits if self.torch is None else self.torch.from_numpy(logits)
        scores = row
        for processor, takes_prompt in zip(self.inner, self.takes_prompt, strict=True):
            scores = processor(prompt, output, scores) if takes_prompt else processor(output, scores)
            if scores is None:
                raise InvalidArgumentError(f"{processor!r} returned None; vLLM's processors return the logits")
        if scores is not row:
            write(logits, as_numpy(scores), self)


def from_hf(processor: Any, *, tensors: Literal["torch", "numpy"] = "torch") -> LogitsProcessor:
    """A processor of Hugging Face transformers: ``f(input_ids, scores) -> scores``, both with a batch dimension.

    Args:
        processor: A LogitsProcessor, a LogitsProcessorList, or a list of processors; None in a list is left out.
        tensors: What it works on: "torch" gives it a LongTensor of shape (1, n) and a FloatTensor of shape
            (1, n_vocab) on llama.cpp's own memory, "numpy" arrays int64 and float32 of these shapes.

    Raises:
        MissingDependencyError: PyTorch is asked for and not installed.
    """
    check_tensors(tensors)
    return HFAdapter(callables(processor, "transformers"), tensors)


def from_llama_cpp(processor: Any) -> LogitsProcessor:
    """A processor of llama-cpp-python: ``f(input_ids, scores) -> scores``, both of one dimension.

    Args:
        processor: A function, a LogitsProcessorList, or a list of functions; None in a list is left out. It gets
            the ids, prompt included, as intc of shape (n,), and the row as contiguous float32 of shape (n_vocab,).
    """
    return LlamaCppAdapter(callables(processor, "llama-cpp-python"))


def from_vllm(processor: Any, *, tensors: Literal["torch", "numpy"] = "torch") -> LogitsProcessor:
    """A per-request processor of vLLM: ``f(output_ids, logits)`` or ``f(prompt_ids, output_ids, logits)``.

    Args:
        processor: A function of two or three parameters, or a list of them. It gets ids as lists of int, and the row
            with one dimension. The prompt is what the ids are at the first call after ``reset()``; a generation of
            :class:`pyllm.Llama` resets it.
        tensors: What the row is: "torch" or "numpy".

    Raises:
        InvalidArgumentError: It takes another number of parameters.
        MissingDependencyError: PyTorch is asked for and not installed.
    """
    check_tensors(tensors)
    return VLLMAdapter(callables(processor, "vLLM"), tensors)


def callables(value: Any, library: str) -> list[Callable[..., Any]]:
    # A LogitsProcessorList is a list that can be called too; its parts are what counts.
    found = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    found = [item for item in found if item is not None]
    for item in found:
        if not callable(item):
            raise InvalidArgumentError(f"a logits processor of {library} must be callable, not {item!r}")
    return found


def count_parameters(processor: Callable[..., Any]) -> int:
    parameters = inspect.signature(processor).parameters.values()
    n = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters)
    if n not in (2, 3):
        raise InvalidArgumentError(
            f"a processor of vLLM takes (output_ids, logits) or (prompt_ids, output_ids, logits), "
            f"and {processor!r} takes {n} parameters"
        )
    return n


def check_tensors(tensors: str) -> None:
    if tensors not in ("torch", "numpy"):
        raise InvalidArgumentError(f"tensors must be 'torch' or 'numpy', not {tensors!r}")


def import_torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as cause:
        raise missing("processors that work on tensors need PyTorch, or tensors='numpy'", "torch") from cause


def as_numpy(scores: Any) -> NDArray[Any]:
    if hasattr(scores, "detach"):  # a tensor, perhaps of another type or on another device
        scores = scores.detach().cpu().float().numpy()
    return np.asarray(scores)


__all__ = ["from_hf", "from_llama_cpp", "from_vllm"]

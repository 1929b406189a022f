"""Processors that were written for other libraries, in the forms in which these call them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyllm import Llama, errors
from pyllm.processors import from_hf, from_llama_cpp, from_vllm

N_VOCAB = 50
IDS = np.array([3, 1, 4], np.int32)


def row() -> np.ndarray:
    return np.arange(N_VOCAB, dtype=np.float32)


def test_hf_with_numpy() -> None:
    seen: list[Any] = []

    def in_place(input_ids: Any, scores: Any) -> Any:
        seen.append((input_ids.dtype, input_ids.shape, input_ids.tolist(), scores.dtype, scores.shape))
        scores[:, 7] = -np.inf
        return scores

    logits = row()
    from_hf(in_place, tensors="numpy")(IDS, logits)
    assert seen == [(np.int64, (1, 3), [[3, 1, 4]], np.float32, (1, N_VOCAB))]
    assert logits[7] == -np.inf
    from_hf([in_place, None, lambda i, s: s.astype(np.float64) / 2], tensors="numpy")(IDS, logits)
    assert logits[10] == 5


def test_hf_with_torch() -> None:
    torch = pytest.importorskip("torch")

    class Halve:
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            assert input_ids.dtype == torch.int64
            assert tuple(input_ids.shape) == (1, 3)
            assert scores.dtype == torch.float32
            return scores / 2

    class Forbid:
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores[:, 4] = -float("inf")
            return scores

    logits = row()
    from_hf([Forbid(), Halve(), Forbid()])(IDS, logits)
    assert logits[4] == -np.inf
    assert logits[10] == 5
    from_hf(Forbid())(IDS, other := row())
    assert other[4] == -np.inf


@pytest.mark.slow
def test_hf_processors_of_transformers() -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    processors = transformers.LogitsProcessorList(
        [transformers.TemperatureLogitsWarper(2.0), transformers.TopKLogitsWarper(5)]
    )
    logits = row()
    from_hf(processors)(IDS, logits)
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [45, 46, 47, 48, 49]
    assert logits[49] == 24.5


def test_llama_cpp() -> None:
    seen: list[Any] = []

    def new_array(input_ids: Any, scores: Any) -> Any:
        seen.append((input_ids.dtype, input_ids.tolist(), scores.shape, scores.strides))
        return scores + 1

    def in_place(input_ids: Any, scores: Any) -> Any:
        scores[0] = -np.inf
        return scores

    class LogitsProcessorList(list):  # as llama-cpp-python's: a list that can be called
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            raise AssertionError("a None in it would be called")

    logits = row()
    from_llama_cpp(LogitsProcessorList([new_array, None, in_place]))(IDS, logits)
    # Contiguous, where llama-cpp-python gives a view with strides of 12 bytes.
    assert seen == [(np.dtype(np.intc), [3, 1, 4], (N_VOCAB,), (4,))]
    assert logits.tolist() == [-np.inf, *range(2, N_VOCAB + 1)]


def test_vllm() -> None:
    seen: list[Any] = []

    def two(output_ids: Any, logits: Any) -> Any:
        seen.append(output_ids)
        logits[1] = -np.inf
        return logits

    def three(prompt_ids: Any, output_ids: Any, logits: Any) -> Any:
        seen.append((prompt_ids, output_ids))
        return logits * 2

    processor: Any = from_vllm([two, three], tensors="numpy")
    logits = row()
    processor(IDS, logits)
    processor(np.array([3, 1, 4, 9], np.int32), logits)
    assert seen == [[], ([3, 1, 4], []), [9], ([3, 1, 4], [9])]
    assert logits[1] == -np.inf
    assert logits[10] == 40
    processor.reset()
    processor(np.array([3, 1, 4, 9, 9], np.int32), logits)
    assert seen[-1] == ([3, 1, 4, 9, 9], [])


def test_vllm_with_torch() -> None:
    torch = pytest.importorskip("torch")
    logits = row()
    from_vllm(lambda output_ids, logits: torch.where(logits > 40, logits, -float("inf")))(IDS, logits)
    assert np.isfinite(logits).sum() == 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_hf(3), "must be callable, not 3"),
        (lambda: from_hf("abc"), "must be callable"),
        (lambda: from_llama_cpp([3]), "must be callable, not 3"),
        (lambda: from_hf(print, tensors="mlx"), "not 'mlx'"),
        (lambda: from_vllm(lambda x: x, tensors="numpy"), "takes 1 parameters"),
        (lambda: from_vllm(lambda a, b, c, d: d, tensors="numpy"), "takes 4 parameters"),
    ],
)
def test_other_things_are_refused(make: Any, message: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (from_hf(lambda i, s: None, tensors="numpy"), "returned None"),
        (from_llama_cpp(lambda i, s: None), "returned None"),
        (from_vllm(lambda i, s: None, tensors="numpy"), "returned None"),
        (from_hf(lambda i, s: s[0], tensors="numpy"), r"\(50,\), not \(1, 50\)"),
        (from_llama_cpp(lambda i, s: s[:5]), r"shape \(5,\)"),
        (from_llama_cpp(lambda i, s: "x"), "returned"),
    ],
)
def test_wrong_results_are_errors(processor: Any, message: str) -> None:
    logits = row()
    with pytest.raises(errors.InvalidArgumentError, match=message):
        processor(IDS, logits)
    assert np.array_equal(logits, row())


def test_in_a_generation(tiny_model: Any) -> None:
    """All three force the same token, and one after the other they may be mixed with processors of our own."""
    forced = 19

    def force(scores: Any) -> Any:
        result = np.full_like(scores, -np.inf)
        result[..., forced] = 0
        return result

    with Llama(tiny_model, n_ctx=128, n_threads=1) as llm:
        for processor in (
            from_hf(lambda ids, scores: force(scores), tensors="numpy"),
            from_llama_cpp([None, lambda ids, scores: force(scores)]),
            from_vllm(lambda ids, scores: force(scores), tensors="numpy"),
        ):
            assert llm([5, 6, 7], max_tokens=3, logits_processor=[processor]).tokens == (forced,) * 3


def test_what_transformers_expects_is_said_before_anything_runs(tiny_model: Any) -> None:
    class Foreign:
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            raise AssertionError("it would fail here on arrays")

    Foreign.__module__ = "transformers.generation.logits_process"
    with Llama(tiny_model, n_ctx=64, n_threads=1) as llm, pytest.raises(errors.InvalidArgumentError, match="from_hf"):
        llm("the", max_tokens=1, logits_processor=Foreign())
    assert from_hf(Foreign(), tensors="numpy")
    with pytest.raises(errors.InvalidArgumentError, match=r"returned int, not \(1, 5\)"):
        from_hf(lambda input_ids, scores: 3, tensors="numpy")(np.array([1], np.int32), np.zeros(5, np.float32))

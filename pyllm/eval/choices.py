"""Multiple choice: which of several texts the model holds for the most likely, the way llama-perplexity decides it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.context import Context
from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError
from pyllm.eval.contexts import Scorable, model_of, tokens_of
from pyllm.eval.scorer import Scorer
from pyllm.eval.tasks import MultipleChoice, Winogrande, read_hellaswag, read_multiple_choice, read_winogrande
from pyllm.eval.tree import common_prefix

# Of a normal distribution, for 95 %.
_Z = 1.95996398454
# Winogrande: with fewer tokens behind the words, the words themselves are scored too.
_SHORTEST_REST = 3


@dataclass(frozen=True, slots=True, eq=False)
class ChoiceResult:
    """How many tasks were solved.

    Attributes:
        accuracy: Share of tasks with a right answer, from 0 to 1.
        stderr: Its standard error.
        interval: The 95 % confidence interval after Wilson, as llama-perplexity prints it for HellaSwag.
        n_tasks: Number of tasks.
        predictions: The index of the chosen answer of each task: int64, shape (n_tasks,).
        correct: Whether it was right: bool, shape (n_tasks,).
        scores: For each task the mean log-probability of a token of each answer: what the choice was made by.
    """

    accuracy: float
    stderr: float
    interval: tuple[float, float]
    n_tasks: int
    predictions: NDArray[np.int64]
    correct: NDArray[np.bool_]
    scores: list[NDArray[np.float64]]


def multiple_choice(
    llm: Scorable, tasks: Iterable[MultipleChoice] | str | os.PathLike[str], **arguments: Any
) -> ChoiceResult:
    """Choose the answer with the highest mean log-probability of its tokens.

    Question, a space and answer are turned into tokens together; the tokens with which all answers of a task begin
    are computed once, and what comes after them is scored.

    Args:
        llm: A Llama, a Model or a Context; see :class:`pyllm.eval.Scorer`.
        tasks: Tasks, or a file in llama.cpp's binary format.
        **arguments: Arguments of :class:`pyllm.eval.Scorer`.

    Returns:
        ChoiceResult: As ``llama-perplexity --multiple-choice`` counts.

    Raises:
        InvalidArgumentError: A task has fewer than two answers, an empty one, or no right one; or it does not fit.
    """
    if isinstance(tasks, (str, os.PathLike)):
        tasks = read_multiple_choice(tasks)
    tasks = list(tasks)
    vocab = model_of(llm).vocab
    sequences, sizes = [], []
    for i, task in enumerate(tasks):
        if not isinstance(task, MultipleChoice):
            raise InvalidArgumentError(f"task {i} must be a MultipleChoice, not {type(task).__name__}")
        if len(task.answers) < 2 or not all(task.answers) or not task.question:
            raise InvalidArgumentError(f"task {i} needs a question and two or more answers, none of them empty")
        if not task.correct or not all(0 <= index < len(task.answers) for index in task.correct):
            raise InvalidArgumentError(
                f"task {i} has {len(task.answers)} answers, and these are said to be right: {sorted(task.correct)}"
            )
        texts = [_tokens(vocab, f"{task.question} {answer}") for answer in task.answers]
        # An answer that another one begins with is left a token to be scored by.
        first = min(min(common_prefix(texts[0], text) for text in texts), min(map(len, texts)) - 1)
        if first < 1:
            raise InvalidArgumentError(
                f"the answers of task {i} share no first token, and the first token of a text has no probability"
            )
        sequences += [(text, first) for text in texts]
        sizes.append(len(texts))
    means = _means(llm, sequences, arguments)
    scores, at = [], 0
    for size in sizes:
        scores.append(means[at : at + size])
        at += size
    return _result(scores, [task.correct for task in tasks])


def hellaswag(
    llm: Scorable, tasks: Iterable[MultipleChoice] | str | os.PathLike[str], **arguments: Any
) -> ChoiceResult:
    """HellaSwag (acc_norm), as ``llama-perplexity --hellaswag`` counts.

    Args:
        llm: A Llama, a Model or a Context; see :class:`pyllm.eval.Scorer`.
        tasks: Tasks, or a file with six lines for each; see :func:`pyllm.eval.read_hellaswag`. All are used, in their
            order; llama-perplexity takes 400 at random unless told otherwise.
        **arguments: Arguments of :class:`pyllm.eval.Scorer`.

    Raises:
        InvalidArgumentError: As for :func:`multiple_choice`.
    """
    if isinstance(tasks, (str, os.PathLike)):
        tasks = read_hellaswag(tasks)
    return multiple_choice(llm, tasks, **arguments)


def winogrande(llm: Scorable, tasks: Iterable[Winogrande] | str | os.PathLike[str], **arguments: Any) -> ChoiceResult:
    """Winogrande: which of two words makes the rest of the sentence more likely, as ``llama-perplexity`` decides it.

    Scored are the tokens after the word, without the last one; where no more than three follow, the word too. (In
    that case llama-perplexity looks at wrong logits for the first token of the second word, and may differ.)

    Args:
        llm: A Llama, a Model or a Context; see :class:`pyllm.eval.Scorer`.
        tasks: Tasks, or a CSV file; see :func:`pyllm.eval.read_winogrande`.
        **arguments: Arguments of :class:`pyllm.eval.Scorer`.

    Raises:
        InvalidArgumentError: A sentence has no gap, or `correct` is neither 0 nor 1.
    """
    if isinstance(tasks, (str, os.PathLike)):
        tasks = read_winogrande(tasks)
    tasks = list(tasks)
    vocab = model_of(llm).vocab
    sequences: list[tuple[NDArray[np.int32], int]] = []
    for i, task in enumerate(tasks):
        if not isinstance(task, Winogrande):
            raise InvalidArgumentError(f"task {i} must be a Winogrande, not {type(task).__name__}")
        before, gap, after = task.sentence.partition("_")
        if not gap or len(task.choices) != 2 or task.correct not in (0, 1):
            raise InvalidArgumentError(f"task {i} needs a sentence with _, two choices, and correct=0 or 1: {task}")
        texts = [_tokens(vocab, before + choice + after) for choice in task.choices]
        common = common_prefix(*texts)
        skip_word = all(len(text) - common > _SHORTEST_REST for text in texts)
        for choice, text in zip(task.choices, texts, strict=True):
            first = len(_tokens(vocab, before + choice)) if skip_word else common
            first = min(first, len(text) - 1)
            if first < 1:
                raise InvalidArgumentError(
                    f"the sentences of task {i} share no first token, and the first token of a text has no probability"
                )
            sequences.append((text[:-1] if len(text) - first > 1 else text, first))
    means = _means(llm, sequences, arguments).reshape(-1, 2)
    return _result(list(means), [frozenset([task.correct]) for task in tasks])


def _tokens(vocab: Vocab, text: str) -> NDArray[np.int32]:
    return tokens_of(vocab, text, parse_special=False)


def _means(
    llm: Scorable, sequences: Sequence[tuple[NDArray[np.int32], int]], arguments: dict[str, Any]
) -> NDArray[np.float64]:
    if not sequences:
        raise InvalidArgumentError("there are no tasks")
    if not isinstance(llm, Context):
        arguments = {"n_ctx": max(len(tokens) - 1 for tokens, _ in sequences), **arguments}
    with Scorer(llm, **arguments) as scorer:
        return np.array([score.mean for score in scorer.score_tokens(sequences)])


def _result(scores: list[NDArray[np.float64]], right: Sequence[frozenset[int]]) -> ChoiceResult:
    predictions = np.array([int(values.argmax()) for values in scores], np.int64)
    correct = np.array([int(best) in indices for best, indices in zip(predictions, right, strict=True)], np.bool_)
    n = len(correct)
    share = float(correct.mean())
    z = _Z * _Z / n
    middle, width = (share + z / 2) / (1 + z), z * math.sqrt(n * (4 * share * (1 - share) + z)) / (2 * _Z) / (1 + z)
    return ChoiceResult(
        accuracy=share,
        stderr=math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0,
        interval=(middle - width, middle + width),
        n_tasks=n,
        predictions=predictions,
        correct=correct,
        scores=scores,
    )

"""Multiple choice: the right sums, and the file formats."""

from __future__ import annotations

import numpy as np
import pytest
from support.numerics import EXACT

from pyllm.errors import InvalidArgumentError
from pyllm.eval import (
    MultipleChoice,
    TaskFileError,
    Winogrande,
    hellaswag,
    logprobs,
    multiple_choice,
    read_hellaswag,
    read_multiple_choice,
    read_winogrande,
    winogrande,
    write_multiple_choice,
)

TASKS = [
    MultipleChoice.of("the people look at", ["the number", "the time of day", "no one", "a house on the hill"], 1),
    MultipleChoice.of("she went to find out about", ["the time", "the other people"], 0),
    MultipleChoice.of("more of the", ["people", "people here", "words"], [0, 2]),
]
GAPS = [
    Winogrande("the people could not find the number because _ was not on the house at that time.", ("it", "he"), 0),
    Winogrande("the time was more than the _.", ("number", "word"), 1),
]


def by_hand(model, text, first):
    return float(np.mean(logprobs(model, text, parse_special=False, **EXACT).logprobs[first:]))


def test_answers_are_compared_by_the_mean_of_what_differs(tiny_model):
    result = multiple_choice(tiny_model, TASKS, **EXACT)
    for task, scores in zip(TASKS, result.scores, strict=True):
        texts = [f"{task.question} {answer}" for answer in task.answers]
        all_tokens = [tiny_model.vocab.tokenize(text) for text in texts]
        first = next(i for i in range(100) if i >= min(map(len, all_tokens)) - 1 or len({t[i] for t in all_tokens}) > 1)
        assert scores == pytest.approx([by_hand(tiny_model, text, first) for text in texts], abs=1e-3)
    assert result.predictions.tolist() == [int(scores.argmax()) for scores in result.scores]
    right = [int(best) in task.correct for best, task in zip(result.predictions, TASKS, strict=True)]
    assert result.correct.tolist() == right
    assert result.accuracy == pytest.approx(np.mean(right))
    assert result.n_tasks == 3
    assert 0 <= result.interval[0] <= result.accuracy <= result.interval[1] <= 1


def test_winogrande_scores_what_follows_the_word(tiny_model):
    result = winogrande(tiny_model, GAPS, **EXACT)
    vocab = tiny_model.vocab
    before, _, after = GAPS[0].sentence.partition("_")
    for choice, found in zip(GAPS[0].choices, result.scores[0], strict=True):
        first, text = len(vocab.tokenize(before + choice)), before + choice + after
        values = logprobs(tiny_model, text, parse_special=False, **EXACT).logprobs
        assert found == pytest.approx(float(values[first:-1].mean()), abs=1e-3)
    # Too little follows in the second: the words count too.
    tokens = [vocab.tokenize(GAPS[1].sentence.replace("_", choice)) for choice in GAPS[1].choices]
    common = next(i for i in range(99) if tokens[0][i] != tokens[1][i])
    values = logprobs(tiny_model, tokens[0], **EXACT).logprobs
    assert result.scores[1][0] == pytest.approx(float(values[common:-1].mean()), abs=1e-3)


def test_files(tiny_model, tmp_path):
    binary = tmp_path / "tasks.bin"
    write_multiple_choice(binary, TASKS)
    assert read_multiple_choice(binary) == TASKS
    assert multiple_choice(tiny_model, binary, **EXACT).n_tasks == 3
    for end in range(1, len(binary.read_bytes()), 7):
        (tmp_path / "cut.bin").write_bytes(binary.read_bytes()[:end])
        with pytest.raises(TaskFileError, match="ends after"):
            read_multiple_choice(tmp_path / "cut.bin")

    lines = tmp_path / "hellaswag.txt"
    lines.write_text(
        "the people\n2\nlook\nfind\ngo\nuse\nmore of\n0\nthe time\na word\nthe day\nit\n", encoding="utf-8"
    )
    assert read_hellaswag(lines)[0] == MultipleChoice.of("the people", ["look", "find", "go", "use"], 2)
    assert hellaswag(tiny_model, lines, **EXACT).n_tasks == 2
    for text, words in (("a\nb\n", "2 lines, and each task takes 6"), ("a\n7\nb\nc\nd\ne\n", "line 2.*not '7'")):
        lines.write_text(text, encoding="utf-8")
        with pytest.raises(TaskFileError, match=words):
            read_hellaswag(lines)

    table = tmp_path / "winogrande.csv"
    table.write_text('0,"the time, and _ too, is more.",it,he,2\n1,a _ is here,word,day,1\n', encoding="utf-8")
    assert read_winogrande(table)[0] == Winogrande("the time, and _ too, is more.", ("it", "he"), 1)
    assert winogrande(tiny_model, table, **EXACT).n_tasks == 2
    table.write_text("0,no gap here,it,he,2\n", encoding="utf-8")
    with pytest.raises(TaskFileError, match="sentence with _"):
        read_winogrande(table)


def test_tasks_that_are_none(tiny_model):
    for task, words in (
        (MultipleChoice.of("the", ["one"], 0), "two or more answers"),
        (MultipleChoice.of("the", ["one", ""], 0), "two or more answers"),
        (MultipleChoice.of("the", ["one", "two"], 2), r"2 answers.*right: \[2\]"),
        (MultipleChoice.of("the", ["one", "two"], []), "said to be right"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            multiple_choice(tiny_model, [task])
    with pytest.raises(InvalidArgumentError, match="no tasks"):
        multiple_choice(tiny_model, [])
    with pytest.raises(InvalidArgumentError, match="sentence with _"):
        winogrande(tiny_model, [Winogrande("no gap", ("a", "b"), 0)])


def test_what_is_no_task_says_so(tiny_model, tmp_path):
    with pytest.raises(TypeError, match="several texts"):
        MultipleChoice.of("a", "bc", 0)
    for count in (hellaswag, multiple_choice, winogrande):
        with pytest.raises(InvalidArgumentError, match="task 0 must be a"):
            count(tiny_model, [3], n_threads=1)
    junk = tmp_path / "junk"
    junk.write_bytes(b"\xff\xfe junk")
    for count in (hellaswag, winogrande):
        with pytest.raises(TaskFileError, match="UTF-8"):
            count(tiny_model, junk)

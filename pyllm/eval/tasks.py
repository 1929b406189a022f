"""Multiple-choice tasks, and the three file formats in which llama-perplexity reads them."""

from __future__ import annotations

import csv
import io
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyllm.errors import PyllmError

Path_ = str | os.PathLike[str]


class TaskFileError(PyllmError, ValueError):
    """A file of tasks is malformed."""


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """A question (or the beginning of a text) with answers (or endings).

    Attributes:
        question: What comes first. A space is put between it and the answer.
        answers: Two or more.
        correct: Indices of the right ones.
    """

    question: str
    answers: tuple[str, ...]
    correct: frozenset[int]

    @classmethod
    def of(cls, question: str, answers: Sequence[str], correct: int | Iterable[int]) -> MultipleChoice:
        """Make a task; `correct` is one index or several.

        Raises:
            TypeError: `answers` is a text.
        """
        if isinstance(answers, str):
            raise TypeError(f"answers are several texts, not one: {answers!r}")
        return cls(question, tuple(answers), frozenset([correct] if isinstance(correct, int) else correct))


@dataclass(frozen=True, slots=True)
class Winogrande:
    """A sentence with a gap, and two words for it.

    Attributes:
        sentence: With ``_`` for the gap.
        choices: The two words.
        correct: 0 or 1.
    """

    sentence: str
    choices: tuple[str, str]
    correct: int


def read_hellaswag(path: Path_) -> list[MultipleChoice]:
    """Tasks of six lines: the context, the number of the right ending (from 0), four endings.

    Raises:
        TaskFileError: The lines do not come out even, or a number is none.
    """
    lines = _text(path).replace("\r\n", "\n").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if not lines or len(lines) % 6:
        raise TaskFileError(f"{os.fspath(path)!r} has {len(lines)} lines, and each task takes 6")
    tasks = []
    for i in range(0, len(lines), 6):
        try:
            right = int(lines[i + 1])
        except ValueError:
            right = -1
        if not 0 <= right < 4:
            raise TaskFileError(
                f"{os.fspath(path)!r}, line {i + 2}: the right ending must be from 0 to 3, not {lines[i + 1]!r}"
            )
        tasks.append(MultipleChoice.of(lines[i], lines[i + 2 : i + 6], right))
    return tasks


def read_winogrande(path: Path_) -> list[Winogrande]:
    """Tasks as CSV: index, sentence with ``_``, first word, second word, the right one (1 or 2).

    Raises:
        TaskFileError: A line has other columns.
    """
    tasks = []
    for row in csv.reader(io.StringIO(_text(path), newline="")):
        if len(row) != 5 or "_" not in row[1] or row[4].strip() not in ("1", "2"):
            raise TaskFileError(
                f"{os.fspath(path)!r}: a task needs an index, a sentence with _, two words, and 1 or 2, not {row}"
            )
        tasks.append(Winogrande(row[1], (row[2], row[3]), int(row[4]) - 1))
    return tasks


def read_multiple_choice(path: Path_) -> list[MultipleChoice]:
    """Tasks in llama.cpp's binary format, in which ARC, MMLU and TruthfulQA are handed around for it.

    Of its two lists of answers the first is read: the one with a single right answer.

    Raises:
        TaskFileError: The file ends early, or has numbers that cannot be.
    """
    reader = _Reader(Path(path).read_bytes(), os.fspath(path))
    n = reader.number()
    reader.take(4 * n)  # where each task begins: they follow one another
    return [_read_task(reader) for _ in range(n)]


def write_multiple_choice(path: Path_, tasks: Iterable[MultipleChoice]) -> None:
    """Write tasks in llama.cpp's binary format."""
    blobs = [_task_bytes(task) for task in tasks]
    position = 4 + 4 * len(blobs)
    positions = []
    for blob in blobs:
        positions.append(position)
        position += len(blob)
    Path(path).write_bytes(struct.pack(f"<I{len(blobs)}I", len(blobs), *positions) + b"".join(blobs))


def _text(path: Path_) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TaskFileError(f"{os.fspath(path)!r} is no file of text in UTF-8: {error}") from error


class _Reader:
    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise TaskFileError(f"{self.name!r} ends after {len(self.data)} bytes, in the middle of a task")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self) -> int:
        value: int = struct.unpack("<I", self.take(4))[0]
        return value

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8", "replace")


def _read_task(reader: _Reader) -> MultipleChoice:
    question = reader.text()
    lists = []
    for _ in range(2):
        n = reader.number()
        if n > 100:
            raise TaskFileError(f"{reader.name!r}: a task with {n} answers; llama.cpp takes at most 100")
        answers = [reader.text() for _ in range(n)]
        labels = struct.unpack(f"<{n}i", reader.take(4 * n))
        lists.append((answers, labels))
    answers, labels = lists[0]
    return MultipleChoice.of(question, answers, [i for i, label in enumerate(labels) if label == 1])


def _task_bytes(task: MultipleChoice) -> bytes:
    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack("<I", len(data)) + data

    n = len(task.answers)
    labels = struct.pack(f"<{n}i", *(int(i in task.correct) for i in range(n)))
    return (
        text(task.question) + struct.pack("<I", n) + b"".join(map(text, task.answers)) + labels + struct.pack("<I", 0)
    )

"""``pyllm embed``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyllm.cli.models import MODEL_HELP, find_model
from pyllm.cli.output import set_verbose
from pyllm.cli.texts import texts_or_lines

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm import Llama

_EUCLIDEAN = 2
_BLOCK = 256


class Format(StrEnum):
    """How vectors are written."""

    json = "json"
    jsonl = "jsonl"
    npy = "npy"
    csv = "csv"
    raw = "raw"


class Pooling(StrEnum):
    """How the vectors of tokens become one."""

    none = "none"
    mean = "mean"
    cls = "cls"
    last = "last"
    rank = "rank"


class Overflow(StrEnum):
    """What becomes of a text that is longer than the model can read."""

    error = "error"
    truncate = "truncate"
    mean = "mean"


def embed(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="The texts; without any, the lines of standard input."),
    ] = None,
    pooling: Annotated[
        Pooling | None, typer.Option("--pooling", help="How token vectors become one.", show_default="the model's own")
    ] = None,
    normalize: Annotated[
        int,
        typer.Option(
            "--normalize",
            "--embd-normalize",
            min=-1,
            help="-1: no norm, 0: max absolute int16, 1: taxicab, 2: euclidean, more: p-norm.",
        ),
    ] = _EUCLIDEAN,
    overflow: Annotated[
        Overflow, typer.Option("--overflow", help="For a text that is longer than the model can read.")
    ] = Overflow.error,
    dimensions: Annotated[int | None, typer.Option("--dimensions", min=1, help="Keep so many numbers of each.")] = None,
    output: Annotated[
        Format,
        typer.Option(
            "--output",
            "--embd-output-format",
            help="json: as OpenAI's API; jsonl: an object in each line; npy: a NumPy file; csv, raw: numbers in lines.",
        ),
    ] = Format.jsonl,
    ctx_size: Annotated[
        int | None, typer.Option("--ctx-size", "-c", min=1, help="Most tokens of a text.", show_default="as trained")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", min=1, help="Tokens computed at once.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="CPU threads.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download a missing model without asking.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log on stderr.")] = False,
) -> None:
    """Turn texts into vectors.

    Without TEXT each line of standard input is one; empty lines are left out. Lines are written as soon as their texts
    are computed, but for json and npy, which are written at the end.
    """
    set_verbose(verbose)
    source = texts_or_lines(texts, "texts")
    first = list(islice(source, 1))  # so that a wrong usage is told before a model is loaded
    if output is Format.npy and sys.stdout.isatty():
        raise typer.BadParameter("a NumPy file is not for terminals: write it to a file, as in > vectors.npy")
    if pooling is Pooling.none and output is Format.npy:
        raise typer.BadParameter("--pooling none gives each text another number of vectors: choose another --output")
    path = find_model(model, yes=yes)
    options: dict[str, Any] = {
        "pooling": pooling and pooling.value,
        "normalize": normalize,
        "overflow": overflow.value,
        "dimensions": dimensions,
    }
    from pyllm import Llama

    with Llama(path, n_ctx=ctx_size, n_threads=threads, n_batch=batch_size) as llm:
        if output is Format.json:
            _print_json(llm, [*first, *source], options)
        elif output is Format.npy:
            _print_npy(llm, chain(first, source), options)
        else:
            for index, vectors in enumerate(_vectors(llm, chain(first, source), options)):
                _print_lines(index, vectors, output)


def _vectors(llm: Llama, texts: Iterator[str], options: dict[str, Any]) -> Iterator[NDArray[np.float32]]:
    # A terminal or a slow pipe is answered text by text, a file in blocks.
    block_size = 1 if sys.stdin is not None and sys.stdin.isatty() else _BLOCK
    for block in llm.iter_embed(texts, block_size=block_size, **options):
        yield from block


def _print_lines(index: int, vectors: NDArray[np.float32], output: Format) -> None:
    from json import dumps

    if output is Format.jsonl:
        print(dumps({"index": index, "embedding": vectors.tolist()}), flush=True)
        return
    separator = "," if output is Format.csv else " "
    for row in vectors.reshape(-1, vectors.shape[-1]):
        # The shortest digits that give the same float32 again.
        print(separator.join(map(str, row)), flush=True)


def _print_json(llm: Llama, texts: list[str], options: dict[str, Any]) -> None:
    from json import dumps

    print(dumps(llm.create_embedding(texts, **options).to_dict()))


def _print_npy(llm: Llama, texts: Iterator[str], options: dict[str, Any]) -> None:
    import io

    import numpy as np

    vectors = list(_vectors(llm, texts, options))
    file = io.BytesIO()
    np.save(file, np.stack(vectors) if vectors else llm.embed([], **options))
    sys.stdout.buffer.write(file.getvalue())

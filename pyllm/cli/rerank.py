"""``pyllm rerank``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from pyllm.cli.models import MODEL_HELP, find_model
from pyllm.cli.output import set_verbose
from pyllm.cli.texts import texts_or_lines


class By(StrEnum):
    """What documents are compared by."""

    model = "model"
    embedding = "embedding"


class Overflow(StrEnum):
    """What becomes of a pair that is longer than the model can read."""

    error = "error"
    truncate = "truncate"


def rerank(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is asked.")],
    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="DOCUMENT", help="The documents; without any, the lines of standard input."),
    ] = None,
    top_n: Annotated[int | None, typer.Option("--top-n", min=1, help="Print the best ones only.")] = None,
    by: Annotated[
        By, typer.Option("--by", help="model: the head of a reranker; embedding: cosines, with any model that embeds.")
    ] = By.model,
    overflow: Annotated[
        Overflow, typer.Option("--overflow", help="For a document that is longer than the model can read.")
    ] = Overflow.error,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    ctx_size: Annotated[
        int | None, typer.Option("--ctx-size", "-c", min=1, help="Most tokens of a pair.", show_default="as trained")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="CPU threads.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download a missing model without asking.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log on stderr.")] = False,
) -> None:
    """Order documents by how well they answer a query.

    Prints a line for each, the best first: its score, its number among the documents from 0, and the document.
    """
    set_verbose(verbose)
    texts = list(texts_or_lines(documents, "documents"))
    path = find_model(model, yes=yes)
    from pyllm import Llama

    with Llama(path, n_ctx=ctx_size, n_threads=threads) as llm:
        results = llm.rerank(query, texts, top_n=top_n, return_documents=True, by=by.value, overflow=overflow.value)
    if json:
        from json import dumps

        print(dumps([result.to_dict() for result in results], ensure_ascii=False))
        return
    for result in results:
        print(f"{result.relevance_score:.6f}\t{result.index}\t{result.document!s}")

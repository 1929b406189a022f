"""``pyllm tokenize``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pyllm.cli.models import MODEL_HELP, find_model
from pyllm.cli.output import set_verbose
from pyllm.cli.texts import whole_input

if TYPE_CHECKING:
    from pyllm import Vocab


def tokenize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The text; - or nothing reads standard input.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print the ids only, as a list.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print an array of objects with id and piece.")] = False,
    no_bos: Annotated[bool, typer.Option("--no-bos", help="Put no token for the beginning before the text.")] = False,
    no_special: Annotated[
        bool, typer.Option("--no-special", help="Put no tokens around the text, neither before nor behind it.")
    ] = False,
    no_parse_special: Annotated[
        bool, typer.Option("--no-parse-special", help="Names of control tokens in the text are text.")
    ] = False,
    show_count: Annotated[bool, typer.Option("--show-count", help="Print the number of tokens at the end.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download a missing model without asking.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log on stderr.")] = False,
) -> None:
    """Show the tokens that a model makes of a text. Only its vocabulary is loaded."""
    set_verbose(verbose)
    if ids and json:
        raise typer.BadParameter("--ids and --json are two ways to print: choose one")
    if json and show_count:
        raise typer.BadParameter("--show-count would not be JSON")
    content = whole_input(text, "a text")
    path = find_model(model, yes=yes)
    from pyllm import Model

    with Model(path, vocab_only=True) as loaded:
        vocab = loaded.vocab
        tokens = vocab.tokenize(content, add_special=not no_special, parse_special=not no_parse_special)
        if no_bos and not no_special and vocab.add_bos and tokens[:1] == [vocab.bos]:
            tokens = tokens[1:]
        _print(vocab, tokens, ids=ids, json=json)
        if show_count:
            print(f"Total number of tokens: {len(tokens)}")


def _print(vocab: Vocab, tokens: list[int], *, ids: bool, json: bool) -> None:
    if ids:
        print(f"[{', '.join(map(str, tokens))}]")
        return
    pieces = [(token, vocab.token_to_piece(token)) for token in tokens]
    if json:
        from json import dumps

        objects = [{"id": token, "piece": _text_or_bytes(piece)} for token, piece in pieces]
        print(dumps(objects, ensure_ascii=False))
        return
    for token, piece in pieces:
        print(f"{token:6d} -> '{piece.decode('utf-8', 'backslashreplace')}'")


def _text_or_bytes(piece: bytes) -> str | list[int]:
    """A piece as text, or as its bytes where it is a part of a character."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)

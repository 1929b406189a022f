"""``pyllm inspect``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyllm.cli.models import MODEL_HELP, find_model
from pyllm.cli.output import human_size, set_verbose

if TYPE_CHECKING:
    from rich.console import Console

    from pyllm.core.gguf import TensorInfo

_SHOWN_ITEMS = 8
_SHOWN_TEXT = 200
_DEFAULT_CONTEXT = 4096


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    ctx_size: Annotated[
        int, typer.Option("--ctx-size", "-c", min=1, help="Context length that the memory is estimated for.")
    ] = _DEFAULT_CONTEXT,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download a missing model without asking.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log.")] = False,
) -> None:
    """Show a model's metadata, tensors and memory needs."""
    set_verbose(verbose)
    path = find_model(model, yes=yes)
    report = _report(path, ctx_size)
    if json:
        from json import dumps

        print(dumps(report, indent=2))
    else:
        _print(report, list_tensors=tensors)


def _report(path: Path, ctx_size: int) -> dict[str, Any]:
    from pyllm.core.gguf import GGUFReader

    with GGUFReader(path) as reader:
        tokens = reader.metadata.get("tokenizer.ggml.tokens")
        return {
            "path": str(path),
            "size": path.stat().st_size,
            "version": reader.version,
            "alignment": reader.alignment,
            "metadata": {key: _plain(value) for key, value in reader.metadata.items()},
            "n_vocab": None if tokens is None else len(tokens),
            "tensor_types": _by_type(reader.tensors),
            "tensors": [asdict(tensor) for tensor in reader.tensors],
            "memory": _memory(path, ctx_size),
        }


def _plain(value: Any) -> Any:
    """A metadata value as JSON can hold it; a long array as its length and first items."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value[:_SHOWN_ITEMS]]
        return items if len(value) <= _SHOWN_ITEMS else {"length": len(value), "first": items}
    return value


def _by_type(tensors: tuple[TensorInfo, ...]) -> list[dict[str, Any]]:
    count, nbytes = Counter[str](), Counter[str]()
    for tensor in tensors:
        count[tensor.type] += 1
        nbytes[tensor.type] += tensor.nbytes
    return [{"type": kind, "count": count[kind], "nbytes": size} for kind, size in nbytes.most_common()]


def _memory(path: Path, ctx_size: int) -> dict[str, Any]:
    from pyllm import memory
    from pyllm.errors import PyllmError

    try:
        estimate = memory.estimate(path, n_ctx=ctx_size)
    except PyllmError as error:
        # A file that llama.cpp cannot load still has metadata worth showing.
        return {"n_ctx": ctx_size, "error": error.message}
    return {
        "n_ctx": estimate.n_ctx,  # llama.cpp rounds it up
        "model": estimate.model,
        "context": estimate.context,
        "compute": estimate.compute,
        "total": estimate.total,
    }


def _print(report: dict[str, Any], *, list_tensors: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{report['path']}: GGUF version {report['version']}, {human_size(report['size'])}", markup=False)
    _section(console, "metadata", [(key, _short(value)) for key, value in report["metadata"].items()])
    types = report["tensor_types"]
    rows = [(entry["type"], f"{entry['count']} tensors, {human_size(entry['nbytes'])}") for entry in types]
    _section(console, f"tensors ({len(report['tensors'])})", rows)
    if list_tensors:
        rows = [(t["name"], f"{t['type']:8} {' x '.join(map(str, t['shape']))}") for t in report["tensors"]]
        _section(console, "every tensor (slowest dimension first)", rows)
    if report["n_vocab"] is not None:
        _section(console, "vocabulary", [("tokens", f"{report['n_vocab']:,}")])
    memory = report["memory"]
    if "error" in memory:
        rows = [("unknown", memory["error"])]
    else:
        names = (("weights", "model"), ("KV cache", "context"), ("compute", "compute"), ("total", "total"))
        rows = [(name, human_size(memory[key])) for name, key in names]
    _section(console, f"memory at a context of {memory['n_ctx']:,} tokens", rows)


def _section(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    console.print(f"\n[bold]{title}[/bold]")
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        console.print(f"  {name:{width}}  {value}", markup=False)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"[{', '.join(map(repr, value['first'][:4]))}, ...] ({value['length']:,} items)"
    text = value if isinstance(value, str) else str(value)
    text = text.replace("\n", "\\n")
    return text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}... ({len(text):,} characters)"

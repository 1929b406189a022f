"""What imports what: layers look down only, and no circle of imports has more than two files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pyllm

PACKAGE = Path(pyllm.__file__).parent

# Parts that are below pyllm.llama: each works for an Engine, or without any model, too.
BELOW = ("chat", "completion", "conversation", "core", "embedding", "engine", "processors", "speculation", "structured")


def module_files(package: Path) -> dict[str, Path]:
    """The modules of a package by their dotted names."""
    files = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(name: str, source: str, modules: dict[str, Path], *, is_package: bool = False) -> set[str]:
    """The modules that a module imports anywhere: at its top, in functions, and for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".") if is_package else name.split(".")[:-1]
            base = parts[: len(parts) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                found.add(inner if inner in modules else ".".join(base))
    return (found & set(modules)) - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which leads to all others of its group."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in graph[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return [list(group) for group in groups if len(group) > 1]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    modules = module_files(PACKAGE)
    return {
        name: imports(name, path.read_text(encoding="utf-8"), modules, is_package=path.name == "__init__.py")
        for name, path in modules.items()
    }


def test_no_circle_of_imports_has_more_than_two_files(graph) -> None:
    assert len(graph) > 100
    assert [group for group in circles(graph) if len(group) > 2] == []


def test_no_module_below_names_llama(graph) -> None:
    below = {name: found for name, found in graph.items() if name.split(".")[1:2] and name.split(".")[1] in BELOW}
    assert {name.split(".")[1] for name in below} == set(BELOW)
    assert sorted(name for name, found in below.items() if "pyllm.llama" in found) == []


def test_core_imports_nothing_above_it(graph) -> None:
    above = {f"pyllm.{part}" for part in (*BELOW, "server", "cli", "llama", "interp", "eval") if part != "core"}
    inner = {name: found for name, found in graph.items() if name.startswith("pyllm.core.")}
    assert {
        name: wrong
        for name, found in inner.items()
        if (wrong := {one for one in found if ".".join(one.split(".")[:2]) in above})
    } == {}


def test_circles_are_found() -> None:
    modules = dict.fromkeys(["p", "p.a", "p.b", "p.c", "p.d"], Path())
    sources = {
        "p": "",
        "p.a": "from p.b import f",
        "p.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import c",
        "p.c": "def f():\n    import p.a",
        "p.d": "from p import a",
    }
    graph = {name: imports(name, source, modules) for name, source in sources.items()}
    assert graph == {"p": set(), "p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a"}, "p.d": {"p.a"}}
    assert circles(graph) == [["p.a", "p.b", "p.c"]]

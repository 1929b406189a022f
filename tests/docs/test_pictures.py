"""The chart of README.md shows the results that lie in benchmarks/results, and so does its table."""

from __future__ import annotations

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType

import pytest
from docs.pages import ROOT

TABLE = re.findall(r"^\| (.+) \| [\w-]+ \| ([\d.]+) \| ([\d.]+) – ([\d.]+) \|$", (ROOT / "README.md").read_text(), re.M)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("benchmark_picture", str(ROOT / "scripts" / "benchmark_picture"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_chart_is_made_from_the_results(script: ModuleType) -> None:
    assert script.TARGET.read_text(encoding="utf-8") == script.chart(), "run scripts/benchmark_picture"


def test_table_has_the_results(script: ModuleType) -> None:
    rows = [(f"{row.median:.2f}", f"{min(row.ratios):.2f}", f"{max(row.ratios):.2f}") for row in script.rows()]
    assert [numbers for _, *numbers in TABLE] == [list(row) for row in rows]

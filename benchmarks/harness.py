"""Pairs of measurements in turn, A B A B …, and what their ratios say.

Absolute figures of a shared machine mean little; the ratio of two runs that stand next to each other in time
means more, and the median of several such ratios most.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Of which texts without meaning are made.
WORDS = ("river", "stone", "and", "the", "of", "under", "mill", "light", "to", "in", "is", "not", "winter", "hand")


@dataclass
class Comparison:
    """One workload, done by pyllm (ours) and by a reference (theirs), several times in turn."""

    name: str
    unit: str
    theirs_name: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """ours / theirs, pair by pair."""
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    def row(self) -> str:
        """A row of the table."""
        low, high = min(self.ratios), max(self.ratios)
        return (
            f"| {self.name} | {statistics.median(self.ours):.2f} | {statistics.median(self.theirs):.2f} | {self.unit} "
            f"| {self.theirs_name} | **{statistics.median(self.ratios):.3f}** | {low:.3f} – {high:.3f} "
            f"| {len(self.ratios)} |"
        )


HEADER = (
    "| workload | pyllm | reference | unit | reference program | ratio (median) | ratio (range) | pairs |\n"
    "|---|---|---|---|---|---|---|---|"
)


def compare(
    name: str,
    unit: str,
    theirs_name: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    *,
    pairs: int,
) -> Comparison:
    """Measure both in turn; the order within a pair changes from pair to pair."""
    result = Comparison(name, unit, theirs_name)
    for i in range(pairs):
        for which in ("ours", "theirs") if i % 2 == 0 else ("theirs", "ours"):
            value = ours() if which == "ours" else theirs()
            getattr(result, which).append(value)
        print(f"  {name}: pair {i + 1}/{pairs}, ratio {result.ratios[-1]:.3f}", file=sys.stderr, flush=True)
    return result


def child(*arguments: str) -> dict[str, float]:
    """Run a workload of `benchmarks.workloads` in a fresh process; its last line is JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.workloads", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def machine() -> dict[str, object]:
    """Where this was measured."""
    from pyllm.core import backend
    from pyllm.cpus import usable_cpus
    from pyllm.version import __version__

    return {
        "pyllm": __version__,
        "llama_cpp": backend.llama_version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": backend.devices()[-1].description,
        "cpus": usable_cpus(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def save(path: Path, comparisons: list[Comparison], costs: dict[str, float], settings: dict[str, object]) -> None:
    """Keep everything that was measured as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": machine(),
        "settings": settings,
        "comparisons": [{**asdict(item), "ratio": statistics.median(item.ratios)} for item in comparisons],
        "costs": costs,
    }
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

"""What the decode loop written in Python adds to a token, in microseconds, beside llama-bench.

    python -m benchmarks.overhead

The model has as many layers as SmolLM2 and nearly no weights, so that all that costs time is what a token costs
besides arithmetic. Ratios of whole programs scatter by several percent on a machine that does other work; this
difference does not.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import upstream
from benchmarks.harness import child


def overhead(pairs: int) -> dict[str, float]:
    """Microseconds a token of both programs on one thread, in turn, and the median difference."""
    sys.path.insert(0, "tests")
    from support import models

    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = models.write(Path(folder) / "tiny.gguf", n_layer=30, n_embd=32, vocab_size=512)
        for _ in range(pairs):
            rate = child("tg", "--model", str(model), "--threads", "1", "--repetitions", "20")["rate"]
            ours.append(1e6 / rate)
            rate = upstream.llama_bench(model, n_prompt=0, n_gen=128, threads=1, repetitions=20)
            theirs.append(1e6 / rate)
    return {
        "30 layers without weights, llama-bench": statistics.median(theirs),
        "30 layers without weights, decode loop in Python": statistics.median(ours),
        "what the decode loop in Python adds": statistics.median(a - b for a, b in zip(ours, theirs, strict=True)),
    }


if __name__ == "__main__":
    for name, value in overhead(15).items():
        print(f"{name}: {value:.1f} µs a token")

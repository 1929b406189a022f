"""llama.cpp's own programs, built by `make tools` in the same folder with the same flags."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from benchmarks.harness import ROOT

BIN = ROOT / "build/cmake-native/bin"


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = BIN / program
    if not path.exists():
        raise SystemExit(f"{path} is not built; run `make tools`")
    return subprocess.run([str(path), *arguments], check=True, capture_output=True, text=True)


def llama_bench(model: Path, *, n_prompt: int, n_gen: int, threads: int, repetitions: int) -> float:
    """Tokens per second of llama-bench, the median of its repetitions."""
    done = _run(
        "llama-bench", "-m", str(model), "-p", str(n_prompt), "-n", str(n_gen), "-t", str(threads),
        "-r", str(repetitions), "-o", "json",
    )  # fmt: skip
    samples = sorted(json.loads(done.stdout)[0]["samples_ts"])
    return float(samples[len(samples) // 2])


def batched_bench(model: Path, *, n_prompt: int, n_gen: int, n_parallel: int, threads: int) -> float:
    """Generated tokens per second of llama-batched-bench, over all sequences."""
    n_ctx = n_parallel * (n_prompt + n_gen)
    done = _run(
        "llama-batched-bench", "-m", str(model), "-npp", str(n_prompt), "-ntg", str(n_gen), "-npl", str(n_parallel),
        "-t", str(threads), "-c", str(n_ctx), "--output-format", "jsonl",
    )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    return float(json.loads(line)["speed_tg"])


def completion(model: Path, prompt: str, *, n_gen: int, threads: int, n_ctx: int) -> tuple[float, str]:
    """Tokens per second of llama-completion's own report for a greedy generation, and its text."""
    done = _run(
        "llama-completion", "-m", str(model), "-p", prompt, "-n", str(n_gen), "--temp", "0", "-no-cnv",
        "--no-display-prompt", "-t", str(threads), "-c", str(n_ctx), "--perf",
    )  # fmt: skip
    return rate_of_total(done.stderr), done.stdout


def perplexity(model: Path, text: Path, *, threads: int, n_ctx: int) -> tuple[float, float]:
    """Tokens per second of llama-perplexity, from the times in its log: without loading and tokenizing; its result."""
    # Its log is written by another thread, and it may end before the last line is out: then it runs again.
    for _ in range(3):
        done = _run("llama-perplexity", "-m", str(model), "-f", str(text), "-t", str(threads), "-c", str(n_ctx))
        report = done.stdout + done.stderr
        if "Final estimate" in report:
            break
    stamp = r"(\d+)\.(\d+)\.(\d+)\.(\d+) I perplexity: "
    started = re.search(stamp + r"calculating perplexity over (\d+) chunks", report)
    ended = re.search(r"(\d+)\.(\d+)\.(\d+)\.(\d+) I Final estimate: PPL = ([\d.]+)", report)
    if started is None or ended is None:
        raise SystemExit(f"llama-perplexity reported no times or no result:\n{report}")
    seconds = _seconds(ended) - _seconds(started)
    return int(started[5]) * n_ctx / seconds, float(ended[5])


def _seconds(stamp: re.Match[str]) -> float:
    minutes, seconds, milliseconds, microseconds = (int(stamp[i]) for i in range(1, 5))
    return 60 * minutes + seconds + milliseconds / 1e3 + microseconds / 1e6


def rate_of_total(report: str) -> float:
    """Tokens per second from "eval time" plus "sampling time": what a generated token costs in all."""
    evaluated = re.search(r"\beval time =\s*([\d.]+) ms /\s*(\d+) runs", report)
    if evaluated is None:
        raise SystemExit(f"llama-completion reported no eval time:\n{report}")
    return 1000 * int(evaluated[2]) / float(evaluated[1])

"""Tokens per second with guesses and without, of a text that repeats its prompt and of one that does not.

    python -m benchmarks.speculation --threads 2 --pairs 5
    python -m benchmarks.speculation --server build/cmake-native/bin/llama-server

Runs with and without are made in turn, A B A B. With `--server` llama.cpp's server does the same work with the same
settings; build it with `cmake --build build/cmake-native --target llama-server`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyllm import Llama, hub
from pyllm.speculation import SpeculationParams

CODE = """def add(a, b):
    return a + b


def subtract(a, b):
    return a - b


def multiply(a, b):
    return a * b
"""
PROMPTS = {
    "code again": f"{CODE}\n\n{CODE}\n\n{CODE[:20]}",
    "a story": "<|im_start|>user\nTell a story about a fox.<|im_end|>\n<|im_start|>assistant\n",
}
NGRAM_SIZE, N_MAX = 3, 16
WAYS = {
    "adaptive": SpeculationParams(types="ngram-simple", ngram_size=NGRAM_SIZE, n_max=N_MAX),
    "always": SpeculationParams(types="ngram-simple", ngram_size=NGRAM_SIZE, n_max=N_MAX, adaptive=False),
}


def measure(llm: Llama, args: argparse.Namespace) -> None:
    """Print a row for each prompt and way."""
    print("| text | guesses | without, tokens/s | with, tokens/s | ratio (median) | accepted | paused | same text |")
    print("|---|---|---|---|---|---|---|---|")
    for name, prompt in PROMPTS.items():
        for way, speculative in WAYS.items():
            rates: tuple[list[float], list[float]] = ([], [])
            for i in range(args.pairs + 1):
                plain = llm(prompt, max_tokens=args.n_gen, temperature=0, speculative=False)
                drafted = llm(prompt, max_tokens=args.n_gen, temperature=0, speculative=speculative)
                if i > 0:  # the first pair warms up
                    rates[0].append(plain.timings.tokens_per_second)
                    rates[1].append(drafted.timings.tokens_per_second)
            report = drafted.speculation
            assert report is not None
            ratio = statistics.median(b / a for a, b in zip(*rates, strict=True))
            print(
                f"| {name} | {way} | {statistics.median(rates[0]):.1f} | {statistics.median(rates[1]):.1f} "
                f"| **{ratio:.2f}** | {report.accepted} of {report.drafted} | {report.paused} "
                f"| {drafted.text == plain.text} |",
                flush=True,
            )


def measure_server(args: argparse.Namespace, model: Path) -> None:
    """The same with llama.cpp's server, which knows no adapting."""
    drafting = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", str(NGRAM_SIZE)]
    drafting += ["--spec-ngram-simple-size-m", str(N_MAX)]
    print("\n| text | llama-server without, tokens/s | with, tokens/s | ratio (median) |\n|---|---|---|---|")
    with _server(args, model, [], 8091) as plain, _server(args, model, drafting, 8092) as drafted:
        for name, prompt in PROMPTS.items():
            pairs = [(_ask(plain, prompt, args.n_gen), _ask(drafted, prompt, args.n_gen)) for _ in range(args.pairs)]
            rates = [statistics.median(pair[i] for pair in pairs) for i in range(2)]
            ratio = statistics.median(b / a for a, b in pairs)
            print(f"| {name} | {rates[0]:.1f} | {rates[1]:.1f} | **{ratio:.2f}** |", flush=True)


@contextmanager
def _server(args: argparse.Namespace, model: Path, more: list[str], port: int) -> Iterator[str]:
    command = [args.server, "-m", str(model), "-t", str(args.threads), "-c", str(args.n_ctx), "--parallel", "1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/completion"
    finally:
        process.terminate()
        process.wait()


def _ask(url: str, prompt: str, n_gen: int) -> float:
    body = {"prompt": prompt, "n_predict": n_gen, "temperature": 0, "cache_prompt": False}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        return float(json.load(response)["timings"]["predicted_per_second"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n-ctx", type=int, default=1024)
    parser.add_argument("--n-gen", type=int, default=160)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--server")
    args = parser.parse_args()
    with Llama(args.model, n_ctx=args.n_ctx, n_threads=args.threads) as llm:
        measure(llm, args)
    if args.server:
        measure_server(args, Path(hub.resolve(args.model)))


if __name__ == "__main__":
    main()

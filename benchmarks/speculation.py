"""Tokens per second with guesses and without, of a text that repeats its prompt and of one that does not.

    python -m benchmarks.speculation --threads 2 --pairs 5
    python -m benchmarks.speculation --server build/cmake-native/bin/llama-server

Runs with and without are made in turn, A B A B: of a Llama, of an engine with one client, and of an engine with several
at once, where it should make no guesses. With `--server` llama.cpp's server does the same work with the same settings;
build it with `cmake --build build/cmake-native --target llama-server`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyllm import Llama, hub
from pyllm.engine import Engine
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
PARTS = ("llama", "engine", "clients")
NGRAM_SIZE, N_MAX = 3, 16
WAYS = {
    "adaptive": SpeculationParams(types="ngram-simple", ngram_size=NGRAM_SIZE, n_max=N_MAX),
    "always": SpeculationParams(types="ngram-simple", ngram_size=NGRAM_SIZE, n_max=N_MAX, adaptive=False),
}


def measure(llm: Llama, args: argparse.Namespace) -> None:
    """Print a row for each prompt and way."""
    print("| text | guesses | without, tokens/s | with, tokens/s | ratio (median) | accepted | paused | same text |")
    print("|---|---|---|---|---|---|---|---|")
    for name, prompt in _texts(args):
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


def measure_engine(engine: Engine, args: argparse.Namespace) -> None:
    """The same in an engine, for one client."""
    print("\n| text | guesses | engine without, tokens/s | with, tokens/s | ratio (median) | accepted | paused |")
    print("|---|---|---|---|---|---|---|")
    for name, prompt in _texts(args):
        for way, speculative in WAYS.items():
            pairs = []
            for _ in range(args.pairs + 1):
                plain = engine.complete(prompt, speculative=False, **_arguments(engine, args))
                drafted = engine.complete(prompt, speculative=speculative, **_arguments(engine, args))
                pairs.append((plain.timings.tokens_per_second, drafted.timings.tokens_per_second))
            report = drafted.speculation
            assert report is not None
            without, with_, ratio = _medians(pairs[1:])
            print(
                f"| {name} | {way} | {without:.1f} | {with_:.1f} | **{ratio:.2f}** "
                f"| {report.accepted} of {report.drafted} | {report.paused} |",
                flush=True,
            )


def measure_clients(engine: Engine, args: argparse.Namespace) -> None:
    """Several clients of an engine at once: all together, with the time that the last one took."""
    print(f"\n| {args.clients} clients at once | without, tokens/s | with, tokens/s | ratio (median) | guessed |")
    print("|---|---|---|---|---|")
    for name, prompt in _texts(args):
        prompts = [f"{i}. {prompt}" for i in range(args.clients)]
        pairs, n_drafted = [], 0
        for _ in range(args.pairs + 1):
            rates = []
            for speculative in (False, WAYS["adaptive"]):
                before = engine.metrics().n_drafted_tokens
                started = time.perf_counter()
                found = engine.generate(prompts, speculative=speculative, **_arguments(engine, args))
                rates.append(sum(len(one.tokens) for one in found) / (time.perf_counter() - started))
                n_drafted = engine.metrics().n_drafted_tokens - before
            pairs.append((rates[0], rates[1]))
        without, with_, ratio = _medians(pairs[1:])
        print(f"| {name} | {without:.1f} | {with_:.1f} | **{ratio:.2f}** | {n_drafted} |", flush=True)


def measure_server(args: argparse.Namespace, model: Path) -> None:
    """The same with llama.cpp's server, which knows no adapting and does not yield."""
    drafting = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", str(NGRAM_SIZE)]
    drafting += ["--spec-ngram-simple-size-m", str(N_MAX)]
    print("\n| text | clients | llama-server without, tokens/s | with, tokens/s | ratio (median) |")
    print("|---|---|---|---|---|")
    with _server(args, model, [], 8091) as plain, _server(args, model, drafting, 8092) as drafted:
        for name, prompt in _texts(args):
            pairs = [tuple(_ask(url, prompt, args.n_gen) for url in (plain, drafted)) for _ in range(args.pairs + 1)]
            without, with_, ratio = _medians(pairs[1:])
            print(f"| {name} | 1 | {without:.1f} | {with_:.1f} | **{ratio:.2f}** |", flush=True)
            prompts = [f"{i}. {prompt}" for i in range(args.clients)]
            pairs = [tuple(_ask_all(url, prompts, args) for url in (plain, drafted)) for _ in range(args.pairs + 1)]
            without, with_, ratio = _medians(pairs[1:])
            print(f"| {name} | {args.clients} | {without:.1f} | {with_:.1f} | **{ratio:.2f}** |", flush=True)


def _texts(args: argparse.Namespace) -> list[tuple[str, str]]:
    return [(name, PROMPTS[name]) for name in args.texts]


def _arguments(engine: Engine, args: argparse.Namespace) -> dict[str, Any]:
    forbidden = dict.fromkeys(engine.vocab.eog_tokens, -math.inf)
    return {"max_tokens": args.n_gen, "temperature": 0, "cache_prompt": False, "logit_bias": forbidden}


def _medians(pairs: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Of the first ones, of the second ones, and of their ratios."""
    first, second = zip(*pairs, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(b / a for a, b in pairs)


@contextmanager
def _server(args: argparse.Namespace, model: Path, more: list[str], port: int) -> Iterator[str]:
    sizes = ["-c", str(args.n_ctx * args.clients), "--parallel", str(args.clients), "--kv-unified"]
    command = [args.server, "-m", str(model), "-t", str(args.threads), *sizes]
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
    """Tokens per second of one request."""
    return float(_post(url, prompt, n_gen)["timings"]["predicted_per_second"])


def _ask_all(url: str, prompts: list[str], args: argparse.Namespace) -> float:
    """Tokens per second of several requests at once."""
    started = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(lambda prompt: _post(url, prompt, args.n_gen), prompts))
    return sum(int(one["timings"]["predicted_n"]) for one in found) / (time.perf_counter() - started)


def _post(url: str, prompt: str, n_gen: int) -> Any:
    body = {"prompt": prompt, "n_predict": n_gen, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n-ctx", type=int, default=1024)
    parser.add_argument("--n-gen", type=int, default=160)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--texts", nargs="+", choices=PROMPTS, default=list(PROMPTS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--server")
    args = parser.parse_args()
    if "llama" in args.parts:
        with Llama(args.model, n_ctx=args.n_ctx, n_threads=args.threads) as llm:
            measure(llm, args)
    sizes = {"n_ctx": args.n_ctx * args.clients, "n_parallel": args.clients, "n_threads": args.threads}
    with Engine(args.model, **sizes) as engine:
        if "engine" in args.parts:
            measure_engine(engine, args)
        if "clients" in args.parts:
            measure_clients(engine, args)
    if args.server:
        measure_server(args, Path(hub.resolve(args.model)))


if __name__ == "__main__":
    main()

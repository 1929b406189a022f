"""The engine beside llama-server: the same prompts, slots, context and threads, in turn.

    make tools
    python -m benchmarks.engine --clients 1,8,32 --pairs 5
    python -m benchmarks.engine --clients 32 --shared-words 800 --pairs 1

The engine is used in its own process, without HTTP; the clients of llama-server are threads of this program. Both
generate exactly as many tokens, greedily. Prompts are random words, all different, behind a beginning that all share.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np

from benchmarks.harness import WORDS
from benchmarks.upstream import BIN
from pyllm import hub
from pyllm.cpus import usable_cpus
from pyllm.engine import Engine

PORT = 8899
URL = f"http://127.0.0.1:{PORT}"


def prompts(n: int, shared_words: int, seed: int) -> list[str]:
    """A prompt for each client."""
    chooser, of_shared = random.Random(seed), random.Random("shared")
    shared = [of_shared.choice(WORDS) for _ in range(shared_words)]
    return [" ".join([*shared, *(chooser.choice(WORDS) for _ in range(12))]) for _ in range(n)]


def of_engine(texts: list[str], n_ctx: int, n_gen: int, threads: int, processor: bool) -> float:
    """Tokens per second of the engine."""

    def identity(ids: np.ndarray, logits: np.ndarray) -> None:
        return None

    with Engine(hub.DEFAULT_MODEL, n_parallel=len(texts), n_ctx=n_ctx, n_threads=threads) as engine:
        forbidden = dict.fromkeys(engine.vocab.eog_tokens, -np.inf)
        engine.complete("hello", max_tokens=2)
        started = time.perf_counter()
        found = engine.generate(
            texts,
            max_tokens=n_gen,
            temperature=0,
            logit_bias=forbidden,
            logits_processor=identity if processor else None,
        )
        return sum(len(completion.tokens) for completion in found) / (time.perf_counter() - started)


@contextlib.contextmanager
def server(n_parallel: int, n_ctx: int, threads: int) -> Iterator[None]:
    """llama-server, ready and warm."""
    sizes = ["-np", str(n_parallel), "-c", str(n_ctx), "-t", str(threads), "--kv-unified"]
    command = [str(BIN / "llama-server"), "-m", str(hub.resolve(hub.DEFAULT_MODEL)), *sizes, "--port", str(PORT)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{URL}/health").close()
                break
            time.sleep(0.1)
        ask("hello", 2)
        yield
    finally:
        process.terminate()
        process.wait()


def ask(prompt: str, n_gen: int) -> int:
    """One request of llama-server; how many tokens it generated."""
    body = {"prompt": prompt, "n_predict": n_gen, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{URL}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=1200) as answer:
        return int(json.load(answer)["tokens_predicted"])


def of_server(texts: list[str], n_gen: int) -> float:
    """Tokens per second of llama-server, with a client for each prompt."""
    counts = [0] * len(texts)

    def client(i: int) -> None:
        counts[i] = ask(texts[i], n_gen)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(len(texts))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--shared-words", type=int, default=0)
    parser.add_argument("--n-gen", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--processor", action="store_true", help="a Python processor on every request of the engine")
    args = parser.parse_args()
    print("| clients | engine, tokens/s | llama-server, tokens/s | ratio (median) | range |\n|---|---|---|---|---|")
    for n in map(int, args.clients.split(",")):
        n_ctx = n * (2 * args.shared_words + 128)
        ours, theirs = [], []
        for seed in range(args.pairs):
            texts = prompts(n, args.shared_words, seed)
            ours.append(of_engine(texts, n_ctx, args.n_gen, args.threads, args.processor))
            with server(n, n_ctx, args.threads):
                theirs.append(of_server(texts, args.n_gen))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(
            f"| {n} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} | "
            f"**{statistics.median(ratios):.2f}** | {min(ratios):.2f} – {max(ratios):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

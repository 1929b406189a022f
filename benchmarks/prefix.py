"""Time to the first token after a long prompt, when most of it was computed before.

    python -m benchmarks.workloads prefix --model FILE --threads 2 --n-prompt 2000 --n-ctx 4096

Cold and warm calls in turn, A B A B: each prompt is the same document with another question behind it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from pyllm import Llama

_GREEDY = {"max_tokens": 1, "temperature": 0}


def prefix(args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds to the first token, cold and warm, and warm / cold."""
    results: dict[str, float] = {}
    with Llama(args.model, n_ctx=args.n_ctx, n_threads=args.threads) as llm:
        documents = [_document(llm, args.n_prompt, seed) for seed in range(2)]
        count = iter(range(10**6))

        def question() -> list[int]:
            return llm.tokenize(f"\nQuestion {next(count)}: what is this about?", add_special=False)

        def cold() -> float:
            return _ms(lambda: llm([*documents[0], *question()], cache_prompt=False, **_GREEDY))

        def warm() -> float:
            return _ms(lambda: llm([*documents[0], *question()], cache_prompt=True, **_GREEDY))

        cold()
        pairs = [(cold(), warm()) for _ in range(args.repetitions)]
        results |= _row("shared prefix", pairs)

        # Two conversations in turn, each with a document of its own: one is put away while the other speaks.
        talks = [llm.conversation(f"conversation {i}") for i in range(2)]
        for talk, document in zip(talks, documents, strict=True):
            talk.complete(document, **_GREEDY)
        pairs = []
        for i in range(args.repetitions):
            before = cold()
            talk = talks[i % 2]
            pairs.append((before, _ms(lambda talk=talk: talk.complete(question(), **_GREEDY))))
        results |= _row("conversations in turn", pairs)
    return results


def _document(llm: Llama, n: int, seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    return [int(token) for token in generator.integers(1000, min(20_000, len(llm.vocab)), n)]


def _ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def _row(name: str, pairs: list[tuple[float, float]]) -> dict[str, float]:
    return {
        f"{name}: cold (ms)": statistics.median(a for a, _ in pairs),
        f"{name}: warm (ms)": statistics.median(b for _, b in pairs),
        f"{name}: warm / cold (%)": 100 * statistics.median(b / a for a, b in pairs),
    }

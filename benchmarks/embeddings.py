"""Texts a second: Llama.embed in batches, beside a hand-written loop over the core and beside one text at a time.

    python -m benchmarks.embeddings --model minilm --threads 2

The three in turn, median of the rounds; ratios mean more than rates.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import numpy as np

from pyllm import Batch, Context, Llama, Model, hub

WORDS = ("river", "stone", "and", "the", "of", "under", "mill", "light", "to", "in", "is", "not", "winter", "hand")


def made_up(n: int, shortest: int, longest: int) -> list[str]:
    """Texts of random words."""
    chooser = random.Random(0)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(shortest, longest))) for _ in range(n)]


def by_hand(model: Model, threads: int, texts: list[str]) -> Callable[[], np.ndarray]:
    """What one would write with Context and Batch: the same packs, pooled and normalised."""
    context = Context(
        model, n_ctx=512, n_batch=512, n_ubatch=512, n_seq_max=64, n_threads=threads, kv_unified=True,
        embeddings=True, pooling_type="mean",
    )  # fmt: skip

    def run() -> np.ndarray:
        rows: list[np.ndarray] = []
        batch, n_seq = Batch(512), 0

        def flush() -> None:
            context.decode(batch)
            rows.extend(context.embeddings_seq(i) for i in range(n_seq))

        for text in texts:
            tokens = model.vocab.tokenize_array(text)
            if len(batch) + len(tokens) > 512 or n_seq == 64:
                flush()
                n_seq = 0
                batch.clear()
            if n_seq == 0 and context.has_memory:
                context.memory.clear(data=False)
            batch.add_sequence(tokens, seq_id=n_seq, outputs="all")
            n_seq += 1
        flush()
        vectors = np.stack(rows)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--words", type=int, nargs=2, default=(5, 60))
    parser.add_argument("--n-batch", type=int, default=None)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    texts = made_up(args.texts, *args.words)

    with Llama(hub.resolve(args.model), n_threads=args.threads, n_batch=args.n_batch) as llm:
        hand = by_hand(llm.model, args.threads, texts)
        ways: dict[str, Callable[[], np.ndarray]] = {
            "Llama.embed": lambda: llm.embed(texts, pooling="mean"),
            "a loop over the core": hand,
            "one text at a time": lambda: np.stack([llm.embed(text, pooling="mean") for text in texts]),
        }
        expected = hand()
        for name, way in ways.items():
            if (cosines := (way() * expected).sum(axis=1)).min() < 0.999:
                raise SystemExit(f"{name}: the vectors differ, the smallest cosine is {cosines.min()}")
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repetitions):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - started)

    print("| way | texts/s | ratio to the loop |\n|---|---|---|")
    for name, values in times.items():
        ratios = [b / a for a, b in zip(values, times["a loop over the core"], strict=True)]
        print(f"| {name} | {len(texts) / statistics.median(values):.1f} | {statistics.median(ratios):.2f} |")


if __name__ == "__main__":
    main()

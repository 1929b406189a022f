"""What a logits processor adds to a token, through Llama, and what bitmasks cost beside llguidance's own."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pyllm import Llama
from pyllm.core import kernels

K = 40


def identity(ids: np.ndarray, logits: np.ndarray) -> None:
    """Do nothing."""


def temperature(ids: np.ndarray, logits: np.ndarray) -> None:
    """Divide by 0.8."""
    logits /= 0.8


def numpy_top_k(ids: np.ndarray, logits: np.ndarray) -> None:
    """Keep the largest ones, as one writes it in NumPy."""
    logits[logits < np.partition(logits, -K)[-K]] = -np.inf


def our_top_k(ids: np.ndarray, logits: np.ndarray) -> None:
    """The same with our own helper."""
    kernels.keep_top_k(logits, K)


PROCESSORS = {
    "identity": identity,
    "temperature in NumPy": temperature,
    "top-k in NumPy": numpy_top_k,
    "keep_top_k": our_top_k,
}


def processors(args: argparse.Namespace) -> dict[str, float]:
    """Microseconds a token, on a model that is nearly nothing but its vocabulary.

    The difference to a stream without a processor: both are loops in Python, in turn, the median of the rounds.
    """
    sys.path.insert(0, "tests")
    from support import models

    with tempfile.TemporaryDirectory() as folder:
        path = models.write(Path(folder) / "tiny.gguf", n_layer=1, n_embd=32, vocab_size=args.n_vocab)
        with Llama(str(path), n_ctx=512, n_threads=args.threads) as llm:
            eog = dict.fromkeys(llm.vocab.eog_tokens, -np.inf)
            n = 256

            def once(processor: Callable[..., None] | None) -> float:
                started = time.perf_counter()
                for _ in llm.generate(
                    [1, 5, 9], max_tokens=n, temperature=0, logit_bias=eog, logits_processor=processor
                ):
                    pass
                return 1e6 * (time.perf_counter() - started) / n

            once(None)
            rounds = []
            for _ in range(args.repetitions):
                plain = once(None)
                rounds.append([once(processor) - plain for processor in PROCESSORS.values()])
    result = dict(zip(PROCESSORS, map(statistics.median, zip(*rounds, strict=True)), strict=True))
    return result | bitmasks(128256, args.repetitions)


def bitmasks(n_vocab: int, repetitions: int) -> dict[str, float]:
    """Microseconds of one mask on one row, ours and llguidance's, for masks that allow few, half and most."""
    try:
        from llguidance.numpy import apply_token_bitmask_inplace
    except ImportError:
        apply_token_bitmask_inplace = None
    generator = np.random.default_rng(0)
    row = generator.normal(0, 4, (1, n_vocab)).astype(np.float32)
    result = {}
    for allowed in (0.001, 0.5, 0.999):
        bits = generator.random((n_vocab // 32, 32)) < allowed
        mask = np.packbits(bits, axis=1, bitorder="little").view(np.int32).reshape(1, -1).copy()
        for name, apply in {"ours": kernels.apply_token_bitmask, "llguidance": apply_token_bitmask_inplace}.items():
            times = []
            for _ in range(10 * repetitions if apply is not None else 0):
                work = row.copy()
                started = time.perf_counter()
                apply(work, mask)
                times.append(1e6 * (time.perf_counter() - started))
            if times:
                result[f"bitmask that allows {100 * allowed:g} %, {name}"] = statistics.median(times)
    return result


__all__ = ["processors"]

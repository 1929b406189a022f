"""The same work as llama.cpp's programs do, through pyllm; each in a process of its own.

    python -m benchmarks.workloads tg --model FILE --threads 2

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.grammar import grammar_costs, grammar_text
from benchmarks.prefix import prefix
from benchmarks.processors import processors
from pyllm import Batch, Chain, Context, Generation, Llama, Model
from pyllm.core.samplers import Greedy


def prompt_processing(args: argparse.Namespace) -> dict[str, float]:
    """As `llama-bench -p`: one batch of random tokens."""
    model = Model(args.model)
    context = Context(model, n_ctx=args.n_prompt, n_threads=args.threads, n_batch=2048, n_ubatch=512)
    generator = np.random.default_rng(0)

    def once() -> None:
        context.memory.clear(data=False)
        tokens = generator.integers(0, model.n_vocab, args.n_prompt, dtype=np.int32)
        context.decode(Batch.from_arrays(tokens))
        context.synchronize()

    return {"rate": args.n_prompt / median_time(once, args.repetitions)}


def token_generation(args: argparse.Namespace) -> dict[str, float]:
    """As `llama-bench -n`: one random token after the other, nothing sampled; the loop is Python."""
    model = Model(args.model)
    context = Context(model, n_ctx=args.n_gen, n_threads=args.threads)
    generator = np.random.default_rng(0)
    batch = Batch(1)

    def once() -> None:
        context.memory.clear(data=False)
        tokens = generator.integers(0, model.n_vocab, args.n_gen).tolist()
        for pos, token in enumerate(tokens):
            batch.clear().add(token, pos, output=True)
            context.decode(batch)
            context.synchronize()

    return {"rate": args.n_gen / median_time(once, args.repetitions)}


def batched(args: argparse.Namespace) -> dict[str, float]:
    """As `llama-batched-bench`: a token of each of n sequences in every decode."""
    model = Model(args.model)
    n, n_prompt = args.n_parallel, args.n_prompt
    context = Context(
        model, n_ctx=n * (n_prompt + args.n_gen), n_seq_max=n, n_threads=args.threads, n_batch=2048, n_ubatch=512
    )
    generator = np.random.default_rng(0)
    sequences = np.arange(n, dtype=np.int32)

    def prefill() -> None:
        context.memory.clear(data=False)
        for i in range(n):
            tokens = generator.integers(0, model.n_vocab, n_prompt, dtype=np.int32)
            context.decode(Batch.from_arrays(tokens, seq_ids=i, outputs="last"))
        context.synchronize()

    times = []
    for i in range(args.repetitions + 1):
        prefill()
        started = time.perf_counter()
        for pos in range(n_prompt, n_prompt + args.n_gen):
            tokens = generator.integers(0, model.n_vocab, n, dtype=np.int32)
            context.decode(Batch.from_arrays(tokens, pos=np.full(n, pos, np.int32), seq_ids=sequences, outputs="all"))
            context.synchronize()
        if i > 0:
            times.append(time.perf_counter() - started)
    return {"rate": n * args.n_gen / statistics.median(times)}


def perplexity_of_a_text(args: argparse.Namespace) -> dict[str, float]:
    """As `llama-perplexity`: all windows and the sums; model, context and tokens are ready before."""
    from pathlib import Path

    from pyllm.eval import perplexity

    text = Path(args.text).read_text(encoding="utf-8").removesuffix("\n")
    model = Model(args.model)
    n_seq = max(1, 2048 // args.n_ctx)
    context = Context(
        model, n_ctx=n_seq * args.n_ctx, n_seq_max=n_seq, n_batch=n_seq * args.n_ctx, n_threads=args.threads
    )
    context.decode(Batch.from_arrays([0, 0]))  # llama-perplexity warms up like this
    context.synchronize()
    tokens = model.vocab.tokenize_array(text)
    started = time.perf_counter()
    result = perplexity(context, tokens, n_ctx=args.n_ctx)
    seconds = time.perf_counter() - started
    return {"rate": result.n_chunks * args.n_ctx / seconds, "ppl": result.ppl}


def greedy_text(args: argparse.Namespace) -> dict[str, float]:
    """As `llama-completion --temp 0`: tokens, text and all, in one call."""
    llm = Llama(args.model, n_ctx=args.n_ctx, n_threads=args.threads)
    llm(args.prompt, max_tokens=4, temperature=0)
    completion = llm(args.prompt, max_tokens=args.n_gen, temperature=0)
    # The first token needs no decode of its own, and llama-completion does not count it either.
    n = completion.usage.completion_tokens - 1
    return {"rate": 1000 * n / completion.timings.generation_ms, "text": completion.text}  # type: ignore[dict-item]


def costs(args: argparse.Namespace) -> dict[str, float]:
    """Microseconds a token for what Python adds, on a model that is nearly nothing but its vocabulary.

    A token of a big model takes milliseconds, in which these costs drown; here they stand out.
    """
    sys.path.insert(0, "tests")
    import tempfile
    from pathlib import Path

    from support import models

    with tempfile.TemporaryDirectory() as folder:
        path = models.write(Path(folder) / "tiny.gguf", n_layer=1, n_embd=32, vocab_size=args.n_vocab)
        llm = Llama(str(path), n_ctx=512, n_threads=args.threads)
        eog = dict.fromkeys(llm.vocab.eog_tokens, -np.inf)
        n = 256

        def identity(ids: np.ndarray, logits: np.ndarray) -> None:
            return None

        def plain() -> float:
            return llm([1, 5, 9], max_tokens=n, temperature=0, logit_bias=eog).timings.generation_ms

        def processed() -> float:
            return llm(
                [1, 5, 9], max_tokens=n, temperature=0, logit_bias=eog, logits_processor=identity
            ).timings.generation_ms

        def streamed() -> float:
            started = time.perf_counter()
            for _ in llm.stream([1, 5, 9], max_tokens=n, temperature=0, logit_bias=eog):
                pass
            return 1000 * (time.perf_counter() - started)

        def stepped() -> float:
            generation = Generation(llm.context, Chain(Greedy()))
            llm.context.memory.clear(data=False)
            generation = Generation(llm.context, Chain(Greedy()))
            generation.prefill([1, 5, 9])
            started = time.perf_counter()
            for _ in range(n):
                generation.step()
            return 1000 * (time.perf_counter() - started)

        plain()
        rounds = [(plain(), processed(), streamed(), stepped()) for _ in range(args.repetitions)]
        row_us = _time_of(lambda: identity(np.empty(0), llm.context.logits[-1]))
        return {
            "plain token of the tiny model": 1000 * statistics.median(r[0] for r in rounds) / n,
            "identity processor": 1000 * statistics.median(r[1] - r[0] for r in rounds) / n,
            "stream consumer": 1000 * statistics.median(r[2] - r[0] for r in rounds) / n,
            "ctx.logits[-1] and a call": row_us,
        }


def median_time(once: Callable[[], None], repetitions: int) -> float:
    """Seconds of one call: the median, after one that does not count."""
    once()
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        once()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _time_of(call: Callable[[], object], n: int = 5000) -> float:
    started = time.perf_counter()
    for _ in range(n):
        call()
    return 1e6 * (time.perf_counter() - started) / n


WORKLOADS = {
    "pp": prompt_processing,
    "tg": token_generation,
    "batched": batched,
    "text": greedy_text,
    "perplexity": perplexity_of_a_text,
    "grammar": grammar_text,
    "grammar-costs": grammar_costs,
    "costs": costs,
    "processors": processors,
    "prefix": prefix,
}


def main() -> None:
    """Run the workload that was named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--n-prompt", type=int, default=512)
    parser.add_argument("--n-gen", type=int, default=128)
    parser.add_argument("--n-parallel", type=int, default=8)
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--n-vocab", type=int, default=49152)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--text", help="a file, for perplexity")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(WORKLOADS[args.workload](args)))


if __name__ == "__main__":
    main()

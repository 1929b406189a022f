"""JSON by a grammar: beside llama-completion with the same one, and beside no grammar at all."""

from __future__ import annotations

import argparse
import re
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks import upstream
from pyllm import Llama, SamplingParams
from pyllm.core.constrained import Constrained
from pyllm.sampling import build_chain
from pyllm.structured import Grammar, grammar_of

PROMPT = "<|im_start|>user\nDescribe five people as JSON.<|im_end|>\n<|im_start|>assistant\n"
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "city": {"type": "string"},
            "likes": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        },
        "required": ["name", "age", "city", "likes"],
    },
    "minItems": 5,
    "maxItems": 5,
}


def grammar() -> Grammar:
    """The grammar of the benchmark."""
    found = grammar_of(json_schema=SCHEMA)
    assert found is not None
    return found


def grammar_text(args: argparse.Namespace) -> dict[str, float]:
    """As `llama-completion --grammar-file --temp 0`."""
    llm = Llama(args.model, n_ctx=args.n_ctx, n_threads=args.threads)
    llm(PROMPT, max_tokens=4, temperature=0, grammar=grammar())
    completion = llm(PROMPT, max_tokens=args.n_gen, temperature=0, grammar=grammar())
    n = completion.usage.completion_tokens - 1
    return {"rate": 1000 * n / completion.timings.generation_ms, "text": completion.text}  # type: ignore[dict-item]


def their_grammar_text(model: Path, file: Path, *, n_gen: int, threads: int, n_ctx: int) -> tuple[float, str]:
    """Tokens per second of llama-completion, evaluation and sampling together, and its text."""
    done = upstream._run(
        "llama-completion", "-m", str(model), "-p", PROMPT, "-n", str(n_gen), "--temp", "0", "-no-cnv",
        "--no-display-prompt", "-t", str(threads), "-c", str(n_ctx), "--perf", "--grammar-file", str(file),
    )  # fmt: skip
    report = done.stdout + done.stderr
    evaluated = re.search(r"\beval time =\s*([\d.]+) ms /\s*(\d+) runs", report)
    sampled = re.search(r"\bsampling time =\s*([\d.]+) ms", report)
    if evaluated is None or sampled is None:
        raise SystemExit(f"llama-completion reported no times:\n{report}")
    return 1000 * int(evaluated[2]) / (float(evaluated[1]) + float(sampled[1])), done.stdout


def grammar_costs(args: argparse.Namespace) -> dict[str, float]:
    """What a grammar adds: the ratio of times with and without one, and milliseconds of single choices."""
    llm = Llama(args.model, n_ctx=args.n_ctx, n_threads=args.threads)
    never = dict.fromkeys(llm.vocab.eog_tokens, float("-inf"))

    def ms_of_a_token(**arguments: object) -> float:
        completion = llm(PROMPT, max_tokens=args.n_gen, temperature=0, **arguments)  # type: ignore[call-overload]
        return float(completion.timings.generation_ms / completion.usage.completion_tokens)

    free, held = [], []
    for _ in range(args.repetitions):
        free.append(ms_of_a_token(logit_bias=never))
        held.append(ms_of_a_token(grammar=grammar()))
    first = build_chain(SamplingParams(grammar=grammar()), llm.vocab, 1)
    assert isinstance(first[0], Constrained)
    without = build_chain(SamplingParams(), llm.vocab, 1)
    row = np.random.default_rng(0).normal(0, 3, len(llm.vocab)).astype(np.float32)
    return {
        "grammar: time of a token, with / without": statistics.median(a / b for a, b in zip(held, free, strict=True)),
        "grammar: a first JSON token that does not fit (ms)": _ms(lambda: first.apply(row)),
        "grammar: the same choice without one (ms)": _ms(lambda: without.apply(row)),
        "grammar: made of the schema (ms)": _ms(grammar),
    }


def _ms(call: object, n: int = 50) -> float:
    times = []
    for _ in range(n):
        started = time.perf_counter()
        call()  # type: ignore[operator]
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)

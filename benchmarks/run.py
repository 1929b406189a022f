"""All benchmarks: the tables on stdout, everything measured as JSON.

make bench
python -m benchmarks.run --pairs 9 --only tg,text
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import upstream
from benchmarks.grammar import grammar, their_grammar_text
from benchmarks.harness import HEADER, ROOT, WORDS, Comparison, child, compare, save
from benchmarks.overhead import overhead
from pyllm import hub
from pyllm.cpus import usable_cpus

PROMPT = "The history of the steam engine begins with"


def comparisons(model: Path, threads: int, pairs: int, only: set[str], repetitions: int) -> list[Comparison]:
    """The workloads that have a counterpart among llama.cpp's programs."""
    common = ("--model", str(model), "--threads", str(threads), "--repetitions", str(repetitions))
    texts: dict[str, str] = {}

    def our_text() -> float:
        result = child("text", *common, "--prompt", PROMPT)
        texts["ours"] = str(result["text"])
        return result["rate"]

    def their_text() -> float:
        rate, texts["theirs"] = upstream.completion(model, PROMPT, n_gen=128, threads=threads, n_ctx=512)
        return rate

    found = []
    if "pp" in only:
        found.append(
            compare(
                "prompt 512", "tokens/s", "llama-bench",
                lambda: child("pp", *common)["rate"],
                lambda: upstream.llama_bench(model, n_prompt=512, n_gen=0, threads=threads, repetitions=repetitions),
                pairs=pairs,
            )
        )  # fmt: skip
    if "tg" in only:
        found.append(
            compare(
                "decode loop 128", "tokens/s", "llama-bench",
                lambda: child("tg", *common)["rate"],
                lambda: upstream.llama_bench(model, n_prompt=0, n_gen=128, threads=threads, repetitions=repetitions),
                pairs=pairs,
            )
        )  # fmt: skip
    if "batched" in only:
        found.append(
            compare(
                "8 sequences, 64 tokens each", "tokens/s", "llama-batched-bench",
                lambda: child("batched", *common, "--n-prompt", "32", "--n-gen", "64")["rate"],
                lambda: upstream.batched_bench(model, n_prompt=32, n_gen=64, n_parallel=8, threads=threads),
                pairs=pairs,
            )
        )  # fmt: skip
    if "perplexity" in only:
        found.append(perplexity(model, threads, pairs, common))
    if "text" in only:
        found.append(compare("greedy text 128", "tokens/s", "llama-completion", our_text, their_text, pairs=pairs))
        if texts["ours"].strip() != texts["theirs"].strip():
            raise SystemExit(
                f"the texts differ:\npyllm:            {texts['ours']!r}\nllama-completion: {texts['theirs']!r}"
            )
    if "grammar" in only:
        found.append(json_by_a_grammar(model, threads, pairs, common))
    return found


def json_by_a_grammar(model: Path, threads: int, pairs: int, common: tuple[str, ...]) -> Comparison:
    """A greedy text that a grammar holds to JSON; the texts must agree."""
    texts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "people.gbnf"
        file.write_text(grammar().text, encoding="utf-8")

        def ours() -> float:
            result = child("grammar", *common, "--n-ctx", "512", "--n-gen", "128")
            texts["ours"] = str(result["text"]).strip()
            return result["rate"]

        def theirs() -> float:
            rate, text = their_grammar_text(model, file, n_gen=128, threads=threads, n_ctx=512)
            texts["theirs"] = text.replace("[end of text]", "").strip()
            return rate

        found = compare("JSON by a grammar 128", "tokens/s", "llama-completion", ours, theirs, pairs=pairs)
    if texts["ours"] != texts["theirs"]:
        raise SystemExit(f"the texts differ: {texts}")
    return found


def perplexity(model: Path, threads: int, pairs: int, common: tuple[str, ...]) -> Comparison:
    """Perplexity of a text of random words; the results must agree."""
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        chooser = random.Random(0)
        text.write_text(" ".join(chooser.choice(WORDS) for _ in range(4150)), encoding="utf-8")

        def ours() -> float:
            result = child("perplexity", *common, "--text", str(text), "--n-ctx", "512")
            values["ours"] = result["ppl"]
            return result["rate"]

        def theirs() -> float:
            rate, values["theirs"] = upstream.perplexity(model, text, threads=threads, n_ctx=512)
            return rate

        found = compare("perplexity, windows of 512", "tokens/s", "llama-perplexity", ours, theirs, pairs=pairs)
    if abs(values["ours"] / values["theirs"] - 1) > 1e-4:
        raise SystemExit(f"the perplexities differ: {values}")
    return found


def import_times(rounds: int) -> dict[str, float]:
    """Milliseconds that imports add, each in fresh processes."""

    def once(code: str) -> float:
        program = f"import time; t = time.perf_counter(); {code}; print(1000 * (time.perf_counter() - t))"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
        return float(done.stdout)

    def median(code: str) -> float:
        return statistics.median(once(code) for _ in range(rounds))

    return {
        "import numpy": median("import numpy"),
        "import pyllm": median("import pyllm"),
        "from pyllm import Llama, NumPy's own import included": median("from pyllm import Llama"),
    }


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=hub.DEFAULT_MODEL)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--only", default="pp,tg,batched,text,perplexity,grammar,costs,overhead,processors,prefix,imports"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/local/latest.json")
    args = parser.parse_args()
    only = set(args.only.split(","))
    model = hub.resolve(args.model)

    found = comparisons(model, args.threads, args.pairs, only, args.repetitions)
    costs: dict[str, float] = {}
    if "costs" in only:
        costs |= {
            f"{name} (µs a token)": value
            for name, value in child("costs", "--threads", str(args.threads), "--repetitions", "9").items()
        }
    if "overhead" in only:
        costs |= {f"{name} (µs a token)": value for name, value in overhead(args.pairs).items()}
    if "processors" in only:
        costs |= {
            f"processor: {name} (µs a token)" if not name.startswith("bitmask") else f"{name} (µs a row)": value
            for name, value in child("processors", "--threads", "1", "--repetitions", "9").items()
        }
    if "prefix" in only:
        common = ("--model", str(model), "--threads", str(args.threads), "--repetitions", "5")
        costs |= child("prefix", *common, "--n-prompt", "2000", "--n-ctx", "4096")
    if "grammar" in only:
        common = ("--model", str(model), "--threads", str(args.threads), "--repetitions", str(args.pairs))
        costs |= child("grammar-costs", *common, "--n-ctx", "512", "--n-gen", "128")
    if "imports" in only:
        costs |= {f"{name} (ms)": value for name, value in import_times(11).items()}

    print(f"\n{model.name}, {args.threads} threads, pairs in turn\n")
    print(HEADER)
    for item in found:
        print(item.row())
    print("\n| cost | median |\n|---|---|")
    for name, value in costs.items():
        print(f"| {name} | {value:.1f} |")
    save(args.output, found, costs, {"model": model.name, "threads": args.threads, "pairs": args.pairs})
    print(f"\nsaved in {args.output}")


if __name__ == "__main__":
    main()

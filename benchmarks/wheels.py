"""pyllm's wheel beside the wheels of other bindings, as pip installs them: a prompt, and the text after it.

    python -m benchmarks.wheels dist/pyllm-*.whl [--pairs 5] [--threads 2] [--against xllamacpp cyllama native]

Each package has an environment of its own below build/bench-wheels. A measurement is a fresh process that loads the
model, warms up with the same prompt, and measures; the two packages of a pair run one after the other. "native" is this
checkout's own build.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness import HEADER, ROOT, WORDS, compare

ENVIRONMENTS = ROOT / "build/bench-wheels"
N_GENERATED = 128
# 512 tokens with smollm2's tokenizer, the same text for everybody.
PROMPT = " ".join(WORDS[i * i % len(WORDS)] for i in range(512))

PYLLM = """
import json, sys
from pyllm import Llama
model, threads, n, prompt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.stdin.read()
llm = Llama(model, n_ctx=1024, n_threads=threads, n_threads_batch=threads)
for _ in range(2):
    answer = llm(prompt, max_tokens=n, temperature=0, cache_prompt=False, logit_bias={llm.vocab.eos: -1e9})
assert answer.usage.completion_tokens == n
prompt_rate = 1000 * answer.usage.prompt_tokens / answer.timings.prompt_ms
print(json.dumps({"prompt": prompt_rate, "text": answer.timings.tokens_per_second}))
"""
XLLAMACPP = """
import json, sys
import xllamacpp
model, threads, n, prompt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.stdin.read()
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = model, 1024, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
request = {"prompt": prompt, "n_predict": n, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
for _ in range(2):
    timings = server.handle_completions(request)["timings"]
print(json.dumps({"prompt": timings["prompt_per_second"], "text": timings["predicted_per_second"]}))
"""
CYLLAMA = """
import json, sys, time
from cyllama import LLM, GenerationConfig
model, threads, n, prompt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.stdin.read()
config = GenerationConfig(max_tokens=n, temperature=0.0, n_ctx=1024)
llm = LLM(model, config=config)
n_prompt = len(llm.vocab.tokenize(prompt, add_special=True, parse_special=True))
llm._ensure_context(n_prompt, config).set_n_threads(threads, threads)
for _ in range(2):
    begin = time.perf_counter()
    times = [time.perf_counter() for _ in llm(prompt, config, stream=True)]
print(json.dumps({"prompt": n_prompt / (times[0] - begin), "text": (len(times) - 1) / (times[-1] - times[0])}))
"""
WORKERS = {"pyllm": PYLLM, "native": PYLLM, "xllamacpp": XLLAMACPP, "cyllama": CYLLAMA}


def interpreter(name: str, wheel: Path) -> Path:
    """The Python of an environment with the package."""
    if name == "native":
        return Path(sys.executable)
    folder = ENVIRONMENTS / name
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    wanted = [str(wheel), "--force-reinstall", "--no-deps"] if name == "pyllm" else [name]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "numpy", *wanted], check=True)
    return python


def measure(name: str, python: Path, model: Path, threads: int) -> dict[str, float]:
    """Tokens per second of the prompt and of the text, in a fresh process."""
    done = subprocess.run(
        [python, "-c", WORKERS[name], str(model), str(threads), str(N_GENERATED)],
        input=PROMPT,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT if name == "native" else ENVIRONMENTS,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed with status {done.returncode}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--against", nargs="+", default=["xllamacpp", "cyllama", "native"])
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()

    from pyllm import hub

    model = Path(hub.resolve("smollm2"))
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    pythons = {name: interpreter(name, arguments.wheel.resolve()) for name in ("pyllm", *arguments.against)}
    results = []
    for name in arguments.against:
        figures: dict[str, list[dict[str, float]]] = {"pyllm": [], name: []}

        def run(which: str, figures: dict[str, list[dict[str, float]]] = figures) -> float:
            figures[which].append(measure(which, pythons[which], model, arguments.threads))
            return figures[which][-1]["text"]

        text = compare("text", "tokens/s", name, lambda: run("pyllm"), lambda: run(name), pairs=arguments.pairs)  # noqa: B023
        # The same processes have measured the prompt.
        prompt = type(text)("prompt of 512 tokens", "tokens/s", name)
        prompt.ours = [figure["prompt"] for figure in figures["pyllm"]]
        prompt.theirs = [figure["prompt"] for figure in figures[name]]
        text.name = f"{N_GENERATED} tokens after it"
        results += [prompt, text]
    print(HEADER, *(result.row() for result in results), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

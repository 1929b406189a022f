"""`pyllm serve` beside llama-server over HTTP: the same model, threads, context, slots, clients and prompts, in turn.

    make tools
    python -m benchmarks.server --clients 1,8,32 --rounds 5
    python -m benchmarks.server --clients 32 --shared-words 800 --rounds 2
    python -m benchmarks.server --clients 8 --processor
    python -m benchmarks.server --clients 4 --intruder-words 3300 --target-ms 100

Both servers are there all the time, and one of them works. All clients of a round send their requests at once and read
streams of `/v1/completions`; a round of one server and the next round of the other make a pair. Prompts are random
words, all different and new in each round, behind a beginning that all share. How fast a process is depends on where
its memory happens to lie, by a quarter on some machines, so that many starts say more than many rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.harness import ROOT, WORDS, machine
from benchmarks.upstream import BIN
from pyllm import Model, hub
from pyllm.cpus import usable_cpus

# Another name than the module's would be loaded in the server; see `--processor`.
IDENTITY = "benchmarks.server:identity"


def identity(ids: object, logits: object) -> None:
    """A logits processor that looks at every row and changes nothing."""


@dataclass
class Answer:
    """What a client saw.

    Attributes:
        first: Seconds to the first piece of text.
        gaps: Seconds between pieces.
        n_tokens: Tokens that were generated, by the server's count.
    """

    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    n_tokens: int = 0


@dataclass
class Round:
    """What all clients of a round saw."""

    seconds: float
    answers: list[Answer]

    @property
    def rate(self) -> float:
        """Generated tokens per second, of all clients together."""
        return sum(answer.n_tokens for answer in self.answers) / self.seconds


@dataclass
class Side:
    """One of the two servers, and what was measured of it."""

    name: str
    command: list[str]
    port: int
    rounds: list[Round] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def gaps(self) -> list[float]:
        """Milliseconds between pieces, of all rounds."""
        return [1000 * gap for one in self.rounds for answer in one.answers for gap in answer.gaps]

    @property
    def firsts(self) -> list[float]:
        """Milliseconds to the first piece, of all rounds."""
        return [1000 * answer.first for one in self.rounds for answer in one.answers]

    def memory(self) -> float:
        """Resident memory of the process, in MiB."""
        assert self.process is not None
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


def sides(args: argparse.Namespace, n_parallel: int, n_ctx: int) -> list[Side]:
    """The two servers with the same sizes."""
    model = str(hub.resolve(args.model))
    common = ["-m", model, "-np", str(n_parallel), "-c", str(n_ctx), "-t", str(args.threads)]
    ours = [sys.executable, "-m", "pyllm", "serve", *common, "--port", str(args.port), *args.ours.split()]
    if args.target_ms:
        ours += ["--target-ms", str(args.target_ms)]
    if args.processor:
        ours += ["--logits-processor", IDENTITY]
    theirs = [str(BIN / "llama-server"), *common, "--port", str(args.port + 1), *args.theirs.split()]
    return [Side("pyllm serve", ours, args.port), Side("llama-server", theirs, args.port + 1)]


@contextlib.contextmanager
def running(both: Sequence[Side]) -> Iterator[None]:
    """Both servers, ready."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        for side in both:
            side.process = subprocess.Popen(
                side.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd=ROOT
            )
        for side in both:
            _await_health(side)
        yield
    finally:
        for side in both:
            if side.process is not None:
                side.process.terminate()
                side.process.wait()


def _await_health(side: Side) -> None:
    assert side.process is not None
    for _ in range(600):
        if side.process.poll() is not None:
            raise SystemExit(f"{' '.join(side.command)} ended with status {side.process.returncode}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"http://127.0.0.1:{side.port}/health").close()
            return
        time.sleep(0.1)
    raise SystemExit(f"{side.name} did not become ready")


async def ask(port: int, body: dict[str, object]) -> Answer:
    """Send a request and read its stream."""
    data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    lines = "POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"
    head = "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""])
    answer = Answer()
    started = last = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        writer.write(head.encode() + data)
        await writer.drain()
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"{status!r} {await reader.read(2000)!r}")
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                break
            event = json.loads(line[6:])
            if event.get("usage"):
                answer.n_tokens = event["usage"]["completion_tokens"]
            if not any(choice["text"] for choice in event["choices"]):
                continue
            now = time.perf_counter()
            if answer.first:
                answer.gaps.append(now - last)
            else:
                answer.first = now - started
            last = now
    finally:
        writer.close()
    return answer


async def all_at_once(side: Side, bodies: Sequence[dict[str, object]], delays: Sequence[float]) -> Round:
    """One request of each client."""

    # The threads of llama-server spin for a while when it has nothing to do any more, and would take the processor away
    # from the other one.
    await asyncio.sleep(0.7)

    async def client(body: dict[str, object], delay: float) -> Answer:
        await asyncio.sleep(delay)
        return await ask(side.port, body)

    started = time.perf_counter()
    answers = await asyncio.gather(*(client(*each) for each in zip(bodies, delays, strict=True)))
    return Round(time.perf_counter() - started, list(answers))


class Workload:
    """The requests of the rounds.

    Args:
        args: The program's.
        n_clients: How many there are.
        banned: Tokens that would end a text too early.
    """

    def __init__(self, args: argparse.Namespace, n_clients: int, banned: list[int]) -> None:
        self.args, self.n_clients = args, n_clients
        self.common = {"max_tokens": args.n_gen, "temperature": 0, "logit_bias": [[token, False] for token in banned]}
        chooser = random.Random("shared")
        self.shared = [chooser.choice(WORDS) for _ in range(args.shared_words)]

    def requests(self, number: object) -> tuple[list[dict[str, object]], list[float]]:
        """The bodies of a round, and after how many seconds each is sent."""
        chooser = random.Random(str(number))

        def words(n: int) -> str:
            return " ".join(chooser.choice(WORDS) for _ in range(n))

        # In each round another beginning, so that no round finds what the one before it has left.
        shared = " ".join([words(3), *self.shared])
        prompts = [f"{shared} {words(self.args.words)}" for _ in range(self.n_clients)]
        if not self.args.shared_words:
            prompts = [words(self.args.words) for _ in range(self.n_clients)]
        bodies: list[dict[str, object]] = [{**self.common, "prompt": prompt} for prompt in prompts]
        delays = [0.0] * len(bodies)
        if self.args.intruder_words:
            bodies.append({**self.common, "prompt": words(self.args.intruder_words), "max_tokens": 4})
            delays.append(1.0)
        return bodies, delays


def measure(args: argparse.Namespace, n_clients: int) -> dict[str, object]:
    """All rounds with so many clients; what they gave."""
    with Model(hub.resolve(args.model), vocab_only=True) as model:
        banned = model.vocab.eog_tokens
    n_slots = n_clients + bool(args.intruder_words)
    longest = args.shared_words + args.words + args.intruder_words
    n_ctx = n_slots * (longest * 3 // 2 + args.n_gen + 64)
    both = sides(args, n_slots, n_ctx)
    workload = Workload(args, n_clients, banned)
    for start in range(args.starts):
        with running(both):
            for side in both:  # what is done once is done now
                asyncio.run(all_at_once(side, *workload.requests("warm")))
            for number in range(args.rounds):
                for side in both if number % 2 == 0 else both[::-1]:
                    side.rounds.append(asyncio.run(all_at_once(side, *workload.requests((start, number)))))
            memory = [side.memory() for side in both]
    ours, theirs = both
    ratios = [a.rate / b.rate for a, b in zip(ours.rounds, theirs.rounds, strict=True)]
    return {
        "clients": n_clients,
        "words": args.words,
        "shared_words": args.shared_words,
        "intruder_words": args.intruder_words,
        "n_gen": args.n_gen,
        "processor": args.processor,
        "target_ms": args.target_ms,
        "ratios": ratios,
        **{
            key: {
                "tokens_per_s": statistics.median(one.rate for one in side.rounds),
                "first_ms_p50": percentile(side.firsts, 50),
                "first_ms_p99": percentile(side.firsts, 99),
                "gap_ms_p50": percentile(side.gaps, 50),
                "gap_ms_p99": percentile(side.gaps, 99),
                "memory_mib": used,
            }
            for key, side, used in (("ours", ours, memory[0]), ("theirs", theirs, memory[1]))
        },
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else float("nan")


HEADER = (
    "| clients | tokens/s: pyllm, llama-server | ratio (median, range) | first token, ms, p50 / p99 | "
    "between tokens, ms, p50 / p99 | memory, MiB |\n|---|---|---|---|---|---|"
)


def row(result: dict[str, object]) -> str:
    """A row of the table."""
    a, b = result["ours"], result["theirs"]
    assert isinstance(a, dict) and isinstance(b, dict) and isinstance(result["ratios"], list)
    ratios = sorted(result["ratios"])
    return (
        f"| {result['clients']} | {a['tokens_per_s']:.1f}, {b['tokens_per_s']:.1f} | "
        f"**{statistics.median(ratios):.3f}**, {ratios[0]:.2f} – {ratios[-1]:.2f} | "
        f"{a['first_ms_p50']:.0f} / {a['first_ms_p99']:.0f}, {b['first_ms_p50']:.0f} / {b['first_ms_p99']:.0f} | "
        f"{a['gap_ms_p50']:.1f} / {a['gap_ms_p99']:.1f}, {b['gap_ms_p50']:.1f} / {b['gap_ms_p99']:.1f} | "
        f"{a['memory_mib']:.0f}, {b['memory_mib']:.0f} |"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=hub.DEFAULT_MODEL)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--words", type=int, default=12, help="words of a prompt that no other has")
    parser.add_argument("--shared-words", type=int, default=0, help="words that all prompts of a round begin with")
    parser.add_argument("--intruder-words", type=int, default=0, help="one more client comes later with a long prompt")
    parser.add_argument("--n-gen", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--port", type=int, default=8898)
    parser.add_argument("--processor", action="store_true", help="a Python processor on every request of pyllm")
    parser.add_argument("--target-ms", type=float, default=0, help="the latency target of pyllm")
    parser.add_argument("--ours", default="", help="more flags of pyllm serve, as in --ours=--kv-unified")
    parser.add_argument("--theirs", default="", help="more flags of llama-server")
    parser.add_argument("--starts", type=int, default=1, help="start both servers so many times, with all rounds each")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    args = parser.parse_args()
    print(HEADER)
    results = []
    for n in map(int, args.clients.split(",")):
        results.append(measure(args, n))
        print(row(results[-1]), flush=True)
    if args.json:
        data = {"machine": machine(), "results": results}
        args.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

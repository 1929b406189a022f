"""Bad input: an exception for every row of the table, first in another process, then in this one.

`bad_inputs.py` holds the table. A fuzzer goes where the table does not.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import bad_inputs, isolation

from pyllm.core.batch import Batch

TABLE = Path(bad_inputs.__file__)


@pytest.fixture(scope="session")
def survived(tiny_models):
    """`survived(group)`: what the table's rows did to a process of their own: "" or what killed it."""
    known: dict[str, str] = {}

    def survived(group: str) -> str:
        if group not in known:
            result = subprocess.run(
                [sys.executable, "-X", "faulthandler", TABLE, group, tiny_models["llama"]],
                capture_output=True,
                text=True,
                timeout=550,
                check=False,
            )
            lines = result.stdout.split()
            known[group] = ""
            if result.returncode != 0 or lines[-1:] != ["done"]:
                last = bad_inputs.ROWS[int(lines[-1])].label if lines and lines[-1].isdigit() else "the last check"
                known[group] = f"{last} ended the process with {result.returncode}\n{result.stderr[-2000:]}"
        return known[group]

    return survived


@pytest.fixture(scope="module")
def world(tiny_models):
    world = bad_inputs.make_world(tiny_models["llama"])
    yield world
    world.model.close()


@pytest.mark.process
@pytest.mark.parametrize("group", bad_inputs.GROUPS)
def test_no_row_ends_the_process(group, survived):
    assert survived(group) == ""


@pytest.mark.process
@pytest.mark.parametrize("row", bad_inputs.ROWS, ids=lambda row: f"{row.group}: {row.label}")
def test_row_raises(row, survived, world):
    if survived(row.group):
        pytest.fail(f"not tried here: {survived(row.group).splitlines()[0]}")
    bad_inputs.check(row, world)


def test_failed_calls_leave_no_state(world):
    world.context.memory.clear()
    world.context.decode(Batch.from_arrays([1, 5]))
    assert world.vocab.detokenize(world.vocab.tokenize("the cat", add_special=False)).strip() == "the cat"


# ---- what looks odd and is right


def test_arrays_of_every_integer_type_and_layout(make_context):
    context = make_context()
    plain = [1, 5, 6, 7]
    context.decode(Batch.from_arrays(plain, outputs="all"))
    expected = context.logits.copy()
    wide = np.zeros((4, 3), np.int64)
    wide[:, 1] = plain
    readonly = np.array(plain)
    readonly.flags.writeable = False
    dtypes = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">i8", ">u2"]
    variants = [np.array(plain, dtype) for dtype in dtypes]
    variants += [wide[:, 1], np.array(plain[::-1])[::-1], readonly, tuple(plain), range(1, 2), readonly.data]
    for tokens in variants:
        context.memory.clear()
        context.decode(Batch.from_arrays(tokens, outputs="all"))
        np.testing.assert_allclose(np.asarray(context.logits), expected[: len(tokens)], atol=1e-4)


def test_embeddings_of_every_float_type_and_layout(make_context, tiny_model):
    context = make_context()
    rows = np.random.default_rng(0).normal(size=(3, tiny_model.n_embd_inp)).astype(np.float32)
    context.decode(Batch.from_arrays(embeddings=rows))
    expected = context.logits.copy()
    for variant in (
        rows.astype(np.float64),
        np.asfortranarray(rows),
        rows[::-1][::-1],
        rows.tolist(),
        rows.astype(">f4"),
    ):
        context.memory.clear()
        context.decode(Batch.from_arrays(embeddings=variant))
        np.testing.assert_array_equal(np.asarray(context.logits), expected)


def test_numbers_that_are_not_numbers_are_decoded(make_context, tiny_model):
    """NaN in, NaN out; the next decode without them is as always."""
    context = make_context()
    context.decode(Batch.from_arrays([1, 5]))
    expected = context.logits.copy()
    for value in (np.nan, np.inf, 1e38):
        context.memory.clear()
        context.decode(Batch.from_arrays(embeddings=np.full((2, tiny_model.n_embd_inp), value, np.float32)))
        context.memory.clear()
        context.decode(Batch.from_arrays([1, 5]))
        np.testing.assert_array_equal(np.asarray(context.logits), expected)


LOGITS = """
model, context = make()
vocab = model.vocab
makers = [
    Greedy, lambda: Dist(1), lambda: Chain(TopK(5), Dist(1)), lambda: Chain(TopP(0.9), Dist(1)),
    lambda: Chain(MinP(0.1), Dist(1)), lambda: Chain(Typical(0.9), Dist(1)), lambda: Chain(Temp(1e-30), Dist(1)),
    lambda: Chain(TempExt(1, 0.5), Dist(1)), lambda: Chain(XTC(1, 0.1, seed=1), Dist(1)),
    lambda: Chain(TopNSigma(1), Dist(1)), lambda: Chain(Mirostat(model.n_vocab, 1)), lambda: Chain(MirostatV2(1)),
    lambda: Chain(MinP(0.1), AdaptiveP(0.5, seed=1)), lambda: Chain(Infill(vocab), Dist(1)),
    lambda: Chain(Grammar(vocab, 'root ::= "a"+'), Dist(1)), lambda: Chain(Penalties(model.n_vocab, 8, 1.1), Dist(1)),
    lambda: Chain(DRY(vocab), Dist(1)), lambda: Chain(LogitBias(model.n_vocab, {5: float("inf")}), Dist(1)),
]
for value in (float("nan"), float("-inf"), float("inf"), 3e38, 0):
    for some in (slice(None), slice(0, 5), slice(None, None, 2)):
        for maker in makers:
            context.memory.clear()
            context.decode(Batch.from_arrays([1, 2]))
            np.asarray(context.logits)[:, some] = value
            try:
                assert 0 <= maker().sample(context) < model.n_vocab
            except errors.PyllmError:
                pass
"""


@pytest.mark.process
def test_samplers_refuse_logits_that_are_not_numbers(tiny_models):
    isolation.survive(LOGITS, tiny_models["llama"])


# ---- a fuzzer

FUZZ = """
import inspect, random
from pyllm.core.threadpool import ThreadPool
from pyllm.core.text_stream import TextStream

seconds, seed = float(sys.argv[2]), int(sys.argv[3])
os.chdir(sys.argv[4])  # some of what is called writes files
random.seed(seed)
model, context = make(n_seq_max=3, n_batch=64)
kinds = [Model, Context, Batch, Generation, Chain, ThreadPool, TextStream] + [
    kind for kind in Sampler.__subclasses__() if kind is not Chain
]
things = [context, model.vocab, context.memory, Batch(8), Chain(TopK(5), Greedy()), context.logits,
          Generation(context, Chain(Greedy())), TextStream("x")]
edges = [-2**31, -2, -1, 0, 1, 2, 3, 5, 63, 64, 65, 255, 256, 257, 2**31 - 1, 2**31, 2**63, 2**70]
grammars = ['root ::= "a"+', 'root ::= [a-z ]*', "root ::= (", "root ::= root"]

def value(depth=0):
    kind = random.randrange(14 if depth < 2 else 10)
    if kind < 4:
        return random.choice(edges)
    if kind == 4:
        return random.choice([0.0, 0.5, 1.0, -1.0, 1e300, float("nan"), float("inf")])
    if kind == 5:
        return random.choice([None, True, False, b"bytes", "text", "the cat", "", "all", "none", "q8_0", *grammars])
    if kind < 8:
        return random.choice(things)
    if kind == 8:
        return np.random.default_rng(random.randrange(99)).integers(-2, 460, random.randrange(5))
    if kind == 9:
        return np.full(random.choice([1, 5, model.n_vocab]), random.choice([0, 1.5, np.nan, -np.inf]), np.float32)
    if kind == 10:
        return [value(depth + 1) for _ in range(random.randrange(4))]
    if kind == 11:
        return {random.choice(edges): value(depth + 1)}
    if kind == 12:
        return lambda *arguments: random.choice([None, True, False])
    return tuple(random.randrange(8) for _ in range(random.randrange(4)))

def call_something():
    if random.random() < 0.15:
        kind = random.choice(kinds)
        target, name = kind, kind.__name__
        arguments = [random.choice(things) if random.random() < 0.6 else value() for _ in range(random.randrange(4))]
        names = ["n_ctx", "n_batch", "n_seq_max", "seq_id", "stop", "seed", "min_keep", "n_threads", "type_k"]
    else:
        thing = random.choice(things)
        name = random.choice([name for name in dir(thing) if not name.startswith("_")]
                             + ["__getitem__", "__len__", "__repr__", "__setitem__", "__array__"])
        target = getattr(thing, name)
        if not callable(target) or (name == "close" and random.random() < 0.9):
            return target
        arguments = [value() for _ in range(random.randrange(4))]
        names = ["p0", "p1", "output", "outputs", "special", "all", "pos", "seq_ids", "accept"]
    keywords = {random.choice(names): value() for _ in range(random.choice([0, 0, 0, 1, 2]))}
    if "n_threads" in keywords:
        keywords["n_threads"] = 1
    return target(*arguments, **keywords)

def renew():
    for i, thing in enumerate(things):
        if isinstance(thing, Context) and thing.closed:
            things[i] = Context(model, n_ctx=256, n_threads=1, n_batch=64)
        if isinstance(thing, Sampler) and thing.closed:
            things[i] = Chain(TopK(5), Greedy())
    while len(things) > 40:
        things.pop(random.randrange(9, len(things)))
    if model.closed:
        raise SystemExit("the model was closed")

allowed = (errors.PyllmError, TypeError, ValueError, OverflowError, AttributeError, LookupError, MemoryError)
allowed += (BufferError, OSError)
deadline, calls = time.monotonic() + seconds, 0
while time.monotonic() < deadline:
    calls += 1
    try:
        result = call_something()
    except allowed:
        continue
    if type(result).__module__.startswith("pyllm.core") and not isinstance(result, (Model, ThreadPool)):
        things.append(result)
    del result
    renew()
print(calls, "calls")
things.clear()
gc.collect()
fresh = Context(model, n_ctx=64, n_threads=1)
fresh.decode(Batch.from_arrays([1, 5]))
"""


def fuzz(seconds, seed, tiny_models, folder):
    script = "limit_memory()\n" + FUZZ + "\nprint('reached the end')"
    result = isolation.run(script, tiny_models["llama"], seconds, seed, folder, timeout=seconds + 200)
    print(result.stdout)
    assert result.returncode == 0, f"seed {seed}: {result.returncode}\n{result.stdout}\n{result.stderr[-4000:]}"
    assert result.stdout.endswith("reached the end\n")


@pytest.mark.process
@pytest.mark.parametrize("seed", range(3))
def test_fuzzer(seed, tiny_models, tmp_path):
    fuzz(3, seed, tiny_models, tmp_path)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 106))
def test_fuzzer_for_long(seed, tiny_models, tmp_path):
    fuzz(20, seed, tiny_models, tmp_path)

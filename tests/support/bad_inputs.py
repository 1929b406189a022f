"""A table of bad input for the public constructors and methods of pyllm.core.

Run as a program it tries the rows of one group and prints the number of each before it does, so that
the one that ended the process is known:

    python bad_inputs.py GROUP MODEL
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyllm import errors
from pyllm.core import backend
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.gguf import GGUFReader, GGUFWriter
from pyllm.core.memory import Memory
from pyllm.core.model import Model
from pyllm.core.outputs import Outputs
from pyllm.core.sampler import Chain
from pyllm.core.samplers import (
    DRY,
    XTC,
    AdaptiveP,
    Dist,
    Grammar,
    Greedy,
    Infill,
    LogitBias,
    MinP,
    Mirostat,
    MirostatV2,
    Penalties,
    Temp,
    TempExt,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)
from pyllm.core.text_stream import TextStream
from pyllm.core.threadpool import ThreadPool
from pyllm.core.vocab import Vocab

#: What any bad argument may raise; a row that knows better says so.
REFUSALS = (errors.PyllmError, TypeError, ValueError, OverflowError, AttributeError)

NAN, INF = math.nan, math.inf
HUGE = (2**31, 2**63, 2**70, -(2**31) - 1, -(2**63), -(2**70))
NOT_INTEGERS = (None, "5", b"5", 1.5, NAN, INF, [], {}, object(), 1j)
NOT_NUMBERS = (None, "0.5", b"5", [], {}, object(), 1j, NAN)
NOT_TEXT = (None, 5, 1.5, [], {}, object())
NOT_TOKENS = (
    None,
    5,
    "text",
    b"bytes",
    1.5,
    [1.5],
    [NAN],
    [None],
    ["1"],
    [[1, 2], [3]],
    [[1, 2]],
    {1: 2},
    {1, 2},
    object(),
    np.array(5),
    np.array([1.0, 2.0]),
    np.array([1.0, 2.0], np.float16),
    np.array(["a"]),
    np.array([object()]),
    np.array([True, False]),
    np.array([1 + 1j]),
    np.zeros((2, 2), int),
    np.array([2**40]),
    np.array([2**63], np.uint64),
    [2**70],
    [-(2**70)],
    np.array(["2020-01-01"], "datetime64[D]"),
    np.zeros(3, [("a", int)]),
)


@dataclass
class World:
    """What the rows work on; made anew for each group."""

    path: Path
    model: Model
    context: Context

    @property
    def vocab(self) -> Vocab:
        return self.model.vocab

    def generation(self) -> Generation:
        return Generation(self.context, Chain(Greedy()))

    def logits(self) -> Outputs:
        """Those of a new decode: rows before this one may have failed in one."""
        self.context.memory.clear()
        self.context.decode(Batch.from_arrays([1, 5, 6], outputs="all"))
        return self.context.logits


@dataclass(frozen=True)
class Row:
    """One call that must raise one of `refusals`."""

    group: str
    label: str
    call: Callable[[World], Any]
    refusals: tuple[type[BaseException], ...]


ROWS: list[Row] = []


def short(value: object) -> str:
    text = repr(value).split(" at 0x")[0].replace("\n", "")
    return text if len(text) <= 40 else f"{text[:37]}..."


def bad(group: str, what: str, values: Any, call: Callable[[World, Any], Any], *refusals: type[BaseException]) -> None:
    """Add a row for each value."""
    for value in values:
        label = f"{what}({short(value)})"
        ROWS.append(Row(group, label, lambda world, value=value: call(world, value), refusals or REFUSALS))


def make_world(path: Path) -> World:
    model = Model(path)
    context = Context(model, n_ctx=256, n_seq_max=2, n_threads=1, n_batch=64)
    context.decode(Batch.from_arrays([1, 5, 6], outputs="all"))
    return World(path, model, context)


def check(row: Row, world: World) -> None:
    """Raise AssertionError unless the row raises what it should."""
    try:
        result = row.call(world)
    except row.refusals:
        return
    raise AssertionError(f"{row.label} gave {result!r}")


# ---- Model

bad("model", "Model", (None, 5, 1.5, [], {}, object()), lambda w, v: Model(v), TypeError)
bad(
    "model",
    "Model",
    ("", "/nowhere/x.gguf", b"/nowhere", Path("/nowhere")),
    lambda w, v: Model(v),
    errors.ModelLoadError,
)
bad("model", "Model", ("a\0b", b"a\0b"), lambda w, v: Model(v), ValueError)
bad("model", "Model", ("/", "."), lambda w, v: Model(v), errors.ModelLoadError)
bad("model", "Model no path", ((),), lambda w, v: Model(*v), TypeError)
bad("model", "Model two paths", ((1, 2),), lambda w, v: Model(w.path, *v), TypeError)
bad("model", "Model unknown", ("n_gpu", "vocab", "__class__"), lambda w, v: Model(w.path, **{v: 1}), TypeError)
for name in ("n_gpu_layers", "main_gpu"):
    bad("model", f"Model {name}=", HUGE, lambda w, v, n=name: Model(w.path, **{n: v}))
    values = [value for value in NOT_INTEGERS if value is not None]
    bad("model", f"Model {name}=", values, lambda w, v, n=name: Model(w.path, **{n: v}))
bad("model", "Model main_gpu=", (-1, -5), lambda w, v: Model(w.path, main_gpu=v), errors.InvalidArgumentError)
for name in ("split_mode", "load_mode", "lazy_mode"):
    values = ("nonsense", "", 99, -99, 2**70, 1.5, NAN, [], {}, object(), b"none", "none\0")
    bad("model", f"Model {name}=", values, lambda w, v, n=name: Model(w.path, **{n: v}))
bad(
    "model",
    "Model tensor_split=",
    (5, "x", [NAN], [-1], [None], ["a"], [1] * 1000, object()),
    lambda w, v: Model(w.path, tensor_split=v),
)
bad(
    "model",
    "Model devices=",
    (5, "CPU", ["nope"], [None], [""], ["CPU\0x"], [b"CPU\0"], [5], object()),
    lambda w, v: Model(w.path, devices=v),
)
bad(
    "model",
    "Model kv_overrides=",
    (
        5,
        "x",
        [1],
        {"a": None},
        {"a": []},
        {"a" * 200: 1},
        {"a\0b": 1},
        {"a": "x" * 200},
        {"a": "x\0"},
        {"a": 2**70},
        {5: 1},
        {None: 1},
        object(),
    ),
    lambda w, v: Model(w.path, kv_overrides=v),
)
bad(
    "model",
    "Model tensor_buft_overrides=",
    (
        5,
        "x",
        {"a": "nope"},
        {"a": None},
        {5: "CPU"},
        {"[": "CPU"},
        {"a\0": "CPU"},
        {str(i): "CPU" for i in range(5000)},
    ),
    lambda w, v: Model(w.path, tensor_buft_overrides=v),
)
bad(
    "model",
    "Model progress_callback=",
    (5, "x", [], object()),
    lambda w, v: Model(w.path, progress_callback=v),
    TypeError,
)
bad("model", "meta", NOT_TEXT, lambda w, v: w.model.meta(v))
bad("model", "meta", ("a\0b",), lambda w, v: w.model.meta(v), ValueError)
bad("model", "chat_template", (5, 1.5, [], {}, object(), "a\0b"), lambda w, v: w.model.chat_template(v))
bad(
    "model",
    "set",
    ("n_embd", "vocab", "path", "closed", "nothing"),
    lambda w, v: setattr(w.model, v, 1),
    AttributeError,
)

# ---- Context

bad("context", "Context", (None, 5, "path", object(), b"x"), lambda w, v: Context(v), TypeError)
bad("context", "Context no model", ((),), lambda w, v: Context(*v), TypeError)
bad("context", "Context unknown", ("ctx", "n_threads_", "seed"), lambda w, v: Context(w.model, **{v: 1}), TypeError)
COUNTS = (
    "n_ctx",
    "n_batch",
    "n_ubatch",
    "n_seq_max",
    "n_rs_seq",
    "n_outputs_max",
    "n_outputs_max_per_seq",
    "n_threads",
    "n_threads_batch",
    "yarn_orig_ctx",
    "reserve_outputs",
)
for name in COUNTS:
    values = [*HUGE, -1, *[value for value in NOT_INTEGERS if value is not None]]
    bad("context", f"Context {name}=", values, lambda w, v, n=name: Context(w.model, **{n: v}))
for name in ("n_batch", "n_ubatch", "n_seq_max", "n_threads", "n_threads_batch"):
    bad("context", f"Context {name}=", (0,), lambda w, v, n=name: Context(w.model, **{n: v}), ValueError)
bad("context", "Context n_seq_max=", (257, 100_000), lambda w, v: Context(w.model, n_seq_max=v), ValueError)
bad("context", "Context n_threads=", (513, 100_000), lambda w, v: Context(w.model, n_threads=v), ValueError)
bad("context", "Context n_ctx=", (2**31 - 1, 2**30), lambda w, v: Context(w.model, n_ctx=v), errors.PyllmError)
bad("context", "Context reserve_outputs=", (2049, 10**6), lambda w, v: Context(w.model, reserve_outputs=v), ValueError)
ENUMS = ("ctx_type", "rope_scaling_type", "pooling_type", "attention_type", "flash_attn_type")
for name in ENUMS:
    values = ("nonsense", "", 99, -99, 2**70, 1.5, NAN, [], {}, object(), b"none")
    bad("context", f"Context {name}=", values, lambda w, v, n=name: Context(w.model, **{n: v}))
for name in (
    "rope_freq_base",
    "rope_freq_scale",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
):
    values = ("x", b"1", [], {}, object(), 1j, NAN, INF, -INF, 1e300)
    bad("context", f"Context {name}=", values, lambda w, v, n=name: Context(w.model, **{n: v}))
for name in ("type_k", "type_v"):
    values = ("nonsense", "", 99, -1, 2**70, 1.5, NAN, [], {}, object(), "i32", "f64", "q8_K", b"f16", "f16\0")
    bad("context", f"Context {name}=", values, lambda w, v, n=name: Context(w.model, **{n: v}))
bad(
    "context",
    "Context abort_callback=",
    (5, "x", [], object()),
    lambda w, v: Context(w.model, abort_callback=v),
    TypeError,
)
for method in ("decode", "encode"):
    bad(
        "context",
        method,
        (None, 5, [1, 2], np.array([1]), object(), "x"),
        lambda w, v, m=method: getattr(w.context, m)(v),
        TypeError,
    )
    bad("context", method, (Batch(4),), lambda w, v, m=method: getattr(w.context, m)(v), errors.PyllmError)
bad(
    "context",
    "decode tokens",
    ([-1], [10**6], [5, -5], [2**31 - 1], [-(2**31)], [1] * 65),
    lambda w, v: w.context.decode(Batch.from_arrays(v)),
    errors.InvalidBatchError,
)
bad(
    "context",
    "decode seq_ids",
    (2, 256, 2**31 - 1),
    lambda w, v: w.context.decode(Batch.from_arrays([1], seq_ids=v)),
    errors.InvalidBatchError,
)
bad(
    "context",
    "decode pos",
    ([9, 3], [0, 0], [2**31 - 1, 0], [1, 2]),
    lambda w, v: w.context.decode(Batch.from_arrays([1, 2], pos=v)),
    errors.InvalidBatchError,
)
bad(
    "context",
    "decode embeddings",
    ((1, 1), (1, 63), (1, 65), (2, 640)),
    lambda w, v: w.context.decode(Batch.from_arrays(embeddings=np.zeros(v, "f"))),
    errors.InvalidBatchError,
)
for method in ("logits_ith", "embeddings_ith", "embeddings_seq"):
    values = [*HUGE, *NOT_INTEGERS, 99, -99, 2**31 - 1, -(2**31)]
    bad("context", method, values, lambda w, v, m=method: getattr(w.context, m)(v), *REFUSALS, LookupError)
bad(
    "context",
    "logits[]",
    (99, -99, 2**70, "x", None.__class__, 1.5, (0, 10**6), (0, 0, 0)),
    lambda w, v: w.logits()[v],
    IndexError,
)
bad("context", "logits[] =", ("x", [1, 2], np.zeros(7), object()), lambda w, v: w.logits().__setitem__(0, v))
bad("context", "set_n_threads", (*HUGE, *NOT_INTEGERS, 0, -1, 513), lambda w, v: w.context.set_n_threads(v))
bad("context", "set_n_threads 1,", (0, -1, 513, "x", NAN, 2**40), lambda w, v: w.context.set_n_threads(1, v))
bad("context", "set_abort_callback", (5, "x", [], object()), lambda w, v: w.context.set_abort_callback(v), TypeError)
bad("context", "set", ("n_ctx", "logits", "model", "nothing"), lambda w, v: setattr(w.context, v, 1), AttributeError)

# ---- Batch

bad("batch", "Batch", (*HUGE, *NOT_INTEGERS, 0, -1, 2**31 - 1, 2**30), lambda w, v: Batch(v), *REFUSALS, MemoryError)
bad(
    "batch",
    "Batch n_seq_max=",
    (*HUGE, *NOT_INTEGERS, 0, -1, 2**31 - 1),
    lambda w, v: Batch(4, n_seq_max=v),
    *REFUSALS,
    MemoryError,
)
bad("batch", "from_arrays", (*NOT_TOKENS, []), lambda w, v: Batch.from_arrays(v))
bad("batch", "from_arrays both", ([1],), lambda w, v: Batch.from_arrays(v, embeddings=np.zeros((1, 64), "f")))
bad("batch", "from_arrays neither", ((),), lambda w, v: Batch.from_arrays(*v))
NOT_POS = [value for value in NOT_TOKENS if value is not None]
for name in ("pos", "seq_ids"):
    values = [value for value in NOT_POS if not (name == "seq_ids" and isinstance(value, int))]
    bad("batch", f"from_arrays {name}=", values, lambda w, v, n=name: Batch.from_arrays([1, 2, 3], **{n: v}))
    bad(
        "batch",
        f"from_arrays {name}=",
        ([1], [1, 2], [1, 2, 3, 4], [-1, 0, 1], [], np.zeros((3, 0), int)),
        lambda w, v, n=name: Batch.from_arrays([1, 2, 3], **{n: v}),
        errors.InvalidBatchError,
    )
bad("batch", "from_arrays seq_ids=", (-1, 2**31, 2**70, 1.5), lambda w, v: Batch.from_arrays([1, 2, 3], seq_ids=v))
bad(
    "batch",
    "from_arrays outputs=",
    ("first", "", 5, None, [1, 0], [1.0, 0.0, 1.0], ["a", "b", "c"], [[1, 0, 1]], object()),
    lambda w, v: Batch.from_arrays([1, 2, 3], outputs=v),
)
bad(
    "batch",
    "from_arrays embeddings=",
    (
        [],
        [1.0],
        np.zeros((0, 64)),
        np.zeros((2, 0)),
        np.zeros((1, 2, 3)),
        "x",
        [["a"]],
        [[None]],
        [[1, 2], [3]],
        object(),
        5,
        np.array([[1j]]),
    ),
    lambda w, v: Batch.from_arrays(embeddings=v),
)
bad("batch", "add token", (*HUGE, *NOT_INTEGERS), lambda w, v: Batch(4).add(v, 0))
bad("batch", "add pos", (*HUGE, *NOT_INTEGERS, -1), lambda w, v: Batch(4).add(1, v))
bad(
    "batch",
    "add seq_ids",
    (*HUGE, "x", None, (), (1, 2), 1.5, [1.5], [None], -1, (-1,), (2**31,)),
    lambda w, v: Batch(4).add(1, 0, v),
)
bad("batch", "add_sequence", (*NOT_TOKENS, range(5)), lambda w, v: Batch(4).add_sequence(v))
bad("batch", "add_sequence pos=", (*HUGE, *NOT_INTEGERS, -1, 2**31 - 1), lambda w, v: Batch(4).add_sequence([1], v))
bad("batch", "add_sequence seq_id=", (*HUGE, *NOT_INTEGERS, -1), lambda w, v: Batch(4).add_sequence([1], 0, v))
bad(
    "batch",
    "add_sequence outputs=",
    ("first", 5, None, [1, 0], [1.0]),
    lambda w, v: Batch(4).add_sequence([1], outputs=v),
)
bad("batch", "add to arrays", ([1, 2],), lambda w, v: Batch.from_arrays(v).add(1, 0), errors.InvalidBatchError)
bad("batch", "add to a full one", (4,), lambda w, v: [Batch(v).add_sequence(range(5))], errors.InvalidBatchError)
bad("batch", "set", ("c", "tokens", "n_outputs", "capacity"), lambda w, v: setattr(Batch(4), v, 1), AttributeError)

# ---- Memory

bad("memory", "Memory", (None, 5, object(), "x"), lambda w, v: Memory(v), TypeError)
for method, n_arguments in (("rm", 3), ("cp", 4), ("keep", 1), ("add", 4), ("div", 4), ("pos_min", 1), ("pos_max", 1)):
    for i in range(n_arguments):
        good = [0, 1, 2, 3][:n_arguments] if method in ("cp", "add") else [0, 2, 0, 1][:n_arguments]

        def call(w: World, v: Any, m: str = method, good: list[int] = good, i: int = i) -> Any:
            return getattr(w.context.memory, m)(*good[:i], v, *good[i + 1 :])

        bad("memory", f"{method} argument {i}", (*HUGE, *NOT_INTEGERS), call)
for method in ("keep", "pos_min", "pos_max"):
    bad(
        "memory",
        method,
        (2, -1, -2, 255, 2**31 - 1, -(2**31)),
        lambda w, v, m=method: getattr(w.context.memory, m)(v),
        errors.InvalidArgumentError,
    )
bad("memory", "rm", (2, -2, 2**31 - 1), lambda w, v: w.context.memory.rm(v), errors.InvalidArgumentError)
bad(
    "memory",
    "cp",
    ((0, 2), (2, 0), (0, -1), (-1, 0)),
    lambda w, v: w.context.memory.cp(*v),
    errors.InvalidArgumentError,
)
bad(
    "memory",
    "add",
    ((2, 1), (-2, 1), (2**31 - 1, 1)),
    lambda w, v: w.context.memory.add(*v),
    errors.InvalidArgumentError,
)
bad(
    "memory",
    "div",
    ((0, 0), (0, 1), (0, -2), (2, 2)),
    lambda w, v: w.context.memory.div(*v),
    errors.InvalidArgumentError,
)

# ---- Samplers

for kind in (TopK,):
    bad("samplers", kind.__name__, (*HUGE, *NOT_INTEGERS), lambda w, v, k=kind: k(v))
for kind in (TopP, MinP, Typical):
    bad("samplers", kind.__name__, (*NOT_NUMBERS, -0.1, 1.1, INF, -INF, 2**70), lambda w, v, k=kind: k(v))
    bad("samplers", f"{kind.__name__} min_keep=", (*NOT_INTEGERS, -1, 2**70), lambda w, v, k=kind: k(0.5, v))
for kind in (Temp, TopNSigma, TempExt):
    bad("samplers", kind.__name__, NOT_NUMBERS, lambda w, v, k=kind: k(v))
bad("samplers", "TempExt delta=", NOT_NUMBERS, lambda w, v: TempExt(1.0, v))
bad("samplers", "TempExt exponent=", NOT_NUMBERS, lambda w, v: TempExt(1.0, 0.5, v))
NOT_SEEDS = [value for value in (*HUGE[1:], *NOT_INTEGERS, -1, 2**32 - 1, 2**32) if value is not None]
for label, make in (
    ("Dist", lambda seed: Dist(seed)),
    ("XTC", lambda seed: XTC(0.5, 0.1, seed=seed)),
    ("Mirostat", lambda seed: Mirostat(100, seed)),
    ("MirostatV2", lambda seed: MirostatV2(seed)),
    ("AdaptiveP", lambda seed: AdaptiveP(0.5, seed=seed)),
):
    bad("samplers", f"{label} seed=", NOT_SEEDS, lambda w, v, m=make: m(v))
for i in range(2):
    bad(
        "samplers",
        f"XTC argument {i}",
        (*NOT_NUMBERS, -0.1, 1.1, INF),
        lambda w, v, i=i: XTC(*[0.5] * i, v, *[0.5] * (1 - i)),
    )
bad("samplers", "Mirostat n_vocab=", (*HUGE, *NOT_INTEGERS, 0, -1), lambda w, v: Mirostat(v))
bad("samplers", "Mirostat tau=", (*NOT_NUMBERS, -1), lambda w, v: Mirostat(100, 1, v))
bad("samplers", "Mirostat eta=", (*NOT_NUMBERS, -1), lambda w, v: Mirostat(100, 1, 5, v))
bad("samplers", "Mirostat m=", (*HUGE, *NOT_INTEGERS, 0, 1, -1), lambda w, v: Mirostat(100, 1, 5, 0.1, v))
bad("samplers", "MirostatV2 tau=", (*NOT_NUMBERS, -1), lambda w, v: MirostatV2(1, v))
bad("samplers", "AdaptiveP", (*NOT_NUMBERS, 1.1, INF), lambda w, v: AdaptiveP(v))
bad("samplers", "AdaptiveP decay=", (*NOT_NUMBERS, -0.1, 1.0, INF), lambda w, v: AdaptiveP(0.5, v))
bad("samplers", "Penalties n_vocab=", (*HUGE, *NOT_INTEGERS, 0, -1), lambda w, v: Penalties(v))
bad("samplers", "Penalties last_n=", (*HUGE, *NOT_INTEGERS, -1, 2**31 - 1), lambda w, v: Penalties(100, v))
for name, values in (("repeat", (0, -1)), ("freq", ()), ("present", ())):
    bad(
        "samplers", f"Penalties {name}=", (*NOT_NUMBERS, INF, *values), lambda w, v, n=name: Penalties(100, 8, **{n: v})
    )
bad("samplers", "DRY", (None, 5, "x", object()), lambda w, v: DRY(v), TypeError)
bad("samplers", "DRY multiplier=", (*NOT_NUMBERS, -1), lambda w, v: DRY(w.vocab, v))
bad("samplers", "DRY base=", (*NOT_NUMBERS, -1), lambda w, v: DRY(w.vocab, 0.8, v))
bad("samplers", "DRY allowed_length=", (*HUGE, *NOT_INTEGERS, -1), lambda w, v: DRY(w.vocab, allowed_length=v))
bad("samplers", "DRY last_n=", (*HUGE, *NOT_INTEGERS, -1, 2**31 - 1), lambda w, v: DRY(w.vocab, last_n=v))
bad("samplers", "DRY seq_breakers=", (5, None, [None], [5], object()), lambda w, v: DRY(w.vocab, seq_breakers=v))
bad("samplers", "LogitBias n_vocab=", (*HUGE, *NOT_INTEGERS), lambda w, v: LogitBias(v, {1: 1.0}))
bad(
    "samplers",
    "LogitBias",
    (None, 5, "x", {-1: 1}, {100: 1}, {2**70: 1}, {"a": 1}, {1: NAN}, {1: None}, {1: "x"}, {None: 1}, [1, 2]),
    lambda w, v: LogitBias(100, v),
)
bad("samplers", "Infill", (None, 5, "x", object()), lambda w, v: Infill(v), TypeError)
bad("samplers", "Grammar", (None, 5, "x", object()), lambda w, v: Grammar(v, 'root ::= "a"'), TypeError)
bad("samplers", "Grammar", (*NOT_TEXT, b"root"), lambda w, v: Grammar(w.vocab, v))
bad(
    "samplers",
    "Grammar",
    (
        "",
        " ",
        "root",
        "root ::= x",
        "a ::= b",
        'root ::= "a',
        "root ::= [a",
        "root ::= (",
        'root ::= "a"{5,2}',
        "root ::= root",
        'root ::= "a"\0',
        "\ufffe",
        'root ::= "\\x"',
        'root ::= "a"{99999999999}',
    ),
    lambda w, v: Grammar(w.vocab, v),
    errors.GrammarError,
)
bad("samplers", "Grammar root=", (*NOT_TEXT, "nope", "", "a\0"), lambda w, v: Grammar(w.vocab, 'root ::= "a"', v))
bad(
    "samplers",
    "Grammar trigger_tokens=",
    (5, [-1], [10**6], [None], ["x"], [1.5], [2**70]),
    lambda w, v: Grammar(w.vocab, 'root ::= "a"', trigger_tokens=v),
)
bad(
    "samplers",
    "Grammar trigger_patterns=",
    (5, [5], [None], ["["], ["("], ["a\0b"]),
    lambda w, v: Grammar(w.vocab, 'root ::= "a"', trigger_patterns=v),
)
bad("samplers", "sample", (None, 5, object()), lambda w, v: Greedy().sample(v), TypeError)
bad(
    "samplers",
    "sample i=",
    (*HUGE, *NOT_INTEGERS, 99, -99),
    lambda w, v: Greedy().sample(w.context, v),
    *REFUSALS,
    LookupError,
)
bad("samplers", "accept", (*HUGE, *NOT_INTEGERS), lambda w, v: Penalties(100, 8).accept(v))
bad(
    "samplers",
    "Grammar accept",
    (-1, 10**6, 2**31 - 1, -(2**31)),
    lambda w, v: Grammar(w.vocab, 'root ::= "a"').accept(v),
    errors.PyllmError,
)
bad(
    "samplers",
    "apply",
    (None, 5, "x", b"x", [], [[1.0]], np.zeros((2, 2), "f"), ["a"], [None], object(), {}, [1j]),
    lambda w, v: TopK(3).apply(v),
)
bad(
    "samplers",
    "Grammar apply",
    (np.zeros(10**5, "f"),),
    lambda w, v: Grammar(w.vocab, 'root ::= "a"').apply(v),
    errors.PyllmError,
)
bad("samplers", "Chain", (None, 5, object(), [Greedy()], "x"), lambda w, v: Chain(v), TypeError)
bad("samplers", "Chain add", (None, 5, object(), Greedy), lambda w, v: Chain().add(v), TypeError)
bad("samplers", "Chain []", (*NOT_INTEGERS, 2, -3), lambda w, v: Chain(TopK(1), Greedy())[v], TypeError, IndexError)
bad("samplers", "Chain []", HUGE, lambda w, v: Chain(TopK(1), Greedy())[v], ValueError, OverflowError, IndexError)
bad(
    "samplers",
    "Chain remove",
    (*HUGE, *NOT_INTEGERS, 2, -3),
    lambda w, v: Chain(TopK(1), Greedy()).remove(v),
    *REFUSALS,
    IndexError,
)

# ---- Vocab

bad("vocab", "Vocab", (None, 5, "x", object()), lambda w, v: Vocab(v), TypeError)
bad("vocab", "tokenize", (*NOT_TEXT, [104, 105], range(3), 10**12), lambda w, v: w.vocab.tokenize(v), TypeError)
bad("vocab", "tokenize", ("\ud800",), lambda w, v: w.vocab.tokenize(v), ValueError)
for method in ("detokenize", "detokenize_bytes", "as_token_array"):
    bad("vocab", method, NOT_TOKENS, lambda w, v, m=method: getattr(w.vocab, m)(v))
    bad(
        "vocab",
        method,
        ([-1], [5, 10**6], np.array([2**40]), [2**31]),
        lambda w, v, m=method: getattr(w.vocab, m)(v),
        ValueError,
    )
bad("vocab", "detokenize errors=", (5, None), lambda w, v: w.vocab.detokenize([0, 5], errors=v))
for method in ("token_to_piece", "text", "is_eog", "is_control"):
    bad("vocab", method, (*HUGE, *NOT_INTEGERS, -1, 10**6), lambda w, v, m=method: getattr(w.vocab, m)(v))
bad("vocab", "token_to_piece lstrip=", (*HUGE, *NOT_INTEGERS), lambda w, v: w.vocab.token_to_piece(5, lstrip=v))
bad("vocab", "set", ("n_tokens", "bos", "ptr"), lambda w, v: setattr(w.vocab, v, 1), AttributeError)

# ---- Generation and TextStream

bad("generation", "Generation context", (None, 5, object()), lambda w, v: Generation(v, Greedy()), TypeError)
bad("generation", "Generation sampler", (None, 5, object(), Greedy), lambda w, v: Generation(w.context, v), TypeError)
bad(
    "generation",
    "Generation seq_id=",
    (*HUGE, *NOT_INTEGERS, -1, 2, 2**31 - 1),
    lambda w, v: Generation(w.context, Greedy(), seq_id=v),
)
for label, make in (
    ("Generation", lambda w, stop: Generation(w.context, Greedy(), stop=stop)),
    ("TextStream", lambda w, stop: TextStream(stop)),
):
    bad("generation", f"{label} stop=", (5, "", b"", [""], [None], [5], ["a", ""], object(), 1.5), make)
bad("generation", "prefill", (*NOT_TOKENS, [], [-1], [10**6]), lambda w, v: w.generation().prefill(v))
bad("generation", "run", (*HUGE, *NOT_INTEGERS), lambda w, v: w.generation().run(v))
bad(
    "generation",
    "run without prompt",
    (1, 5, 2**31 - 1),
    lambda w, v: Generation(Context(w.model, n_ctx=32), Greedy()).run(v),
    errors.NoOutputError,
)
bad("generation", "append", (None, 5, "text", [], object()), lambda w, v: TextStream().append(v), TypeError)
bad(
    "generation",
    "set",
    ("tokens", "n_past", "finish_reason"),
    lambda w, v: setattr(w.generation(), v, 1),
    AttributeError,
)

# ---- ThreadPool, backend, GGUF

bad("others", "ThreadPool", (*HUGE, *NOT_INTEGERS, 0, -1, 513), lambda w, v: ThreadPool(v))
bad("others", "ThreadPool poll=", (*HUGE, *NOT_INTEGERS, -1, 101), lambda w, v: ThreadPool(1, poll=v))
bad("others", "ThreadPool priority=", (*HUGE, *NOT_INTEGERS, -2, 4), lambda w, v: ThreadPool(1, priority=v))
bad("others", "load_backend", (*NOT_TEXT, "a\0b"), lambda w, v: backend.load_backend(v))
bad(
    "others",
    "load_backend",
    ("", "/nowhere", "/", "/etc/passwd", __file__),
    lambda w, v: backend.load_backend(v),
    errors.BackendError,
    errors.InvalidArgumentError,
    OSError,
)
bad("others", "load_backend of the model", (0,), lambda w, v: backend.load_backend(w.path), errors.BackendError)
bad("others", "buffer_type_address", (None, 5, "nope", [], b"CPU"), lambda w, v: backend.buffer_type_address(v))
bad("others", "GGUFReader", (None, 5, 1.5, [], object()), lambda w, v: GGUFReader(v), TypeError)
bad("others", "GGUFReader", ("", "/nowhere", "/", "a\0b", __file__), lambda w, v: GGUFReader(v))
bad("others", "GGUFReader tensor", (None, 5, "nope", "", "a\0"), lambda w, v: GGUFReader(w.path).tensor(v))
bad("others", "GGUFWriter alignment=", (*HUGE, *NOT_INTEGERS, 0, -1, 3), lambda w, v: GGUFWriter(alignment=v))
bad("others", "GGUFWriter add key", (None, 5, "", "a\0", "a" * 70000, []), lambda w, v: GGUFWriter().add(v, 1))
bad(
    "others",
    "GGUFWriter add value",
    (None, 2**70, {}, object(), 1j, [[1]], [1, "a"], "a\0"),
    lambda w, v: GGUFWriter().add("k", v),
)
bad("others", "GGUFWriter add type=", ("nope", 5, "", []), lambda w, v: GGUFWriter().add("k", 1, v))
bad(
    "others",
    "GGUFWriter add_tensor",
    (None, "x", np.zeros((1,) * 9), np.array(["a"]), np.zeros(3, complex)),
    lambda w, v: GGUFWriter().add_tensor("t", v),
)
bad(
    "others",
    "GGUFWriter write",
    (None, 5, "/nowhere/x", "/", "a\0b"),
    lambda w, v: GGUFWriter().write(v),
    *REFUSALS,
    OSError,
)

GROUPS = sorted({row.group for row in ROWS})


def rows(group: str) -> Iterator[tuple[int, Row]]:
    return ((i, row) for i, row in enumerate(ROWS) if row.group == group)


if __name__ == "__main__":
    world = make_world(Path(sys.argv[2]))
    for i, row in rows(sys.argv[1]):
        print(i, flush=True)
        try:
            row.call(world)
        except Exception:
            pass
    # Nothing has been broken by all that.
    world.context.memory.clear()
    world.context.decode(Batch.from_arrays([1, 5]))
    print("done")

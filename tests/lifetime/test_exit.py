"""The end of the interpreter, with everything alive and with threads at work: exit code 0 and not a word."""

from __future__ import annotations

import pytest
from support import isolation

EVERYTHING = """
model, context = make(n_threads=2)
vocab, memory = model.vocab, context.memory
grammar = Grammar(vocab, "root ::= [a-z ]+")
chain = Chain(TopK(5), grammar, Greedy())
generation = Generation(context, chain, stop=["x"])
generation.prefill(vocab.tokenize("the cat"))
generation.run(3)
context.decode(Batch.from_arrays([1]))
outputs = context.logits
view = np.asarray(outputs)
raw = memoryview(outputs)
"""

ENDINGS = {
    "falls off the end": "",
    "sys.exit": "sys.exit(0)",
    "os._exit": "print('reached the end', flush=True); os._exit(0)",
    "sys.exit in the middle of a with block": """
with Context(model, n_ctx=64) as inner, Chain(Greedy()) as sampler:
    inner.decode(Batch.from_arrays([1]))
    sys.exit(0)
""",
    "in a cycle": """
everything = list(globals().values())
everything.append(everything)
context.set_abort_callback(lambda: everything)
chain_of_cycle = everything
""",
    "with the collector off": "gc.disable(); context.set_abort_callback(lambda context=context: False)",
    "held by a builtin module": "import builtins; builtins.held = [view, model, context, chain, generation, raw]",
    "held by a class, a thread-local and a default": """
class Holder:
    things = (context, view, model)
local = threading.local()
local.things = (chain, generation)
def function(held=(raw, outputs, memory, vocab)):
    return held
""",
    "used in atexit": """
import atexit
def late():
    context.memory.clear()
    context.decode(Batch.from_arrays([1, 2]))
    assert chain.clone() and Greedy().sample(context) >= 0
    assert Model(PATH).vocab.tokenize("the cat")
atexit.register(late)
""",
    "used in __del__ while modules go": """
class Late:
    def __init__(self, *things):
        self.things = things
    def __del__(self):
        model, context, vocab = self.things
        vocab.tokenize("the cat")
        context.memory.clear()
        context.close()
        model.close()
late = Late(*make(), Model(PATH).vocab)
import builtins
builtins.late = late
""",
    "closed in atexit": """
import atexit
for thing in (model, context, chain, grammar):
    atexit.register(lambda thing=thing: repr(thing) and getattr(thing, "closed"))
atexit.register(lambda: chain.close())
""",
    "logging to a handler": """
import logging
handler = logging.StreamHandler(open(os.devnull, "w"))
logging.getLogger("pyllm.llama").addHandler(handler)
logging.getLogger("pyllm.llama").setLevel(logging.DEBUG)
second = Context(Model(PATH), n_ctx=64)
""",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_everything_alive(ending, tiny_models):
    script = EVERYTHING + "print('made')\n" + ending
    result = isolation.run(script, tiny_models["llama"])
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("made")


NAMES = ("model", "context", "vocab", "memory", "grammar", "chain", "generation", "outputs", "view", "raw")


@pytest.mark.parametrize("seed", range(12))
def test_globals_in_any_order(seed, tiny_models):
    """Names of __main__ are cleared in the order in which they were set."""
    isolation.survive(
        EVERYTHING
        + f"""
import random
order = list({NAMES!r})
random.Random({seed}).shuffle(order)
things = {{name: globals().pop(name) for name in order}}
for name in order:
    globals()[name] = things[name]
del things
""",
        tiny_models["llama"],
    )


@pytest.mark.parametrize("seed", range(12))
def test_modules_in_any_order(seed, tiny_models):
    """Modules are taken down in another order than they were imported in, and some before the end."""
    isolation.survive(
        EVERYTHING
        + f"""
import random
names = [name for name in sys.modules if name.split(".")[0] in ("pyllm", "numpy", "logging", "threading", "atexit")]
order = random.Random({seed})
order.shuffle(names)
modules = {{name: sys.modules.pop(name) for name in names}}
for name in names:
    if not name.startswith("pyllm") or order.random() < 0.5:
        sys.modules[name] = modules[name]
del modules
gc.collect()
""",
        tiny_models["llama"],
    )


THREADS = {
    "decoding": """
model = Model(PATH)
def work():
    context = Context(model, n_ctx=256, n_threads=1)
    while True:
        context.memory.clear()
        context.decode(Batch.from_arrays(np.ones(200, int)))
""",
    "decoding with two threads": """
model = Model(PATH)
def work():
    context = Context(model, n_ctx=256, n_threads=2)
    while True:
        context.memory.clear()
        context.decode(Batch.from_arrays(np.ones(200, int)))
""",
    "decoding one shared context": """
from pyllm.errors import NoKVSlotError
model, context = make()
def work():
    while True:
        # Between two threads' clear() and decode() the cache may be full, which is right and not what is tested.
        try:
            context.memory.clear()
            context.decode(Batch.from_arrays(np.ones(80, int)))
        except NoKVSlotError:
            pass
""",
    "decoding with an abort callback": """
model = Model(PATH)
def work():
    context = Context(model, n_ctx=512, n_threads=1, abort_callback=lambda: False)
    while True:
        context.memory.clear()
        context.decode(Batch.from_arrays(np.ones(500, int)))
""",
    "generating": """
model = Model(PATH)
bias = dict.fromkeys(model.vocab.eog_tokens, float("-inf"))
def work():
    while True:
        generation = Generation(
            Context(model, n_ctx=512, n_threads=1), Chain(LogitBias(model.n_vocab, bias), Dist(1))
        )
        generation.prefill([1, 2])
        generation.run(400)
""",
    "loading with a progress callback": """
def work():
    while True:
        Model(PATH, progress_callback=lambda progress: True)
""",
    "logging": """
import logging
logging.basicConfig(level=1, stream=open(os.devnull, "w"))
model = Model(PATH)
def work():
    while True:
        Context(model, n_ctx=64, n_threads=1)
""",
    "tokenizing": """
vocab = Model(PATH).vocab
def work():
    while True:
        vocab.tokenize("the number of the people " * 1000)
        vocab.pieces()
""",
    "applying samplers": """
values = np.random.default_rng(0).normal(size=50000).astype("f")
def work():
    sampler = TopP(0.9)
    while True:
        sampler.apply(values)
""",
}


@pytest.mark.parametrize("threads", THREADS.values(), ids=THREADS)
def test_daemon_threads(threads, tiny_models):
    script = threads + (
        "for _ in range(3):\n    threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(float(sys.argv[2]))\nprint('made')\n"
    )
    for delay in (0.05, 0.2, 0.31, 0.47):
        result = isolation.run(script, tiny_models["llama"], delay)
        assert (result.returncode, result.stdout, result.stderr) == (0, "made\n", "")


def test_daemon_threads_that_are_not_ended_by_sys_exit(tiny_models):
    """The main thread decodes itself when it leaves through an exception."""
    result = isolation.run(
        THREADS["decoding"]
        + """
threading.Thread(target=work, daemon=True).start()
def interrupt():
    time.sleep(0.3)
    signal.raise_signal(signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    work()
except KeyboardInterrupt:
    sys.exit(7)
""",
        tiny_models["llama"],
    )
    assert (result.returncode, result.stderr) == (7, "")


def test_threads_that_are_joined_at_exit(tiny_models):
    isolation.survive(
        """
from pyllm.errors import NoKVSlotError
model, context = make()
def work():
    for _ in range(20):
        # Between two threads' clear() and decode() the cache may be full, which is right and not what is tested.
        try:
            context.memory.clear()
            context.decode(Batch.from_arrays(np.ones(80, int)))
        except NoKVSlotError:
            pass
for _ in range(3):
    threading.Thread(target=work).start()
""",
        tiny_models["llama"],
    )


def test_nothing_is_said_by_the_way(tiny_models):
    result = isolation.survive(EVERYTHING, tiny_models["llama"])
    assert result.stdout == "reached the end\n"

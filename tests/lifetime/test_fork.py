"""os.fork: the child cannot use the parent's contexts, can use its models, and ends cleanly."""

from __future__ import annotations

import os

import pytest
from support import isolation

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

# Runs `function` in a child; what it raises becomes exit code 1, a hang SIGALRM.
CHILD = """
import traceback, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def child(function, code=0):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            function()
            os._exit(0)
        except SystemExit:
            raise
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == code, os.waitstatus_to_exitcode(status)

model, context = make(n_threads=2)
expected = context.logits.copy()
"""

CHILDREN = {
    "the parent's context": """
def function():
    for call in (
        lambda: context.decode(Batch.from_arrays([1])),
        lambda: context.logits,
        lambda: context.memory.clear(),
        lambda: context.memory.pos_max(0),
        lambda: context.n_ctx,
        lambda: context.synchronize(),
        lambda: Greedy().sample(context),
        lambda: Generation(context, Chain(Greedy())),
        lambda: context.set_n_threads(3),
        lambda: context.encode(Batch.from_arrays([1])),
    ):
        raises(errors.ForkError, ["os.fork()", "new one in the child"], call)
child(function)
""",
    "a generation that was begun in the parent": """
generation = Generation(context, Chain(Greedy()))
generation.prefill([1, 2])
generation.run(2)
before = list(generation.tokens)
def function():
    raises(errors.ForkError, "os.fork()", generation.run, 1)
    raises(errors.ForkError, "os.fork()", generation.step)
    raises(errors.ForkError, "os.fork()", generation.prefill, [1])
    assert list(generation.tokens) == before
child(function)
assert generation.run(2) == 2
""",
    "a new context on the parent's model": """
def function():
    assert model.vocab.tokenize("the cat") == tokens
    for n_threads in (1, 2):
        with Context(model, n_ctx=256, n_threads=n_threads) as fresh:
            fresh.decode(Batch.from_arrays([1, 5]))
            assert np.allclose(fresh.logits[-1], expected, atol=1e-4)
            generation = Generation(fresh, Chain(Grammar(model.vocab, "root ::= [a-z ]+"), TopK(3), Dist(1)))
            generation.prefill([1, 2])
            generation.run(3)
tokens = model.vocab.tokenize("the cat")
child(function)
""",
    "a new model": """
def function():
    with Model(PATH) as fresh, Context(fresh, n_ctx=64, n_threads=2) as other:
        other.decode(Batch.from_arrays([1, 5]))
        assert np.allclose(other.logits[-1], expected, atol=1e-4)
child(function)
""",
    "closing what the parent made": """
second = Context(model, n_ctx=64, n_threads=2)
chain = Chain(TopK(3), Greedy())
def function():
    second.close()
    second.close()
    chain.close()
    model.close()
    raises(errors.ClosedError, "closed", lambda: model.n_embd)
child(function)
second.decode(Batch.from_arrays([1]))
chain.sample(second)
""",
    "letting go of what the parent made": """
def function():
    global model, context
    del model, context
    gc.collect()
child(function)
""",
    "leaving the parent's with blocks": """
with Context(model, n_ctx=64, n_threads=2) as second, Chain(Greedy()) as chain:
    second.decode(Batch.from_arrays([1]))
    child(lambda: sys.exit(5), 5)
    second.decode(Batch.from_arrays([1]))
""",
    "the end of the interpreter in the child": "child(lambda: sys.exit(3), 3)",
    "a grandchild": """
def function():
    fresh = Context(model, n_ctx=64, n_threads=2)
    fresh.decode(Batch.from_arrays([1]))
    def grandchild():
        raises(errors.ForkError, "os.fork()", fresh.decode, Batch.from_arrays([1]))
        raises(errors.ForkError, "os.fork()", context.decode, Batch.from_arrays([1]))
        Context(model, n_ctx=64, n_threads=2).decode(Batch.from_arrays([1]))
    child(grandchild)
    fresh.decode(Batch.from_arrays([1]))
child(function)
""",
    "a view that the parent made": """
view = np.asarray(context.logits)
def function():
    assert (view == expected).all()
    view[:] = 0
child(function)
assert (view == expected).all()
""",
    "samplers that the parent made": """
chain = Chain(TopK(3), Grammar(model.vocab, "root ::= [a-z ]+"), Greedy())
def function():
    fresh = Context(model, n_ctx=64, n_threads=1)
    fresh.decode(Batch.from_arrays([1, 5]))
    try:
        chain.sample(fresh)
    except errors.ForkError as exception:
        assert "os.fork()" in str(exception)
child(function)
context.memory.clear()
context.decode(Batch.from_arrays([1, 5]))
assert chain.sample(context) >= 0
""",
    "while another thread decodes": """
stop = []
def work():
    while not stop:
        context.memory.clear()
        context.decode(Batch.from_arrays(np.ones(200, int)))
thread = threading.Thread(target=work)
thread.start()
def function():
    raises(errors.ForkError, "os.fork()", context.decode, Batch.from_arrays([1]))
    Context(model, n_ctx=64, n_threads=2).decode(Batch.from_arrays([1]))
    model.close()
try:
    for _ in range(5):
        child(function)
finally:
    stop.append(1)
    thread.join()
""",
    "while another thread tokenizes": """
stop = []
text = "the number of the people " * 4000
def work():
    while not stop:
        model.vocab.tokenize(text)
thread = threading.Thread(target=work)
thread.start()
def function():
    assert model.vocab.tokenize("the cat")
    model.close()
try:
    for _ in range(5):
        child(function)
finally:
    stop.append(1)
    thread.join()
""",
    "while another thread loads": """
stop = []
def work():
    while not stop:
        Context(Model(PATH), n_ctx=64, n_threads=1)
thread = threading.Thread(target=work)
thread.start()
def function():
    Context(Model(PATH), n_ctx=64, n_threads=1).decode(Batch.from_arrays([1]))
try:
    for _ in range(5):
        child(function)
finally:
    stop.append(1)
    thread.join()
""",
}


@pytest.mark.parametrize("script", CHILDREN.values(), ids=CHILDREN)
def test_child(script, tiny_models):
    after = """
context.memory.clear()
context.decode(Batch.from_arrays([1, 5]))
assert np.allclose(context.logits[-1], expected, atol=1e-4), "the parent's context has changed"
"""
    isolation.survive(CHILD + script + ("" if "view = " in script else after), tiny_models["llama"])


MULTIPROCESSING = """
import multiprocessing, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def use_parent(queue):
    try:
        context.decode(Batch.from_arrays([1]))
    except errors.ForkError as exception:
        queue.put(str(exception))

def use_model(_):
    with Context(model, n_ctx=256, n_threads=1) as fresh:
        fresh.decode(Batch.from_arrays([1, 5]))
        return fresh.logits.copy()

model, context = make(n_threads=2)
expected = context.logits.copy()
fork = multiprocessing.get_context("fork")
queue = fork.Queue()
process = fork.Process(target=use_parent, args=(queue,))
process.start()
message = queue.get(timeout=550)
process.join(300)
assert process.exitcode == 0, process.exitcode
assert "spawn" in message, message
with fork.Pool(2) as pool:
    for logits in pool.map(use_model, range(6)):
        assert np.allclose(logits, expected, atol=1e-4)
context.decode(Batch.from_arrays([1]))
"""


def test_multiprocessing(tiny_models):
    isolation.survive(MULTIPROCESSING, tiny_models["llama"])


def test_the_module_may_be_imported_before_the_fork(tiny_models):
    """Nothing loaded yet in the parent: the child loads everything itself."""
    script = CHILD.replace("model, context = make(n_threads=2)\nexpected = context.logits.copy()\n", "")
    isolation.survive(script + "child(lambda: make(n_threads=2))\nmake(n_threads=2)", tiny_models["llama"])

"""Threads on one context and on many, and threads that close what others use: only typed errors, never a crash."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import isolation

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Greedy

N_THREADS = 8
PROMPTS = [f"the {word} people look at number {n}" for n, word in enumerate(["more", "time", "new", "day"] * 2)]


def generate(model, context, prompt, seq_id=0):
    generation = Generation(context, Chain(Greedy()), seq_id=seq_id)
    generation.prefill(model.vocab.tokenize(prompt))
    for _ in range(4):
        generation.run(4)
    return list(generation.tokens)


@pytest.fixture
def serial(tiny_model):
    """What each prompt gives with a context of its own."""
    result = []
    for prompt in PROMPTS:
        with Context(tiny_model, n_ctx=256, n_threads=1) as context:
            result.append(generate(tiny_model, context, prompt))
    assert len({tuple(tokens) for tokens in result}) > 1, "all prompts give the same: the test would show nothing"
    return result


def together(function):
    """Run `function(i)` in threads that start at the same moment."""
    barrier = threading.Barrier(N_THREADS)

    def start(i):
        barrier.wait()
        return function(i)

    with ThreadPoolExecutor(N_THREADS) as pool:
        return list(pool.map(start, range(N_THREADS)))


def test_one_sequence_each_on_one_context(serial, make_context, tiny_model):
    context = make_context(n_ctx=256 * N_THREADS, n_seq_max=N_THREADS, n_threads=2)
    assert together(lambda i: generate(tiny_model, context, PROMPTS[i], i)) == serial


def test_a_context_each_on_one_model(serial, make_context, tiny_model):
    contexts = [make_context(n_ctx=256) for _ in range(N_THREADS)]
    assert together(lambda i: generate(tiny_model, contexts[i], PROMPTS[i])) == serial


def test_generations_that_take_turns_on_one_context(serial, make_context, tiny_model):
    """The same without threads: one's prompt comes between the other's prompt and its first token."""
    context = make_context(n_ctx=512, n_seq_max=2)
    first, second = (Generation(context, Chain(Greedy()), seq_id=i) for i in range(2))
    first.prefill(tiny_model.vocab.tokenize(PROMPTS[0]))
    second.prefill(tiny_model.vocab.tokenize(PROMPTS[1]))
    for _ in range(16):
        first.step()
        second.step()
    assert [list(first.tokens), list(second.tokens)] == serial[:2]


def test_decodes_of_one_context_do_not_mix(make_context):
    context = make_context(n_ctx=256 * N_THREADS, n_seq_max=N_THREADS)
    lock = threading.Lock()
    rows = {}

    def decode(i):
        for position in range(20):
            batch = Batch.from_arrays([5 + i], pos=[position], seq_ids=i)
            with lock:  # decode and read belong together; the context itself needs no lock
                context.decode(batch)
                rows[i, position] = context.logits[-1].copy()

    together(decode)
    for i in range(N_THREADS):
        context.memory.rm(i)
        for position in range(20):
            context.decode(Batch.from_arrays([5 + i], pos=[position], seq_ids=i))
            np.testing.assert_allclose(context.logits[-1], rows[i, position], atol=1e-4)


def test_one_sampler_in_many_threads(make_context):
    context = make_context()
    context.decode(Batch.from_arrays([1, 5]))
    chain = Chain(Greedy())
    expected = chain.sample(context)
    assert together(lambda i: [chain.sample(context) for _ in range(50)]) == [[expected] * 50] * N_THREADS


def test_one_vocabulary_in_many_threads(tiny_model):
    expected = [tiny_model.vocab.tokenize(prompt) for prompt in PROMPTS]
    assert together(lambda i: [tiny_model.vocab.tokenize(p) for p in PROMPTS]) == [expected] * N_THREADS


def test_progress_can_be_read_while_it_runs(make_context, tiny_model):
    context = make_context(n_ctx=512)
    eog = set(tiny_model.vocab.eog_tokens)
    generation = Generation(context, Chain(Greedy()))
    generation.prefill(tiny_model.vocab.tokenize(PROMPTS[0]))
    thread = threading.Thread(target=generation.run, args=(400,))
    thread.start()
    text, seen = "", []
    while thread.is_alive():
        text += generation.stream.take()
        tokens = list(generation.tokens)
        assert tokens[: len(seen)] == seen
        seen = tokens
    thread.join()
    text += generation.stream.take(all=True)
    assert text == generation.stream.text.decode("utf-8", "replace")
    assert list(generation.tokens)[: len(seen)] == seen
    assert not eog & set(seen)


RACES = {
    "a context closed while others use it": """
model = Model(PATH)
for round in range(40):
    context = Context(model, n_ctx=256, n_threads=1 + round % 2)
    memory, chain, done = context.memory, Chain(Greedy()), []
    context.decode(Batch.from_arrays([1]))
    def decode():
        context.decode(Batch.from_arrays([1, 5]))
        if round % 3 == 0:
            memory.clear()
    def read():
        context.n_ctx, context.n_batch, context.perf(), context.has_memory, repr(context), repr(memory)
        context.causal_attn, context.pooling_type, context.n_threads, memory.can_shift
    def sample():
        try:
            chain.sample(context)
        except errors.NoOutputError:
            pass
    def full():
        try:
            decode()
        except errors.NoKVSlotError:
            memory.clear()
    def close():
        time.sleep(0.002 * (round % 5))
        context.close()
    run_threads(*[until(errors.ClosedError, f) for f in (full, full, read, read, sample)], close, close)
""",
    "a model closed by several while others decode and tokenize": """
for round in range(40):
    model = Model(PATH)
    vocab = model.vocab
    contexts = [Context(model, n_ctx=512, n_threads=1) for _ in range(2)]
    batch = Batch.from_arrays(np.ones(300, int))
    def decode(context):
        context.memory.clear()
        context.decode(batch)
    def tokenize():
        vocab.tokenize("the number of the people " * 50)
        vocab.detokenize([1, 5, 6])
    def read():
        model.metadata, model.description, vocab.attrs, vocab.pieces(), repr(model), vocab.eog_tokens
    def close():
        time.sleep(0.003 * (round % 4))
        model.close()
    run_threads(
        *[until(errors.ClosedError, lambda c=c: decode(c)) for c in contexts],
        until(errors.ClosedError, tokenize), until(errors.ClosedError, read), close, close, close,
    )
    assert model.closed and all(context.closed for context in contexts)
""",
    "contexts made while the model is closed": """
sys.setswitchinterval(1e-5)
for round in range(60):
    model = Model(PATH)
    def create():
        context = Context(model, n_ctx=64, n_threads=1 + 3 * (round % 2))
        context.decode(Batch.from_arrays([1]))
    def close():
        time.sleep(0.001 * (round % 7))
        model.close()
    run_threads(*[until(errors.ClosedError, create)] * 3, close)
""",
    "samplers of a model applied while it is closed": """
for round in range(60):
    model = Model(PATH)
    logits = np.zeros(model.n_vocab, np.float32)
    grammar = Grammar(model.vocab, "root ::= [a-z ]+")
    chain = Chain(DRY(model.vocab), Grammar(model.vocab, "root ::= [a-z ]+"), Infill(model.vocab), Greedy())
    def accept():
        copy = grammar.clone()
        copy.accept(model.vocab.tokenize("a", add_special=False)[0])
    def close():
        time.sleep(0.001 * (round % 5))
        model.close()
    run_threads(
        until(errors.ClosedError, lambda: grammar.apply(logits)),
        until(errors.ClosedError, lambda: chain.apply(logits)),
        until(errors.ClosedError, accept), close,
    )
""",
    "a sampler taken over by a chain while it works": """
values = np.random.default_rng(0).normal(size=20000).astype("f")
for round in range(60):
    sampler = TopP(0.9)
    def apply():
        sampler.apply(values)
    def take_over():
        time.sleep(0.001 * (round % 5))
        chain = Chain()
        chain.add(sampler)
        if round % 2:
            outer = Chain(chain)
            outer.close()
        else:
            chain.close()
    run_threads(until(errors.ClosedError, apply), until(errors.ClosedError, apply), take_over)
""",
    "a chain rebuilt while it samples": """
model, context = make()
chain = Chain(Greedy())
end = time.monotonic() + 2
def sample():
    try:
        while time.monotonic() < end:
            assert 0 <= chain.sample(context) < model.n_vocab
    except errors.SamplerError as exception:
        assert "never selects" in str(exception)
def rebuild():
    while time.monotonic() < end:
        chain.add(TopK(5))
        chain.remove(len(chain) - 1)
        [len(chain), repr(chain), chain[0].name, chain.clone()]
run_threads(sample, sample, rebuild)
""",
    "a generation driven by several": """
model = Model(PATH)
bias = dict.fromkeys(model.vocab.eog_tokens, float("-inf"))
for _ in range(5):
    context = Context(model, n_ctx=512, n_threads=1)
    generation = Generation(context, Chain(LogitBias(model.n_vocab, bias), Dist(1)))
    generation.prefill([1, 5])
    def read():
        seen = 0
        while generation.n_generated < 390:
            tokens = generation.tokens
            assert len(tokens) >= seen and (not len(tokens) or 0 <= min(tokens) <= max(tokens) < model.n_vocab)
            seen = len(tokens)
            generation.stream.take(), generation.stream.text, generation.prompt, generation.n_generated
    run_threads(lambda: generation.run(200), lambda: [generation.step() for _ in range(200)], read, read)
    assert generation.n_generated == 400 and context.memory.pos_max(0) + 1 == generation.n_past
""",
    "views made and dropped while others close": """
model = Model(PATH)
for round in range(40):
    context = Context(model, n_ctx=256, n_threads=1)
    context.decode(Batch.from_arrays([1]))
    def view():
        try:
            array = np.asarray(context.logits)
            array += 1
        except errors.StaleLogitsError:
            pass
    def close():
        context.close()
    run_threads(until((errors.ClosedError, errors.NoOutputError), view), close, close)
""",
    "loads in many threads": """
def load():
    for _ in range(10):
        with Model(PATH) as model, Context(model, n_ctx=64, n_threads=1) as context:
            context.decode(Batch.from_arrays([1]))
            raises(errors.ModelNotFoundError, "nowhere", Model, "/nowhere/x.gguf")
            raises(errors.InvalidBatchError, "", context.decode, Batch.from_arrays([-1]))
run_threads(*[load] * 8)
""",
    "errors keep to their thread": """
model, context = make()
def fail(seq):
    for _ in range(50):
        error = raises(errors.InvalidArgumentError, f"sequence id {seq} ", context.memory.pos_max, seq)
        assert error.log == ()
        error = raises(errors.GrammarError, "", Grammar, model.vocab, 'root ::= "x')
run_threads(*[lambda seq=seq: fail(seq) for seq in range(5, 9)])
""",
}


@pytest.mark.parametrize("script", RACES.values(), ids=RACES)
def test_race(script, tiny_models):
    result = isolation.run(script + "\nprint('reached the end')", tiny_models["llama"], timeout=550)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert result.stdout == "reached the end\n"


def test_two_contexts_really_run_at_the_same_time(make_context):
    """While one thread is inside a decode, another can start and end one: there is no global lock."""
    slow, quick = make_context(n_ctx=512), make_context(n_ctx=512)
    started, overlapped = threading.Event(), threading.Event()
    finished = []

    def callback():
        # Inside the slow decode, about every 20 ms: let it last until the other one is through.
        started.set()
        if overlapped.wait(300):
            finished.append(True)
        return True

    slow.set_abort_callback(callback)

    def decode_slowly():
        try:
            while not started.is_set():
                slow.memory.clear()
                slow.decode(Batch.from_arrays(np.ones(500, int)))
        except Exception as exception:
            finished.append(exception)

    thread = threading.Thread(target=decode_slowly)
    thread.start()
    assert started.wait(300)
    quick.decode(Batch.from_arrays([1, 5]))
    overlapped.set()
    thread.join()
    assert finished[0] is True

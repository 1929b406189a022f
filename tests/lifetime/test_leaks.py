"""Many rounds of everything that allocates, without growth of the process."""

from __future__ import annotations

import os

import pytest
from support import isolation

pytestmark = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer holds on to what was freed"
)

# Grows by less than this after the warm-up, however many rounds there are. A leaked tiny model is half a
# megabyte, a leaked context more, a leaked sampler a few hundred bytes: rounds are chosen so that each would show.
# (What an assertion leaves behind in C frames that know no destructors, some 2 KiB, stays below it too.)
LIMIT = 1 << 20

MEASURE = """
import psutil
process = psutil.Process()

def measure(work, rounds, limit=int(sys.argv[2])):
    def settle():
        gc.collect()
        return process.memory_info().rss

    for _ in range(max(rounds // 5, 5)):
        work()
    threads, files, growth = process.num_threads(), process.num_fds(), []
    # The heap may settle once; a leak grows every time.
    while len(growth) < 3 and (not growth or growth[-1] >= limit):
        before = settle()
        for _ in range(rounds):
            work()
        growth.append(settle() - before)
    print([f"{size / 1024:.0f} KiB" for size in growth], f"in {rounds} rounds each")
    assert min(growth) < limit, f"grew by {growth} bytes in {rounds} rounds each"
    assert process.num_threads() <= threads and process.num_fds() <= files
"""

WORK = {
    "load and close": (
        """
def work():
    model = Model(PATH)
    context = Context(model, n_ctx=64, n_threads=1)
    context.decode(Batch.from_arrays([1, 5]))
    model.close()
""",
        1000,
    ),
    "load and let go": (
        """
def work():
    context = Context(Model(PATH), n_ctx=64, n_threads=1)
    context.decode(Batch.from_arrays([1, 5]))
    np.asarray(context.logits)[0, 0] = 1
""",
        1000,
    ),
    "vocabulary only": ("def work(): Model(PATH, vocab_only=True).vocab.tokenize('the cat')", 1000),
    "contexts with threads": (
        """
model = Model(PATH)
def work():
    with Context(model, n_ctx=64, n_threads=2) as context:
        context.set_n_threads(3)
""",
        100,
    ),
    "contexts in a cycle": (
        """
model = Model(PATH)
def work():
    context = Context(model, n_ctx=64, n_threads=1)
    context.set_abort_callback(lambda: context is None)
    context.decode(Batch.from_arrays([1]))
    del context
    gc.collect(0)
""",
        300,
    ),
    "failed loads": (
        """
from pathlib import Path
bad = Path(PATH).with_name("truncated-for-leaks.gguf")
bad.write_bytes(Path(PATH).read_bytes()[:40000])
text = Path(PATH).with_name("text-for-leaks.gguf")
text.write_bytes(b"nothing of the kind")
def work():
    raises(errors.ModelLoadError, "", Model, bad)
    raises(errors.ModelLoadError, "", Model, text)
    raises(errors.ModelNotFoundError, "", Model, "/nowhere")
    raises(errors.InvalidArgumentError, "", Model, PATH, split_mode="x")
    raises(errors.ModelLoadError, "", Model, PATH, progress_callback=lambda progress: False)
    raises(KeyError, "", Model, PATH, progress_callback=lambda progress: {}[progress])
""",
        300,
    ),
    "failed contexts": (
        """
model = Model(PATH)
def work():
    raises(errors.PyllmError, "", Context, model, n_seq_max=1000)
    raises(errors.PyllmError, "", Context, model, type_k="x")
    raises(errors.PyllmError, "", Context, model, ctx_type="mtp")
    raises(errors.PyllmError, "", Context, model, type_v="q8_0", flash_attn_type="disabled")
""",
        500,
    ),
    "samplers": (
        """
model, context = make()
vocab = model.vocab
def work():
    with Chain(TopK(40), TopP(0.9), MinP(0.05), Penalties(model.n_vocab, 64, 1.1), Temp(0.8), Dist(1)) as chain:
        chain.sample(context)
        chain.clone().sample(context)
        chain.remove(0)
    grammar = Grammar(vocab, 'root ::= "a"+ | [b-z]*')
    grammar.clone().apply(context.logits[-1])
    raises(errors.SamplerError, "", Chain(TopK(3)).sample, context)
    DRY(vocab), Infill(vocab), LogitBias(model.n_vocab, {1: 2.0}), Mirostat(model.n_vocab), XTC(0.5, 0.1)
""",
        2000,
    ),
    "batches and decodes": (
        """
model, context = make()
def work():
    context.memory.clear()
    context.decode(Batch.from_arrays(np.ones(64, int), outputs="all"))
    context.logits.copy()
    raises(errors.InvalidBatchError, "", context.decode, Batch.from_arrays([-1]))
    raises(errors.InvalidBatchError, "", context.decode, Batch.from_arrays([1, 1], pos=[9, 3]))
    raises(errors.NoOutputError, "", context.logits_ith, 7)
    batch = Batch(64)
    batch.add(1, 0)
    batch.add_sequence(np.ones(30, int), pos=1)
""",
        1000,
    ),
    "refused for want of room": (
        """
model = Model(PATH)
context = Context(model, n_ctx=256, n_threads=1)
def work():
    context.memory.clear()
    context.decode(Batch.from_arrays(np.ones(200, int)))
    raises(errors.NoKVSlotError, "", context.decode, Batch.from_arrays(np.ones(100, int)))
""",
        300,
    ),
    "assertions": (
        """
from pathlib import Path
model = Model(Path(PATH).with_name("t5.gguf"))
def work():
    with Context(model, n_ctx=64, n_threads=1) as context:
        raises(errors.BackendAssertError, "llama_encode", context.decode, Batch.from_arrays([1, 2]))
""",
        300,
    ),
    "aborted decodes": (
        """
model, context = make()
def work():
    context.memory.clear()
    context.abort()
    raises(errors.DecodeAborted, "", context.decode, Batch.from_arrays(np.ones(64, int)))
""",
        1000,
    ),
    "generations": (
        """
model, context = make()
chain = Chain(TopK(5), Dist(1))
prompt = model.vocab.tokenize("the more people")
def work():
    context.memory.clear()
    generation = Generation(context, chain, stop=["xyz", "never"])
    generation.prefill(prompt)
    generation.run(10)
    generation.stream.take(all=True), generation.tokens, generation.prompt
""",
        300,
    ),
    "text and tokens": (
        """
vocab = Model(PATH).vocab
def work():
    vocab.detokenize(vocab.tokenize("the more people look at the number " * 20))
    vocab.pieces(), vocab.attrs, vocab.scores
    raises(errors.InvalidArgumentError, "", vocab.detokenize, [-1])
""",
        500,
    ),
    "short threads": (
        """
model, context = make()
def in_thread():
    context.memory.clear()
    context.decode(Batch.from_arrays([1, 5]))
    raises(errors.GrammarError, "", Grammar, model.vocab, "")
    raises(errors.InvalidBatchError, "", context.decode, Batch.from_arrays([1, 1], pos=[9, 3]))
def work():
    run_threads(in_thread, in_thread)
""",
        300,
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_no_growth(name, tiny_models):
    pytest.importorskip("psutil")
    work, rounds = WORK[name]
    assert tiny_models["t5"].parent == tiny_models["llama"].parent
    # Freed memory is given back at once, and not overwritten, which would touch it.
    result = isolation.survive(
        f"{MEASURE}\n{work}\nmeasure(work, {rounds})",
        tiny_models["llama"],
        LIMIT,
        timeout=550,
        env={"MALLOC_PERTURB_": "0", "MALLOC_ARENA_MAX": "1"},
    )
    print(result.stdout)

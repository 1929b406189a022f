"""Cycles through the garbage collector: the order in which it breaks them must not matter."""

from __future__ import annotations

from support import isolation

CYCLES = {
    # A callback that holds its own context, the usual way to a cycle.
    "context": """
for n_threads in (1, 1, 2, 2):
    model, context = make(n_threads=n_threads)
    context.set_abort_callback(lambda context=context: False)
    alive = weakref.ref(context), weakref.ref(model)
    del model, context
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
""",
    "context with a view": """
for _ in range(20):
    model, context = make()
    view = memoryview(context.logits)
    context.set_abort_callback(lambda view=view: False)
    alive = weakref.ref(context)
    del model, context, view
    gc.collect()
    assert alive() is None
""",
    "chain that keeps its members": """
class Kept(Chain):
    def __init__(self, *members):
        super().__init__(*members)
        self.members_ = list(members)

for _ in range(100):
    chain = Kept(TopK(4), Dist(1), Chain(Greedy()))
    alive = weakref.ref(chain)
    del chain
    gc.collect()
    assert alive() is None
""",
    "sampler that knows its chain": """
for _ in range(100):
    sampler = Greedy()
    sampler.me = sampler
    chain = Chain(TopK(3), sampler)
    sampler.chain_ = chain
    del chain, sampler
    gc.collect()
""",
    "grammar that knows its model": """
for _ in range(50):
    model = Model(PATH)
    grammar = Grammar(model.vocab, "root ::= [a-z]+")
    grammar.me = grammar
    context = Context(model, n_ctx=32, abort_callback=lambda grammar=grammar: False)
    grammar.context = context
    alive = weakref.ref(model)
    del model, grammar, context
    gc.collect()
    assert alive() is None
""",
    "everything in one cycle": """
class Kept(Chain):
    pass

for _ in range(20):
    model, context = make()
    chain = Kept(Grammar(model.vocab, "root ::= [a-z ]+"), Greedy())
    generation = Generation(context, chain)
    generation.prefill([1, 2])
    generation.run(2)
    outputs = context.logits
    everything = [model, context, chain, generation, outputs, context.memory, model.vocab, memoryview(outputs)]
    everything.append(everything)
    chain.everything = everything
    context.set_abort_callback(lambda everything=everything: False)
    alive = weakref.ref(model), weakref.ref(context), weakref.ref(chain)
    del model, context, chain, generation, outputs, everything
    gc.collect()
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3
""",
    "finalizers that use what is collected": """
class Holder:
    def __del__(self):
        self.context.memory.clear()
        self.context.decode(Batch.from_arrays([1, 2]))
        used.append(self.chain.sample(self.context))

used = []
for _ in range(10):
    holder = Holder()
    holder.model, holder.context = make(n_threads=1)
    holder.chain = Chain(TopK(3), Greedy())
    holder.chain_in_cycle = [holder]
    holder.context.set_abort_callback(lambda holder=holder: False)
    del holder
    gc.collect()
assert len(used) == 10
""",
    "collected while a thread decodes": """
def churn():
    for _ in range(30):
        model, context = make(n_threads=1)
        context.set_abort_callback(lambda context=context: False)
        chain = Chain(Greedy())
        chain.sample(context)
        del model, context
        gc.collect()

def decode():
    model, context = make()
    for _ in range(100):
        context.memory.clear()
        context.decode(Batch.from_arrays(np.ones(100, int)))

run_threads(churn, churn, decode, decode)
""",
    "with the collector at every turn": """
gc.set_threshold(1)
for _ in range(3):
    model, context = make()
    chain = Chain(TopK(4), Grammar(model.vocab, "root ::= [a-z ]+"), Greedy())
    generation = Generation(context, chain, stop=["x"])
    generation.prefill(model.vocab.tokenize("the cat"))
    generation.run(5)
    [model.metadata, model.vocab.pieces(), model.vocab.attrs, context.logits[-1].sum(), repr(chain), chain.clone()]
""",
}


def pytest_generate_tests(metafunc):
    metafunc.parametrize("script", CYCLES.values(), ids=CYCLES)


def test_cycle(script, tiny_models):
    isolation.survive("import weakref\n" + script, tiny_models["llama"])

"""Inputs that kill the interpreter in other bindings: here each ends in a Python exception.

Every probe runs in a process of its own.
"""

from __future__ import annotations

import pytest
from support import isolation

PROBES = {
    "token_to_piece of a wild id": """
model = Model(PATH)
last = model.n_vocab - 1
for token in (99999999, -1, last + 1, -2**31):
    raises(errors.InvalidArgumentError, f"from 0 to {last}", model.vocab.token_to_piece, token)
for token in (2**31, 2**62, 2**70):
    raises(errors.InvalidArgumentError, str(token), model.vocab.token_to_piece, token)
assert isinstance(model.vocab.token_to_piece(last), bytes)
""",
    "text, attributes and scores of a wild id": """
vocab = Model(PATH).vocab
for token in (99999999, -1, 2**31 - 1):
    raises(errors.InvalidArgumentError, "ids go from 0 to", vocab.text, token)
    raises(errors.InvalidArgumentError, "ids go from 0 to", vocab.is_eog, token)
    raises(errors.InvalidArgumentError, "ids go from 0 to", vocab.is_control, token)
    raises(errors.InvalidArgumentError, "ids go from 0 to", vocab.detokenize, [token])
    raises(errors.InvalidArgumentError, "ids go from 0 to", vocab.detokenize_bytes, [5, token])
raises(IndexError, "", vocab.attrs.__getitem__, 99999999)
raises(IndexError, "", vocab.scores.__getitem__, 99999999)
""",
    "a batch larger than n_batch": """
model = Model(PATH)
context = Context(model, n_ctx=256, n_batch=32)
raises(errors.InvalidBatchError, ["33 tokens", "n_batch=32"], context.decode, Batch.from_arrays(np.ones(33, int)))
context.decode(Batch.from_arrays(np.ones(32, int)))
""",
    "n_batch of 0": """
model = Model(PATH)
for name in ("n_batch", "n_ubatch"):
    for value in (0, -1, 2**31, 2**70):
        raises(errors.InvalidArgumentError, [f"{name} must be from 1"], Context, model, **{name: value})
""",
    "the model is closed, then its context decodes": """
model, context = make()
model.close()
raises(errors.ClosedError, "closed", context.decode, Batch.from_arrays([1]))
raises(errors.ClosedError, "closed", lambda: context.logits)
raises(errors.ClosedError, "closed", context.memory.clear)
assert context.closed
""",
    "the context is closed, then decodes": """
model, context = make()
context.close()
raises(errors.ClosedError, "context has been closed", context.decode, Batch.from_arrays([1]))
raises(errors.ClosedError, "context has been closed", lambda: context.n_ctx)
raises(errors.ClosedError, "context has been closed", lambda: context.logits)
Context(model, n_ctx=64).decode(Batch.from_arrays([1]))
""",
    "the vocabulary outlives its model": """
model = Model(PATH)
vocab = model.vocab
expected = vocab.tokenize("the cat")
del model
gc.collect()
junk = [bytearray(1 << 20) for _ in range(20)]
assert vocab.tokenize("the cat") == expected
model = Model(PATH)
vocab = model.vocab
model.close()
raises(errors.ClosedError, "closed", vocab.tokenize, "the cat")
raises(errors.ClosedError, "closed", vocab.token_to_piece, 1)
""",
    "a grammar outlives its model": """
model, context = make()
grammar = Chain(Grammar(model.vocab, "root ::= [a-z ]+"), Greedy())
other = Model(PATH)
foreign = Chain(Grammar(other.vocab, "root ::= [a-z ]+"), Greedy())
del other
gc.collect()
assert 0 <= foreign.sample(context) < model.n_vocab
logits = context.logits[-1].copy()
model.close()
raises(errors.ClosedError, "closed", grammar.apply, logits)
raises(errors.ClosedError, "closed", grammar.accept, 5)
raises(errors.ClosedError, "closed", grammar.clone)
grammar.close()
""",
    "a member outlives its chain": """
member = Chain(TopK(3), Greedy())[0]
gc.collect()
assert member.name == "top-k"
chain = Chain(TopK(3), Greedy())
member = chain[0]
chain.close()
raises(errors.ClosedError, "closed", lambda: member.name)
raises(errors.ClosedError, "closed", member.apply, np.zeros(8, np.float32))
""",
    "objects that no constructor has seen": """
for kind in (Model, Context, Vocab, Memory, Generation):
    raises(TypeError, "", kind.__new__, kind)
raises(TypeError, "", Vocab)
raises(TypeError, "", Sampler)
raises(TypeError, "", Outputs)
model, context = make()
for kind in (Chain, Greedy, TopK, Grammar, Sampler):
    sampler = kind.__new__(kind)
    raises(errors.ClosedError, "", sampler.sample, context)
    raises(errors.ClosedError, "", sampler.apply, np.zeros(8, np.float32))
    raises(errors.ClosedError, "", lambda: sampler.name)
    raises(errors.PyllmError, "", sampler.clone)
    raises(errors.ClosedError, "", Chain, sampler)
    repr(sampler)
    sampler.close()
raises(TypeError, "Context", Outputs.__new__, Outputs)
raises(TypeError, "Context", Outputs, (2, 3))
outputs = np.ndarray.__new__(Outputs, (2, 3), np.float32)
repr(outputs), len(outputs), outputs.shape, outputs.address, outputs._repr_html_(), outputs[0], outputs.copy()
outputs.fill(1)
assert np.asarray(outputs + outputs).tolist() == [[2.0] * 3] * 2
""",
    "an __init__ that is called on something else": """
model, context = make()
for victim in (42, None, object(), context, model, model.vocab):
    raises(TypeError, "", Greedy.__init__, victim)
    raises(TypeError, "", TopK.__init__, victim, 5)
    raises(TypeError, "", Grammar.__init__, victim, model.vocab, 'root ::= "a"')
context.decode(Batch.from_arrays([1]))
""",
    "sampling where there are no logits": """
model = Model(PATH)
context = Context(model, n_ctx=64)
for sampler in (Greedy(), Chain(TopK(5), Dist(1))):
    raises(errors.NoOutputError, "index -1", sampler.sample, context)
context.decode(Batch.from_arrays([1, 2, 3]))
for index in (0, 1, 3, 100, -2, 2**31 - 1, -2**31):
    raises(errors.NoOutputError, f"index {index}", Greedy().sample, context, index)
    raises(errors.NoOutputError, f"index {index}", context.logits_ith, index)
assert Greedy().sample(context, 2) == Greedy().sample(context)
generation = Generation(Context(model, n_ctx=64), Chain(Greedy()))
raises(errors.NoOutputError, "prefill()", generation.step)
""",
    "a chain without a sampler that selects": """
model, context = make()
for chain in (Chain(), Chain(TopK(5), Temp(0.5)), TopP(0.9)):
    raises(errors.SamplerError, ["never selects", "Greedy()", "Dist()"], chain.sample, context)
generation = Generation(context, Chain(TopK(5)))
generation.prefill([1, 2])
raises(errors.SamplerError, "never selects", generation.step)
assert Greedy().sample(context) >= 0
""",
    "tokens that are none": """
model = Model(PATH)
context = Context(model, n_ctx=64)
n = model.n_vocab
for tokens in ([-1], [n], [5, 2**31 - 1], [-2**31]):
    raises(errors.InvalidBatchError, f"ids go from 0 to {n - 1}", context.decode, Batch.from_arrays(tokens))
raises(errors.InvalidBatchError, "at least 1 token", Batch.from_arrays, [])
raises(errors.InvalidBatchError, "empty", context.decode, Batch(8))
raises(errors.InvalidBatchError, "32 bits", Batch.from_arrays, [2**31])
context.decode(Batch.from_arrays([1]))
""",
    "a second batch without positions goes on": """
model = Model(PATH)
context = Context(model, n_ctx=64)
for expected in (2, 5, 8):
    context.decode(Batch.from_arrays([1, 2, 3]))
    assert context.memory.pos_max(0) == expected
""",
    "__init__ once more": """
model, context = make()
addresses = model.address, context.address
for thing, arguments in ((model, (PATH,)), (context, (model,))):
    try:
        thing.__init__(*arguments)
    except TypeError:
        pass
assert (model.address, context.address) == addresses
context.decode(Batch.from_arrays([1]))
top_k = TopK(3)
raises(errors.SamplerError, "already", top_k.__init__, 4)
assert top_k.sample.__self__.params == {"k": 3}
chain = Chain(Greedy())
raises(errors.SamplerError, "already", chain.__init__, TopK(1))
assert chain.sample(context) >= 0 and len(chain) == 1
""",
    "encoding with a model that has no encoder": """
model, context = make()
raises((errors.ContextError, errors.InvalidBatchError), ["encoder", "decode()"], context.encode, Batch.from_arrays([1]))
context.decode(Batch.from_arrays([1]))
""",
    "a sampler in two chains, a chain in itself": """
top_k, chain = TopK(3), Chain()
chain.add(top_k)
raises(errors.SamplerError, "clone()", Chain, top_k)
raises(errors.SamplerError, "itself", chain.add, chain)
inner = Chain(Greedy())
outer = Chain(inner)
raises(errors.SamplerError, "", inner.add, outer)
raises(IndexError, "1 samplers", outer.remove, 1)
removed = outer.remove(0)
outer.close()
assert len(removed) == 1
""",
}


@pytest.mark.process
@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_probe(probe, tiny_models):
    isolation.survive(probe, tiny_models["llama"])


BAD_GRAMMARS = """
model, context = make()
for grammar in ("root ::= [", "root ::= undefined", "rot ::= 'a'", "root ::= root", "\u2603", "(" * 5000, "", "a\\0b"):
    raises(errors.GrammarError, "grammar", Grammar, model.vocab, grammar)
chain = Chain(Greedy())
raises(TypeError, "", chain.add, None)
assert chain.sample(context) >= 0
"""


@pytest.mark.process
def test_bad_grammars(tiny_models):
    # Only that it survives: what llama.cpp prints is the next test's business.
    result = isolation.run(BAD_GRAMMARS, tiny_models["llama"])
    assert result.returncode == 0, result.stderr


@pytest.mark.process
def test_what_is_wrong_with_a_grammar_is_said_with_its_place(tiny_models):
    isolation.survive(
        """
error = raises(errors.GrammarError, "grammar", Grammar, Model(PATH).vocab, "root ::= [")
assert "line 1, column 10" in str(error), error
""",
        tiny_models["llama"],
    )


# What llama.cpp's own tools offer, and what it has besides: ggml types that no attention kernel takes.
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
OTHER_TYPES = ("i8", "i16", "i32", "i64", "f64", "q8_1", "q2_K", "q8_K", "iq2_xxs", "iq1_m", "tq1_0", "mxfp4", "x", 24)

CACHE_SCRIPT = """
for flash_attn_type in ("auto", "enabled", "disabled"):
    try:
        context = Context(
            Model(PATH), n_ctx=256, n_threads=2, flash_attn_type=flash_attn_type, **{sys.argv[2]: sys.argv[3]}
        )
    except errors.ContextError as exception:
        # llama.cpp quantizes the V cache only with flash attention.
        assert sys.argv[2] == "type_v" and flash_attn_type == "disabled" and "flash_attn" in str(exception), exception
        continue
    context.decode(Batch.from_arrays([1, 2, 3]))
    try:
        context.memory.add(0, 5)
    except errors.ContextError:
        assert sys.argv[3] == "bf16"
    context.decode(Batch.from_arrays([1]))
"""


@pytest.mark.process
@pytest.mark.parametrize("argument", ["type_k", "type_v"])
@pytest.mark.parametrize("name", CACHE_TYPES)
def test_cache_types_work(argument, name, tiny_models):
    path = tiny_models.make("llama", n_embd=256, n_head=2, n_head_kv=2, vocab_size=512)
    isolation.survive(CACHE_SCRIPT, path, argument, name)


@pytest.mark.process
def test_other_cache_types_are_refused(tiny_models):
    isolation.survive(
        f"""
model = Model(PATH)
for name in {OTHER_TYPES!r}:
    for argument in ("type_k", "type_v"):
        raises(errors.InvalidArgumentError, [argument, "f16", "q8_0"], Context, model, n_ctx=64, **{{argument: name}})
""",
        tiny_models["llama"],
    )

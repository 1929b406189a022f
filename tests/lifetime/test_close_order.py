"""Every order of closing and of letting go, with views alive and with exceptions on the way."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
from support import isolation

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.model import Model
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Dist, Greedy, TopK
from pyllm.interp import Interp
from pyllm.llama import Llama

CLOSE = """
import itertools

for order in itertools.permutations(["model", "context", "second", "grammar", "chain"]):
    model, context = make(n_threads=1)
    second = Context(model, n_ctx=64, n_threads=2)
    grammar = Grammar(model.vocab, "root ::= [a-z ]+")
    chain = Chain(TopK(5), Greedy())
    generation = Generation(context, chain)
    generation.prefill([1, 2])
    things = {"model": model, "context": context, "second": second, "grammar": grammar, "chain": chain}
    for name in order:
        things[name].close()
        things[name].close()
        assert things[name].closed
        assert name != "model" or (context.closed and second.closed)
        for thing in things.values():
            repr(thing)
        if context.closed:
            raises(errors.ClosedError, "closed", context.decode, Batch.from_arrays([1]))
            raises(errors.ClosedError, "closed", context.memory.clear)
        if context.closed or chain.closed:
            raises(errors.ClosedError, "closed", generation.run, 1)
        if grammar.closed or model.closed:
            raises(errors.ClosedError, "closed", grammar.accept, 1)
"""

LET_GO = """
import itertools, weakref

names = ["model", "context", "vocab", "memory", "chain", "generation", "logits"]
orders = list(itertools.permutations(names))
for order in orders[:: int(sys.argv[2])]:
    model = Model(PATH)
    vocab = model.vocab
    context = Context(model, n_ctx=32, n_threads=1)
    memory = context.memory
    chain = Chain(Grammar(vocab, "root ::= [a-z ]+"), Greedy())
    generation = Generation(context, chain)
    generation.prefill([1, 2])
    generation.run(2)
    context.decode(Batch.from_arrays([5]))
    logits = np.asarray(context.logits)
    before = logits.copy()
    tokens = vocab.tokenize("the cat")
    alive = weakref.ref(model)
    for name in order:
        del globals()[name]
        if "logits" in globals():
            assert (logits == before).all()
        if "vocab" in globals():
            assert vocab.tokenize("the cat") == tokens
        if "memory" in globals():
            assert memory.pos_max(0) >= 0
        if "generation" in globals():
            assert generation.n_generated <= 2
    assert alive() is None, order
"""


def test_every_order_of_close(tiny_models):
    isolation.survive(CLOSE, tiny_models["llama"])


def test_orders_of_letting_go(tiny_models):
    # 17 is prime to every count in 7!, so that each name comes in every place.
    isolation.survive(LET_GO, tiny_models["llama"], 17)


@pytest.mark.slow
def test_every_order_of_letting_go(tiny_models):
    isolation.survive(LET_GO, tiny_models["llama"], 1, timeout=600)


def test_closing_the_model_leaves_a_live_view_its_memory(make_model, tiny_models):
    model = make_model(tiny_models["llama"])
    first, second = Context(model, n_ctx=64), Context(model, n_ctx=64)
    for context in (first, second):
        context.decode(Batch.from_arrays([1, 2]))
    view = np.asarray(second.logits)
    expected = view.copy()
    second.close()
    assert second.closed and not (first.closed or model.closed)
    np.testing.assert_array_equal(view, expected)
    first.decode(Batch.from_arrays([3]))
    model.close()
    assert first.closed and model.closed
    np.testing.assert_array_equal(view, expected)


def test_a_row_a_slice_and_a_memoryview_outlive_the_context(make_model, tiny_models):
    model = make_model(tiny_models["llama"])
    makers = (
        lambda context: context.logits[0],
        lambda context: context.logits[:, ::2],
        lambda context: memoryview(context.logits),
        lambda context: np.from_dlpack(context.logits),
        lambda context: context.logits_ith(-1)[5:],
    )
    for maker in makers:
        with Context(model, n_ctx=64) as context:
            context.decode(Batch.from_arrays([1, 2]))
            held = maker(context)
            expected = np.array(held)
        assert context.closed
        del context
        gc.collect()
        np.testing.assert_array_equal(np.asarray(held), expected)


def test_outputs_by_themselves_do_not_keep_it_open(make_model, tiny_models):
    model = make_model(tiny_models["llama"])
    context = Context(model, n_ctx=64)
    context.decode(Batch.from_arrays([1, 2]))
    outputs = context.logits
    context.close()
    with pytest.raises(errors.ClosedError):
        outputs[0]
    assert np.asarray(outputs).size == 0


def test_exceptions_leave_with_blocks_closed(tiny_models):
    for depth in range(4):
        with pytest.raises(KeyError, match=str(depth)):  # noqa: SIM117
            with Model(tiny_models["llama"]) as model:
                if depth == 0:
                    raise KeyError(depth)
                with Context(model, n_ctx=64) as context, Chain(TopK(5), Dist(1)) as chain:
                    if depth == 1:
                        raise KeyError(depth)
                    context.decode(Batch.from_arrays([1]))
                    chain.sample(context)
                    if depth == 2:
                        raise KeyError(depth)
                    model.close()
                    raise KeyError(depth)
        assert model.closed
        assert depth == 0 or (context.closed and chain.closed)


@pytest.mark.parametrize("kind", ["context", "model", "llama", "interp"])
def test_an_exception_in_a_with_block_is_not_lost_behind_a_view(kind, make_model, tiny_models):
    model = make_model(tiny_models["llama"])
    outer = {"context": Context, "model": lambda _, **_arguments: model, "llama": Llama, "interp": Interp}[kind](
        model, n_ctx=64, n_threads=1
    )
    context = Context(model, n_ctx=64, n_threads=1) if kind == "model" else getattr(outer, "context", outer)

    def use():
        with outer:
            context.decode(Batch.from_arrays([1]))
            view = np.asarray(context.logits)  # noqa: F841, the traceback holds it
            raise KeyError("the cause")

    with pytest.raises(KeyError, match="the cause"):
        use()
    assert context.closed


@pytest.mark.parametrize("kind", ["context", "model", "llama", "interp"])
def test_with_blocks_are_left_with_a_row_in_hand(kind, make_model, tiny_models):
    model = make_model(tiny_models["llama"])
    outer = {"context": Context, "model": lambda _, **_arguments: model, "llama": Llama, "interp": Interp}[kind](
        model, n_ctx=64, n_threads=1
    )
    context = Context(model, n_ctx=64, n_threads=1) if kind == "model" else getattr(outer, "context", outer)
    with outer:
        context.decode(Batch.from_arrays([1]))
        row = context.logits[-1]
        expected = row.copy()
    assert context.closed
    np.testing.assert_array_equal(row, expected)


def test_a_constructor_that_fails_leaves_nothing(make_model, tiny_models):
    model = make_model(tiny_models["llama"])
    for arguments in ({"n_seq_max": 257}, {"type_k": "nonsense"}, {"reserve_outputs": -1}, {"reserve_outputs": 10**6}):
        with pytest.raises(errors.PyllmError):
            Context(model, n_ctx=64, **arguments)
    model.close()
    with pytest.raises(errors.ClosedError):
        Context(model, n_ctx=64)
    with pytest.raises(errors.ClosedError):
        model.vocab.tokenize("the cat")


@pytest.mark.parametrize("order", list(itertools.permutations(["inner", "outer", "member"])))
def test_nested_chains_in_every_order(order, make_context):
    context = make_context()
    context.decode(Batch.from_arrays([1, 2]))
    member = TopK(5)
    inner = Chain(member, Greedy())
    outer = Chain(inner)
    things = {"inner": inner, "outer": outer, "member": member}
    expected = outer.sample(context)
    for name in order:
        things[name].close()
        if name == "outer":
            # It owns the others.
            assert inner.closed and member.closed
            for thing in things.values():
                with pytest.raises(errors.ClosedError):
                    thing.sample(context)
        elif not outer.closed:
            assert outer.sample(context) == expected


def test_a_member_taken_out_of_a_chain_lives_on(make_context):
    context = make_context()
    context.decode(Batch.from_arrays([1, 2]))
    chain = Chain(TopK(1), Greedy())
    greedy = chain.remove(1)
    expected = greedy.sample(context)
    chain.close()
    assert greedy.sample(context) == expected
    again = Chain(greedy)
    del chain, greedy
    assert again.sample(context) == expected


def test_a_generation_survives_the_names_it_was_made_from(tiny_models):
    model = Model(tiny_models["llama"])
    generation = Generation(Context(model, n_ctx=64), Chain(Greedy()))
    generation.prefill(model.vocab.tokenize("the cat"))
    del model
    assert generation.run(4) > 0
    generation.context.model.close()
    with pytest.raises(errors.ClosedError):
        generation.run(1)
    assert len(generation.tokens) == generation.n_generated > 0

"""The step loop: one token at a time or many, prompts of any length, ends of all kinds."""

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.model import Model
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Dist, Greedy, LogitBias, Penalties, Temp, TopK


def by_hand(context: Context, ids, n: int) -> list[int]:
    """Greedy generation with nothing but decode and argmax."""
    context.decode(Batch.from_arrays(ids))
    tokens = []
    for _ in range(n):
        token = int(context.logits[-1].argmax())
        if context.model.vocab.is_eog(token):
            break
        tokens.append(token)
        context.decode(Batch.from_arrays([token]))
    return tokens


def generate(context: Context, ids, n: int = 20, *, sampler=None, **arguments) -> Generation:
    generation = Generation(context, sampler or Chain(Greedy()), **arguments)
    generation.prefill(ids)
    generation.run(n)
    return generation


# What is generated


@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "gemma3", "mamba", "jamba"])
def test_greedy_is_the_argmax_of_each_step(load, make_context, ids, arch):
    model = load(arch)
    expected = by_hand(make_context(model), ids, 30)
    generation = generate(make_context(model), ids, 30)
    assert generation.tokens == expected
    assert generation.n_generated == len(expected)
    assert generation.stream.text == b"".join(model.vocab.pieces(special=False)[t] for t in expected)


def test_a_real_model(smollm2, make_context):
    context = make_context(smollm2, n_ctx=256)
    generation = generate(context, smollm2.vocab.tokenize("The capital of France is"), 6)
    assert "Paris" in generation.stream.take(all=True)


def test_steps_and_runs_are_the_same(make_context, tiny_model, ids):
    """One by one, all at once, or in pieces; with chance too, as the seed says."""

    def sampler():
        return Chain(Penalties(tiny_model.n_vocab, repeat=1.2), TopK(20), Temp(1.5), Dist(seed=3))

    runs = []
    for sizes in ([1] * 40, [40], [3, 1, 7, 29], None):
        generation = Generation(make_context(), sampler())
        generation.prefill(ids)
        if sizes is None:
            tokens = []
            while len(tokens) < 40 and (token := generation.step()) is not None:
                tokens.append(token)
            assert generation.tokens == tokens
        else:
            counts = [generation.run(n) for n in sizes]
            assert counts == sizes
        runs.append((generation.tokens, generation.stream.text, generation.n_past))
    assert runs[0] == runs[1] == runs[2] == runs[3] and len(runs[0][0]) > 10


def test_another_seed_is_another_text(make_context, ids):
    texts = {
        tuple(generate(make_context(), ids, 20, sampler=Chain(Temp(2.0), Dist(seed=seed))).tokens) for seed in range(5)
    }
    assert len(texts) == 5


def test_editing_the_logits_between_steps(make_context, tiny_model, ids):
    generation = Generation(make_context(), Chain(Greedy()))
    generation.prefill(ids)
    wanted = tiny_model.vocab.tokenize(" the people", add_special=False)
    for token in wanted:
        generation.decode_next()
        generation.context.logits[-1, token] = 1e9
        assert generation.step() == token
    assert generation.stream.text == b" the people"
    generation.decode_next()
    generation.decode_next()
    assert generation.n_past == len(ids) + len(wanted), "decoding twice does nothing"


def test_the_debug_mode_generates_the_same(make_context, ids):
    plain = generate(make_context(), ids)
    context = make_context(poison_stale=True)
    generation = Generation(context, Chain(Greedy()))
    generation.prefill(ids)
    for _ in range(20):
        generation.decode_next()
        row = context.logits[-1]
        assert np.isfinite(row).all()
        generation.step()
    assert generation.tokens == plain.tokens


# Prompts


@pytest.mark.parametrize("n_batch", [1, 7, 16, 64])
def test_a_prompt_in_several_batches(make_context, ids, n_batch):
    expected = generate(make_context(type_k="f32", type_v="f32"), ids).tokens
    context = make_context(n_batch=n_batch, type_k="f32", type_v="f32")
    generation = generate(context, ids)
    assert generation.tokens == expected
    assert generation.prompt == ids.tolist()
    assert generation.n_past == len(ids) + generation.n_generated - 1 == context.memory.pos_max(0) + 1


@pytest.mark.parametrize("kind", [list, tuple, lambda ids: ids.astype(np.int64), lambda ids: np.repeat(ids, 2)[::2]])
def test_prompts_of_many_types(make_context, ids, kind):
    assert generate(make_context(), kind(ids)).prompt == ids.tolist()


@pytest.mark.parametrize("wrong", [[], [[1, 2]], [1.5], "text", [None], [-1], [100_000], [2**40]])
def test_invalid_prompts(make_context, ids, wrong):
    context = make_context()
    generation = Generation(context, Chain(Greedy()))
    with pytest.raises((errors.InvalidBatchError, errors.InvalidArgumentError)):
        generation.prefill(wrong)
    assert generation.prompt == [] and generation.n_past == 0
    generation.prefill(ids)
    assert generation.run(3) == 3


def test_a_prompt_goes_on_where_the_memory_ends(make_context, ids):
    whole = generate(make_context(type_k="f32", type_v="f32"), ids)
    context = make_context(type_k="f32", type_v="f32")
    context.decode(Batch.from_arrays(ids[:10]))
    generation = generate(context, ids[10:])
    assert generation.tokens == whole.tokens


def test_a_second_prompt_after_a_text(make_context, tiny_model, ids):
    """What was generated is part of what the model sees, the last token included."""
    more = tiny_model.vocab.tokenize(" people", add_special=False)
    generation = generate(make_context(), ids, 5)
    first = generation.tokens
    generation.prefill(more)
    assert generation.n_past == generation.context.memory.pos_max(0) + 1 == len(ids) + 5 + len(more)
    generation.run(5)
    expected = generate(make_context(), [*ids, *first, *more], 5).tokens
    assert generation.tokens == first + expected
    assert generation.prompt == [*ids, *more]


def test_penalties_count_the_prompt_when_asked_for(make_context, tiny_model, ids):
    def first_token(accept):
        generation = Generation(make_context(), Chain(Penalties(tiny_model.n_vocab, present=1000.0), Greedy()))
        generation.prefill(ids, accept=accept)
        return generation.step()

    assert first_token(True) not in ids
    context = make_context()
    context.decode(Batch.from_arrays(ids))
    assert first_token(False) == context.logits[-1].argmax()


def test_nothing_to_sample_from(make_context):
    generation = Generation(make_context(), Chain(Greedy()))
    for call in (generation.step, lambda: generation.run(3)):
        with pytest.raises(errors.NoOutputError, match=r"prefill"):
            call()
    assert generation.n_generated == 0


# Ends


def test_an_end_of_generation_token(make_context, tiny_model, ids):
    context = make_context()
    generation = Generation(context, Chain(Greedy()))
    generation.prefill(ids)
    generation.run(3)
    generation.decode_next()
    context.logits[-1, tiny_model.vocab.eos] = 1e9
    assert generation.run(10) == 0 and generation.finish_reason == "stop"
    assert generation.step() is None and generation.run(5) == 0
    assert generation.n_generated == 3 and generation.stream.stopped is None
    generation.prefill([300])
    assert generation.finish_reason is None and generation.run(1) == 1


def test_a_stop_string(make_context, ids):
    text = generate(make_context(), ids, 30).stream.text.decode()
    middle = len(text) // 2
    stop = text[middle : middle + 4]
    generation = generate(make_context(), ids, 30, stop=["never there", stop])
    assert generation.finish_reason == "stop" and generation.stream.stopped == stop
    assert generation.stream.text.decode() == text[: text.index(stop)]
    assert generation.n_generated < 30 and generation.run(5) == 0 and generation.step() is None


def test_stop_strings_never_leak_into_the_stream(make_context, ids):
    text = generate(make_context(), ids, 30).stream.text.decode()
    for start in range(0, len(text) - 5, 7):
        stop = text[start : start + 5]
        generation = Generation(make_context(), Chain(Greedy()), stop=stop)
        generation.prefill(ids)
        shown = ""
        while generation.n_generated < 30 and generation.step() is not None:
            shown += generation.stream.take()
            assert text[: text.index(stop)].startswith(shown)
        assert shown + generation.stream.take(all=True) == text[: text.index(stop)]


def test_run_counts(make_context, ids):
    generation = Generation(make_context(), Chain(Greedy()))
    generation.prefill(ids)
    assert generation.run(0) == 0 and generation.run(-3) == 0 and generation.finish_reason is None
    assert generation.run(4) == 4 and generation.n_generated == 4


def test_a_full_cache_loses_nothing(make_context, ids):
    context = make_context(n_ctx=256, n_batch=256)
    reference = generate(make_context(n_ctx=512), np.tile(ids, 5)[:246], 20)
    generation = Generation(context, Chain(Greedy()))
    generation.prefill(np.tile(ids, 5)[:246])
    with pytest.raises(errors.NoKVSlotError):
        generation.run(20)
    # Ten more positions, and the token sampled after the last of them.
    assert generation.n_generated == 11 and generation.n_past == 256
    assert generation.tokens == reference.tokens[:11]
    assert generation.stream.text == reference.stream.text[: len(generation.stream.text)]
    with pytest.raises(errors.NoKVSlotError):
        generation.step()
    assert generation.n_generated == 11
    context.memory.rm(0, 0, 100)
    assert generation.run(5) == 5 and generation.n_generated == 16


def test_a_prompt_that_does_not_fit(make_context):
    context = make_context(n_ctx=256, n_batch=64)
    generation = Generation(context, Chain(Greedy()))
    with pytest.raises(errors.NoKVSlotError):
        generation.prefill(np.arange(300))
    assert context.memory.pos_max(0) == 255 == generation.n_past - 1, "what fits before stays"


def test_a_sampler_that_never_selects(make_context, ids):
    generation = Generation(make_context(), Chain(TopK(3)))
    generation.prefill(ids)
    with pytest.raises(errors.SamplerError, match=r"Greedy\(\)"):
        generation.run(3)
    assert generation.n_generated == 0


def test_abort_and_go_on(make_context, ids):
    expected = generate(make_context(), ids, 20).tokens
    context = make_context()
    generation = generate(context, ids, 5)
    context.abort()
    with pytest.raises(errors.DecodeAborted):
        generation.run(15)
    assert generation.tokens == expected[:5]
    generation.run(15)
    assert generation.tokens == expected


# Special tokens


def test_control_tokens_are_text_only_when_asked_for(make_context, tiny_model, ids):
    start = tiny_model.vocab.tokenize("<|im_start|>", add_special=False, parse_special=True)[0]
    for special, expected in ((False, b""), (True, b"<|im_start|>")):
        chain = Chain(LogitBias(tiny_model.n_vocab, {int(start): 1e9}), Greedy())
        generation = generate(make_context(), ids, 1, sampler=chain, special=special)
        assert generation.tokens == [start] and generation.stream.text == expected


def test_characters_of_several_tokens_come_out_whole(make_context, tiny_model, ids):
    vocab = tiny_model.vocab
    wanted = vocab.tokenize("ꙮé🙂ꙮ", add_special=False)
    assert len(wanted) > 6
    generation = Generation(make_context(), Chain(Greedy()))
    generation.prefill(ids)
    shown = []
    for token in wanted:
        generation.decode_next()
        generation.context.logits[-1, token] = 1e9
        generation.step()
        shown.append(generation.stream.take())
    assert "".join(shown) == "ꙮé🙂ꙮ" and "" in shown


# Sequences


def test_sequences_of_one_context_do_not_disturb_each_other(make_context, tiny_model, ids):
    prompts = [ids[:10], ids[5:12], ids[3:25]]
    exact = {"type_k": "f32", "type_v": "f32"}
    expected = [generate(make_context(**exact), prompt, 12).tokens for prompt in prompts]
    context = make_context(n_seq_max=3, **exact)
    generations = []
    for seq, prompt in enumerate(prompts):
        generations.append(Generation(context, Chain(Greedy()), seq_id=seq))
        generations[-1].prefill(prompt)
        generations[-1].run(2)
    for _ in range(10):
        for generation in generations:
            generation.step()
    assert [generation.tokens for generation in generations] == expected


def test_logits_of_another_sequence_are_not_sampled_from(make_context, ids):
    """After the second prefill the logits of the first are gone: an error, or the right token, but no silent lie."""
    context = make_context(n_seq_max=2)
    first, second = (Generation(context, Chain(Greedy()), seq_id=seq) for seq in (0, 1))
    expected = generate(make_context(), ids[:10], 1).tokens[0]
    first.prefill(ids[:10])
    second.prefill(ids[20:27])
    try:
        token = first.step()
    except errors.StaleLogitsError:
        return
    assert token == expected


@pytest.mark.parametrize("seq", [-1, 1, 2**31 - 1])
def test_sequence_ids_out_of_range(make_context, seq):
    with pytest.raises(errors.InvalidArgumentError, match="n_seq_max=1"):
        Generation(make_context(), Chain(Greedy()), seq_id=seq)


# Lifetime


def test_closed_things(make_context, make_model, tiny_models, ids):
    context = make_context()
    chain = Chain(Greedy())
    generation = generate(context, ids, 3, sampler=chain)
    tokens = generation.tokens
    chain.close()
    for call in (generation.step, lambda: generation.run(3)):
        with pytest.raises(errors.ClosedError):
            call()
    context.close()
    for call in (generation.step, lambda: generation.run(3), lambda: generation.prefill(ids), generation.decode_next):
        with pytest.raises(errors.ClosedError):
            call()
    assert generation.tokens == tokens and generation.stream.take(all=True)
    with pytest.raises(errors.ClosedError):
        Generation(context, Chain(Greedy()))


def test_a_generation_keeps_what_it_works_with(tiny_models, ids):
    def make():
        return Generation(Context(Model(tiny_models["llama"]), n_ctx=256, n_threads=1), Chain(Greedy()))

    generation = make()
    generation.prefill(ids)
    assert generation.run(5) == 5
    assert (generation.seq_id, len(generation.sampler), generation.context.n_ctx) == (0, 1, 256)


def test_wrong_types(make_context):
    for wrong in ((None, Chain()), (make_context(), None), (make_context(), "greedy")):
        with pytest.raises(TypeError):
            Generation(*wrong)


def test_views_hinder_growth_only(make_context, ids):
    generation = Generation(make_context(), Chain(Greedy()))
    generation.prefill(ids)
    view = np.asarray(generation.context.logits)
    assert generation.run(10) == 10
    assert np.array_equal(view, np.asarray(generation.context.logits))

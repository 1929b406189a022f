"""Drafts by themselves: what is proposed, and what is refused."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.generation import Generation
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Greedy
from pyllm.core.speculative import NGRAM_TYPES, Drafter, check_vocabulary

REPEATED = [5, 6, 7, 8, 9, 10, 11, 12] * 8


@pytest.mark.parametrize("name", ["ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod"])
def test_an_ngram_goes_on_as_it_did_before(make_context, name):
    drafter = Drafter(make_context(), types=name, ngram_size=3, n_max=6)
    drafter.begin(REPEATED)
    assert drafter.draft(5) == [6, 7, 8, 9, 10, 11]
    drafter.accept(5, [6, 7])
    # The history has 5 6 7 now, and the text went on with another token.
    drafter.accept(7)
    assert drafter.draft(8) in ([], [9, 10, 11, 12, 5, 6])


def test_what_was_accepted_is_remembered(make_context):
    drafter = Drafter(make_context(), types="ngram-simple", ngram_size=2, n_max=3)
    drafter.begin([30, 31, 40, 41, 42, 50, 51, 52])
    assert drafter.draft(40) == []
    drafter.accept(40)
    assert drafter.draft(41) == [42, 50, 51]
    drafter.accept(41, [42, 50])
    assert drafter.draft(51) == [52, 40, 41]


def test_ngram_cache_counts_what_follows(make_context):
    drafter = Drafter(make_context(), types="ngram-cache")
    drafter.begin([11, 12, 13, 14, 15] * 10)
    assert drafter.draft(11)[:4] == [12, 13, 14, 15]


def test_a_text_does_not_know_the_one_before(make_context):
    for name in NGRAM_TYPES:
        if name == "ngram-mod":
            continue  # it does, as llama.cpp has it
        drafter = Drafter(make_context(), types=name)
        drafter.begin([11, 12, 13, 14, 15] * 30)
        drafter.begin(range(20, 90))
        assert drafter.draft(11) == [], name


def test_fewer_tokens_where_there_is_less_room(make_context):
    drafter = Drafter(make_context(), types="ngram-simple", ngram_size=3, n_max=6)
    drafter.begin(REPEATED)
    assert drafter.draft(5, n_max=2) == [6, 7]
    assert drafter.draft(5, n_max=0) == []


def test_a_draft_is_checked_in_one_micro_batch(make_context):
    assert Drafter(make_context(n_batch=64, n_ubatch=4), types="ngram-simple", n_max=16).n_max == 3
    with pytest.raises(errors.InvalidArgumentError, match="n_ubatch=1"):
        Drafter(make_context(n_batch=64, n_ubatch=1))


def test_a_draft_model_writes_greedily(make_context, tiny_model, ids):
    generation = Generation(make_context(), Chain(Greedy()))
    generation.prefill(ids)
    generation.run(12)
    want = generation.tokens

    drafter = Drafter(make_context(), make_context(), n_max=4)
    drafter.begin(ids)
    first = want[0]
    for n_accepted in (4, 0, 2):
        draft = drafter.draft(first)
        at = want.index(first) if want.count(first) == 1 else None
        if at is not None:
            assert draft == want[at + 1 : at + 5]
        drafter.accept(first, draft[:n_accepted])
        position = want.index(first) + n_accepted + 1
        if position >= len(want) - 5:
            break
        first = want[position]


def test_another_text_in_the_same_draft_context(make_context, ids):
    drafter = Drafter(make_context(), make_context(), n_max=4)
    drafter.begin(ids)
    want = drafter.draft(7)
    drafter.begin(ids[::-1].copy())
    drafter.draft(9)
    drafter.begin(ids)
    assert drafter.draft(7) == want


@pytest.mark.parametrize("arch", ["mamba", "jamba", "gemma3"])
def test_draft_models_that_cannot_go_back(make_context, load, arch):
    model = load(arch)
    ids = np.arange(5, 45, dtype=np.int32)

    def context():
        return make_context(model)

    drafter = Drafter(context(), context(), n_max=4)
    drafter.begin(ids)
    drafter.draft(7)
    drafter.accept(7)
    again = drafter.draft(8)
    fresh = Drafter(context(), context(), n_max=4)
    fresh.begin([*ids, 7])
    assert fresh.draft(8) == again


def test_other_tokens_are_refused(load, make_context):
    model = load("llama")
    n = len(model.vocab)
    for draft, match in (
        (load("llama", vocab="bpe"), "another tokenizer: BPE, and the model SPM"),
        (load("llama", vocab_size=n + 129), f"has {n + 129} tokens and the model {n}; they may differ by 128"),
    ):
        with pytest.raises(errors.VocabularyMismatchError, match=match):
            check_vocabulary(model.vocab, draft.vocab)
        with pytest.raises(errors.VocabularyMismatchError, match=match):
            Drafter(make_context(model), make_context(draft))


def test_a_few_tokens_of_padding_do_not_matter(load, make_context, ids):
    model, padded = load("llama"), load("llama", vocab_size=len(load("llama").vocab) + 100)
    for target, draft in ((model, padded), (padded, model)):
        drafter = Drafter(make_context(target), make_context(draft), n_max=8)
        drafter.begin(ids)
        assert all(token < len(target.vocab) for token in drafter.draft(7))


def test_bad_arguments(make_context, load):
    context = make_context()
    for match, arguments in {
        "no way to draft named 'eagle'": {"types": "eagle"},
        "names no way": {"types": ()},
        "needs a context of a draft model": {"types": "draft-simple"},
        "n_max must be from 1 to 1024, not 0": {"n_max": 0},
        "n_max must be from 1 to 1024, not 5000": {"n_max": 5000},
        "ngram_size must be from 1": {"ngram_size": -3},
        "min_hits must be from 1": {"min_hits": 0},
        "n_min must be from 0": {"n_min": -1},
        "p_min must be a number from 0": {"p_min": 2.0},
    }.items():
        with pytest.raises(errors.InvalidArgumentError, match=match):
            Drafter(context, **arguments)
    for match, second, arguments in (
        ("a context of its own", context, {}),
        ("n_seq_max=1, not 2", make_context(n_seq_max=2), {}),
        ("none of these uses", make_context(), {"types": "ngram-simple"}),
        ("need a context each", make_context(), {"types": ("draft-simple", "draft-mtp")}),
        ("same model", make_context(load("gemma3")), {"types": "draft-mtp"}),
    ):
        with pytest.raises(errors.InvalidArgumentError, match=match):
            Drafter(context, second, **arguments)
    with pytest.raises(errors.InvalidArgumentError, match=r"holds n_ctx=256 tokens and must hold .* the model, 512"):
        Drafter(make_context(n_ctx=512), make_context())
    with pytest.raises(errors.InvalidArgumentError, match="prompt stands before"):
        Drafter(make_context(load("bert"), embeddings=True))
    with pytest.raises(errors.InvalidArgumentError, match="prompt stands before"):
        Drafter(make_context(load("t5")))
    with pytest.raises(TypeError):
        Drafter(context, n_max=2.5)


def test_bad_tokens(make_context):
    drafter = Drafter(make_context(), ngram_size=3, n_max=6)
    with pytest.raises(errors.InvalidArgumentError, match="not in the vocabulary"):
        drafter.begin([10**6])
    drafter.begin(REPEATED)
    with pytest.raises(errors.InvalidArgumentError, match="not in the vocabulary"):
        drafter.draft(-1)
    drafter.draft(5)
    with pytest.raises(errors.InvalidArgumentError, match="token 1 of the draft was another one than 99"):
        drafter.accept(5, [6, 99])


def test_closed(make_context):
    drafter = Drafter(make_context())
    drafter.close()
    drafter.close()
    assert drafter.closed
    assert "closed" in repr(drafter)
    for call in (lambda: drafter.begin([1]), lambda: drafter.draft(1), lambda: drafter.accept(1)):
        with pytest.raises(errors.ClosedError):
            call()


def test_contexts_may_be_closed_first(make_context):
    first, second = make_context(), make_context()
    drafter = Drafter(first, second)
    drafter.begin([5, 6, 7])
    second.close()
    with pytest.raises(errors.ClosedError):
        drafter.draft(8)
    first.close()
    with pytest.raises(errors.ClosedError):
        drafter.draft(8)
    drafter.close()


def test_it_is_freed_with_its_contexts(make_context):
    drafter = Drafter(make_context(), make_context())
    reference = weakref.ref(drafter)
    del drafter
    gc.collect()
    assert reference() is None

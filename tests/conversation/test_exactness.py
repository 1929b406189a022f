"""Whatever is reused, put away or brought back: the text is that of a Llama that has seen nothing before."""

from __future__ import annotations

import random

import numpy as np
import pytest
from support.llama_internals import checkpoints_of, history_of, kept_bytes

from pyllm import Llama, errors

N_CTX = 768
GREEDY = {"temperature": 0, "cache_prompt": True}
SETTINGS = {
    "host": {},
    "sequences": {"n_seq_max": 3, "kv_unified": True},
    "streams": {"n_seq_max": 3, "n_ctx": 3 * N_CTX},
}


def make(path, **arguments):
    given = {"n_ctx": N_CTX, "n_threads": 1, "n_batch": 64, "n_ubatch": 64, "swa_full": False}
    return Llama(str(path), **given | arguments)


def check(completion, ids, fresh):
    """The same tokens as without a cache; another one only where the two best are as good as equal."""
    expected = fresh(ids, max_tokens=len(completion.tokens) or 1, temperature=0, cache_prompt=False)
    if completion.tokens == expected.tokens:
        return
    at = next(i for i, (a, b) in enumerate(zip(completion.tokens, expected.tokens, strict=False)) if a != b)
    told = [*ids, *expected.tokens[:at]]
    top = fresh(told, max_tokens=1, temperature=0, logprobs=2).logprobs.top_logprobs[0]
    best, second = sorted(top.values(), reverse=True)[:2]
    assert best - second < 0.02, (completion.tokens, expected.tokens, at, best - second)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba", "jamba"])
def test_many_conversations_in_turn(tiny_models, arch, settings):
    path = tiny_models[arch]
    chooser = random.Random(7)
    with make(path, **SETTINGS[settings]) as llm, make(path) as fresh:
        n_vocab = len(llm.vocab)
        names = ["anna", "ben", "carl", "dora"]
        reused = 0
        for step in range(28):
            name = chooser.choice(names)
            conversation = llm.conversation(name)
            action = chooser.choice(["go on", "go on", "go on", "undo", "fork", "call", "save"])
            added = [chooser.randrange(261, n_vocab) for _ in range(chooser.randrange(1, 30))]
            if action == "undo" and conversation.text:
                conversation.undo()
            elif action == "fork" and conversation.text:
                names.append(f"{name} {step}")
                conversation = conversation.fork(names[-1])
            elif action == "call":
                completion = llm(added, max_tokens=3, **GREEDY)
                check(completion, added, fresh)
                continue
            before = history_of(conversation)
            completion = conversation.complete(added, max_tokens=chooser.randrange(1, 9), temperature=0)
            check(completion, [*before, *added], fresh)
            reused += completion.usage.cached_tokens
        assert reused > 100


@pytest.mark.parametrize("arch", ["gemma3", "mamba", "jamba"])
def test_a_shared_beginning(tiny_models, arch):
    """Where the memory cannot be cut, a state is kept where prompts part."""
    path = tiny_models[arch]
    with make(path, cache_prompt=True) as llm, make(path) as fresh:
        document = (np.arange(300) * 7 % 150 + 261).tolist()
        reused = []
        for i in range(5):
            ids = [*document, *range(270 + i, 285 + i)]
            completion = llm(ids, max_tokens=6, temperature=0)
            check(completion, ids, fresh)
            reused.append(completion.usage.cached_tokens)
        # The first time nothing is there, the second time it turns out where they part.
        assert reused[0] == 0 and reused[2:] == [300, 300, 300]
        again = llm(ids, max_tokens=6, temperature=0)
        assert again.usage.cached_tokens == len(ids) - 1
        check(again, ids, fresh)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_fork_of_what_a_window_still_holds(tiny_models, settings):
    """It begins where the first one is, though that is put away at the same time."""
    path = tiny_models["gemma3"]
    with make(path, **SETTINGS[settings]) as llm, make(path) as fresh:
        talk = llm.conversation("anna", max_tokens=3, temperature=0)
        talk.complete(list(range(270, 300)))
        other = talk.fork("ben")
        talk.complete([300, 301, 302])
        before = history_of(other)
        completion = other.complete([305, 306])
        assert completion.usage.cached_tokens >= len(before) - 1
        check(completion, [*before, 305, 306], fresh)


@pytest.mark.parametrize("arch", ["mamba", "jamba"])
def test_snapshots_of_the_context_itself(tiny_models, arch):
    with make(tiny_models[arch], n_rs_seq=4, cache_prompt=True) as llm, make(tiny_models[arch]) as fresh:
        ids = list(range(270, 320))
        answer = llm(ids, max_tokens=8, temperature=0)
        told = [*ids, *answer.tokens]
        for back in (2, 3, 30):
            other = [*told[:-back], 300, 301]
            completion = llm(other, max_tokens=4, temperature=0)
            check(completion, other, fresh)


def test_checkpoints_are_few(tiny_models):
    from pyllm.completion.checkpoints import MOST

    with make(tiny_models["mamba"]) as llm:
        conversation = llm.conversation("long")
        for i in range(2 * MOST):
            conversation.complete([270 + i, 271, 272], max_tokens=2, temperature=0)
        ends = checkpoints_of(llm, "long")
        assert len(ends) == MOST and ends == sorted(set(ends))
        assert ends[-1] > 0.8 * len(conversation.tokens)


def test_checkpoints_keep_to_the_limit(tiny_models):
    with make(tiny_models["mamba"], conversation_bytes=60_000) as llm, make(tiny_models["mamba"]) as fresh:
        for name in ("anna", "ben", "anna"):
            conversation = llm.conversation(name)
            for i in range(4):
                before = history_of(conversation)
                added = [270 + i, 271, 272]
                check(conversation.complete(added, max_tokens=2, temperature=0), [*before, *added], fresh)
                assert 0 < kept_bytes(llm) <= 60_000
                llm.check_invariants()
    for limit in (-1, 2.5, True, None):
        with pytest.raises(errors.InvalidArgumentError, match="conversation_bytes"):
            make(tiny_models["mamba"], conversation_bytes=limit)


def test_encoders_have_nothing_to_keep(tiny_models):
    with make(tiny_models["t5"]) as llm, make(tiny_models["t5"]) as fresh:
        for name in ("anna", "ben", "anna"):
            llm.conversation(name).complete([70, 71, 72], max_tokens=3, temperature=0)
        prompt = [70, 71, 72, *history_of(llm.conversation("ben"))[3:]]
        expected = fresh(prompt, max_tokens=3, temperature=0)
        completion = llm.conversation("ben").complete(max_tokens=3, temperature=0)
        assert completion.tokens == expected.tokens and completion.usage.cached_tokens == 0


@pytest.mark.model
@pytest.mark.parametrize("arguments", [{}, {"n_seq_max": 4, "kv_unified": True}], ids=["host", "sequences"])
def test_smollm2(smollm2, arguments):
    texts = {"fox": "The quick brown fox", "sea": "The old man went to the sea"}
    with (
        Llama(smollm2, n_ctx=256, n_threads=2, **arguments) as llm,
        Llama(smollm2, n_ctx=256, n_threads=2) as fresh,
    ):
        for text in ("", " And then"):
            for name, beginning in texts.items():
                conversation = llm.conversation(name)
                before = history_of(conversation)
                given = text or beginning
                completion = conversation.complete(given, max_tokens=4, temperature=0)
                check(completion, [*before, *llm.tokenize(given, add_special=not before)], fresh)
                assert completion.usage.cached_tokens >= max(0, len(before) - 1)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("swa_full", [True, False])
def test_gemma3(swa_full):
    from pyllm import Model, hub

    with (
        Model(hub.resolve("gemma3-270m")) as model,
        Llama(model, n_ctx=2048, n_threads=2, swa_full=swa_full, cache_prompt=True) as llm,
        Llama(model, n_ctx=2048, n_threads=2) as fresh,
    ):
        document = llm.tokenize("The quick brown fox jumps over the lazy dog. " * 60)
        for question in ("What did the fox do?", "Who was lazy?", "Which colour had it?"):
            ids = [*document, *llm.tokenize(question, add_special=False)]
            completion = llm(ids, max_tokens=8, temperature=0)
            check(completion, ids, fresh)
        assert completion.usage.cached_tokens == len(document)

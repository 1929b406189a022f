"""Drafts in an engine: every text is what it is without, they yield to others, and nothing of them is left."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.engine_internals import break_draft_model, limit_cells, on_decode
from support.engines import endless, slow, wait_until_idle
from support.numerics import EXACT
from support.waiting import wait_for

from pyllm import Llama, Model, errors
from pyllm.engine import Engine
from pyllm.speculation import SpeculationParams

PROMPT = np.random.default_rng(0).integers(5, 250, 20).tolist()
PROMPTS = [PROMPT, PROMPT[:7], [9, 9, 9, 9], [40, 41]]
NGRAM = SpeculationParams(types="ngram-simple", ngram_size=2, n_max=8, adaptive=False)
OFTEN = SpeculationParams(types="ngram-simple", ngram_size=1, n_max=8, adaptive=False)
DRAFT = SpeculationParams(types="draft-simple", n_max=5, adaptive=False)
WAYS = {
    "ngram-simple": NGRAM,
    "ngram-map-k": SpeculationParams(types="ngram-map-k", ngram_size=2, n_max=8, adaptive=False),
    "ngram-map-k4v": SpeculationParams(types="ngram-map-k4v", ngram_size=2, n_max=8, adaptive=False),
    "ngram-mod": SpeculationParams(types="ngram-mod", ngram_size=2, n_max=8, n_min=1, adaptive=False),
    "ngram-cache": SpeculationParams(types="ngram-cache", adaptive=False),
    "adaptive": SpeculationParams(types="ngram-simple", ngram_size=2, n_max=8),
}
SAMPLED = {"temperature": 0.7, "seed": 3, "repeat_penalty": 1.1}


@pytest.fixture
def make_engine(tiny_model: Model) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(model: Any = tiny_model, **arguments: Any) -> Engine:
        sizes = {"n_ctx": 512, "n_parallel": 4, "n_batch": 64, "kv_unified": True}
        made.append(Engine(model, **(sizes | EXACT | arguments)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture(scope="module")
def plain(tiny_model: Model) -> Iterator[Llama]:
    with Llama(tiny_model, n_ctx=512, cache_prompt=False, **EXACT) as llm:
        yield llm


def wait_for_drafts(engine: Engine, n: int) -> None:
    before = engine.metrics().n_drafts
    wait_for(lambda: engine.metrics().n_drafts >= before + n)


# ---- the same texts


@pytest.mark.parametrize("way", WAYS)
def test_ngrams_change_no_text(make_engine: Callable[..., Engine], plain: Llama, way: str) -> None:
    engine = make_engine(speculative=WAYS[way])
    for prompt in PROMPTS:
        for arguments in ({"temperature": 0}, SAMPLED):
            want = plain(prompt, max_tokens=60, **arguments)
            got = engine.complete(prompt, max_tokens=60, **arguments)
            assert (got.tokens, got.text, got.finish_reason) == (want.tokens, want.text, want.finish_reason)
            assert got.speculation is not None
    metrics = engine.metrics()
    assert metrics.n_accepted_tokens <= metrics.n_drafted_tokens
    # The clock decides about some, and those texts are too short for counts.
    if way not in ("adaptive", "ngram-cache"):
        assert metrics.n_drafts > 0
        assert metrics.n_generated_tokens > metrics.n_steps
    wait_until_idle(engine)


@pytest.mark.parametrize("seed", [0, 5])
def test_a_draft_model(make_engine: Callable[..., Engine], load: Callable[..., Model], plain: Llama, seed: int) -> None:
    draft = load("llama", seed=seed) if seed else Model(plain.model.path)
    try:
        engine = make_engine(draft=draft, speculative=DRAFT)
        for prompt in [*PROMPTS, PROMPT]:
            for arguments in ({"temperature": 0}, SAMPLED):
                want = plain(prompt, max_tokens=50, **arguments)
                got = engine.complete(prompt, max_tokens=50, **arguments)
                assert got.tokens == want.tokens
                assert got.speculation is not None and got.speculation.drafted > 20
                assert got.speculation.rate > 0.8 if not seed and not arguments.get("seed") else True
        wait_until_idle(engine)
        engine.close()
        assert not draft.closed
    finally:
        if not seed:
            draft.close()


def test_a_draft_model_reads_long_prompts_in_portions(make_engine: Callable[..., Engine], plain: Llama) -> None:
    prompt = np.random.default_rng(1).integers(5, 250, 400).tolist()
    engine = make_engine(draft=plain.model.path, speculative=DRAFT)
    for _ in range(2):
        want = plain(prompt, max_tokens=40, temperature=0)
        got = engine.complete(prompt, max_tokens=40, temperature=0)
        assert got.tokens == want.tokens
        assert got.speculation is not None and got.speculation.rate > 0.8
    other = [*prompt[:300], 7]
    want = plain(other, max_tokens=9, temperature=0)
    assert engine.complete(other, max_tokens=9, temperature=0).tokens == want.tokens
    wait_until_idle(engine)


def test_whatever_ends_or_shapes_a_text(make_engine: Callable[..., Engine], plain: Llama) -> None:
    engine = make_engine(speculative=NGRAM)
    whole = plain(PROMPT, max_tokens=60, temperature=0)

    def only_even(ids: np.ndarray, logits: np.ndarray) -> None:
        assert not ids.flags.writeable
        logits[1::2] = -np.inf

    def enough(ids: np.ndarray, logits: np.ndarray) -> bool:
        return len(ids) >= 41

    for arguments in (
        *({"max_tokens": n} for n in range(0, 24)),
        *({"stop": [whole.text[n : n + 3]]} for n in range(3, 80, 7)),
        {"logprobs": 3},
        {"grammar": 'root ::= ("a" [0-9])+'},
        {"choices": ["yes", "no"]},
        {"logit_bias": dict.fromkeys(plain.vocab.eog_tokens, 100)},
        {"logits_processor": only_even},
        {"stopping_criteria": enough},
        {"logits_processor": only_even, "stopping_criteria": enough, "logprobs": 2},
        {"echo": True},
    ):
        arguments = {"max_tokens": 60, "temperature": 0, **arguments}
        want = plain(PROMPT, **arguments)
        got = engine.complete(PROMPT, **arguments)
        assert (got.tokens, got.text, got.finish_reason, got.stop) == (
            want.tokens, want.text, want.finish_reason, want.stop,
        )  # fmt: skip
        if want.logprobs is not None:
            assert got.logprobs is not None and got.logprobs.tokens == want.logprobs.tokens
            assert np.allclose(got.logprobs.token_logprobs, want.logprobs.token_logprobs, atol=1e-4)
            assert got.logprobs.text_offset == want.logprobs.text_offset
    wait_until_idle(engine)


def test_streams_and_what_the_cache_keeps(make_engine: Callable[..., Engine], plain: Llama) -> None:
    engine = make_engine(speculative=NGRAM)
    want = plain(PROMPT, max_tokens=60, temperature=0)
    chunks = list(engine.submit(PROMPT, max_tokens=60, temperature=0))
    assert "".join(chunk.text for chunk in chunks) == want.text
    assert sum((chunk.tokens for chunk in chunks), ()) == want.tokens
    assert any(len(chunk.tokens) > 1 for chunk in chunks)
    # What goes on with the text finds all of it, and computes the same as if nothing had been drafted.
    longer = [*PROMPT, *want.tokens, 17]
    got = engine.complete(longer, max_tokens=20, temperature=0)
    assert got.usage.cached_tokens >= len(PROMPT) + len(want.tokens) - 1
    assert got.tokens == plain(longer, max_tokens=20, temperature=0).tokens
    wait_until_idle(engine)


# ---- requests that say it


def test_each_request_may_choose(make_engine: Callable[..., Engine], plain: Llama) -> None:
    engine = make_engine()
    want = plain(PROMPT, max_tokens=60, temperature=0).tokens
    without = engine.complete(PROMPT, max_tokens=60, temperature=0)
    assert (without.tokens, without.speculation) == (want, None)
    for value in (NGRAM, "ngram", True, "ngram-map-k"):
        got = engine.complete(PROMPT, max_tokens=60, temperature=0, speculative=value)
        assert got.tokens == want and got.speculation is not None
    engine = make_engine(speculative=NGRAM)
    assert engine.complete(PROMPT, max_tokens=60, temperature=0, speculative=False).speculation is None
    alone = engine.complete(PROMPT, max_tokens=60, temperature=0, deterministic=True)
    assert (alone.tokens, alone.speculation) == (want, None)
    assert engine.metrics().n_drafts == 0
    wait_until_idle(engine)


def test_what_is_wrong(make_engine: Callable[..., Engine], load: Callable[..., Model], tiny_model: Model) -> None:
    engine = make_engine()
    for value, message in (
        ("draft", "no draft model"),
        ("by magic", "no way to draft named 'by magic'"),
        (7, "speculative must be"),
        (SpeculationParams(types="ngram-simple", n_max=0), "n_max must be from 1 to 1024"),
    ):
        with pytest.raises(errors.InvalidArgumentError, match=message):
            engine.submit([1], speculative=value)
        with pytest.raises(errors.InvalidArgumentError, match=message):
            make_engine(speculative=value)
    for value in (0, True, "2"):
        with pytest.raises(errors.InvalidArgumentError, match="speculate_up_to"):
            make_engine(speculate_up_to=value)
    with pytest.raises(errors.InvalidArgumentError, match="cannot draft for itself"):
        make_engine(draft=tiny_model)
    with pytest.raises(errors.VocabularyMismatchError):
        make_engine(draft=load("llama", vocab="bpe"))
    recurrent = make_engine(load("mamba"))
    with pytest.raises(errors.InvalidArgumentError, match="cannot forget its last tokens"):
        recurrent.submit([1], speculative=True)
    with pytest.raises(errors.InvalidArgumentError, match="cannot forget its last tokens"):
        make_engine(load("mamba"), speculative="ngram")
    assert recurrent.complete([5], max_tokens=3).tokens and engine.complete([5], max_tokens=3).tokens


# ---- among others


def watch(engine: Engine) -> list[tuple[int, int]]:
    """With how many running texts drafts were computed: of each decode to come, its rows and its drafts."""
    seen: list[tuple[int, int]] = []
    on_decode(engine, lambda n_rows, n_tokens, n_drafts: seen.append((n_rows, n_drafts)))
    return seen


def test_drafts_yield_to_other_texts(make_engine: Callable[..., Engine], plain: Llama) -> None:
    wants = [plain(prompt, max_tokens=60 + 20 * i, temperature=0).tokens for i, prompt in enumerate(PROMPTS)]
    for up_to in (1, 2, 3):
        engine = make_engine(speculative=OFTEN, speculate_up_to=up_to)
        seen = watch(engine)
        jobs = [engine.submit(prompt, max_tokens=60 + 20 * i, temperature=0) for i, prompt in enumerate(PROMPTS)]
        assert [job.result(300).tokens for job in jobs] == wants
        busy = [n_drafts for n_rows, n_drafts in seen if n_rows > up_to]
        assert busy and not any(busy)
        assert any(n_drafts for n_rows, n_drafts in seen if n_rows <= up_to)
        assert up_to == 1 or any(n_drafts > 1 for _, n_drafts in seen)
        wait_until_idle(engine)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_texts_that_draft_side_by_side(
    make_engine: Callable[..., Engine], load: Callable[..., Model], arch: str, unified: bool
) -> None:
    """With caches of their own or a common one, and windows that forget."""
    model = load(arch)
    with Llama(model, n_ctx=512, cache_prompt=False, **EXACT) as llm:
        wants = [llm(prompt, max_tokens=90, temperature=0).tokens for prompt in PROMPTS]
    engine = make_engine(model, n_ctx=1024, kv_unified=unified, speculative=OFTEN, speculate_up_to=4)
    for _ in range(2):
        assert [one.tokens for one in engine.generate(PROMPTS, max_tokens=90, temperature=0)] == wants
        assert [engine.complete(prompt, max_tokens=90, temperature=0).tokens for prompt in PROMPTS] == wants
    assert engine.metrics().n_drafts > 20
    wait_until_idle(engine)


def test_a_text_drafts_again_when_the_others_have_gone(make_engine: Callable[..., Engine], plain: Llama) -> None:
    want = plain(PROMPT, max_tokens=300, temperature=0).tokens
    for arguments in ({"speculative": OFTEN}, {"speculative": DRAFT, "draft": plain.model.path}):
        engine = make_engine(**arguments)
        seen = watch(engine)
        job = engine.submit(PROMPT, max_tokens=300, temperature=0, logits_processor=slow)
        for i in range(2):
            wait_for_drafts(engine, 2)
            engine.submit([9, i], max_tokens=8, seed=1).result(300)
        assert job.result(300).tokens == want
        busy = [i for i, (n_rows, _) in enumerate(seen) if n_rows > 1]
        assert not any(seen[i][1] for i in busy)
        assert any(n_drafts for _, n_drafts in seen[: busy[0]])
        assert any(n_drafts for _, n_drafts in seen[busy[-1] :])
        wait_until_idle(engine)


def test_several_texts_of_one_request(make_engine: Callable[..., Engine], plain: Llama) -> None:
    want = plain(PROMPT, max_tokens=40, n=3, best_of=4, seed=5, temperature=0.6)
    for up_to in (1, 4):
        engine = make_engine(speculative=NGRAM, speculate_up_to=up_to)
        got = engine.complete(PROMPT, max_tokens=40, n=3, best_of=4, seed=5, temperature=0.6)
        assert [choice.tokens for choice in got.choices] == [choice.tokens for choice in want.choices]
        wait_until_idle(engine)
    assert got.speculation is not None and got.speculation.drafts > 0


# ---- little room


def test_a_text_that_fills_the_cache(make_engine: Callable[..., Engine], plain: Llama) -> None:
    for arguments in ({"speculative": NGRAM}, {"speculative": DRAFT, "draft": plain.model.path}):
        engine = make_engine(n_ctx=256, **arguments)
        bias = endless(engine)
        got = engine.complete(PROMPT, temperature=0, logit_bias=bias)
        assert (got.finish_reason, len(got.tokens)) == ("length", 256 - len(PROMPT) + 1)
        assert got.tokens == plain(PROMPT, max_tokens=len(got.tokens), temperature=0, logit_bias=bias).tokens
        wait_until_idle(engine)


def test_texts_that_stop_for_others(make_engine: Callable[..., Engine], plain: Llama) -> None:
    wants = [plain(prompt, max_tokens=50, temperature=0).tokens for prompt in PROMPTS]
    engine = make_engine(n_ctx=256, speculative=NGRAM, speculate_up_to=4, cache_prompt=False)
    # Cells are counted in units of 256, so a part of them is taken away.
    limit_cells(engine, 110)
    got = engine.generate(PROMPTS, max_tokens=50, temperature=0)
    assert [one.tokens for one in got] == wants
    metrics = engine.metrics()
    assert metrics.n_preempted > 0 and metrics.n_drafts > 0
    wait_until_idle(engine)


def test_no_room_in_the_memory_only_takes_the_drafts(make_engine: Callable[..., Engine], plain: Llama) -> None:
    """llama.cpp may have less room than was counted."""
    engine = make_engine(n_ctx=256, speculative=NGRAM)
    limit_cells(engine, 2000)
    bias = endless(engine)
    got = engine.complete(PROMPT, max_tokens=256 - len(PROMPT), temperature=0, logit_bias=bias)
    assert len(got.tokens) == 256 - len(PROMPT)
    wait_until_idle(engine)


def test_a_kept_row_of_logits_stops_no_drafts(make_engine: Callable[..., Engine], plain: Llama) -> None:
    engine = make_engine()
    long = SpeculationParams(types="ngram-simple", ngram_size=1, n_max=40, adaptive=False)
    want = plain(PROMPT, max_tokens=60, temperature=0).tokens
    kept: list[np.ndarray] = []

    def keep(ids: np.ndarray, logits: np.ndarray) -> None:
        if not kept:
            kept.append(logits)

    # The drafts need a larger output buffer; the row keeps the one it is in.
    got = engine.complete(PROMPT, max_tokens=60, temperature=0, speculative=long, logits_processor=keep)
    assert kept and got.tokens == want and np.isfinite(kept[0]).all()
    kept.clear()
    again = engine.complete(PROMPT, max_tokens=60, temperature=0, speculative=long)
    assert again.tokens == want
    assert got.speculation is not None and again.speculation is not None
    assert got.speculation.drafts == again.speculation.drafts > 0


# ---- what goes wrong


def test_cancelled_in_the_middle(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(speculative=NGRAM)
    bias = endless(engine)
    for i in range(8):
        job = engine.submit(PROMPT, max_tokens=400, temperature=0, logit_bias=bias, logits_processor=slow)
        if i % 2:
            time.sleep(0.01 * i)
            job.cancel()
        else:
            for n, _ in enumerate(job):
                if n == i:
                    break  # a loop that is left
        assert job.result(300).finish_reason == "abort"
        wait_until_idle(engine)


def test_an_error_ends_its_request_alone(make_engine: Callable[..., Engine], plain: Llama) -> None:
    engine = make_engine(speculative=NGRAM, speculate_up_to=2)
    for last in range(22, 60, 4):

        def fail(ids: np.ndarray, logits: np.ndarray, last: int = last) -> None:
            if len(ids) >= last:
                raise ZeroDivisionError("mine")

        with pytest.raises(ZeroDivisionError, match="mine"):
            engine.complete(PROMPT, max_tokens=60, temperature=0, logits_processor=fail)
        wait_until_idle(engine)
    want = plain(PROMPT, max_tokens=9, temperature=0)
    assert engine.complete(PROMPT, max_tokens=9, temperature=0).tokens == want.tokens


def test_a_text_goes_on_where_its_drafter_fails(
    make_engine: Callable[..., Engine], plain: Llama, caplog: pytest.LogCaptureFixture
) -> None:
    want = plain(PROMPT, max_tokens=60, temperature=0).tokens
    engine = make_engine(speculative=DRAFT, draft=plain.model.path)
    steps = 0

    def break_it(ids: np.ndarray, logits: np.ndarray) -> None:
        nonlocal steps
        steps += 1
        if steps == 10:
            break_draft_model(engine)

    got = engine.complete(PROMPT, max_tokens=60, temperature=0, logits_processor=break_it)
    assert got.tokens == want
    assert "no more drafts" in caplog.text
    assert engine.complete(PROMPT, max_tokens=60, temperature=0).tokens == want
    wait_until_idle(engine)


def test_closing_in_the_middle(make_engine: Callable[..., Engine], plain: Llama) -> None:
    engine = make_engine(speculative=DRAFT, draft=plain.model.path)
    job = engine.submit(PROMPT, max_tokens=400, temperature=0, logits_processor=slow)
    wait_for_drafts(engine, 3)
    engine.close()
    with pytest.raises(errors.ClosedError):
        job.result(300)
    assert engine.context.closed


def test_many_random_requests_are_all_accounted_for(make_engine: Callable[..., Engine], plain: Llama) -> None:
    rng = random.Random(1)
    engine = make_engine(n_ctx=256, n_parallel=5, n_batch=48, speculate_up_to=2, draft=plain.model.path)
    limit_cells(engine, 200)
    ways = [NGRAM, DRAFT, WAYS["adaptive"], False, "ngram-mod", SpeculationParams(types="draft-simple", n_max=2)]
    jobs, wanted = [], []
    for _ in range(120):
        prompt = [rng.randrange(5, 8) for _ in range(rng.randrange(1, 90))]
        arguments: dict[str, Any] = {"max_tokens": rng.randrange(0, 40), "priority": rng.randrange(2)}
        arguments |= {"temperature": 0} if rng.random() < 0.5 else {"n": 2, "seed": 4}
        jobs.append(engine.submit(prompt, stream=rng.random() < 0.5, speculative=rng.choice(ways), **arguments))
        wanted.append(None)
        if rng.random() < 0.2:
            wanted[-1] = "cancel"
            threading.Timer(rng.random() / 10, jobs[-1].cancel).start()
        elif arguments.get("temperature") == 0 and rng.random() < 0.3:
            wanted[-1] = (prompt, arguments["max_tokens"])
        if rng.random() < 0.3:
            jobs[-1].result(300)
    for job, want in zip(jobs, wanted, strict=True):
        completion = job.result(300)
        assert want == "cancel" or all(c.finish_reason in ("stop", "length") for c in completion.choices)
        if isinstance(want, tuple):
            assert completion.tokens == plain(want[0], max_tokens=want[1], temperature=0).tokens
    wait_until_idle(engine)
    assert engine.metrics().n_drafts > 0 and engine.metrics().n_failed == 0
    engine.reset_prefix_cache()
    assert engine.metrics().n_cells_used == 0

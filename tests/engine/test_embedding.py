"""Vectors and ranks in the engine: those of a Llama, computed beside texts, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.engine_internals import embedder_of
from support.engines import slow
from support.numerics import cosine
from support.waiting import wait_for

from pyllm import Llama, Model, errors
from pyllm.engine import AsyncEngine, Engine, QueueFullError

TEXTS = ["the cat sat", "no way", "more people look at the number", "a", "the time of day " * 20]
QUIET = {"n_threads": 1}


def same(found: Any, expected: Any) -> None:
    """Vectors point in the same direction."""
    found, expected = np.atleast_2d(found).astype(np.float64), np.atleast_2d(expected).astype(np.float64)
    assert found.shape == expected.shape
    assert (cosine(found, expected) > 0.99999).all()


@pytest.fixture(scope="module")
def bert(load: Callable[..., Model]) -> Iterator[Llama]:
    with Llama(load("bert"), **QUIET) as llm:
        yield llm


@pytest.fixture(scope="module")
def vectors(load: Callable[..., Model]) -> Iterator[Engine]:
    with Engine(load("bert"), **QUIET) as engine:
        yield engine


@pytest.fixture
def both(tiny_model: Model) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=512, n_parallel=4, n_batch=64, embeddings=True, **QUIET) as engine:
        yield engine


@pytest.fixture(scope="module")
def llm(tiny_model: Model) -> Iterator[Llama]:
    with Llama(tiny_model, n_ctx=512, **QUIET) as llm:
        yield llm


# ---- what comes out


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"pooling": "cls"},
        {"pooling": "last", "normalize": False},
        {"dimensions": 8, "normalize": "taxicab"},
        {"overflow": "mean"},
    ],
)
def test_the_vectors_of_a_llama(vectors: Engine, bert: Llama, arguments: dict[str, Any]) -> None:
    texts = [*TEXTS, *(["the people look at a number " * 40] if "overflow" in arguments else [])]
    found = vectors.embed(texts, **arguments)
    assert found.dtype == np.float32
    same(found, bert.embed(texts, **arguments))
    same(vectors.embed(TEXTS[0], **arguments), bert.embed(TEXTS[0], **arguments))


@pytest.mark.parametrize("pooling", [None, "last", "none"])
def test_a_model_of_texts_makes_vectors_when_asked(both: Engine, llm: Llama, pooling: Any) -> None:
    long = [*TEXTS, "the time of day " * 40]
    found, expected = both.embed(long, pooling=pooling), llm.embed(long, pooling=pooling)
    for one, other in zip(found, expected, strict=True):
        same(one, other)
    settings: dict[str, Any] = {"max_tokens": 2, "temperature": 0}
    assert both.complete("the cat", **settings).text == llm("the cat", **settings).text


def test_openais_shape_blocks_and_no_texts(vectors: Engine, bert: Llama) -> None:
    response = vectors.create_embedding(TEXTS, encoding_format="base64", model="m")
    expected = bert.create_embedding(TEXTS)
    assert (response.model, response.usage.prompt_tokens) == ("m", expected.usage.prompt_tokens)
    same([one.vector for one in response.data], [one.vector for one in expected.data])
    same(np.concatenate(list(vectors.iter_embed(TEXTS, block_size=2))), bert.embed(TEXTS))
    assert vectors.embed([]).shape == (0, vectors.model.n_embd_out)


def test_ranks(load: Callable[..., Model], both: Engine, llm: Llama) -> None:
    model = load("bert", pooling="rank")
    with Engine(model, **QUIET) as engine, Llama(model, **QUIET) as reranker:
        found = engine.rerank("the cat", TEXTS, top_n=3, return_documents=True)
        expected = reranker.rerank("the cat", TEXTS, top_n=3, return_documents=True)
        assert [(one.index, one.document) for one in found] == [(one.index, one.document) for one in expected]
        scores = [one.relevance_score for one in expected]
        assert [one.relevance_score for one in found] == pytest.approx(scores, abs=1e-4)
    found = both.rerank("the cat", TEXTS, by="embedding")
    assert [one.index for one in found] == [one.index for one in llm.rerank("the cat", TEXTS, by="embedding")]


# ---- among others


def test_several_callers_share_decodes_and_get_their_own(vectors: Engine, bert: Llama) -> None:
    texts = [[f"{word} {i}" for i in range(1 + 3 * n)] for n, word in enumerate(["the", "no", "way", "time", "day"])]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i, one=one: found.update({i: vectors.embed(one)}))
        for i, one in enumerate(texts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    for i, one in enumerate(texts):
        same(found[i], bert.embed(one))


def test_texts_and_vectors_go_on_beside_each_other(tiny_model: Model, llm: Llama) -> None:
    with Engine(tiny_model, n_ctx=2048, n_parallel=4, n_batch=64, embeddings=True, target_ms=20, **QUIET) as engine:
        expected = llm([5, 6, 7], max_tokens=60, temperature=0).tokens
        many = [f"{i} people look at the number" for i in range(200)]
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(engine.embed(many)))
        thread.start()
        jobs = [engine.submit([5, 6, 7], max_tokens=60, temperature=0) for _ in range(3)]
        long = engine.submit([5 + i % 60 for i in range(400)], max_tokens=2)
        assert engine.complete("the cat", max_tokens=3, deterministic=True, seed=1).tokens
        thread.join(300)
        same(found[0], llm.embed(many))
        assert [job.result(300).tokens for job in jobs] == [expected] * 3
        assert long.result(300).tokens
        metrics = engine.metrics()
        assert (metrics.n_embedded_texts, metrics.n_embedding) == (200, 0)
        assert metrics.n_embedded_tokens == sum(len(engine.vocab.tokenize(text)) for text in many)


def test_asyncio(vectors: Engine, bert: Llama) -> None:
    async def main() -> None:
        client = AsyncEngine(vectors)
        found = await asyncio.gather(*(client.embed([text] * 20) for text in TEXTS))
        for one, text in zip(found, TEXTS, strict=True):
            same(one, bert.embed([text] * 20))
        response = await client.create_embedding(TEXTS[:2], dimensions=4)
        same([one.vector for one in response.data], bert.embed(TEXTS[:2], dimensions=4))
        ranks = await client.rerank("the cat", TEXTS, by="embedding", top_n=2)
        assert [one.index for one in ranks] == [one.index for one in bert.rerank("the cat", TEXTS, by="embedding")[:2]]
        with pytest.raises(errors.InvalidArgumentError, match="text 1 is empty"):
            await client.embed(["a", ""])

        before = vectors.metrics().n_cancelled
        task = asyncio.create_task(client.embed(TEXTS * 2000))
        wait = asyncio.create_task(asyncio.sleep(0))
        while not vectors.metrics().n_embedding:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait
        while vectors.metrics().n_embedding:
            await asyncio.sleep(0.01)
        assert vectors.metrics().n_cancelled == before + 1
        assert vectors.metrics().n_embedded_texts < len(TEXTS) * 2000

    asyncio.run(main())
    same(vectors.embed("a"), bert.embed("a"))


# ---- what goes wrong


def test_an_error_ends_its_request_alone(vectors: Engine, bert: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = embedder_of(vectors)
    original = embedder._decode

    def decode(context: Any, tokens: Any, *rest: Any) -> Any:
        if 77 in tokens:
            raise errors.DecodeError("broken", function="llama_decode", code=-3)
        return original(context, tokens, *rest)

    monkeypatch.setattr(embedder, "_decode", decode)
    results: dict[int, Any] = {}

    def ask(i: int) -> None:
        try:
            results[i] = vectors.embed([[20 + i, 30]] * 30 + [[77, 5]] * (i == 3))
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    before = vectors.metrics().n_failed
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert isinstance(results.pop(3), errors.DecodeError)
    for i, found in results.items():
        same(found, bert.embed([[20 + i, 30]] * 30))
    assert vectors.metrics().n_failed == before + 1


def test_a_queue_with_bounds_refuses_more(tiny_model: Model) -> None:
    with Engine(
        tiny_model, n_ctx=256, n_parallel=1, max_queued=2, max_queued_tokens=40, embeddings=True, **QUIET
    ) as engine:
        running = engine.submit([1], max_tokens=200, logits_processor=slow)
        wait_for(lambda: engine.metrics().n_running == 1)
        waiting = engine.submit([2] * 30, max_tokens=1)
        with pytest.raises(QueueFullError, match="max_queued_tokens=40"):
            engine.embed([[5] * 30])
        second = engine.submit([3], max_tokens=1)
        with pytest.raises(QueueFullError, match="max_queued=2"):
            engine.embed("the cat")
        assert engine.metrics().n_rejected == 2
        running.cancel()
        assert waiting.result(300) and second.result(300)
        assert engine.embed("the cat").shape == (engine.model.n_embd_out,)


def test_wrong_arguments(vectors: Engine, both: Engine, tiny_model: Model, load: Callable[..., Model]) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="makes vectors and no texts"):
        vectors.submit("a")
    with pytest.raises(errors.InvalidArgumentError, match="reranker"):
        vectors.rerank("a", ["b"])
    with pytest.raises(errors.InvalidArgumentError, match="and at most"):
        vectors.embed("the cat " * 2000)
    with pytest.raises(errors.InvalidArgumentError, match="leaves nothing"):
        Engine(load("bert"), embeddings=False)
    with pytest.raises(errors.InvalidArgumentError, match="encoder-decoder"):
        Engine(load("t5"), **QUIET)
    with Engine(tiny_model, n_ctx=256, n_parallel=1, **QUIET) as engine:
        assert not engine.embeds
        with pytest.raises(errors.InvalidArgumentError, match="embeddings=True"):
            engine.embed("a")
    seen: list[str] = []

    def asks(ids: np.ndarray, logits: np.ndarray) -> None:
        try:
            both.embed("a")
        except errors.InvalidArgumentError as error:
            seen.append(str(error))

    both.complete("a", max_tokens=1, logits_processor=asks)
    assert "thread" in seen[0]


def test_closing_ends_what_waits(load: Callable[..., Model]) -> None:
    before = threading.active_count()
    engine = Engine(load("bert"), **QUIET)
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            engine.embed(TEXTS * 5000)
        except errors.ClosedError as error:
            raised.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: engine.metrics().n_embedded_texts > 0)
    engine.close()
    for thread in threads:
        thread.join(300)
    assert len(raised) == 3
    with pytest.raises(errors.ClosedError):
        engine.embed("a")
    wait_for(lambda: threading.active_count() == before)


def test_many_at_random_are_all_accounted_for(tiny_model: Model, llm: Llama) -> None:
    random.seed(4)
    texts = [[random.randrange(5, 90) for _ in range(random.randrange(1, 40))] for _ in range(40)]
    mean, last = llm.embed(texts), llm.embed(texts, pooling="last")

    async def one(client: AsyncEngine, i: int) -> str:
        kind = random.choice(["mean", "last", "text", "cancel"])
        if kind == "text":
            assert (await client.complete(texts[i % 40], max_tokens=5)).choices
        elif kind == "cancel":
            task = asyncio.create_task(client.embed(texts))
            await asyncio.sleep(random.random() / 20)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            count = random.randrange(1, 12)
            chosen = [random.randrange(40) for _ in range(count)]
            found = await client.embed([texts[j] for j in chosen], pooling=kind)
            same(found, (mean if kind == "mean" else last)[chosen])
        return kind

    async def main(engine: Engine) -> list[str]:
        client = AsyncEngine(engine)
        return list(await asyncio.gather(*(one(client, i) for i in range(120))))

    with Engine(tiny_model, n_ctx=512, n_parallel=4, n_batch=64, embeddings=True, target_ms=10, **QUIET) as engine:
        kinds = asyncio.run(main(engine))
        assert len(kinds) == 120
        wait_for(lambda: engine.metrics().n_embedding == 0)
        engine.check_invariants()
        assert engine.metrics().n_failed == 0

"""/v1/embeddings and /v1/rerank."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pyllm import Llama, Model
from pyllm.engine import Engine

TEXTS = ["the cat sat", "no way", "more people look at the number"]


@pytest.fixture(scope="module")
def bert(tiny_models) -> Any:
    with Llama(tiny_models["bert"], n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def engine_of_vectors(tiny_models) -> Any:
    with Engine(tiny_models["bert"], n_threads=1, max_queued=8) as engine:
        yield engine


@pytest.fixture(scope="module")
def vectors(start, engine_of_vectors) -> Any:
    return start(engine_of_vectors, alias="bert", metrics=True)


def test_vectors_with_openais_client(vectors, bert) -> None:
    with vectors.client() as client:
        # OpenAI's client asks for base64 by itself.
        answer = client.embeddings.create(model="m", input=TEXTS)
        assert answer.model == "bert"
        found = np.array([one.embedding for one in answer.data], np.float32)
        np.testing.assert_allclose(found, bert.embed(TEXTS), rtol=1e-5, atol=1e-6)
        plain = client.embeddings.create(model="m", input=TEXTS[0], encoding_format="float", dimensions=8)
        assert len(plain.data[0].embedding) == 8
        ids = bert.vocab.tokenize(TEXTS[0]).tolist()
        assert len(client.embeddings.create(model="m", input=[ids, ids]).data) == 2


def test_ranks(vectors) -> None:
    response = vectors.post("/v1/rerank", {"query": "cat", "documents": TEXTS})
    # The tiny model has no head that gives scores: an error of the client's, who asked the wrong model.
    assert response.status_code == 400
    assert "rerank" in response.json()["error"]["message"]


def test_a_reranker(start, tiny_models) -> None:
    path = tiny_models.make("bert", pooling="rank")
    with Engine(path, n_threads=1) as engine, Llama(path, n_threads=1) as llm:
        server = start(engine)
        body = {"query": "cat", "documents": TEXTS, "top_n": 2, "return_documents": True}
        expected = llm.rerank("cat", TEXTS)
        for path in ("/v1/rerank", "/v1/reranking", "/rerank", "/reranking"):
            answer = server.post(path, body).json()
            results = answer["results"]
            assert [result["index"] for result in results] == [one.index for one in expected[:2]]
            assert results[0]["relevance_score"] == pytest.approx(expected[0].relevance_score, abs=1e-4)
            assert all(result["document"]["text"] == TEXTS[result["index"]] for result in results)
            assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
        # As TEI's clients ask, and are answered.
        ranks = server.post("/rerank", {"query": "cat", "texts": TEXTS, "return_text": True, "top_n": 99}).json()
        assert [rank["index"] for rank in ranks] == [one.index for one in expected]
        assert all(rank["text"] == TEXTS[rank["index"]] for rank in ranks)
        assert [rank["score"] for rank in ranks] == pytest.approx([one.relevance_score for one in expected], abs=1e-4)
        assert "text" not in server.post("/rerank", {"query": "cat", "texts": TEXTS}).json()[0]
        server.stop()


def test_vectors_in_llama_servers_shape(vectors, bert) -> None:
    ids = bert.vocab.tokenize(TEXTS[0]).tolist()
    inputs = [TEXTS[0], ids, {"content": TEXTS[0]}, {"content": [{"type": "text", "text": TEXTS[0]}]}]
    expected = bert.embed(TEXTS[0])
    for path, body in (
        ("/embedding", {"content": inputs}),
        ("/embeddings", {"input": inputs}),
        ("/v1/embeddings", {"content": inputs}),
    ):
        answer = vectors.post(path, body).json()
        assert [one["index"] for one in answer] == [0, 1, 2, 3]
        for one in answer:
            np.testing.assert_allclose(np.array(one["embedding"]), [expected], rtol=1e-4, atol=1e-5)
    plain = vectors.post("/embedding", {"content": TEXTS[0], "embd_normalize": -1}).json()
    np.testing.assert_allclose(plain[0]["embedding"][0], bert.embed(TEXTS[0], normalize=False), rtol=1e-4, atol=1e-5)
    mixed = vectors.post("/embedding", {"content": ["a", [ids[1], " cat"]]}).json()
    assert len(mixed) == 2


def test_vectors_of_tokens(start, tiny_models) -> None:
    with Engine(tiny_models["bert"], n_threads=1, pooling_type="none") as engine:
        server = start(engine)
        answer = server.post("/embedding", {"content": TEXTS}).json()
        for one, text in zip(answer, TEXTS, strict=True):
            expected = engine.embed(text, normalize=False)
            np.testing.assert_allclose(one["embedding"], expected, rtol=1e-4, atol=1e-5)
        assert server.post("/v1/embeddings", {"input": TEXTS}).status_code == 400
        server.stop()


def test_vectors_beside_texts(start, tiny_model: Model) -> None:
    with Engine(tiny_model, n_ctx=512, n_parallel=2, n_threads=1, embeddings=True) as engine:
        server = start(engine)
        with server.client() as client:
            stream = client.completions.create(model="m", prompt="the", max_tokens=200, stream=True)
            next(iter(stream))
            assert len(client.embeddings.create(model="m", input=TEXTS).data) == 3
            assert client.completions.create(model="m", prompt="the", max_tokens=2).choices
            stream.close()
        server.stop()


def test_a_llama_may_make_them_too(start, bert) -> None:
    server = start(None, embedder=bert)
    with server.client() as client:
        found = np.array([one.embedding for one in client.embeddings.create(model="m", input=TEXTS).data], np.float32)
    np.testing.assert_allclose(found, bert.embed(TEXTS), rtol=1e-5, atol=1e-6)
    server.stop()


def test_many_clients_are_queued_or_refused(vectors, engine_of_vectors) -> None:
    texts = ["the cat sat on the number of the time"] * 100
    with ThreadPoolExecutor(24) as pool:
        codes = list(pool.map(lambda _: vectors.post("/v1/embeddings", {"input": texts}).status_code, range(48)))
    assert set(codes) <= {200, 429} and 200 in codes
    assert engine_of_vectors.metrics().n_embedding == 0
    numbers = vectors.get("/metrics").text
    assert f"pyllm_embedded_texts_total {float(engine_of_vectors.metrics().n_embedded_texts)}" in numbers


@pytest.mark.parametrize(
    ("path", "wrong", "param"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a", 5]}, "input[1]"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 10**6}, "dimensions"),
        ("/v1/embeddings", {"input": "the cat " * 5000}, "input"),
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a"}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [5]}, "documents[0]"),
        ("/v1/rerank", {"query": "a", "texts": [5]}, "texts[0]"),
        ("/embedding", {}, "input"),
        ("/embedding", {"content": []}, "content"),
        ("/embedding", {"content": ["a", {"content": 5}]}, "content[1].content"),
        ("/embedding", {"content": {"content": [{"type": "image_url", "image_url": {}}]}}, "content.content"),
        ("/embedding", {"content": "a", "embd_normalize": 1000}, "embd_normalize"),
    ],
)
def test_what_is_wrong_is_named(vectors, path: str, wrong: dict[str, Any], param: str) -> None:
    response = vectors.post(path, wrong)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text


def test_such_a_server_writes_no_texts(vectors) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        response = vectors.post(path, {"prompt": "a", "messages": []})
        assert response.status_code == 400
        assert "only embeds" in response.json()["error"]["message"]
    response = vectors.post("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]})
    assert response.status_code == 400 and "only embeds" in response.json()["error"]["message"]
    assert vectors.get("/ready").status_code == vectors.get("/props").status_code == 200

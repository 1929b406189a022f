"""/v1/embeddings and /v1/rerank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyllm import Llama
from pyllm.params import ContextParams
from pyllm.server.embedder import EngineEmbedder

TEXTS = ["the cat sat", "no way", "more people look at the number"]


@pytest.fixture(scope="module")
def bert(tiny_models) -> Any:
    with Llama(tiny_models["bert"], n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def vectors(start, bert) -> Any:
    return start(None, embedder=bert, alias="bert")


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
    with Llama(tiny_models.make("bert", pooling="rank"), n_threads=1) as llm:
        server = start(None, embedder=llm)
        body = {"query": "cat", "documents": TEXTS, "top_n": 2, "return_documents": True}
        for path in ("/v1/rerank", "/rerank", "/reranking"):
            results = server.post(path, body).json()["results"]
            assert len(results) == 2
            assert results[0]["relevance_score"] >= results[1]["relevance_score"]
            assert all(result["document"]["text"] == TEXTS[result["index"]] for result in results)
        server.stop()


def test_vectors_beside_texts(start, engine) -> None:
    embedder = EngineEmbedder(engine, ContextParams(n_threads=1))
    try:
        server = start(engine, embedder=embedder)
        engine.slowly(0.005)
        body = {"prompt": "the", "max_tokens": 200, "stream": True}
        with server.client() as client:
            stream = client.completions.create(model="m", **body)
            next(iter(stream))
            assert len(client.embeddings.create(model="m", input=TEXTS).data) == 3
            assert engine.metrics().n_running == 1
            stream.close()
        server.stop()
    finally:
        embedder.close()


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
    ],
)
def test_what_is_wrong_is_named(vectors, path: str, wrong: dict[str, Any], param: str) -> None:
    response = vectors.post(path, wrong)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text


def test_such_a_server_writes_no_texts(vectors) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        response = vectors.post(path, {"prompt": "a", "messages": []})
        assert response.status_code == 501
    assert vectors.get("/ready").status_code == vectors.get("/props").status_code == 200

"""/v1/embeddings and /v1/rerank."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pyllm import Llama, Model
from pyllm.embedding.embedder import Embedder
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
        ids = bert.vocab.tokenize(TEXTS[0])
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
        # A document that is too long, and a query that leaves no room for one.
        long = {"query": "cat", "documents": ["no", "the cat " * 5000]}
        error = server.post("/v1/rerank", long).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "documents[1]")
        answer = server.post("/v1/rerank", {**long, "truncate": True}).json()
        expected = llm.rerank("cat", long["documents"], overflow="truncate")
        assert [one["index"] for one in answer["results"]] == [one.index for one in expected]
        error = server.post("/v1/rerank", {"query": "the cat " * 5000, "documents": ["a"], "truncate": True}).json()
        assert (error["error"]["code"], error["error"]["param"]) == ("context_length_exceeded", "query")
        error = server.post("/v1/embeddings", {"input": "cat"}).json()["error"]
        assert error["param"] == "model" and "/v1/rerank" in error["message"]
        server.stop()


def test_vectors_in_llama_servers_shape(vectors, bert) -> None:
    ids = bert.vocab.tokenize(TEXTS[0])
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
        ("/v1/embeddings", {"input": ["a", "the cat " * 5000]}, "input[1]"),
        ("/v1/embeddings", {"input": ["a", []]}, "input[1]"),
        ("/v1/embeddings", {"input": "a", "truncate": "START"}, "truncate"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 10**6}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "truncate": False, "truncate_prompt_tokens": 5}, "truncate"),
        ("/v1/embeddings", {"input": [[5], [5, 10**6]]}, "input[1]"),
        ("/embedding", {"content": ["a", "the cat " * 5000]}, "content[1]"),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}, "model"),
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
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


def test_a_text_that_is_too_long_says_what_a_client_can_do(vectors, bert) -> None:
    long = "the cat " * 5000
    response = vectors.post("/v1/embeddings", {"input": ["no way", long]})
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input[1]")
    assert '"truncate": true' in error["message"] and "overflow" not in error["message"]
    limit = error["n_ctx"]
    assert error["n_prompt_tokens"] > limit > 0
    expected = bert.embed(["no way", long], overflow="truncate")
    for truncate in (True, "END", "end"):
        answer = vectors.post("/v1/embeddings", {"input": ["no way", long], "truncate": truncate}).json()
        found = [one["embedding"] for one in answer["data"]]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for field in ({"truncate": False}, {"truncate": "NONE"}, {"truncate": None}):
        assert vectors.post("/v1/embeddings", {"input": long, **field}).status_code == 400
    native = vectors.post("/embedding", {"content": long, "truncate": True}).json()
    np.testing.assert_allclose(native[0]["embedding"][0], expected[1], rtol=1e-4, atol=1e-5)


def test_texts_end_at_a_number_of_tokens(vectors, bert) -> None:
    # With the two tokens around it, as vLLM counts them.
    ids = bert.vocab.tokenize("the cat sat")
    answer = vectors.post("/v1/embeddings", {"input": "the cat sat", "truncate_prompt_tokens": 4}).json()
    assert answer["usage"]["prompt_tokens"] == 4 < len(ids)
    expected = bert.embed([*ids[:3], ids[-1]])
    np.testing.assert_allclose(answer["data"][0]["embedding"], expected, rtol=1e-4, atol=1e-5)
    whole = vectors.post("/v1/embeddings", {"input": "the cat " * 5000, "truncate_prompt_tokens": -1})
    assert whole.status_code == 200


def test_a_blank_text_among_others(vectors, bert) -> None:
    """It has the vector of the tokens around every text, as in llama-server and sentence-transformers."""
    around = bert.vocab.tokenize("")
    assert len(around) == 2
    for blank in ("", " ", "\n"):
        answer = vectors.post("/v1/embeddings", {"input": [TEXTS[0], blank, TEXTS[1]]}).json()
        found = np.array([one["embedding"] for one in answer["data"]])
        np.testing.assert_allclose(found[[0, 2]], bert.embed(TEXTS[:2]), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1], bert.embed(around), rtol=1e-4, atol=1e-5)


def test_a_blank_text_that_has_no_token_at_all_is_named(start, tiny_models) -> None:
    with Engine(tiny_models.make("llama", vocab="bpe"), n_threads=1, n_ctx=256, embeddings=True) as engine:
        assert len(engine.vocab.tokenize("")) == 0
        server = start(engine)
        response = server.post("/v1/embeddings", {"input": ["the cat", ""]})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "input[1]"
        server.stop()


def test_a_vector_that_has_no_direction(start, bert, monkeypatch) -> None:
    """The error says nothing of arguments in Python."""
    compute = Embedder.compute
    monkeypatch.setattr(Embedder, "compute", lambda *args, **more: [0 * one for one in compute(*args, **more)])
    server = start(None, embedder=bert)
    error = server.post("/v1/embeddings", {"input": TEXTS}).json()["error"]
    assert error["message"] == "the vector of input[0] is zero: it has no direction and cannot be normalised"
    assert server.post("/embedding", {"content": TEXTS, "embd_normalize": -1}).status_code == 200
    server.stop()


def test_lists_of_texts_and_ids_as_llama_server_takes_them(vectors, bert) -> None:
    ids = bert.vocab.tokenize(TEXTS[0])
    expected = bert.embed(ids)
    inputs = [ids, [*ids[:2], " " + TEXTS[0].partition(" ")[2], ids[-1]], {"prompt_string": TEXTS[0]}]
    answer = vectors.post("/v1/embeddings", {"input": inputs}).json()
    for one in answer["data"]:
        np.testing.assert_allclose(one["embedding"], expected, rtol=1e-4, atol=1e-5)
    assert len(vectors.post("/v1/embeddings", {"input": inputs[1]}).json()["data"]) == 1
    assert vectors.post("/v1/embeddings", {"input": ["a", 5]}).status_code == 400
    assert vectors.post("/v1/embeddings", {"input": {"content": "a"}}).status_code == 200


@pytest.mark.parametrize(("path", "name"), [("/v1/embeddings", "input"), ("/embeddings", "content")])
def test_data_of_other_kinds_than_text_is_no_vector_of_the_text_alone(vectors, path: str, name: str) -> None:
    one = {"prompt_string": "What is this: <__media__>", "multimodal_data": ["iVBORw0KGgo="]}
    response = vectors.post(path, {name: ["a", one]})
    assert response.status_code == 400
    assert f"{name}[1].multimodal_data" in response.json()["error"]["message"]
    assert vectors.post(path, {name: [{**one, "multimodal_data": []}]}).status_code == 200


def test_ids_of_another_tokenizer_are_refused(vectors, bert) -> None:
    """LangChain's OpenAIEmbeddings sends those of OpenAI's tokenizer by itself."""
    n_vocab = len(bert.vocab)
    for ids in ([5, n_vocab], [791, 8415, 7731, 389, 279, 5634]):
        response = vectors.post("/v1/embeddings", {"input": [TEXTS[0], ids]})
        error = response.json()["error"]
        assert response.status_code == 400
        assert (error["param"], error["code"]) == ("input[1]", "invalid_token_ids")
        assert "check_embedding_ctx_length=False" in error["message"]
    # These exist in the model too, whose tokenizer has one token for "the".
    index = {bert.vocab.text(i): i for i in range(n_vocab)}
    assert bert.vocab.tokenize("the", add_special=False) == [index["▁the"]]
    foreign = [index["▁t"], index["h"], index["e"]] * 6
    error = vectors.post("/v1/embeddings", {"input": [foreign]}).json()["error"]
    assert (error["param"], error["code"]) == ("input[0]", "invalid_token_ids")
    assert vectors.post("/v1/embeddings", {"input": [foreign[:4]]}).status_code == 200  # too few to tell
    assert vectors.post("/embeddings", {"input": [foreign]}).status_code == 200


def test_ids_of_the_models_own_tokenizer_are_taken(vectors, bert) -> None:
    """Those of whole texts, and pieces of a certain length as clients cut them."""
    text = " ".join(TEXTS * 6) + " xyzzy äöü 語 [CLS] people"
    ids = bert.vocab.tokenize(text, add_special=False)
    pieces = [ids, bert.vocab.tokenize(text), *(ids[i : i + 9] for i in range(len(ids) - 9))]
    assert len(vectors.post("/v1/embeddings", {"input": pieces}).json()["data"]) == len(pieces)


def test_such_a_server_writes_no_texts(vectors) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        response = vectors.post(path, {"prompt": "a", "messages": []})
        assert response.status_code == 400
        assert "only embeds" in response.json()["error"]["message"]
    response = vectors.post("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]})
    assert response.status_code == 400 and "only embeds" in response.json()["error"]["message"]
    assert vectors.get("/ready").status_code == vectors.get("/props").status_code == 200

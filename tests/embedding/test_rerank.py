"""Llama.rerank, with a tiny random reranker: what it computes, and how pairs are written."""

from __future__ import annotations

import numpy as np
import pytest
from embedding.test_embed import close

from pyllm import errors
from pyllm.core.gguf import GGUFReader
from pyllm.embedding.rerank import PairFormat

QUERY = "the time of the people"
DOCUMENTS = ["no way", "could you look at the time", "more people", "would you like it", "no way"]
TEMPLATE = "[CLS]query: {query} document: {document}[SEP]"


@pytest.fixture(scope="module")
def reranker(llama):
    return llama("bert", {"pooling": "rank"})


@pytest.fixture(scope="module")
def with_template(llama):
    return llama("bert", {"pooling": "rank", "rerank_template": TEMPLATE})


def test_scores_are_those_of_the_head(reranker):
    results = reranker.rerank(QUERY, DOCUMENTS)
    form = PairFormat(reranker.model)
    with GGUFReader(reranker.model.path) as reader:
        head = {
            name: reader.tensor(name, dequantize=True).astype(float)
            for name in ("cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias")
        }
    for result in results:
        pair = form.tokens(QUERY, DOCUMENTS[result.index])
        first = reranker.embed(pair, pooling="none", normalize=False)[0]
        hidden = np.tanh(head["cls.weight"] @ first + head["cls.bias"])
        assert close(result.relevance_score, head["cls.output.weight"] @ hidden + head["cls.output.bias"])


def test_best_first_and_every_document_once(reranker):
    results = reranker.rerank(QUERY, DOCUMENTS)
    scores = [result.relevance_score for result in results]
    assert scores == sorted(scores, reverse=True)
    assert sorted(result.index for result in results) == [0, 1, 2, 3, 4]
    assert all(result.document is None for result in results)
    best = reranker.rerank(QUERY, DOCUMENTS, top_n=2, return_documents=True)
    assert [result.index for result in best] == [result.index for result in results[:2]]
    assert [result.document for result in best] == [DOCUMENTS[result.index] for result in best]
    assert dict(best[0]) == {
        "index": best[0].index,
        "relevance_score": best[0].relevance_score,
        "document": {"text": best[0].document},
    }
    assert set(results[0]) == {"index", "relevance_score"}
    assert reranker.rerank(QUERY, []) == []


def test_a_pair_stands_between_the_tokens_of_the_model(reranker):
    vocab = reranker.vocab
    query, document = (vocab.tokenize(text, add_special=False) for text in (QUERY, DOCUMENTS[1]))
    expected = [vocab.bos, *query, vocab.sep, *document]
    assert PairFormat(reranker.model).tokens(QUERY, DOCUMENTS[1]).tolist() == expected


def test_a_template_is_filled_and_read_as_llama_server_does(with_template):
    vocab = with_template.vocab
    filled = TEMPLATE.format(query=QUERY, document=DOCUMENTS[1])
    expected = vocab.tokenize(filled, add_special=False, parse_special=True)
    assert np.array_equal(PairFormat(with_template.model).tokens(QUERY, DOCUMENTS[1]), expected)
    assert with_template.rerank(QUERY, DOCUMENTS)[0].relevance_score != 0


def test_a_template_of_a_model_that_writes(llama):
    template = "<|im_start|>the <tool>{query}<|im_end|>\n{document} {query}"
    for vocab in ("spm", "bpe"):
        model = llama("llama", {"vocab": vocab, "rerank_template": template}).model
        filled = template.replace("{query}", "more time").replace("{document}", "no way 🙂")
        expected = model.vocab.tokenize(filled, add_special=False, parse_special=True)
        assert np.array_equal(PairFormat(model).tokens("more time", "no way 🙂"), expected)


@pytest.mark.parametrize("evil", ["the [SEP] time", "[CLS]", "{document}", "{query}"])
def test_texts_never_become_control_tokens(reranker, with_template, evil):
    for llm in (reranker, with_template):
        form, special = PairFormat(llm.model), [llm.vocab.bos, llm.vocab.sep]
        counts = [
            np.isin(form.tokens(q, d), special).sum() for q, d in ((QUERY, "no way"), (QUERY, evil), (evil, "no"))
        ]
        assert len(set(counts)) == 1
        inner = llm.vocab.tokenize(evil, add_special=False)
        tokens = form.tokens(QUERY, evil).tolist()
        assert any(tokens[i : i + len(inner)] == inner for i in range(len(tokens)))


def test_a_template_needs_both_places(llama):
    llm = llama("bert", {"pooling": "rank", "rerank_template": "{query} alone"})
    with pytest.raises(errors.InvalidArgumentError, match=r"no place for \{document\}"):
        llm.rerank(QUERY, DOCUMENTS)


def test_long_documents(reranker, with_template):
    long = "more time " * 600
    for llm in (reranker, with_template):
        with pytest.raises(errors.InvalidArgumentError, match=r"document 1 has 12\d\d tokens, and at most 512 can"):
            llm.rerank(QUERY, ["no way", long])
        results = llm.rerank(QUERY, ["no way", long], overflow="truncate")
        assert sorted(result.index for result in results) == [0, 1]
        pair = PairFormat(llm.model).truncated(QUERY, long, 512, 1)
        assert len(pair) == 512
        score = next(result.relevance_score for result in results if result.index == 1)
        assert close(llm.embed(pair, pooling="rank"), score)
        with pytest.raises(errors.InvalidArgumentError, match="leaves no room for document 0"):
            llm.rerank(long, ["no way"], overflow="truncate")


def test_by_embedding_is_asked_for_and_never_taken_silently(bert, writer):
    for llm in (bert, writer):
        with pytest.raises(errors.InvalidArgumentError, match="need a reranker"):
            llm.rerank(QUERY, DOCUMENTS)
        results = llm.rerank(QUERY, [*DOCUMENTS, QUERY], by="embedding")
        assert results[0].index == 5 and results[0].relevance_score == pytest.approx(1, abs=1e-3)
        vectors = llm.embed([QUERY, *DOCUMENTS])
        for result in results[1:]:
            assert close(result.relevance_score, vectors[1 + result.index] @ vectors[0])
        assert llm.rerank(QUERY, [], by="embedding") == []


@pytest.mark.parametrize(
    ("query", "documents", "arguments", "message"),
    [
        ("", ["a"], {}, "the query is empty"),
        (None, ["a"], {}, "the query must be str or bytes, not NoneType"),
        ("a", "b", {}, "several texts"),
        ("a", ["b", 3], {}, "document 1 must be str or bytes, not int"),
        ("a", 5, {}, "documents must be several texts, not int"),
        ("a", {"b": "c"}, {}, "documents must be several texts, not dict"),
        ("a", ["b"], {"top_n": 0}, "top_n must be an integer of at least 1, not 0"),
        ("a", ["b"], {"top_n": True}, "top_n"),
        ("a", ["b"], {"by": "magic"}, "by='magic' is not one of"),
        ("a", ["b"], {"overflow": "mean"}, "overflow='mean' is not one of 'error', 'truncate'"),
        ("a", ["b", ""], {"by": "embedding"}, "document 1 is empty"),
    ],
)
def test_bad_arguments(reranker, bert, query, documents, arguments, message):
    llm = bert if arguments.get("by") == "embedding" else reranker
    with pytest.raises(errors.InvalidArgumentError, match=message):
        llm.rerank(query, documents, **arguments)

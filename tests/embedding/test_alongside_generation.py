"""Embedding beside everything else: text on the same Llama, threads, asyncio, close, and the memory it takes."""

from __future__ import annotations

import asyncio
import base64
import json
import threading

import numpy as np
import pytest
from embedding.conftest import TEXTS
from embedding.test_embed import close
from support import isolation
from support.llama_internals import embed_job, embedder_of, embedding_contexts
from support.numerics import EXACT
from support.waiting import LIMIT

from pyllm import Llama, errors

PROMPT = "the more people look"


@pytest.fixture
def own(llama):
    """A Llama of the test's own, on a shared model."""
    with Llama(llama("llama").model, **EXACT) as llm:
        yield llm


def test_text_and_vectors_on_one_llama(own, writer):
    expected, text = writer.embed(TEXTS), own(PROMPT, max_tokens=12, temperature=0).text
    assert close(own.embed(TEXTS), expected)
    assert own(PROMPT, max_tokens=12, temperature=0).text == text
    assert not own.context_params.embeddings


def test_vectors_while_a_stream_is_open(own):
    whole = own(PROMPT, max_tokens=12, temperature=0)
    stream = own.stream(PROMPT, max_tokens=12, temperature=0)
    parts = [next(stream).text]
    vector = own.embed("no way")
    parts += [chunk.text for chunk in stream]
    assert "".join(parts) == whole.text
    assert np.array_equal(vector, own.embed("no way"))


def test_the_prompt_cache_of_the_text_stays(own):
    own(PROMPT, max_tokens=4, temperature=0)
    own.embed(TEXTS)
    assert own(PROMPT + " at", max_tokens=1, temperature=0, cache_prompt=True).usage.cached_tokens > 0


def test_a_llama_made_for_embedding_gives_the_same(llama, writer):
    with Llama(writer.model, embeddings=True, pooling_type="mean", **EXACT) as llm:
        assert close(llm.embed(TEXTS), writer.embed(TEXTS))


def test_no_context_is_made_before_the_first_embedding(own):
    assert embedder_of(own) is None
    own.embed("no way")
    assert embedder_of(own) is not None


def test_threads_wait_for_each_other(own):
    expected = own.embed(TEXTS)
    found, failed = [], []

    def work(pooling):
        try:
            for _ in range(10):
                found.append((pooling, own.embed(TEXTS, pooling=pooling)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(pooling,)) for pooling in ("mean", "last", "mean")]
    for thread in threads:
        thread.start()
    text = own(PROMPT, max_tokens=20, temperature=0).text
    for thread in threads:
        thread.join()
    assert not failed and len(found) == 30 and text
    last = own.embed(TEXTS, pooling="last")
    for pooling, vectors in found:
        assert np.array_equal(vectors, expected if pooling == "mean" else last)


class TestClose:
    def test_a_closed_llama_embeds_no_more(self, tiny_models):
        for embedded in (False, True):
            llm = Llama(tiny_models["llama"], n_threads=1)
            if embedded:
                llm.embed("no way")
            blocks = llm.iter_embed(TEXTS, block_size=2)
            llm.close()
            llm.close()
            for call in (
                lambda llm=llm: llm.embed("no way"),
                lambda llm=llm: llm.create_embedding("no way"),
                lambda llm=llm: llm.rerank("no", ["way"]),
                lambda blocks=blocks: next(blocks),
            ):
                with pytest.raises(errors.ClosedError):
                    call()

    def test_the_model_of_others_stays_open_and_its_contexts_are_freed(self, llama):
        model = llama("llama").model
        llm = Llama(model, n_threads=1)
        llm.embed("no way")
        (context,) = embedding_contexts(llm)
        llm.close()
        assert context.closed and not model.closed

    def test_while_another_thread_embeds(self, tiny_models):
        llm = Llama(tiny_models["llama"], n_threads=1)
        started, raised = threading.Event(), []

        def work():
            try:
                while True:
                    llm.embed(TEXTS * 3)
                    started.set()
            except errors.ClosedError as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert started.wait(LIMIT)
        llm.close()
        thread.join(LIMIT)
        assert len(raised) == 1 and not thread.is_alive()


class TestAsyncio:
    def test_the_same_results(self, own, llama):
        async def main():
            return await asyncio.gather(
                own.aembed(TEXTS), own.aembed("no way", pooling="none"), own.acreate_embedding(TEXTS[:2], dimensions=4)
            )

        vectors, rows, response = asyncio.run(main())
        assert np.array_equal(vectors, own.embed(TEXTS))
        assert np.array_equal(rows, own.embed("no way", pooling="none"))
        assert dict(response) == dict(own.create_embedding(TEXTS[:2], dimensions=4))
        reranker = llama("bert", {"pooling": "rank"})
        results = asyncio.run(reranker.arerank("the time", TEXTS[:3], top_n=2))
        assert [dict(result) for result in results] == [
            dict(r) for r in reranker.rerank("the time", TEXTS[:3], top_n=2)
        ]

    def test_errors_come_out(self, own):
        with pytest.raises(errors.InvalidArgumentError, match="text 1 is empty"):
            asyncio.run(own.aembed(["no", ""]))
        with pytest.raises(errors.UnknownArgumentError, match="did you mean 'pooling'"):
            asyncio.run(own.aembed(["no"], poolin="mean"))

    def test_a_cancelled_task_ends_within_a_step(self, llama):
        with Llama(llama("llama").model, n_threads=1) as llm:
            done = []

            async def main():
                task = asyncio.create_task(llm.aembed(TEXTS * 2000))
                task.add_done_callback(lambda task: done.append(task.cancelled()))
                await asyncio.sleep(0.3)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                # It waits for what is left of the step, and is not aborted itself.
                return await asyncio.wait_for(llm.aembed("no way"), LIMIT)

            vector = asyncio.run(main())
            assert done == [True]
            assert close(vector, llm.embed("no way"))

    def test_abort(self, llama):
        with Llama(llama("llama").model, n_threads=1) as llm:
            raised = []

            def work():
                try:
                    llm.embed(TEXTS * 3000)
                except BaseException as error:
                    raised.append(error)

            llm.abort()  # nothing is running: nothing happens
            thread = threading.Thread(target=work)
            thread.start()
            while thread.is_alive():
                llm.abort()
                thread.join(0.05)
            assert [type(error) for error in raised] == [errors.DecodeAborted]
            assert close(llm.embed("no way"), llm.embed(["no way"])[0])

    def test_a_late_abort_ends_no_other_call(self, own):
        from pyllm.embedding.embedder import Job

        expected = own.embed(TEXTS)
        for context in embedding_contexts(own):
            context.abort()
        assert np.array_equal(own.embed(TEXTS), expected)
        job = Job()
        embedder_of(own).cancel(job)
        with pytest.raises(errors.DecodeAborted):
            embed_job(own, TEXTS, job)


class TestCreateEmbedding:
    def test_shape(self, bert):
        response = bert.create_embedding(TEXTS)
        plain = json.loads(json.dumps(response.to_dict()))
        assert plain == dict(response)
        assert set(plain) == {"object", "data", "model", "usage"} and plain["object"] == "list"
        assert [item["index"] for item in plain["data"]] == [0, 1, 2, 3, 4]
        assert {item["object"] for item in plain["data"]} == {"embedding"}
        vectors = bert.embed(TEXTS)
        assert np.array_equal(np.array(plain["data"][3]["embedding"], np.float32), vectors[3])
        assert np.array_equal(response.data[3].vector, vectors[3])
        n_tokens = sum(len(bert.tokenize(text)) for text in TEXTS)
        assert plain["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        assert plain["model"] == "bert.gguf"
        assert bert.create_embedding("no way", model="mine")["model"] == "mine"

    def test_base64(self, bert):
        item = bert.create_embedding("no way", encoding_format="base64", dimensions=8)["data"][0]
        vector = np.frombuffer(base64.b64decode(item["embedding"]), "<f4")
        assert np.array_equal(vector, bert.embed("no way", dimensions=8))

    @pytest.mark.parametrize(
        ("arguments", "kind", "message"),
        [
            ({"encoding_format": "hex"}, errors.InvalidArgumentError, "encoding_format='hex'"),
            ({"pooling": "none"}, errors.InvalidArgumentError, "a vector for each token"),
            ({"normalise": True}, errors.UnknownArgumentError, "did you mean 'normalize'"),
        ],
    )
    def test_bad_arguments(self, bert, arguments, kind, message):
        with pytest.raises(kind, match=message):
            bert.create_embedding("no way", **arguments)


class TestIterEmbed:
    def test_blocks(self, bert):
        expected = bert.embed(TEXTS)
        blocks = list(bert.iter_embed(iter(TEXTS), block_size=2))
        assert [block.shape for block in blocks] == [(2, 64), (2, 64), (1, 64)]
        assert close(np.concatenate(blocks), expected)
        rows = list(bert.iter_embed(TEXTS, block_size=4, pooling="none"))
        assert [len(block) for block in rows] == [4, 1]

    def test_texts_are_taken_when_they_are_needed(self, bert):
        taken = []
        blocks = bert.iter_embed((taken.append(text) or text for text in TEXTS), block_size=2)
        assert taken == []
        next(blocks)
        assert taken == TEXTS[:2]

    def test_bad_arguments_at_once(self, bert):
        for arguments, kind, message in (
            ({"block_size": 0}, errors.InvalidArgumentError, "block_size"),
            ({"pool": "mean"}, errors.UnknownArgumentError, "did you mean 'pooling'"),
        ):
            with pytest.raises(kind, match=message):
                bert.iter_embed(TEXTS, **arguments)
        with pytest.raises(errors.InvalidArgumentError, match="into a list"):
            bert.iter_embed("no way")
        for texts in (5, {"a": "b"}):
            with pytest.raises(errors.InvalidArgumentError, match="several texts in any iterable"):
                bert.iter_embed(texts)
        assert len(next(bert.iter_embed(TEXTS, block_size=np.int64(3)))) == 3


def test_memory_is_flat(tiny_models):
    pytest.importorskip("psutil")
    result = isolation.survive(
        """
import psutil
from pyllm import Llama
process = psutil.Process()
texts = ["the cat sat on the mat", "time and the number of people", "no way"]
with Llama(sys.argv[1], n_threads=1) as llm:
    def rounds(n):
        for i in range(n):
            llm.embed(texts)
            llm.embed("no way", pooling="none")
            llm.create_embedding(texts, encoding_format="base64").to_dict()
            raises(errors.InvalidArgumentError, "", llm.embed, ["a", ""])
        gc.collect()
        return process.memory_info().rss

    rounds(100)
    growth = []
    while len(growth) < 3 and (not growth or growth[-1] > 1 << 20):
        before = process.memory_info().rss
        growth.append(rounds(400) - before)
    assert min(growth) < 1 << 20, growth
""",
        tiny_models["bert"],
        env={"MALLOC_PERTURB_": "0", "MALLOC_ARENA_MAX": "1"},
    )
    assert result.returncode == 0

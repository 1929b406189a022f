"""Llama.embed: what it gives, for every kind of model, input and pooling."""

from __future__ import annotations

import numpy as np
import pytest
from embedding.conftest import TEXTS
from support.numerics import EXACT

from pyllm import Batch, Context, errors
from pyllm.enums import PoolingType

KINDS = ["llama", "qwen3moe", "gemma3", "mamba", "jamba", "bert", "t5encoder"]


def by_hand(model, text, pooling, n=512):
    """The vector of one text, in one decode of a context of its own."""
    sizes = {"n_ctx": n, "n_batch": n, "n_ubatch": n}
    with Context(model, **sizes, **EXACT, embeddings=True, pooling_type=pooling) as context:
        run = context.encode if model.has_encoder else context.decode
        run(Batch.from_arrays(model.vocab.tokenize(text), outputs="all"))
        return context.embeddings.copy() if pooling == "none" else context.embeddings_seq(0)


def close(a, b):
    """The same but for rounding."""
    return np.abs(a - b).max() < 2e-4 * max(1.0, np.abs(b).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
def test_as_by_hand_and_whatever_is_beside_it(llama, kind, pooling):
    llm = llama(kind)
    together = llm.embed(TEXTS, pooling=pooling, normalize=False)
    backwards = llm.embed(TEXTS[::-1], pooling=pooling, normalize=False)[::-1]
    assert len(together) == len(TEXTS)
    for i, text in enumerate(TEXTS):
        expected = by_hand(llm.model, text, pooling)
        assert together[i].shape == expected.shape
        for vector in (together[i], backwards[i], llm.embed(text, pooling=pooling, normalize=False)):
            assert close(vector, expected)


def test_cls_is_the_first_token_of_an_encoder(bert):
    rows = bert.embed(TEXTS[0], pooling="none", normalize=False)
    assert close(bert.embed(TEXTS[0], pooling="cls", normalize=False), rows[0])
    assert close(bert.embed(TEXTS[0], pooling="last", normalize=False), rows[-1])
    assert close(bert.embed(TEXTS[0], pooling="mean", normalize=False), rows.mean(axis=0))


def test_shapes_and_types(bert):
    several = bert.embed(TEXTS)
    assert several.shape == (5, 64) and several.dtype == np.float32 and several.flags.c_contiguous
    assert several.flags.writeable and several.flags.owndata
    assert bert.embed(TEXTS[:1]).shape == (1, 64)
    assert bert.embed(TEXTS[0]).shape == (64,)
    assert bert.embed([]).shape == (0, 64)
    rows = bert.embed(TEXTS[:2], pooling="none")
    assert [part.shape[1] for part in rows] == [64, 64]
    assert [part.shape[0] for part in rows] == [len(bert.vocab.tokenize(text)) for text in TEXTS[:2]]
    assert bert.embed([], pooling="none") == []


def test_every_form_of_input(bert):
    expected = bert.embed(TEXTS[0])
    ids = bert.vocab.tokenize_array(TEXTS[0])
    one = [TEXTS[0], TEXTS[0].encode(), ids, ids.tolist(), tuple(ids.tolist()), ids.astype(np.int64), list(ids)]
    one += [bytearray(TEXTS[0].encode()), memoryview(TEXTS[0].encode()), memoryview(ids.astype(np.int64))]
    for text in one:
        assert np.array_equal(bert.embed(text), expected)
    assert close(bert.embed(one), np.stack([expected] * len(one)))
    assert close(bert.embed(iter(TEXTS)), bert.embed(TEXTS))
    assert close(bert.embed(np.stack([ids, ids])), np.stack([expected, expected]))


def test_control_tokens_in_a_text_are_text(bert):
    inside = "the [SEP] cat"
    assert bert.vocab.sep in bert.vocab.tokenize(inside, parse_special=True)[1:-1]
    assert not np.allclose(bert.embed(inside), bert.embed(inside, parse_special=True))
    assert np.array_equal(bert.embed(inside, parse_special=True), bert.embed(bert.tokenize(inside)))


def test_the_pooling_that_is_used(llama, writer, bert):
    assert np.array_equal(bert.embed(TEXTS), bert.embed(TEXTS, pooling="mean"))
    assert np.array_equal(writer.embed(TEXTS), writer.embed(TEXTS, pooling=PoolingType.MEAN))
    own = llama("bert", {"pooling": "cls"})
    assert np.array_equal(own.embed(TEXTS), own.embed(TEXTS, pooling="cls"))
    of_llama = llama("bert", pooling_type="last")
    assert np.array_equal(of_llama.embed(TEXTS), of_llama.embed(TEXTS, pooling=3))
    assert not np.allclose(of_llama.embed(TEXTS), of_llama.embed(TEXTS, pooling="mean"))


def test_norms(bert):
    raw = bert.embed(TEXTS, normalize=False)
    assert np.allclose(np.linalg.norm(bert.embed(TEXTS), axis=1), 1, atol=1e-6)
    for how, scale in {
        "euclidean": np.linalg.norm(raw, axis=1),
        2: np.linalg.norm(raw, axis=1),
        "taxicab": np.abs(raw).sum(axis=1),
        1: np.abs(raw).sum(axis=1),
        "max_absolute": np.abs(raw).max(axis=1) / 32760,
        0: np.abs(raw).max(axis=1) / 32760,
        3: (np.abs(raw) ** 3).sum(axis=1) ** (1 / 3),
        -1: np.ones(len(raw)),
    }.items():
        assert np.allclose(bert.embed(TEXTS, normalize=how), raw / scale[:, None], rtol=1e-4, atol=1e-6), how


def test_fewer_dimensions_are_normalised_after_the_cut(bert):
    raw, cut = bert.embed(TEXTS, normalize=False), bert.embed(TEXTS, dimensions=16)
    assert cut.shape == (5, 16) and cut.flags.c_contiguous
    assert np.allclose(cut, raw[:, :16] / np.linalg.norm(raw[:, :16], axis=1, keepdims=True), atol=1e-5)
    assert bert.embed(TEXTS[0], pooling="none", dimensions=3).shape[1] == 3


@pytest.mark.parametrize(
    ("input", "message"),
    [
        ("", "text 0 is empty"),
        (b"", "text 0 is empty"),
        (["the", ""], "text 1 is empty"),
        (["the", "  \n"], "text 1 has no tokens of its own"),
        (["the", []], "text 1 is empty"),
        (np.empty(0, np.int32), "text 0 is empty"),
        (["the", None], "text 1 must be text or token ids, not NoneType"),
        (["the", 3.5], "text 1 must be text or token ids, not float"),
        ([[1, 5], [5, 10**6]], "text 1: .*1000000"),
        ([[-1]], "text 0: .*-1"),
        ([1.5], "text 0 must be text or token ids, not float"),
        (None, "must be text, token ids, or a list of these, not NoneType"),
        (7, "not int"),
        ({"a": "b"}, "not dict"),
    ],
)
def test_bad_input(bert, input, message):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        bert.embed(input)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "max"}, "pooling='max' is not one of"),
        ({"pooling": "rank"}, "no head that gives scores"),
        ({"normalize": "l2"}, "normalize='l2'"),
        ({"normalize": -2}, "normalize=-2"),
        ({"normalize": None}, "normalize=None"),
        ({"overflow": "cut"}, "overflow='cut' is not one of 'error', 'truncate', 'mean'"),
        ({"overflow": "mean", "pooling": "none"}, "'none' has no mean of windows"),
        ({"dimensions": 0}, "from 1 to n_embd=64, not 0"),
        ({"dimensions": 65}, "from 1 to n_embd=64, not 65"),
        ({"dimensions": 1.0}, "dimensions must be an integer"),
    ],
)
def test_bad_arguments(bert, arguments, message):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        bert.embed("the cat", **arguments)


def test_what_a_model_cannot_do(llama, writer):
    with pytest.raises(errors.InvalidArgumentError, match="the first token, which in this model knows nothing"):
        writer.embed("the cat", pooling="cls")
    assert llama("llama", attention_type="non_causal").embed("the cat", pooling="cls").shape == (64,)
    for _ in range(2):
        with pytest.raises(errors.InvalidArgumentError, match="encoder-decoder"):
            llama("t5").embed("the cat")
    with pytest.raises(errors.InvalidArgumentError, match=r"is a reranker.*rerank\(\)"):
        llama("bert", {"pooling": "rank"}).embed("the cat")


def test_scores_of_a_head(llama):
    llm = llama("bert", {"pooling": "rank"})
    scores = llm.embed(TEXTS, pooling="rank")
    assert scores.shape == (5, 1)
    assert close(scores[0], by_hand(llm.model, TEXTS[0], "rank"))
    assert np.array_equal(scores, llm.embed(TEXTS, pooling="rank", normalize=False))
    with pytest.raises(errors.InvalidArgumentError, match="no dimensions"):
        llm.embed("the cat", pooling="rank", dimensions=1)


class TestVectorsThatCannotBeNormalised:
    @pytest.fixture
    def broken(self, tiny_models, tmp_path):
        """A Llama on an encoder whose last norm gives only this value."""
        from pyllm import Llama
        from pyllm.core.gguf import GGUFReader, GGUFWriter

        made = []

        def make(value):
            path = tmp_path / "broken.gguf"
            with GGUFReader(tiny_models["bert"]) as reader:
                writer = GGUFWriter()
                for key, stored in reader.metadata.items():
                    writer.add(key, stored)
                for tensor in reader.tensors:
                    array = reader.tensor(tensor.name)
                    if tensor.name.startswith("blk.1.layer_output_norm"):
                        array = np.full_like(array, value)
                    writer.add_tensor(tensor.name, array)
                writer.write(path)
            made.append(Llama(path, n_threads=1))
            return made[-1]

        yield make
        for one in made:
            one.close()

    def test_zero(self, broken):
        llm = broken(0.0)
        with pytest.raises(errors.EmbeddingError, match=r"text 0 is zero.*normalize=False"):
            llm.embed(["the cat", "the mat"])
        assert not llm.embed(["the cat", "the mat"], normalize=False).any()

    def test_not_finite(self, broken):
        llm = broken(np.nan)
        for normalize in (True, False):
            with pytest.raises(errors.EmbeddingError, match="text 0 is not finite"):
                llm.embed("the cat", normalize=normalize)


def test_adapters_of_the_llama_count(llama, tmp_path):
    from pyllm import Llama
    from pyllm.core.adapter import LoraAdapter
    from pyllm.core.gguf import GGUFWriter

    path = tmp_path / "lora.gguf"
    random, writer = np.random.default_rng(0), GGUFWriter()
    for key, value in {
        "general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora", "adapter.lora.alpha": 4.0
    }.items():  # fmt: skip
        writer.add(key, value, "float32" if isinstance(value, float) else None)
    for name, shape in {"lora_a": (4, 64), "lora_b": (64, 4)}.items():
        writer.add_tensor(f"blk.0.attn_q.weight.{name}", random.normal(0, 1, shape).astype(np.float32))
    writer.write(path)
    with Llama(llama("llama").model, n_threads=1) as llm:
        before = llm.embed(TEXTS)
        llm.context.set_adapters({LoraAdapter(llm.model, path): 1.0})
        assert not np.allclose(llm.embed(TEXTS), before, atol=1e-2)
        llm.context.set_adapters({})
        assert np.array_equal(llm.embed(TEXTS), before)

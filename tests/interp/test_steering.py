"""Steering vectors: training, files, live use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.numerics import log_softmax

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.gguf import GGUFReader, GGUFWriter
from pyllm.core.model import Model
from pyllm.interp import Interp, SteeringVector

N_LAYER = 5


@pytest.fixture
def deep(load: Callable[..., Model]) -> Model:
    return load("llama", n_layer=N_LAYER)


@pytest.fixture
def lab(deep: Model) -> Interp:
    with Interp(deep, n_ctx=64, n_threads=1) as lab:
        yield lab


@pytest.fixture
def pairs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(5)
    ids = [random.integers(3, 200, 8).astype(np.int32) for _ in range(6)]
    return [np.append(each, 77) for each in ids], [np.append(each, 99) for each in ids]


@pytest.fixture
def vector() -> SteeringVector:
    random = np.random.default_rng(6)
    return SteeringVector({layer: random.normal(0, 0.5, 64) for layer in range(1, N_LAYER)}, "llama")


def test_mean_difference(lab: Interp, pairs: tuple) -> None:
    vector = SteeringVector.train(lab, *pairs)
    assert vector.layers == [1, 2, 3, 4]
    assert vector.model_hint == "llama"
    sides = [[lab.capture(ids, "blocks.3.hook_resid_post")["resid_post", 3][-1] for ids in side] for side in pairs]
    assert np.allclose(vector.directions[3], np.mean(sides[0], axis=0) - np.mean(sides[1], axis=0), atol=1e-4)


def test_first_component(lab: Interp, pairs: tuple) -> None:
    vector = SteeringVector.train(lab, *pairs, method="pca", layers=[2, 4])
    assert vector.layers == [2, 4]
    sides = [[lab.capture(ids, "blocks.4.hook_resid_post")["resid_post", 4][-1] for ids in side] for side in pairs]
    differences = np.array(sides[0], np.float64) - np.array(sides[1], np.float64)
    _, vectors = np.linalg.eigh(differences.T @ differences)
    expected = vectors[:, -1] * np.sign((differences @ vectors[:, -1]).mean())
    assert np.allclose(vector.directions[4], expected, atol=1e-3)
    assert np.isclose(np.linalg.norm(vector.directions[4]), 1)
    assert (differences @ vector.directions[4]).mean() > 0


def test_training_needs_pairs(lab: Interp, pairs: tuple) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="6 and 5"):
        SteeringVector.train(lab, pairs[0], pairs[1][:-1])
    with pytest.raises(errors.InvalidArgumentError, match="0 and 0"):
        SteeringVector.train(lab, [], [])
    with pytest.raises(errors.InvalidArgumentError, match="method"):
        SteeringVector.train(lab, *pairs, method="svd")
    with pytest.raises(errors.InvalidArgumentError, match="layer"):
        SteeringVector.train(lab, *pairs, layers=[0])


# ---- files


def test_files_as_the_generator_writes_them(vector: SteeringVector, tmp_path: Path) -> None:
    path = vector.save(tmp_path / "vector.gguf")
    with GGUFReader(path) as reader:
        assert reader.metadata["general.architecture"] == "controlvector"
        assert reader.metadata["controlvector.model_hint"] == "llama"
        assert reader.metadata["controlvector.layer_count"] == 4
        assert [tensor.name for tensor in reader.tensors] == [f"direction.{layer}" for layer in range(1, 5)]
        assert {tensor.shape for tensor in reader.tensors} == {(64,)}
    again = SteeringVector.load(path)
    assert again.model_hint == "llama"
    assert again.layers == vector.layers
    assert all(np.array_equal(again.directions[layer], vector.directions[layer]) for layer in vector.layers)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("direction.0", np.ones(64, np.float32)),
        ("direction.x", np.ones(64, np.float32)),
        ("token_embd.weight", np.ones(64, np.float32)),
        ("direction.1", np.ones((2, 64), np.float32)),
        ("direction.1", np.ones(64, np.float16)),
        (None, None),
    ],
)
def test_files_that_are_no_vectors(tmp_path: Path, name: str | None, array: np.ndarray | None) -> None:
    writer = GGUFWriter()
    writer.add("general.architecture", "controlvector")
    if name is not None:
        writer.add_tensor(name, array)
    writer.write(tmp_path / "other.gguf")
    with pytest.raises(errors.GGUFError, match="no control vector"):
        SteeringVector.load(tmp_path / "other.gguf")


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(errors.PyllmError):
        SteeringVector.load(tmp_path / "text.gguf")
    with pytest.raises(OSError):
        SteeringVector.load(tmp_path / "nothing.gguf")


# ---- live


def test_applied_and_by_hooks_is_the_same(lab: Interp, vector: SteeringVector) -> None:
    ids = np.arange(5, 20, dtype=np.int32)
    plain = lab.run(ids)
    by_hooks = lab.run_with_hooks(ids, vector.hooks(0.7))
    vector.apply(lab.context, 0.7)
    applied = lab.run(ids)
    assert np.allclose(applied, by_hooks, atol=1e-3)
    assert not np.allclose(applied, plain, atol=1e-1)
    vector.apply(lab.context, 0.0)
    assert np.array_equal(lab.run(ids), plain)
    SteeringVector.remove(lab.context)
    assert np.array_equal(lab.run(ids), plain)


def test_some_layers(lab: Interp, vector: SteeringVector) -> None:
    """Layers between two that were named are not steered."""
    ids = np.arange(5, 20, dtype=np.int32)
    vector.apply(lab.context, layers=[1, 4])
    applied = lab.run(ids)
    SteeringVector.remove(lab.context)
    assert np.allclose(applied, lab.run_with_hooks(ids, vector.hooks(layers=[1, 4])), atol=1e-3)
    assert not np.allclose(applied, lab.run_with_hooks(ids, vector.hooks()), atol=1e-1)


def test_it_is_added_after_the_layer(lab: Interp, vector: SteeringVector) -> None:
    ids = np.arange(5, 20, dtype=np.int32)
    before = lab.capture(ids, "blocks.2.hook_resid_post")["resid_post", 2]
    vector.apply(lab.context, 2.0, layers=[2])
    after = lab.capture(ids, "blocks.2.hook_resid_post")["resid_post", 2]
    SteeringVector.remove(lab.context)
    assert np.allclose(after - before, 2 * vector.directions[2][None], atol=1e-4)


def test_some_positions(lab: Interp, vector: SteeringVector) -> None:
    ids = np.arange(5, 20, dtype=np.int32)
    steered = lab.run_with_hooks(ids, vector.hooks(positions=[10]))
    plain = lab.run(ids)
    assert np.array_equal(steered[:10], plain[:10])
    assert (np.abs(steered[10:] - plain[10:]).max(axis=1) > 1e-3).all()


def test_another_context_of_the_model_is_not_steered(
    deep: Model, vector: SteeringVector, make_context: Callable
) -> None:
    steered, plain = make_context(deep), make_context(deep)
    vector.apply(steered, 3.0)
    for context in (steered, plain):
        context.decode(Batch.from_arrays([5, 6, 7], outputs="all"))
    assert not np.allclose(steered.logits, plain.logits, atol=1e-1)


def test_it_turns_a_text(lab: Interp, pairs: tuple) -> None:
    """Steering towards the positive texts makes what follows them likelier than steering away."""
    vector = SteeringVector.train(lab, *pairs)
    ids = pairs[1][0]
    wanted = lab.run(pairs[0][0])[-1].argmax()
    logprob = {}
    for scale in (-1.0, 1.0):
        vector.apply(lab.context, scale)
        logprob[scale] = log_softmax(lab.run(ids)[-1])[wanted]
    SteeringVector.remove(lab.context)
    assert logprob[1.0] > logprob[-1.0]


def test_arithmetic(vector: SteeringVector) -> None:
    total = vector * 2 + SteeringVector({1: np.ones(64)})
    assert np.allclose(total.directions[1], 2 * vector.directions[1] + 1)
    assert np.allclose((0.5 * vector).directions[2], vector.directions[2] / 2)
    with pytest.raises(errors.InvalidArgumentError):
        vector + SteeringVector({1: np.ones(3)})


def test_vectors_that_do_not_fit(vector: SteeringVector, tiny_model: Model, make_context: Callable) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="layer 4"):
        vector.apply(make_context())
    with pytest.raises(errors.InvalidArgumentError, match="n_embd=64"):
        SteeringVector({1: np.ones(32)}).apply(make_context())
    with pytest.raises(errors.InvalidArgumentError, match=r"\[7\]"):
        vector.hooks(layers=[7])
    for directions in ({}, {0: np.ones(4)}, {1: np.ones((2, 2))}, {1: [np.nan]}, {1: np.ones(4), 2: np.ones(5)}):
        with pytest.raises(errors.InvalidArgumentError):
            SteeringVector(directions)


def test_layers_positions_and_texts_that_do_not_fit(lab: Interp, vector: SteeringVector, pairs: tuple) -> None:
    positive, negative = pairs
    for layers in ([1.5], 1.5, "1", [None]):
        with pytest.raises(errors.InvalidArgumentError, match="layers must be one integer or several"):
            SteeringVector.train(lab, positive, negative, layers=layers)
    for layers in ([0], [-1], [N_LAYER], N_LAYER, []):
        with pytest.raises(errors.InvalidArgumentError, match=f"layers are some of 1 to {N_LAYER - 1}"):
            SteeringVector.train(lab, positive, negative, layers=layers)
    with pytest.raises(errors.InvalidArgumentError, match="lists of texts"):
        SteeringVector.train(lab, "ab", "cd")
    for positions in ([-1], [0.5]):
        with pytest.raises(errors.InvalidArgumentError, match="counted from 0"):
            vector.hooks(1.0, positions=positions)
    with pytest.raises(errors.InvalidArgumentError, match="at least one layer"):
        SteeringVector({})

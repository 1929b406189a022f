"""core.capture: reading and changing tensors of a graph by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.capture import LAYER_INPUT_ARCHITECTURES, Capture
from pyllm.core.context import Context

SOURCES = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "src"


@pytest.fixture
def capture(make_context: Callable[..., Context]) -> Capture:
    return Capture(make_context(capture=True, flash_attn_type="disabled"))


@pytest.fixture
def batch(ids: np.ndarray) -> Batch:
    return Batch.from_arrays(ids, pos=np.arange(len(ids)), outputs="all")


def test_a_context_must_be_opened_for_it(context: Context) -> None:
    with pytest.raises(errors.ContextError, match="capture=True"):
        Capture(context)


def test_nodes_tell_what_is_computed(capture: Capture, batch: Batch) -> None:
    nodes = {(node.name, node.occurrence): node for node in capture.nodes(batch)}
    assert nodes["l_out-0", 0].shape == (1, 1, len(batch), 64)
    assert nodes["result_output", 0].shape == (1, 1, len(batch), capture.context.n_vocab)
    assert nodes["kq_soft_max-1", 0].op == "SOFT_MAX"
    assert nodes["kq_soft_max-1", 0].param == 0.25
    assert nodes["Qcur-0", 2].op == "ROPE"


def test_what_is_read_are_the_logits(capture: Capture, batch: Batch, ids: np.ndarray) -> None:
    values, order = capture.decode(batch, [("result_output", 0)])
    assert list(values) == [("result_output", 0)]
    assert np.array_equal(values["result_output", 0][0, 0], capture.context.logits)
    assert np.array_equal(order, ids)


def test_reading_changes_nothing(capture: Capture, batch: Batch, make_context: Callable[..., Context]) -> None:
    every = [(node.name, node.occurrence) for node in capture.nodes(batch)]
    capture.context.memory.clear()
    values, _ = capture.decode(batch, every)
    plain = make_context(flash_attn_type="disabled")
    plain.decode(batch)
    assert len(values) > 70
    assert np.array_equal(capture.context.logits, plain.logits)


def test_a_hook_reads_replaces_and_edits(capture: Capture, batch: Batch) -> None:
    seen: list[np.ndarray] = []
    key = ("l_out-1", 0)
    capture.decode(batch, [], [(key, lambda values: seen.append(values.copy()))])
    before = capture.context.logits.copy()
    capture.context.memory.clear()
    values, _ = capture.decode(batch, [key], [(key, lambda values: values * 2)])
    assert np.array_equal(values[key], seen[0] * 2)
    assert np.allclose(capture.context.logits, before, atol=1e-4)  # the norm takes the factor away
    capture.context.memory.clear()

    def clear_in_place(values: np.ndarray) -> None:
        values[0, 0, -1] = 0

    values, _ = capture.decode(batch, [key], [(key, clear_in_place)])
    assert np.array_equal(values[key][0, 0, :-1], seen[0][0, 0, :-1])
    assert not values[key][0, 0, -1].any()
    assert not np.asarray(capture.context.logits)[-1].any()
    assert np.array_equal(np.asarray(capture.context.logits)[:-1], before[:-1])


def test_a_tensor_that_is_not_contiguous(capture: Capture, batch: Batch) -> None:
    """The permuted query is a view: what is written there is written into the query."""
    every = {(node.name, node.occurrence): node for node in capture.nodes(batch)}
    view, plain = ("Qcur-0 (view) (permuted)", 0), ("Qcur-0", 2)
    assert every[view].op == "PERMUTE"
    capture.context.memory.clear()
    values, _ = capture.decode(batch, [view, plain])
    assert np.array_equal(values[view][0], values[plain][0].transpose(1, 0, 2))
    logits = capture.context.logits.copy()
    capture.context.memory.clear()
    capture.decode(batch, [], [(view, lambda values: values.copy())])
    assert np.array_equal(capture.context.logits, logits)
    capture.context.memory.clear()
    capture.decode(batch, [], [(view, lambda values: values * 0)])
    edited = capture.context.logits.copy()
    capture.context.memory.clear()
    capture.decode(batch, [], [(plain, lambda values: values * 0)])
    assert np.array_equal(capture.context.logits, edited)
    assert not np.array_equal(edited, logits)


def test_half_precision_is_read_and_written(make_context: Callable[..., Context], batch: Batch) -> None:
    """A view of the K cache is float16, and strided."""
    capture = Capture(make_context(capture=True, flash_attn_type="disabled"))
    key = ("cache_k_l0 (view)", 1)
    values, _ = capture.decode(batch, [key, ("kq-0", 0), ("Kcur-0", 2)])
    n = len(batch)
    assert np.allclose(values[key][0, :n], values["Kcur-0", 2][0], atol=1e-2)
    assert np.array_equal(values[key], values[key].astype(np.float16))
    capture.context.memory.clear()
    changed, _ = capture.decode(batch, [("kq-0", 0)], [(key, lambda values: values * 2)])
    assert np.allclose(changed["kq-0", 0][..., :n], 2 * values["kq-0", 0][..., :n], rtol=1e-3, atol=1e-3)


def test_what_a_hook_raises_ends_the_decode(capture: Capture, batch: Batch) -> None:
    calls = []

    def fail(values: np.ndarray) -> None:
        calls.append(1)
        raise ZeroDivisionError("of the hook")

    with pytest.raises(ZeroDivisionError, match="of the hook"):
        capture.decode(batch, [], [(("l_out-0", 0), fail), (("l_out-1", 0), fail)])
    assert calls == [1]
    capture.context.memory.clear()
    values, _ = capture.decode(batch, [("l_out-0", 0)])
    assert np.isfinite(values["l_out-0", 0]).all()


@pytest.mark.parametrize("name", ["embd", "l_out-0", "result_output"])
def test_the_memory_after_a_failed_hook(capture: Capture, batch: Batch, name: str) -> None:
    def fail(values: np.ndarray) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError):
        capture.decode(batch, [], [((name, 0), fail)])
    capture.context.memory.clear()
    capture.context.decode(batch)
    assert np.isfinite(np.asarray(capture.context.logits)).all()


@pytest.mark.parametrize(
    ("answer", "words"), [(np.zeros(3), "shape"), ("text", "shape"), (np.zeros((1, 1, 5, 64), complex), "numbers")]
)
def test_wrong_answers(capture: Capture, answer: object, words: str) -> None:
    batch = Batch.from_arrays([1, 5, 6, 7, 8], pos=range(5), outputs="all")
    with pytest.raises(errors.InvalidArgumentError, match=words):
        capture.decode(batch, [], [(("l_out-0", 0), lambda values: answer)])


def test_wrong_arguments(capture: Capture, batch: Batch) -> None:
    with pytest.raises(TypeError, match="callable"):
        capture.decode(batch, [], [(("l_out-0", 0), 3)])
    with pytest.raises(errors.InvalidArgumentError, match="NUL"):
        capture.decode(batch, [("l_out\0", 0)])
    with pytest.raises(errors.InvalidArgumentError, match="occurrence"):
        capture.decode(batch, [("l_out-0", 2**40)])
    with pytest.raises(TypeError):
        capture.decode(batch, [(3, 0)])
    assert capture.decode(batch, [("l_out-0", 0)])[0]


def test_a_batch_must_fit_one_graph(make_context: Callable[..., Context], batch: Batch) -> None:
    capture = Capture(make_context(capture=True, n_ubatch=8))
    with pytest.raises(errors.InvalidBatchError, match="n_ubatch=8"):
        capture.decode(batch)
    with pytest.raises(errors.InvalidBatchError, match="n_ubatch=8"):
        capture.nodes(batch)


def test_a_batch_that_is_computed_in_two_parts_is_refused(load: Callable, make_context: Callable[..., Context]) -> None:
    """A recurrent model takes sequences of different length apart."""
    capture = Capture(make_context(load("mamba"), capture=True, n_seq_max=2))
    batch = Batch.from_arrays([5, 6, 7, 8, 9], pos=[0, 1, 2, 0, 1], seq_ids=[0, 0, 0, 1, 1], outputs="all")
    with pytest.raises(errors.BackendError, match="of equal length"):
        capture.decode(batch)


def test_a_hook_cannot_use_the_context(capture: Capture, batch: Batch) -> None:
    def again(values: np.ndarray) -> None:
        capture.decode(batch)

    with pytest.raises(errors.ReentrantError):
        capture.decode(batch, [], [(("l_out-0", 0), again)])


def test_a_closed_context(capture: Capture, batch: Batch) -> None:
    capture.context.close()
    with pytest.raises(errors.ClosedError):
        capture.decode(batch)
    with pytest.raises(errors.ClosedError):
        capture.nodes(batch)
    with pytest.raises(errors.ClosedError):
        capture.layer_inputs(batch, [0])


@pytest.mark.parametrize("n_ubatch", [256, 16])
def test_layer_inputs_are_the_residual_stream(
    make_context: Callable[..., Context], batch: Batch, n_ubatch: int
) -> None:
    reader = Capture(make_context(capture=True))
    values, _ = reader.decode(batch, [("embd", 0), ("l_out-0", 0)])
    capture = Capture(make_context(capture=True, n_ubatch=n_ubatch))
    inputs = capture.layer_inputs(batch, [0, 1])
    assert np.array_equal(inputs[0], values["embd", 0][0, 0])
    assert np.allclose(inputs[1], values["l_out-0", 0][0, 0], atol=1e-3)
    assert list(capture.layer_inputs(Batch.from_arrays([5]), [1])) == [1]


def test_layer_inputs_in_the_order_of_the_batch(make_context: Callable[..., Context]) -> None:
    """Sequences that are interleaved in the batch, and computed apart."""
    tokens = np.array([5, 9, 6, 10, 7, 11, 8], np.int32)
    capture = Capture(make_context(capture=True, n_seq_max=2))
    batch = Batch.from_arrays(tokens, pos=[0, 0, 1, 1, 2, 2, 3], seq_ids=[0, 1, 0, 1, 0, 1, 0], outputs="all")
    got = capture.layer_inputs(batch, [0])[0]
    table = Capture(make_context(capture=True)).layer_inputs(Batch.from_arrays(np.arange(16), pos=range(16)), [0])[0]
    assert np.array_equal(got, table[tokens])


def test_layer_inputs_do_not_move_the_outputs_under_a_view(capture: Capture, batch: Batch) -> None:
    capture.context.decode(batch)
    view = np.asarray(capture.context.logits)
    capture.context.memory.clear()
    before = view.copy()
    capture.layer_inputs(batch, [0, 1])
    assert np.array_equal(view, before)
    assert not np.shares_memory(view, np.asarray(capture.context.logits))


def test_layer_inputs_that_cannot_be(capture: Capture, load: Callable, make_context: Callable[..., Context]) -> None:
    batch = Batch.from_arrays([5, 6])
    with pytest.raises(errors.InvalidArgumentError, match="from 0 to 1"):
        capture.layer_inputs(batch, [2])
    with pytest.raises(errors.InvalidArgumentError, match="from 0 to 1"):
        capture.layer_inputs(batch, [])
    with pytest.raises(errors.ContextError, match="gemma3"):
        Capture(make_context(load("gemma3"), capture=True)).layer_inputs(batch, [0])


@pytest.mark.skipif(not SOURCES.is_dir(), reason="llama.cpp's sources are not there")
def test_the_architectures_are_those_of_the_sources() -> None:
    """An architecture in the list whose graph does not set `t_layer_inp` would trip an assertion."""
    names = dict(re.findall(r'\{ (LLM_ARCH_\w+), +"([\w.-]+)" +\}', (SOURCES / "llama-arch.cpp").read_text()))
    files = {"gpt-oss": "openai-moe"}
    for architecture in LAYER_INPUT_ARCHITECTURES:
        assert architecture in names.values()
        source = SOURCES / "models" / f"{files.get(architecture, architecture)}.cpp"
        assert re.search(r"^\s+res->t_layer_inp\[il\] = inpL;", source.read_text(), re.MULTILINE), architecture


@pytest.mark.parametrize("name", ["l_out-0", "result_norm", "result_output"])
def test_after_a_hook_that_failed_there_are_no_outputs(capture: Capture, batch: Batch, name: str) -> None:
    capture.context.decode(batch)
    capture.context.memory.clear()

    def scale(values: np.ndarray) -> None:
        values *= 2

    def fail(values: np.ndarray) -> None:
        raise LookupError("late")

    # The last node of the graph too: nothing is left to abort there, and the decode succeeds.
    with pytest.raises(LookupError, match="late"):
        capture.decode(batch, (), [((name, 0), scale), ((name, 0), fail)])
    for read in (lambda: capture.context.logits, lambda: capture.context.logits_ith(-1)):
        with pytest.raises(errors.NoOutputError):
            read()
    capture.context.memory.clear()
    capture.context.decode(batch)
    assert np.isfinite(capture.context.logits).all()


@pytest.mark.parametrize("value", [-5, 4, 1e9, 0.5, np.nan])
@pytest.mark.parametrize("name", ["ffn_moe_topk-0", "ffn_moe_argsort-0"])
def test_experts_that_do_not_exist(
    load: Callable, make_context: Callable[..., Context], name: str, value: float
) -> None:
    capture = Capture(make_context(load("qwen3moe"), capture=True, n_threads=2))
    batch = Batch.from_arrays([1, 5, 6])
    with pytest.raises(errors.BackendError, match="holds indices from 0 to 3"):
        capture.decode(batch, hooks=[((name, 0), lambda values: np.full_like(values, value))])
    capture.context.memory.clear()
    wanted = (name, 0)
    values, _ = capture.decode(batch, [wanted], [(wanted, lambda values: 3 - values)])
    assert set(values[wanted].reshape(-1)) <= {0, 1, 2, 3}


# Names that the graph does not have


@pytest.mark.parametrize("asked", ["read", "hooks"])
def test_a_name_that_does_not_exist(capture: Capture, batch: Batch, asked: str) -> None:
    context = capture.context
    key = ("l_oout-1", 0)
    arguments = {"read": [key]} if asked == "read" else {"hooks": [(key, lambda array: None)]}
    with pytest.raises(errors.NoActivationError, match=r"no tensor 'l_oout-1'; near it are .*'l_out-1'") as caught:
        capture.decode(batch, **arguments)
    assert isinstance(caught.value, KeyError)
    with pytest.raises(errors.NoOutputError):
        context.logits[0]
    context.memory.clear()
    values, _ = capture.decode(batch, read=[("l_out-1", 0)])
    assert values["l_out-1", 0].any()


def test_a_right_name_beside_a_wrong_one(capture: Capture, batch: Batch) -> None:
    with pytest.raises(errors.NoActivationError, match="nope"):
        capture.decode(batch, read=[("l_out-1", 0), ("nope", 0)])
    capture.context.memory.clear()
    with pytest.raises(errors.NoActivationError, match="nope"):
        capture.decode(batch, read=[("l_out-1", 0)], hooks=[(("nope", 0), lambda array: None)])


def test_an_occurrence_that_does_not_exist(capture: Capture, batch: Batch) -> None:
    for occurrence in (1, -1):
        with pytest.raises(errors.NoActivationError, match=rf"occurrence goes from 0 to 0, not {occurrence}"):
            capture.decode(batch, read=[("l_out-1", occurrence)])
        capture.context.memory.clear()

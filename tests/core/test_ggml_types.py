"""Rows of every ggml type, to and from NumPy."""

import sys
from pathlib import Path

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.ggml_types import all_types, dequantize, quantize, row_size, type_traits
from pyllm.core.gguf import TENSOR_TYPES, GGUFReader, GGUFWriter

GGUF_PY = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "gguf-py"
TRAITS = {traits.name: traits for traits in all_types()}
WHOLE_NUMBERS = ("I8", "I16", "I32", "I64")
NEED_IMATRIX = {"IQ2_XXS", "IQ2_XS", "IQ1_S"}
# ggml builds large tables before it quantizes to these for the first time.
SLOW = {"IQ1_M", "IQ1_S", "IQ2_S", "IQ2_XS", "IQ2_XXS"}
FLOATS = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in TRAITS if name not in WHOLE_NUMBERS
]
# Relative root mean square errors on normal numbers, by bits of a weight: four quantized bits give about 0.1.
BOUND = {1: 1.0, 2: 0.95, 3: 0.3, 4: 0.2, 5: 0.09, 6: 0.05, 8: 0.02, 9: 0.02, 16: 0.005, 32: 0.0, 64: 0.0}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    """The quantization that llama.cpp's own Python package has, in NumPy."""
    if not GGUF_PY.is_dir():
        pytest.skip("llama.cpp's sources are not there; fetch them with: python llama_cpp_src/fetch.py")
    sys.path.insert(0, str(GGUF_PY))
    try:
        import gguf
        from gguf import quants
    finally:
        sys.path.remove(str(GGUF_PY))
    return gguf.GGMLQuantizationType, quants


def weights_for(name, n):
    return np.ones(n, np.float32) if name in NEED_IMATRIX else None


def test_traits():
    assert tuple(TRAITS) == TENSOR_TYPES
    q4_k = type_traits("q4_k")
    assert (q4_k.name, q4_k.block_size, q4_k.type_size, q4_k.is_quantized) == ("Q4_K", 256, 144, True)
    assert q4_k.bits_per_weight == 4.5 and q4_k.dtype is None and q4_k.to_float and q4_k.from_float
    assert type_traits("F16").dtype == np.float16 and not type_traits("F16").is_quantized
    assert {name for name, traits in TRAITS.items() if traits.requires_imatrix} == NEED_IMATRIX
    assert {name for name, traits in TRAITS.items() if not traits.from_float} == {
        "Q8_1", "Q8_K", "F64", *WHOLE_NUMBERS,
    }  # fmt: skip
    for wild in ("Q9_9", "", 8, None):
        with pytest.raises(errors.InvalidArgumentError, match="Q4_K"):
            type_traits(wild)


def test_row_size():
    assert row_size("Q8_0", 64) == 68 and row_size("F32", 3) == 12 and row_size("Q4_K", 0) == 0
    with pytest.raises(errors.InvalidArgumentError, match=r"33.*32"):
        row_size("Q8_0", 33)
    with pytest.raises(errors.InvalidArgumentError):
        row_size("Q8_0", -32)
    with pytest.raises(TypeError):
        row_size("Q8_0", 32.0)


@pytest.mark.parametrize("name", FLOATS)
def test_there_and_back(name):
    values = normal(3, 2, 512)
    rows = quantize(values, name, weights_for(name, 512))
    assert rows.dtype == np.uint8 and rows.shape == (3, 2, row_size(name, 512))
    back = dequantize(rows, name, 512)
    assert back.dtype == np.float32 and back.shape == values.shape
    error = np.sqrt(np.mean((back - values) ** 2))
    assert error <= BOUND[int(TRAITS[name].bits_per_weight)], error
    # Threads share rows, and each row comes out the same.
    assert np.array_equal(quantize(values, name, weights_for(name, 512), n_threads=3), rows)
    assert np.array_equal(dequantize(rows, name, n_threads=3), back)
    assert np.array_equal(dequantize(rows[1, 1].tobytes(), name), back[1, 1])


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_whole_numbers(name):
    values = np.array([[-3, 0, 127], [5, -128, 1]])
    rows = quantize(values, name)
    assert rows.shape == (2, row_size(name, 3))
    assert np.array_equal(dequantize(rows, name), values)
    for bad in ([[1.5]], [[10**30]]):
        with pytest.raises((errors.InvalidArgumentError, OverflowError)):
            quantize(np.array(bad, dtype=np.float64), name)


@pytest.mark.parametrize("name", FLOATS)
def test_the_same_as_llama_cpps_python(reference, name):
    """Bit for bit where that has an implementation."""
    types, quants = reference
    if name not in types.__members__:
        pytest.skip(f"gguf-py does not know {name}")
    type = types[name]
    values = normal(4, 512, seed=1)
    rows = quantize(values, name, weights_for(name, 512))
    try:
        expected = quants.dequantize(rows, type)
    except NotImplementedError:
        pytest.skip(f"gguf-py cannot dequantize {name}")
    assert np.allclose(dequantize(rows, name), expected, rtol=1e-6, atol=1e-7)
    try:
        theirs = quants.quantize(values, type)
    except NotImplementedError:
        return
    # Theirs is a port of the plain algorithm; ours may search for better scales, but never worse ones.
    ours, their_error = (np.sum((dequantize(each.view(np.uint8).reshape(4, -1), name) - values) ** 2)
                         for each in (rows, theirs))  # fmt: skip
    assert ours <= their_error * 1.001 + 1e-12


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q8_0", "BF16", "F16", "TQ1_0", "TQ2_0"])
def test_bit_for_bit(reference, name):
    types, quants = reference
    values = normal(4, 512, seed=2)
    theirs = np.ascontiguousarray(quants.quantize(values, types[name])).view(np.uint8).reshape(4, -1)
    assert np.array_equal(quantize(values, name), theirs)


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K"])
def test_intermediate_formats(name):
    block = {
        "Q8_1": np.dtype([("d", np.float16), ("s", np.float16), ("qs", np.int8, 32)]),
        "Q8_K": np.dtype([("d", np.float32), ("qs", np.int8, 256), ("bsums", np.int16, 16)]),
    }[name]
    values = normal(2, 512)
    values[0, :256] = 0
    blocks = quantize(values, name).reshape(-1).view(block)
    assert block.itemsize == TRAITS[name].type_size
    assert (blocks["qs"][0] == 0).all() and blocks["d"][0] == 0
    assert np.abs(blocks["qs"].astype(int)).max() == 127
    if name == "Q8_K":
        assert np.array_equal(blocks["bsums"], blocks["qs"].reshape(-1, 16, 16).sum(-1))
    else:
        sums = blocks["d"].astype(np.float32) * blocks["qs"].sum(-1)
        assert np.allclose(blocks["s"], sums, rtol=1e-2, atol=2e-2)


def test_an_importance_matrix_steers():
    values = normal(16, 512)
    weights = np.ones(512, np.float32)
    weights[:64] = 1000
    plain, steered = (dequantize(quantize(values, "Q4_K", imatrix), "Q4_K") for imatrix in (None, weights))
    error = [np.mean((each - values)[:, :64] ** 2) for each in (plain, steered)]
    assert error[1] < error[0]


def test_an_importance_matrix_for_each_expert():
    values = normal(3, 4, 256)
    weights = np.abs(normal(3, 256, seed=3))
    rows = quantize(values, "Q4_K", weights, n_threads=2)
    for i in range(3):
        assert np.array_equal(rows[i], quantize(values[i], "Q4_K", weights[i]))


@pytest.mark.parametrize("name", sorted(NEED_IMATRIX))
def test_types_that_need_one_say_so(name):
    with pytest.raises(errors.InvalidArgumentError, match="importance matrix"):
        quantize(normal(1, 256), name)


@pytest.mark.parametrize(
    "imatrix", [np.ones(255), np.ones((2, 256)), np.full(256, -1.0), np.full(256, np.nan), np.full(256, np.inf)]
)
def test_importance_matrices_that_do_not_fit(imatrix):
    with pytest.raises(errors.InvalidArgumentError, match="importance matrix"):
        quantize(normal(4, 256), "Q4_K", imatrix)


@pytest.mark.parametrize(
    ("values", "name", "match"),
    [
        (np.zeros((2, 100)), "Q8_0", "100.*32"),
        (np.zeros((2, 128)), "Q4_K", "128.*256"),
        (np.float32(1), "F32", "dimension"),
        (np.array(["a"]), "F32", "numbers"),
        (np.zeros(2, complex), "F32", "numbers"),
        (np.full((1, 32), np.nan), "Q8_0", "NaN"),
        (np.full((1, 256), np.inf), "Q8_K", "NaN"),
        (np.full((1, 32), 1e300), "Q8_0", "NaN|infinite"),
        (np.full((1, 32), 1e6), "F16", "range"),
        (np.full((1, 32), 1e38), "Q8_1", "too large"),
    ],
)
def test_arrays_that_cannot_be_quantized(values, name, match):
    with pytest.raises(errors.InvalidArgumentError, match=match):
        quantize(values, name)


@pytest.mark.parametrize(
    ("data", "arguments", "match"),
    [
        (np.zeros(33, np.uint8), {}, "33.*34"),
        (np.zeros(34, np.int8), {}, "uint8"),
        (np.zeros((), np.uint8), {}, "dimension"),
        (b"\0" * 33, {}, "33"),
        (np.zeros(34, np.uint8), {"n_per_row": 64}, "32.*64"),
        (np.zeros(34, np.uint8), {"n_threads": 0}, "n_threads"),
        (np.zeros(34, np.uint8), {"n_threads": 10**6}, "n_threads"),
    ],
)
def test_bytes_that_cannot_be_dequantized(data, arguments, match):
    with pytest.raises(errors.InvalidArgumentError, match=match):
        dequantize(data, "Q8_0", **arguments)


@pytest.mark.parametrize("name", ["F32", "F16", "I8", "Q8_0", "Q4_K", "Q8_K"])
def test_empty_arrays(name):
    for shape in ((0, 256), (2, 0)):
        rows = quantize(np.zeros(shape, np.float32 if name != "I8" else np.int8), name)
        assert rows.shape == (shape[0], row_size(name, shape[1]))
        assert dequantize(rows, name).shape == shape


def test_other_layouts_and_dtypes():
    values = normal(512, 6)
    assert np.array_equal(quantize(values.T, "Q8_0"), quantize(np.ascontiguousarray(values.T), "Q8_0"))
    rows = quantize(normal(6, 512), "Q4_K")
    assert np.array_equal(dequantize(rows[::2], "Q4_K"), dequantize(rows, "Q4_K")[::2])
    assert np.array_equal(quantize(np.arange(32), "Q8_0"), quantize(np.arange(32, dtype=np.float32), "Q8_0"))
    # Blocks may start at any byte.
    odd = np.empty(rows.size + 1, np.uint8)[1:].reshape(rows.shape)
    odd[:] = rows
    assert np.array_equal(dequantize(odd, "Q4_K"), dequantize(rows, "Q4_K"))


def test_many_chunks():
    """Rows that go to ggml in several calls."""
    values = normal(2100, 1024)
    rows = quantize(values, "Q8_0", n_threads=2)
    assert np.array_equal(rows[::700], quantize(values[::700], "Q8_0"))
    assert np.allclose(dequantize(rows, "Q8_0"), values, atol=0.03)


def test_a_writer_takes_an_importance_matrix(tmp_path):
    values, weights = normal(4, 256), np.abs(normal(256, seed=4))
    writer = GGUFWriter()
    writer.add_tensor("t", values, "Q4_K", imatrix=weights)
    writer.write(tmp_path / "a.gguf")
    with GGUFReader(tmp_path / "a.gguf") as file:
        assert np.array_equal(file.tensor("t"), quantize(values, "Q4_K", weights))
        assert np.array_equal(file.tensor("t", dequantize=True), dequantize(file.tensor("t"), "Q4_K"))
    with pytest.raises(errors.GGUFError, match="importance matrix"):
        writer.add_tensor("u", values, "Q4_K", imatrix=np.ones(3))

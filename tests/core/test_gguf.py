"""Reading and writing GGUF files."""

import gc
import mmap
import os
import signal
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from support import models
from support.isolation import survive

from pyllm import errors, hub
from pyllm.core.gguf import TENSOR_TYPES, GGUFReader, GGUFWriter, TensorInfo
from pyllm.core.model import Model
from pyllm.core.model_source import split_path

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


def written(path: Path, *pairs: tuple, tensors: dict | None = None) -> GGUFReader:
    writer = GGUFWriter()
    for pair in pairs:
        writer.add(*pair)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write(path)
    return GGUFReader(path)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Values


@pytest.mark.parametrize("type", INTEGERS)
def test_integers_at_the_ends_of_their_range(tmp_path, type):
    limits = np.iinfo(type)
    file = written(
        tmp_path / "a.gguf",
        ("low", int(limits.min), type),
        ("high", int(limits.max), type),
        ("both", [int(limits.min), int(limits.max)], type),
        ("scalar", np.array(limits.max, type)),
    )
    assert file.metadata["low"] == limits.min
    assert file.metadata["high"] == limits.max
    assert file.metadata["both"].dtype == np.dtype(type)
    assert file.metadata["both"].tolist() == [limits.min, limits.max]
    assert file.metadata["scalar"] == limits.max
    for beyond in (int(limits.min) - 1, int(limits.max) + 1):
        with pytest.raises(errors.GGUFError, match=r"range|object"):
            GGUFWriter().add("k", beyond, type)
        with pytest.raises(errors.GGUFError):
            GGUFWriter().add("k", [0, beyond], type)


@pytest.mark.parametrize("type", ["float32", "float64"])
def test_floats(tmp_path, type):
    values = [0.0, -0.0, 1.5, 1e-30, float("inf"), float("-inf"), float("nan")]
    file = written(tmp_path / "a.gguf", ("list", values, type), *((f"v{i}", v, type) for i, v in enumerate(values)))
    expected = np.array(values, type)
    assert file.metadata["list"].dtype == expected.dtype
    np.testing.assert_array_equal(file.metadata["list"], expected)
    for i, value in enumerate(expected):
        np.testing.assert_array_equal(file.metadata[f"v{i}"], float(value))


def test_a_float_too_large_for_float32_is_refused():
    with pytest.raises(errors.GGUFError, match="range"):
        GGUFWriter().add("k", 1e300)


@pytest.mark.parametrize(
    ("value", "type"),
    [
        (0, "uint32"),
        (2**32 - 1, "uint32"),
        (-1, "int32"),
        (-(2**31), "int32"),
        (2**32, "int64"),
        (-(2**31) - 1, "int64"),
        (2**63, "uint64"),
        (1.5, "float32"),
        (np.float64(1.5), "float64"),
        (np.int8(3), "int8"),
        (True, "bool"),
        (np.True_, "bool"),
        ("text", "string"),
    ],
)
def test_the_type_of_a_scalar_is_found(tmp_path, value, type):
    # The file must be the same as with the type spelled out.
    written(tmp_path / "a.gguf", ("k", value))
    written(tmp_path / "b.gguf", ("k", value, type))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1, -1], "int32"),
        ((1, 2), "int32"),
        ([2**31], "int64"),
        ([2**63], "uint64"),
        ([0, 2**64 - 1], "uint64"),
        ([1, 2.5], "float32"),
        ([1.0, 2.5], "float32"),
        ([True, False, True], "bool"),
        (np.arange(3, dtype=np.uint16), "uint16"),
        (np.arange(3, dtype=">i4"), "int32"),
        (np.arange(6, dtype=np.float64)[::2], "float64"),
        (np.array([], np.int8), "int8"),
    ],
)
def test_the_type_of_an_array_is_found(tmp_path, value, dtype):
    array = written(tmp_path / "a.gguf", ("k", value)).metadata["k"]
    assert array.dtype == np.dtype(dtype)
    assert array.tolist() == list(value)


def test_strings(tmp_path):
    texts = ["", "plain", "Grüße 語 🙂", "a" * 10_000, "line\nline"]
    file = written(
        tmp_path / "a.gguf", ("list", texts), ("empty", [], "string"), *((f"s{i}", t) for i, t in enumerate(texts))
    )
    assert file.metadata["list"] == texts
    assert file.metadata["empty"] == []
    assert [file.metadata[f"s{i}"] for i in range(len(texts))] == texts


def test_strings_that_are_not_utf8_are_bytes(tmp_path):
    file = written(tmp_path / "a.gguf", ("k", b"\xff\xfe"), ("list", ["a", b"\x80"]), ("utf8", b"abc"))
    assert file.metadata == {"k": b"\xff\xfe", "list": ["a", b"\x80"], "utf8": "abc"}


def test_a_key_that_is_not_utf8_survives(tmp_path):
    written(tmp_path / "a.gguf", (b"\xff", 1))
    (key,) = GGUFReader(tmp_path / "a.gguf").metadata
    written(tmp_path / "b.gguf", (key, 1))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_order_is_kept_and_a_second_value_replaces_the_first(tmp_path):
    file = written(tmp_path / "a.gguf", ("b", 1), ("a", 2), ("b", "new"))
    assert list(file.metadata.items()) == [("a", 2), ("b", "new")]


@pytest.mark.parametrize(
    ("key", "value", "type"),
    [
        ("", 1, None),
        ("k" * 65536, 1, None),
        ("nul\0nul", 1, None),
        (7, 1, None),
        ("k", None, None),
        ("k", object(), None),
        ("k", {}, None),
        ("k", 1j, None),
        ("k", 2**64, None),
        ("k", -(2**63) - 1, None),
        ("k", "nul\0nul", None),
        ("k", ["nul\0nul"], None),
        ("k", [], None),
        ("k", [[1], [2]], None),
        ("k", [1, "a"], None),
        ("k", ["a", 1], None),
        ("k", ["a", None], None),
        ("k", [1, None], None),
        ("k", [2**64], None),
        ("k", [-1, 2**63], None),
        ("k", [True, 2], None),
        ("k", [0, 1], "bool"),
        ("k", np.zeros((2, 2)), None),
        ("k", np.zeros(2, np.float16), None),
        ("k", np.zeros(2, np.complex64), None),
        ("k", 1, "uint128"),
        ("k", 1, "string"),
        ("k", 1, "array"),
        ("k", 1, 4),
        ("k", "a", "uint8"),
        ("k", ["a"], "uint8"),
        ("k", [1], "string"),
        ("k", 1.0, "int32"),
        ("k", [1.5], "int32"),
        ("k", 1, "bool"),
        ("k", True, "int32"),
        ("general.alignment", 64, None),
        ("general.alignment", [64], "uint8"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_changes_nothing(tmp_path, key, value, type):
    writer = GGUFWriter()
    writer.add("before", 1)
    with pytest.raises(errors.GGUFError):
        writer.add(key, value, type)
    writer.write(tmp_path / "a.gguf")
    assert GGUFReader(tmp_path / "a.gguf").metadata == {"before": 1}


# Tensors


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (2, 3, 4, 5)])
def test_plain_tensors(tmp_path, dtype, shape):
    array = (normal(*shape) * 10).astype(dtype)
    file = written(tmp_path / "a.gguf", tensors={"t": array, "big endian": array.astype(array.dtype.newbyteorder(">"))})
    for name in ("t", "big endian"):
        read = file.tensor(name)
        assert read.dtype == np.dtype(dtype)
        assert read.shape == shape
        np.testing.assert_array_equal(read, array)
        assert not read.flags.writeable
        np.testing.assert_array_equal(file.tensor(name, dequantize=True), array.astype(np.float32))


def test_layouts_other_than_c_order(tmp_path):
    array = normal(6, 8)
    file = written(tmp_path / "a.gguf", tensors={"t": array.T, "s": array[::2, ::-1], "scalar": np.float32(2.5)})
    np.testing.assert_array_equal(file.tensor("t"), array.T)
    np.testing.assert_array_equal(file.tensor("s"), array[::2, ::-1])
    assert file.tensor("scalar").tolist() == [2.5]


def test_a_float32_array_is_not_copied_before_it_is_written(tmp_path):
    array = normal(4, 4)
    writer = GGUFWriter()
    writer.add_tensor("t", array)
    array[:] = 3.0
    writer.write(tmp_path / "a.gguf")
    assert (GGUFReader(tmp_path / "a.gguf").tensor("t") == 3.0).all()


# Root of the mean squared error of each type on standard normal numbers, and a little room above it.
ERROR_BOUNDS = {
    "F32": 0.0,
    "F64": 0.0,
    "F16": 0.0004,
    "BF16": 0.003,
    "Q8_0": 0.008,
    "Q6_K": 0.025,
    "Q5_0": 0.06,
    "Q5_1": 0.05,
    "Q5_K": 0.05,
    "Q4_0": 0.11,
    "Q4_1": 0.1,
    "Q4_K": 0.1,
    "IQ4_NL": 0.1,
    "IQ4_XS": 0.1,
    "MXFP4": 0.16,
    "NVFP4": 0.12,
    "Q3_K": 0.2,
    "IQ3_S": 0.22,
    "IQ3_XXS": 0.28,
    "Q2_K": 0.38,
    "IQ2_S": 0.34,
    "IQ1_M": 0.75,
    # Ternary and binary types are for weights trained for them.
    "Q1_0": 0.75,
    "Q2_0": 0.85,
    "TQ1_0": 0.95,
    "TQ2_0": 0.95,
}
# ggml builds large tables before it quantizes to these for the first time.
QUANTIZABLE = [
    pytest.param(type, marks=pytest.mark.slow) if type in ("IQ1_M", "IQ2_S") else type for type in ERROR_BOUNDS
]
NEED_IMATRIX = ("IQ2_XXS", "IQ2_XS", "IQ1_S")
NOT_FOR_WEIGHTS = ("Q8_1", "Q8_K")
WHOLE_NUMBERS = ("I8", "I16", "I32", "I64")


def test_every_type_is_covered_here():
    assert set(TENSOR_TYPES) == {*ERROR_BOUNDS, *NEED_IMATRIX, *NOT_FOR_WEIGHTS, *WHOLE_NUMBERS}


@pytest.mark.parametrize("type", QUANTIZABLE)
def test_quantize_and_dequantize(tmp_path, type):
    values = normal(3, 2, 512)
    writer = GGUFWriter()
    writer.add_tensor("t", values, type.lower())
    writer.write(tmp_path / "a.gguf")
    file = GGUFReader(tmp_path / "a.gguf")
    assert file.tensors[0].type == type
    assert file.tensors[0].shape == values.shape
    restored = file.tensor("t", dequantize=True)
    assert restored.dtype == np.float32
    assert restored.shape == values.shape
    assert np.sqrt(np.mean((restored - values) ** 2)) <= ERROR_BOUNDS[type]

    # Raw rows can be written again as they are.
    again = GGUFWriter()
    again.add_tensor("t", file.tensor("t"), type)
    again.write(tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("type", [*NEED_IMATRIX, *NOT_FOR_WEIGHTS, *WHOLE_NUMBERS, "Q9_9", "", 3])
def test_types_that_floats_cannot_become(type):
    with pytest.raises(errors.GGUFError):
        GGUFWriter().add_tensor("t", normal(2, 256), type)


@pytest.mark.parametrize("type", ["Q8_0", "Q4_K", "IQ3_S", "IQ1_M", "TQ1_0"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_cannot_be_quantized(type, bad):
    values = normal(2, 256)
    values[1, 17] = bad
    with pytest.raises(errors.GGUFError, match="infinite or NaN"):
        GGUFWriter().add_tensor("t", values, type)


@pytest.mark.parametrize("type", [type for type in QUANTIZABLE if type != "F16"])
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e37])
def test_quantizing_extreme_numbers_does_not_end_the_process(type, scale):
    try:
        GGUFWriter().add_tensor("t", normal(2, 512) * np.float32(scale), type)
    except errors.PyllmError as error:
        assert scale == 1e37, error


def test_values_beyond_float16_are_refused():
    with pytest.raises(errors.GGUFError, match="range"):
        GGUFWriter().add_tensor("t", np.full((2, 32), 1e6, np.float32), "F16")


def test_float64_and_integers_are_quantized_too(tmp_path):
    writer = GGUFWriter()
    writer.add_tensor("d", normal(2, 32).astype(np.float64), "Q8_0")
    writer.add_tensor("i", np.arange(64).reshape(2, 32), "Q8_0")
    writer.add_tensor("n", np.arange(64), "I8")
    writer.write(tmp_path / "a.gguf")
    file = GGUFReader(tmp_path / "a.gguf")
    np.testing.assert_allclose(file.tensor("d", dequantize=True), normal(2, 32), atol=0.05)
    np.testing.assert_allclose(file.tensor("i", dequantize=True), np.arange(64).reshape(2, 32), atol=0.5)
    assert file.tensor("n").dtype == np.int8


@pytest.mark.parametrize(
    ("name", "array", "type"),
    [
        ("", np.zeros(2, np.float32), None),
        ("n" * 64, np.zeros(2, np.float32), None),
        ("nul\0nul", np.zeros(2, np.float32), None),
        ("t", np.zeros(0, np.float32), None),
        ("t", np.zeros((2, 0), np.float32), None),
        ("t", np.zeros((1, 1, 1, 1, 2), np.float32), None),
        ("t", np.zeros(2, np.complex64), None),
        ("t", np.zeros(2, np.uint16), None),
        ("t", np.zeros(2, bool), "F32"),
        ("t", ["a"], None),
        ("t", None, None),
        ("t", np.zeros((4, 31), np.float32), "Q8_0"),
        ("t", np.zeros((4, 32), np.float32), "Q4_K"),
        ("t", np.zeros((4, 33), np.uint8), "Q8_0"),
        ("t", np.array([300]), "I8"),
        ("taken", np.zeros(2, np.float32), None),
    ],
)
def test_tensors_that_are_refused_change_nothing(tmp_path, name, array, type):
    writer = GGUFWriter()
    writer.add_tensor("taken", np.zeros(2, np.float32))
    with pytest.raises(errors.GGUFError):
        writer.add_tensor(name, array, type)
    writer.write(tmp_path / "a.gguf")
    assert [tensor.name for tensor in GGUFReader(tmp_path / "a.gguf").tensors] == ["taken"]


def test_offsets_are_positions_in_the_file(tmp_path):
    arrays = {f"t{i}": normal(3, i + 1, seed=i) for i in range(5)}
    file = written(tmp_path / "a.gguf", ("k", "v"), tensors=arrays)
    raw = (tmp_path / "a.gguf").read_bytes()
    assert file.alignment == 32
    assert file.data_offset % 32 == 0
    for tensor in file.tensors:
        assert (tensor.offset - file.data_offset) % 32 == 0
        assert raw[tensor.offset :][: tensor.nbytes] == arrays[tensor.name].tobytes()
    assert len(raw) % 32 == 0


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_other_alignments(tmp_path, alignment):
    writer = GGUFWriter(alignment=alignment)
    writer.add("k", "v")
    writer.add_tensor("a", normal(3))
    writer.add_tensor("q", normal(1, 32), "Q8_0")
    writer.add_tensor("b", normal(5))
    writer.write(tmp_path / "a.gguf")
    file = GGUFReader(tmp_path / "a.gguf")
    assert file.alignment == alignment
    assert file.metadata == {"general.alignment": alignment, "k": "v"}
    assert all((tensor.offset - file.data_offset) % alignment == 0 for tensor in file.tensors)
    np.testing.assert_array_equal(file.tensor("b"), normal(5))
    np.testing.assert_allclose(file.tensor("q", dequantize=True), normal(32), atol=0.05)


@pytest.mark.parametrize("alignment", [0, -32, 33, 2**31, 2**40])
def test_impossible_alignments(alignment):
    with pytest.raises(errors.GGUFError, match="power of two"):
        GGUFWriter(alignment=alignment)


def test_tensor_info_is_a_value(tmp_path):
    (info,) = written(tmp_path / "a.gguf", tensors={"t": normal(2, 3)}).tensors
    assert info == TensorInfo("t", (2, 3), "F32", info.offset, 24)
    with pytest.raises(AttributeError):
        info.name = "other"


def test_an_unknown_tensor(tmp_path):
    file = written(tmp_path / "a.gguf", tensors={"t": normal(2)})
    with pytest.raises(errors.GGUFError, match="no tensor 'x'"):
        file.tensor("x")


# Alignment, parts and memory


def test_a_default_alignment_that_is_spelled_out(tmp_path):
    key = b"general.alignment"
    header = b"GGUF" + struct.pack("<Iqq", 3, 0, 1) + struct.pack(f"<Q{len(key)}siI", len(key), key, 4, 32)
    path = tmp_path / "a.gguf"
    path.write_bytes(header)
    file = GGUFReader(path)
    assert (file.alignment, file.metadata["general.alignment"]) == (32, 32)


@pytest.mark.parametrize("alignment", [1, 32, 4096])
@pytest.mark.parametrize("n_bytes", [1, 31, 32, 33])
def test_padding_between_tensors(tmp_path, alignment, n_bytes):
    arrays = {f"t{i}": np.full(n_bytes, i + 1, np.int8) for i in range(3)}
    writer = GGUFWriter(alignment=alignment)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write(tmp_path / "a.gguf")
    file = GGUFReader(tmp_path / "a.gguf")
    step = -(-n_bytes // alignment) * alignment
    assert [info.offset - file.data_offset for info in file.tensors] == [0, step, 2 * step]
    assert (tmp_path / "a.gguf").stat().st_size == file.data_offset + 3 * step
    raw = np.fromfile(tmp_path / "a.gguf", np.uint8)[file.data_offset :].reshape(3, step)
    assert (raw[:, :n_bytes] == np.arange(1, 4)[:, None]).all() and not raw[:, n_bytes:].any()


def test_a_part_of_a_model_says_so(tmp_path):
    file = written(
        tmp_path / "m-00002-of-00003.gguf",
        ("split.no", 1, "uint16"),
        ("split.count", 3, "uint16"),
        ("split.tensors.count", 9, "int32"),
        tensors={"t": normal(2)},
    )
    assert [info.name for info in file.tensors] == ["t"]
    with pytest.raises(errors.GGUFError, match="no tensor 'x' among its 1 tensors; it is part 2 of 3"):
        file.tensor("x")


def test_all_parts_of_a_model(tmp_path, tiny_models):
    """Parts as llama.cpp reads them: the metadata is in the first, and each has some of the tensors."""
    whole = GGUFReader(tiny_models["llama"])
    names = [info.name for info in whole.tensors]
    paths = [split_path(tmp_path / "m", i, 2) for i in range(2)]
    for i, path in enumerate(paths):
        writer = GGUFWriter()
        for key, value in whole.metadata.items() if i == 0 else ():
            writer.add(key, value)
        for key, value, type in (("no", i, "uint16"), ("count", 2, "uint16"), ("tensors.count", len(names), "int32")):
            writer.add(f"split.{key}", value, type)
        for name in names[i::2]:
            writer.add_tensor(name, whole.tensor(name))
        writer.write(path)
    read = {info.name: part.tensor(info.name) for part in map(GGUFReader, paths) for info in part.tensors}
    assert set(read) == set(names)
    assert all(np.array_equal(read[name], whole.tensor(name)) for name in names)
    with Model(paths[0]) as split, Model(tiny_models["llama"]) as one:
        assert split.n_params == one.n_params
        assert split.vocab.tokenize("the people") == one.vocab.tokenize("the people")


def test_tensors_are_not_copied(tmp_path):
    """They lie on the mapped file: two arrays of one tensor share memory, and take none before they are read."""
    file = written(tmp_path / "a.gguf", tensors={"t": normal(64, 64), "u": normal(8)})
    first, second = file.tensor("t"), file.tensor("t")
    assert np.shares_memory(first, second) and not np.shares_memory(first, file.tensor("u"))
    assert not first.flags.owndata and not first.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1
    base = first
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(getattr(base.base, "obj", base.base), mmap.mmap)


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory in KiB")
def test_opening_a_large_file_takes_no_memory(tmp_path):
    writer = GGUFWriter()
    writer.add_tensor("t", np.broadcast_to(np.float32(1), (1 << 13, 1 << 13)).copy())
    writer.write(tmp_path / "a.gguf")
    del writer
    code = (
        "import resource, sys\n"
        "from pyllm.core.gguf import GGUFReader\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "array = GGUFReader(sys.argv[1]).tensor('t')\n"
        "assert array.nbytes == 1 << 28 and array[-1, -1] == 1\n"
        "assert peak() - before < 32_000, peak() - before\n"
    )
    survive(code, tmp_path / "a.gguf")


# Lifetime


def test_arrays_outlive_the_reader(tmp_path):
    array = normal(64, 64)
    file = written(tmp_path / "a.gguf", tensors={"t": array})
    read = file.tensor("t")
    file.close()
    del file
    gc.collect()
    np.testing.assert_array_equal(read, array)


def test_a_closed_reader(tmp_path):
    with written(tmp_path / "a.gguf", ("k", 1), tensors={"t": normal(2)}) as file:
        assert not file.closed
    file.close()
    assert file.closed
    assert "closed" in repr(file)
    for use in (
        lambda: file.metadata,
        lambda: file.tensors,
        lambda: file.version,
        lambda: file.alignment,
        lambda: file.data_offset,
        lambda: file.tensor("t"),
        file.__enter__,
    ):
        with pytest.raises(errors.ClosedError):
            use()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_close_gives_the_mapping_back(tmp_path):
    path = tmp_path / "mapped.gguf"
    file = written(path, tensors={"t": normal(2)})
    array = file.tensor("t")
    assert str(path) in Path("/proc/self/maps").read_text()
    file.close()
    del array
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_a_writer_can_write_again(tmp_path):
    writer = GGUFWriter()
    writer.add("k", 1)
    writer.add_tensor("a", normal(2))
    writer.write(tmp_path / "a.gguf")
    writer.add("k", 2)
    writer.add_tensor("b", normal(3))
    writer.write(tmp_path / "b.gguf")
    assert GGUFReader(tmp_path / "a.gguf").metadata == {"k": 1}
    second = GGUFReader(tmp_path / "b.gguf")
    assert second.metadata == {"k": 2}
    assert [tensor.name for tensor in second.tensors] == ["a", "b"]


# Paths


def test_a_missing_file(tmp_path):
    with pytest.raises(errors.ModelNotFoundError, match=r"no\.gguf") as caught:
        GGUFReader(tmp_path / "no.gguf")
    assert isinstance(caught.value, FileNotFoundError)


def test_a_directory(tmp_path):
    with pytest.raises(errors.ModelLoadError, match="not a regular file"):
        GGUFReader(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(errors.ModelLoadError, match="not a regular file"):
        GGUFReader(tmp_path / "pipe")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(tmp_path):
    written(tmp_path / "a.gguf", ("k", 1))
    (tmp_path / "a.gguf").chmod(0)
    with pytest.raises(errors.ModelLoadError, match="cannot be read"):
        GGUFReader(tmp_path / "a.gguf")


@pytest.mark.parametrize("path", ["nul\0nul", b"nul\0nul"])
def test_a_path_with_nul(path):
    with pytest.raises(errors.ModelLoadError):
        GGUFReader(path)


@pytest.mark.parametrize("path", [None, 3, 1.5])
def test_what_is_not_a_path(path):
    with pytest.raises(TypeError):
        GGUFReader(path)


def test_names_that_are_not_ascii(tmp_path):
    path = tmp_path / "Grüße 語 🙂.gguf"
    assert written(path, ("k", "v")).metadata == {"k": "v"}
    assert GGUFReader(str(path)).path == str(path)
    assert GGUFReader(os.fsencode(path)).metadata == {"k": "v"}


def test_an_unwritable_target_leaves_nothing_behind(tmp_path):
    writer = GGUFWriter()
    writer.add("k", 1)
    for target in (tmp_path / "no" / "a.gguf", tmp_path):
        with pytest.raises(OSError) as caught:
            writer.write(target)
        assert caught.value.filename == str(target)
        assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.gguf"
    written(path, ("k", "old"))
    writer = GGUFWriter()
    writer.add("k", "new")

    def full(source, target):
        raise OSError(28, "No space left on device", source)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        writer.write(path)
    assert GGUFReader(path).metadata == {"k": "old"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource")
    writer = GGUFWriter()
    writer.add_tensor("t", normal(1024, 64))
    (tmp_path / "a.gguf").write_bytes(b"old")
    # Writing more than the limit fails as it does on a full disk.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            writer.write(tmp_path / "a.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert (tmp_path / "a.gguf").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links and modes")
def test_links_and_modes_are_respected(tmp_path):
    real = tmp_path / "real.gguf"
    link = tmp_path / "link.gguf"
    link.symlink_to(real)
    previous = os.umask(0o027)
    try:
        written(link, ("k", 1)).close()
    finally:
        os.umask(previous)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640


def test_an_open_reader_keeps_the_file_it_opened(tmp_path):
    path = tmp_path / "a.gguf"
    first = written(path, ("k", "old"), tensors={"t": normal(8, seed=1)})
    written(path, ("k", "new"), tensors={"t": normal(8, seed=2)})
    assert first.metadata == {"k": "old"}
    np.testing.assert_array_equal(first.tensor("t"), normal(8, seed=1))


# Real files


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_tiny_models_are_the_same_every_time(tmp_path, arch):
    first = models.write(tmp_path / "a.gguf", arch, seed=3)
    second = models.write(tmp_path / "b.gguf", arch, seed=3)
    other = models.write(tmp_path / "c.gguf", arch, seed=4)
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    with GGUFReader(first) as file:
        assert file.metadata["general.architecture"] == arch
        assert len(file.metadata["tokenizer.ggml.tokens"]) == file.tensor("token_embd.weight").shape[0]


@pytest.mark.model
def test_a_real_model():
    with GGUFReader(hub.resolve("smollm2", download=True)) as file:
        assert file.metadata["general.architecture"] == "llama"
        assert file.metadata["llama.block_count"] == 30
        assert file.metadata["llama.embedding_length"] == 576
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
        assert file.metadata["tokenizer.ggml.token_type"].dtype == np.int32
        embeddings = file.tensor("token_embd.weight", dequantize=True)
        assert embeddings.shape == (49152, 576)
        assert np.isfinite(embeddings).all()
        assert 0.01 < embeddings.std() < 1.0

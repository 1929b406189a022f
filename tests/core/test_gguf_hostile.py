"""GGUF files that were damaged or made to do harm: an error each time, never a crash or a full memory."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import errors
from pyllm.core.gguf import GGUFReader, GGUFWriter


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def header(n_tensors: int = 0, n_kv: int = 0, *, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<Iqq", version, n_tensors, n_kv)


def tensor(name: bytes = b"t", ne: tuple[int, ...] = (8,), type: int = 0, offset: int = 0, n_dims=None) -> bytes:
    dims = struct.pack(f"<I{len(ne)}q", len(ne) if n_dims is None else n_dims, *ne)
    return string(name) + dims + struct.pack("<iQ", type, offset)


U8, U32, BOOL, STRING, ARRAY = 0, 4, 7, 8, 9
MAX = 2**63 - 1
DATA = bytes(4096)


def pair(key: bytes, type: int, payload: bytes) -> bytes:
    return string(key) + struct.pack("<i", type) + payload


def array(type: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<iQ", type, count) + payload


HOSTILE = {
    "empty": b"",
    "one byte": b"G",
    "magic only": b"GGUF",
    "wrong magic": header(magic=b"GGML"),
    "text": b"this is not a model\n" * 10,
    "zeros": bytes(4096),
    "version 0": header(version=0),
    "version 1": header(version=1),
    "version of the future": header(version=4),
    "other endianness": header(version=3 << 24),
    "most tensors": header(MAX),
    "negative tensors": header(-1),
    "more tensors than the file": header(1_000_000) + DATA,
    "most pairs": header(0, MAX),
    "negative pairs": header(0, -1),
    "more pairs than the file": header(0, 1_000_000) + DATA,
    "key longer than the file": header(0, 1) + string(b"k", MAX) + DATA,
    "key length wraps around": header(0, 1) + string(b"k", 2**64 - 1) + DATA,
    "empty key": header(0, 1) + pair(b"", U8, b"\1"),
    "same key twice": header(0, 2) + 2 * pair(b"k", U8, b"\1"),
    "unknown value type": header(0, 1) + pair(b"k", 99, DATA),
    "negative value type": header(0, 1) + pair(b"k", -1, DATA),
    "string longer than the file": header(0, 1) + pair(b"k", STRING, string(b"", 2**62) + DATA),
    "string of 2 GiB": header(0, 1) + pair(b"k", STRING, string(b"", 2**31) + DATA),
    "array longer than the file": header(0, 1) + pair(b"k", ARRAY, array(U32, 2**61, DATA)),
    "array length wraps around": header(0, 1) + pair(b"k", ARRAY, array(U32, 2**64 - 1, DATA)),
    "array of too many strings": header(0, 1) + pair(b"k", ARRAY, array(STRING, 2**40, DATA)),
    "array of arrays": header(0, 1) + pair(b"k", ARRAY, array(ARRAY, 1, array(U8, 1, b"\1"))),
    "array of an unknown type": header(0, 1) + pair(b"k", ARRAY, array(77, 1, DATA)),
    "alignment 0": header(0, 1) + pair(b"general.alignment", U32, struct.pack("<I", 0)),
    "alignment 33": header(0, 1) + pair(b"general.alignment", U32, struct.pack("<I", 33)),
    "alignment of another type": header(0, 1) + pair(b"general.alignment", U8, b"\x20"),
    "alignment beyond the file": header(1, 1)
    + pair(b"general.alignment", U32, struct.pack("<I", 2**31))
    + tensor()
    + DATA,
    "tensor name too long": header(1) + tensor(b"n" * 64) + DATA,
    "same tensor twice": header(2) + tensor() + tensor(offset=32) + DATA,
    "five dimensions": header(1) + tensor(ne=(1,) * 5) + DATA,
    "most dimensions": header(1) + tensor(n_dims=2**32 - 1) + DATA,
    "negative dimension": header(1) + tensor(ne=(-8,)) + DATA,
    "shape overflows": header(1) + tensor(ne=(2**40, 2**40)) + DATA,
    "size overflows": header(1) + tensor(ne=(2**61, 2)) + DATA,
    "size beyond the file": header(1) + tensor(ne=(2**40,)) + DATA,
    "size wraps with padding": header(1) + tensor(ne=(MAX,), type=24) + DATA,
    "two sizes wrap": header(2)
    + tensor(ne=(2**62,), type=24)
    + tensor(b"u", ne=(2**62,), type=24, offset=2**62)
    + DATA,
    "unknown tensor type": header(1) + tensor(type=1000) + DATA,
    "negative tensor type": header(1) + tensor(type=-1) + DATA,
    "removed tensor type": header(1) + tensor(type=4) + DATA,
    "row is not whole blocks": header(1) + tensor(ne=(33,), type=8) + DATA,
    "wrong offset": header(1) + tensor(offset=32) + DATA,
    "offset wraps around": header(1) + tensor(offset=2**64 - 32) + DATA,
    "no data": header(1) + tensor(),
    "data cut off": header(1) + tensor(ne=(1024,)) + bytes(1024),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path, name):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(errors.GGUFError, match=r"hostile\.gguf"):
        GGUFReader(path)


def test_the_error_carries_the_words_of_llama_cpp(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(HOSTILE["wrong magic"])
    with pytest.raises(errors.GGUFError) as caught:
        GGUFReader(path)
    assert any("invalid magic" in line for line in caught.value.log)
    assert caught.value.function == "gguf_init_from_buffer"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_big_endian_files_are_refused_by_name(tmp_path, version):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">Iqq", version, 1, 2) + DATA)
    with pytest.raises(errors.GGUFError, match=r"a\.gguf: the file is big-endian"):
        GGUFReader(path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files, and peak memory in KiB")
def test_a_sparse_file_of_many_gigabytes_takes_no_memory(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        # Of zeros, every eight bytes are an empty string: 2**30 of them would take tens of gigabytes.
        file.write(header(0, 1) + pair(b"k", ARRAY, array(STRING, 2**30)))
        file.truncate(1 << 36)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(errors.GGUFError):
        GGUFReader(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_tensors_without_elements(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(header(2) + tensor(ne=(0, 4)) + tensor(b"wide", ne=(2**62, 0)) + DATA)
    file = GGUFReader(path)
    assert file.tensor("t").shape == (4, 0)
    with pytest.raises(errors.GGUFError, match="wide"):
        file.tensor("wide")


def small_file(tmp_path: Path) -> bytes:
    writer = GGUFWriter()
    writer.add("general.architecture", "llama")
    writer.add("number", 3)
    writer.add("flags", [True, False])
    writer.add("tokens", ["a", "bc", ""])
    writer.add("scores", [0.5, 1.5])
    writer.add_tensor("a", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("q", np.arange(64, dtype=np.float32).reshape(2, 32), "Q8_0")
    writer.write(tmp_path / "small.gguf")
    return (tmp_path / "small.gguf").read_bytes()


def test_truncated_anywhere(tmp_path):
    whole = small_file(tmp_path)
    last = GGUFReader(tmp_path / "small.gguf").tensors[-1]
    path = tmp_path / "cut.gguf"
    # Only the padding at the very end may be missing.
    for length in range(last.offset + last.nbytes):
        path.write_bytes(whole[:length])
        with pytest.raises(errors.GGUFError):
            GGUFReader(path)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_anywhere(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("damage", numbered=True)
    whole = bytearray(small_file(tmp_path))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(whole) - 8))
        damage = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"\xff" * 7 + b"\x7f"])
            )
        )
        whole[position : position + len(damage)] = damage
    path = tmp_path / "damaged.gguf"
    path.write_bytes(whole)
    # Either it is refused, or all of it can be read.
    try:
        file = GGUFReader(path)
    except errors.GGUFError:
        return
    for info in file.tensors:
        try:
            file.tensor(info.name)
            file.tensor(info.name, dequantize=True)
        except errors.GGUFError:
            assert 0 in info.shape or info.type in ("Q8_1", "Q8_K")

"""A BERT checkpoint in safetensors, as a GGUF file.

llama.cpp's conversion script needs torch and transformers, more than a gigabyte, to do what for this kind of
checkpoint is a renaming: every tensor is copied as it is. So the same file, byte for byte, is written here from the
standard library alone. The digest in the registry is that of the script's output, and a test compares the two.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyllm.errors import GGUFError
from pyllm.hub.registry import BertNames

_VERSION = 3
_ALIGNMENT = 32
_F32 = 0
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_NORMAL, _CONTROL = 1, 3
_MEAN_POOLING = 1
_CHUNK = 1 << 20

_RENAMED = {
    "embeddings.LayerNorm": "token_embd_norm",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.word_embeddings": "token_embd",
    "attention.output.LayerNorm": "attn_output_norm",
    "attention.output.dense": "attn_output",
    "attention.self.key": "attn_k",
    "attention.self.query": "attn_q",
    "attention.self.value": "attn_v",
    "intermediate.dense": "ffn_up",
    "output.LayerNorm": "layer_output_norm",
    "output.dense": "ffn_down",
}
# Not weights of the encoder: a buffer of indices, and the head of the pre-training task.
_DROPPED = re.compile(r"embeddings\.position_ids|pooler\.|cls\.")
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def convert_bert(folder: Path, target: Path, names: BertNames) -> None:
    """Write a BERT sentence encoder as a GGUF file with F32 weights.

    Args:
        folder: Holds ``model.safetensors``, ``config.json`` and ``vocab.txt``.
        target: The file to write.
        names: What it is called in its metadata.

    Raises:
        GGUFError: The checkpoint is not what this conversion understands.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    if config.get("architectures") != ["BertModel"] or len(tokens) != config["vocab_size"]:
        raise GGUFError(f"{folder} does not hold a plain BERT encoder with one vocabulary entry per embedding")
    with (folder / "model.safetensors").open("rb") as source, target.open("wb") as sink:
        tensors = list(_read_header(source))
        count = sum(tensor.nbytes // 4 for tensor in tensors)
        general = {
            "general.architecture": "bert",
            "general.type": "model",
            "general.name": names.name,
            "general.version": names.version,
            "general.organization": names.organization,
            "general.basename": names.basename,
            "general.size_label": f"{round(count / 1e6)}M",
        }
        pairs = [_pair(key, _STRING, _string(value)) for key, value in general.items()]
        pairs += _hyperparameters(config)
        pairs += _tokenizer(tokens)
        header = struct.pack("<4sIQQ", b"GGUF", _VERSION, len(tensors), len(pairs)) + b"".join(pairs)
        offset = 0
        for tensor in tensors:
            dims = tensor.shape[::-1]  # ggml counts dimensions from the innermost
            header += _string(tensor.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, _F32, offset)
            offset += _padded(tensor.nbytes)
        sink.write(header.ljust(_padded(len(header)), b"\0"))
        for tensor in tensors:
            _copy(source, sink, tensor)


def _hyperparameters(config: dict[str, int | float]) -> list[bytes]:
    def number(key: str, value: int | float) -> bytes:
        return _pair(key, _UINT32, struct.pack("<I", value))

    return [
        number("bert.block_count", config["num_hidden_layers"]),
        number("bert.context_length", config["max_position_embeddings"]),
        number("bert.embedding_length", config["hidden_size"]),
        number("bert.feed_forward_length", config["intermediate_size"]),
        number("bert.attention.head_count", config["num_attention_heads"]),
        _pair("bert.attention.layer_norm_epsilon", _FLOAT32, struct.pack("<f", config["layer_norm_eps"])),
        number("general.file_type", 0),
        _pair("bert.attention.causal", _BOOL, b"\0"),
        number("bert.pooling_type", _MEAN_POOLING),
        number("general.quantization_version", 2),
        number("tokenizer.ggml.token_type_count", config["type_vocab_size"]),
    ]


def _tokenizer(tokens: list[str]) -> list[bytes]:
    special = {token: tokens.index(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}

    def piece(token: str) -> str:
        # llama.cpp marks the start of a word where WordPiece marks its continuation.
        if token in special:
            return token
        return token[2:] if token.startswith("##") else "\u2581" + token

    ids = {
        "bos": special["[CLS]"],
        "eos": special["[SEP]"],
        "unknown": special["[UNK]"],
        "seperator": special["[SEP]"],  # spelled so in the format
        "padding": special["[PAD]"],
        "mask": special["[MASK]"],
    }
    flags = {"add_bos_token": True, "add_eos_token": True, "add_sep_token": False, "normalizer.lowercase": True}
    types = [_CONTROL if token in special else _NORMAL for token in tokens]
    return [
        _pair("tokenizer.ggml.model", _STRING, _string("bert")),
        _pair("tokenizer.ggml.pre", _STRING, _string("jina-v2-en")),
        _pair("tokenizer.ggml.tokens", _ARRAY, _array(_STRING, [_string(piece(token)) for token in tokens])),
        _pair("tokenizer.ggml.token_type", _ARRAY, _array(_INT32, [struct.pack("<i", kind) for kind in types])),
        *(_pair(f"tokenizer.ggml.{key}_token_id", _UINT32, struct.pack("<I", token)) for key, token in ids.items()),
        *(_pair(f"tokenizer.ggml.{key}", _BOOL, bytes([flag])) for key, flag in flags.items()),
    ]


def _read_header(source: BinaryIO) -> Iterator[_Tensor]:
    """The tensors of a safetensors file, renamed, in the order in which they lie in it."""
    (length,) = struct.unpack("<Q", source.read(8))
    entries = json.loads(source.read(length))
    entries.pop("__metadata__", None)
    for old, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        if _DROPPED.match(old):
            continue
        if entry["dtype"] != "F32":
            raise GGUFError(f"tensor {old} is {entry['dtype']}, expected F32")
        start, end = entry["data_offsets"]
        yield _Tensor(_rename(old), tuple(entry["shape"]), 8 + length + start, end - start)


def _rename(old: str) -> str:
    stem, _, kind = old.rpartition(".")
    prefix = ""
    if match := _LAYER.fullmatch(stem):
        prefix, stem = f"blk.{match[1]}.", match[2]
    if stem not in _RENAMED:
        raise GGUFError(f"tensor {old} has no place in a BERT encoder")
    return f"{prefix}{_RENAMED[stem]}.{kind}"


def _copy(source: BinaryIO, sink: BinaryIO, tensor: _Tensor) -> None:
    source.seek(tensor.start)
    left = tensor.nbytes
    while left:
        chunk = source.read(min(left, _CHUNK))
        if not chunk:
            raise GGUFError(f"the checkpoint ends inside tensor {tensor.name}")
        sink.write(chunk)
        left -= len(chunk)
    sink.write(b"\0" * (_padded(tensor.nbytes) - tensor.nbytes))


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _array(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def _pair(key: str, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value

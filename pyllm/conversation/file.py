"""Files with the state of a text: what it is, its tokens, and the KV cache of one sequence; no logits."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllm import enums
from pyllm.errors import InvalidArgumentError, StateError
from pyllm.params import given
from pyllm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm.core.adapter import LoraAdapter
    from pyllm.core.context import Context
    from pyllm.core.model import Model
    from pyllm.params import ContextParams

_MAGIC = b"pyllmTX1"

# How a file begins: magic, bytes of the header, which is JSON, number of tokens, bytes of the state. Behind these
# three stands the CRC-32 of everything before it.
_START = struct.Struct("<8sQQQ")
_END = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class SavedText:
    """What such a file holds.

    Attributes:
        header: What was said about it, plain JSON.
        tokens: What the KV cache was computed from, int32.
        state: As :meth:`pyllm.core.state.State.save` gives it; empty where nothing was kept.
    """

    header: dict[str, Any]
    tokens: NDArray[np.int32]
    state: bytes


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """By what a file recognizes its model and how it was used.

    Attributes:
        model: The model.
        n_vocab: Tokens of its vocabulary.
        n_ctx: Tokens that a sequence of the context has room for.
        adapters: LoRA adapters and their scales.
        causal_attn: Whether tokens see those before them only.
        context_params: How the context was made.
        control_vector: Whether it has a control vector, which a file cannot name.
    """

    model: Model
    n_vocab: int
    n_ctx: int
    adapters: Sequence[tuple[LoraAdapter, float]]
    causal_attn: bool
    context_params: ContextParams
    control_vector: bool

    @classmethod
    def of(
        cls,
        context: Context,
        context_params: ContextParams,
        adapters: Sequence[tuple[LoraAdapter, float]] | None = None,
    ) -> ModelFacts:
        """Those of a context.

        Args:
            context: The context.
            context_params: How it was made.
            adapters: Adapters instead of those of the context.
        """
        return cls(
            context.model,
            context.n_vocab,
            context.n_ctx_seq,
            context.adapters if adapters is None else adapters,
            context.causal_attn,
            context_params,
            bool(context.control_vector),
        )

    def to_header(self) -> dict[str, Any]:
        """What the header of a file says of it, as plain JSON.

        Raises:
            InvalidArgumentError: There is a control vector.
        """
        if self.control_vector:
            raise InvalidArgumentError(
                "with a control vector nothing can be saved: a file could not tell which one it was"
            )
        model = self.model
        return {
            "model": [model.description, model.n_params, model.size, model.n_vocab],
            "adapters": [[os.path.basename(adapter.path), float(scale)] for adapter, scale in self.adapters],
            "causal_attn": self.causal_attn,
            "positions": self._positions(),
        }

    def _positions(self) -> dict[str, Any]:
        """How positions are turned, where that was asked for: keys that are kept have been turned already."""
        params = given(self.context_params)
        asked = {name: value for name, value in params.items() if name.startswith(("rope_", "yarn_"))}
        if "rope_scaling_type" in asked:
            asked["rope_scaling_type"] = int(
                enums.coerce(enums.RopeScalingType, asked["rope_scaling_type"], "rope_scaling_type")
            )
        return asked


def write(path: str | os.PathLike[str], facts: ModelFacts, kind: str, saved: SavedText) -> int:
    """Write a file; one that is there is replaced when the new one is complete.

    Returns:
        int: Its size in bytes.
    """
    header = {"kind": kind, "pyllm": __version__, **facts.to_header(), **saved.header}
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    parts = (
        _START.pack(_MAGIC, len(text), len(saved.tokens), len(saved.state)),
        text,
        np.ascontiguousarray(saved.tokens, "<i4").tobytes(),
        saved.state,
    )
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    target = os.path.realpath(os.fsdecode(path))
    temporary = os.path.join(os.path.dirname(target), f".pyllm-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            for part in (*parts, _END.pack(checksum)):
                file.write(part)
            size = file.tell()
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return size


def read(path: str | os.PathLike[str], facts: ModelFacts, kind: str) -> SavedText:
    """Read a file, and check all of it that can be checked without llama.cpp.

    Raises:
        FileNotFoundError: There is none.
        StateError: It is damaged, of another kind, or of another model.
    """
    saved = parse(path)
    check(path, saved, facts, kind)
    return saved


def parse(path: str | os.PathLike[str]) -> SavedText:
    """What a file says, whole but not yet compared with any model; see :func:`check`.

    Raises:
        FileNotFoundError: There is none.
        StateError: It is damaged.
    """
    name = os.fsdecode(path)
    with open(name, "rb") as file:
        data = file.read()
    if data[:8] != _MAGIC or len(data) < _START.size + _END.size:
        raise StateError(f"{name!r} is no file that was saved here, or is cut off: it has {len(data)} bytes")
    _, n_header, n_tokens, n_state = _START.unpack_from(data)
    size = _START.size + n_header + 4 * n_tokens + n_state + _END.size
    if len(data) != size:
        raise StateError(f"{name!r} is damaged: it has {len(data)} bytes instead of {size}")
    view = memoryview(data)
    if zlib.crc32(view[: -_END.size]) != _END.unpack_from(data, size - _END.size)[0]:
        raise StateError(f"{name!r} is damaged: its checksum does not agree")
    start = _START.size
    try:
        header = json.loads(data[start : start + n_header].decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise StateError(f"{name!r} is damaged: {error}") from None
    start += n_header
    if not isinstance(header, dict):
        raise StateError(f"{name!r} is damaged: its header is {header!r}")
    tokens = np.frombuffer(data, "<i4", n_tokens, start).astype(np.int32)
    return SavedText(header, tokens, data[start + 4 * n_tokens : size - _END.size])


def check(path: str | os.PathLike[str], saved: SavedText, facts: ModelFacts, kind: str) -> None:
    """Compare a file with the model that it shall be used with.

    Raises:
        StateError: It is of another kind, or of another model.
    """
    name, header, tokens = os.fsdecode(path), saved.header, saved.tokens
    if header.get("kind") != kind:
        raise StateError(f"{name!r} holds a {header.get('kind')}, not a {kind}")
    own = json.loads(json.dumps(facts.to_header()))
    if header.get("model") != own["model"]:
        raise StateError(f"{name!r} was saved with another model: {_first(header)}, not {_first(own)}")
    for key in ("adapters", "causal_attn", "positions"):
        if header.get(key) != own[key]:
            raise StateError(f"{name!r} was saved with {key}={header.get(key)}, and here they are {own[key]}")
    n_vocab, n_ctx = facts.n_vocab, facts.n_ctx
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= n_vocab):
        raise StateError(f"{name!r} is damaged: it holds tokens that are not among the {n_vocab} of the vocabulary")
    if len(tokens) > n_ctx:
        raise StateError(f"{name!r} holds {len(tokens)} tokens, and the context has room for n_ctx={n_ctx}")


def _first(header: dict[str, Any]) -> str:
    model = header.get("model")
    return f"{model[0]} with {model[1]} parameters" if isinstance(model, list) and len(model) > 1 else repr(model)

"""The enumerations of llama.h as Python enums, with llama.cpp's own names and values.

Everywhere such a value is asked for, the member, its number or its lower-case name will do:
``pooling_type="mean"``.
"""

from __future__ import annotations

import enum
from typing import TypeVar

from pyllm.errors import InvalidArgumentError


class VocabType(enum.IntEnum):
    """enum llama_vocab_type: how the tokenizer works."""

    NONE = 0
    SPM = 1
    BPE = 2
    WPM = 3
    UGM = 4
    RWKV = 5
    PLAMO2 = 6
    TEST = 7


class RopeType(enum.IntEnum):
    """enum llama_rope_type: how positions are rotated."""

    NONE = -1
    NORM = 0
    NEOX = 2
    MROPE = 8
    IMROPE = 40
    VISION = 24


class TokenAttr(enum.IntFlag):
    """enum llama_token_attr: the bits in ``Vocab.attrs``."""

    UNDEFINED = 0
    UNKNOWN = 1 << 0
    UNUSED = 1 << 1
    NORMAL = 1 << 2
    CONTROL = 1 << 3
    USER_DEFINED = 1 << 4
    BYTE = 1 << 5
    NORMALIZED = 1 << 6
    LSTRIP = 1 << 7
    RSTRIP = 1 << 8
    SINGLE_WORD = 1 << 9


class RopeScalingType(enum.IntEnum):
    """enum llama_rope_scaling_type: how RoPE is stretched to longer contexts."""

    UNSPECIFIED = -1
    NONE = 0
    LINEAR = 1
    YARN = 2
    LONGROPE = 3


class PoolingType(enum.IntEnum):
    """enum llama_pooling_type: how token embeddings become one vector for a sequence."""

    UNSPECIFIED = -1
    NONE = 0
    MEAN = 1
    CLS = 2
    LAST = 3
    RANK = 4


class AttentionType(enum.IntEnum):
    """enum llama_attention_type."""

    UNSPECIFIED = -1
    CAUSAL = 0
    NON_CAUSAL = 1


class FlashAttnType(enum.IntEnum):
    """enum llama_flash_attn_type: when flash attention is used."""

    AUTO = -1
    DISABLED = 0
    ENABLED = 1


class SplitMode(enum.IntEnum):
    """enum llama_split_mode: how a model is spread over several GPUs."""

    NONE = 0
    LAYER = 1
    ROW = 2
    TENSOR = 3


class LoadMode(enum.IntEnum):
    """enum llama_load_mode: how the file gets into memory."""

    AUTO = -1
    NONE = 0
    MMAP = 1
    MLOCK = 2
    MMAP_MLOCK = 3
    DIRECT_IO = 4


class LazyMode(enum.IntEnum):
    """enum llama_lazy_mode: whether rows of marked tensors are read on demand."""

    OFF = 0
    AUTO = 1
    ON = 2


class ContextType(enum.IntEnum):
    """enum llama_context_type."""

    DEFAULT = 0
    MTP = 1


E = TypeVar("E", bound=enum.IntEnum)


def coerce(kind: type[E], value: E | int | str, name: str) -> E:
    """Turn a member, a number or a name into a member of `kind`.

    Args:
        kind: The enum class.
        value: What the caller gave.
        name: The argument's name, for the message.

    Raises:
        InvalidArgumentError: There is no such member; the message lists those there are.
    """
    try:
        if isinstance(value, str):
            return kind[value.upper().replace("-", "_")]
        return kind(value)
    except (KeyError, ValueError):
        choices = ", ".join(repr(member.name.lower()) for member in kind)
        raise InvalidArgumentError(f"{name}={value!r} is not one of {choices}") from None

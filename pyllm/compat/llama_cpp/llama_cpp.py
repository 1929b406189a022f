"""The constants of llama.h, and those of its functions on vocabularies that libraries call with handles.

The rest of llama.h is in :mod:`pyllm.core`, as objects that cannot be used after they are closed.
"""

from __future__ import annotations

import ctypes
import enum
import weakref
from typing import Any

from pyllm import enums
from pyllm.core import backend
from pyllm.core.ggml_types import all_types
from pyllm.core.model import Model
from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError

LLAMA_DEFAULT_SEED = 0xFFFFFFFF
LLAMA_TOKEN_NULL = -1

_ENUMS: dict[str, type[enum.IntEnum] | type[enum.IntFlag]] = {
    "LLAMA_VOCAB_TYPE": enums.VocabType,
    "LLAMA_ROPE_TYPE": enums.RopeType,
    "LLAMA_TOKEN_ATTR": enums.TokenAttr,
    "LLAMA_ROPE_SCALING_TYPE": enums.RopeScalingType,
    "LLAMA_POOLING_TYPE": enums.PoolingType,
    "LLAMA_ATTENTION_TYPE": enums.AttentionType,
    "LLAMA_FLASH_ATTN_TYPE": enums.FlashAttnType,
    "LLAMA_SPLIT_MODE": enums.SplitMode,
}
_CONSTANTS: dict[str, int] = {
    f"{prefix}_{member.name}": int(member) for prefix, kind in _ENUMS.items() for member in kind
} | {f"GGML_TYPE_{kind.name.upper()}": kind.number for kind in all_types()}
globals().update(_CONSTANTS)

llama_model_p = llama_context_p = llama_vocab_p = int

# By address, for as long as they live: a handle of a closed model is an error and no crash.
_MODELS: weakref.WeakValueDictionary[int, Model] = weakref.WeakValueDictionary()
_VOCABS: weakref.WeakValueDictionary[int, Vocab] = weakref.WeakValueDictionary()


def register(model: Model) -> int:
    """Let the functions below find a model by its address."""
    _MODELS[model.address] = model
    _VOCABS[model.vocab.address] = model.vocab
    return model.address


def _vocab(handle: Any) -> Vocab:
    vocab = _VOCABS.get(_address(handle))
    if vocab is None:
        raise InvalidArgumentError(f"{handle!r} is not the vocabulary of a Llama that is open")
    return vocab


def _address(handle: Any) -> int:
    value = handle.value if isinstance(handle, ctypes.c_void_p) else handle
    return 0 if value is None else int(value)


def llama_model_get_vocab(model: int) -> int:
    """The handle of a model's vocabulary."""
    found = _MODELS.get(_address(model))
    if found is None:
        raise InvalidArgumentError(f"{model!r} is not the handle of a Llama that is open")
    return found.vocab.address


def llama_vocab_n_tokens(vocab: int) -> int:
    """How many tokens there are."""
    return len(_vocab(vocab))


def llama_vocab_bos(vocab: int) -> int:
    """The token that begins a text, or -1."""
    token = _vocab(vocab).bos
    return LLAMA_TOKEN_NULL if token is None else token


def llama_vocab_eos(vocab: int) -> int:
    """The token that ends a text, or -1."""
    token = _vocab(vocab).eos
    return LLAMA_TOKEN_NULL if token is None else token


def llama_vocab_is_eog(vocab: int, token: int) -> bool:
    """Whether a token ends a text."""
    return _vocab(vocab).is_eog(int(token))


def llama_vocab_get_text(vocab: int, token: int) -> bytes:
    """The text of a token as the vocabulary has it."""
    return _vocab(vocab).text(int(token)).encode()


def llama_vocab_get_attr(vocab: int, token: int) -> int:
    """The attributes of a token: bits ``LLAMA_TOKEN_ATTR_*``."""
    attrs = _vocab(vocab).attrs
    if not 0 <= int(token) < len(attrs):
        raise InvalidArgumentError(f"token {token} does not exist: there are {len(attrs)}")
    return int(attrs[int(token)])


def llama_token_to_piece(vocab: int, token: int, buf: Any, length: int, lstrip: int, special: bool) -> int:
    """Write the bytes of a token into a buffer of ctypes.

    Returns:
        int: How many; where they are more than `length`, minus how many, and nothing is written.
    """
    piece = _vocab(vocab).token_to_piece(int(token), special=bool(special), lstrip=int(lstrip))
    if len(piece) > int(length):
        return -len(piece)
    if piece:
        ctypes.memmove(buf, piece, len(piece))
    return len(piece)


def llama_supports_gpu_offload() -> bool:
    """Whether there is a GPU."""
    return backend.support()["gpu_offload"]


def llama_max_devices() -> int:
    """How many devices a model can be spread over at most."""
    return backend.limits()["devices"]


def llama_backend_init() -> None:
    """Nothing: the backends are there when they are needed."""


def llama_print_system_info() -> bytes:
    """What this build of llama.cpp uses of the CPU."""
    return backend.system_info().encode()


class _Library:
    """The functions whose address is asked for."""

    @property
    def llama_tokenize(self) -> Any:
        """``llama_tokenize``, to be called from C."""
        for vocab in list(_VOCABS.values()):
            return ctypes.CFUNCTYPE(ctypes.c_int32)(vocab.tokenize_address)
        raise InvalidArgumentError("llama_tokenize is there as soon as a Llama is")


_lib = _Library()

# The names of before llama_vocab had functions of its own.
llama_token_get_attr = llama_vocab_get_attr
llama_token_get_text = llama_vocab_get_text
llama_token_bos = llama_vocab_bos
llama_token_eos = llama_vocab_eos
llama_n_vocab = llama_vocab_n_tokens

__all__ = [
    "LLAMA_DEFAULT_SEED",
    "LLAMA_TOKEN_NULL",
    *_CONSTANTS,
    "llama_backend_init",
    "llama_context_p",
    "llama_max_devices",
    "llama_model_get_vocab",
    "llama_model_p",
    "llama_n_vocab",
    "llama_print_system_info",
    "llama_supports_gpu_offload",
    "llama_token_bos",
    "llama_token_eos",
    "llama_token_get_attr",
    "llama_token_get_text",
    "llama_token_to_piece",
    "llama_vocab_bos",
    "llama_vocab_eos",
    "llama_vocab_get_attr",
    "llama_vocab_get_text",
    "llama_vocab_is_eog",
    "llama_vocab_n_tokens",
    "llama_vocab_p",
]

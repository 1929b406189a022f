"""From the arguments of llama-cpp-python's Llama to those of :class:`pyllm.Llama`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from pyllm.compat.llama_cpp.llama_cpp import LLAMA_DEFAULT_SEED
from pyllm.errors import InvalidArgumentError
from pyllm.params import unknown_argument

# Arguments of versions long past, which libraries still hand over, with the values that mean nothing.
_OUTDATED: dict[str, tuple[Any, ...]] = {
    "n_parts": (-1,),
    "f16_kv": (True,),
    "low_vram": (False,),
    "mul_mat_q": (True, None),
    "n_gqa": (None,),
    "rms_norm_eps": (None,),
    "device": (None,),
    "cache": (None, False),
    "lora_base": (None,),
    "spm_infill": (False, None),
}

# Arguments of LangChain's own classes, which these hand over with the rest, and what to do in their place.
_CALLERS = {"callback_manager": "give LangChain's LlamaCpp callbacks=[...] in its place"}

# ggml's strategies by number.
_NUMA = ("disabled", "distribute", "isolate", "numactl", "mirror")

#: By their names there: what :class:`pyllm.Llama` calls them, and the value that stands for llama.cpp's own choice.
_RENAMED: dict[str, tuple[str, Any]] = {
    "n_gpu_layers": ("n_gpu_layers", None),
    "split_mode": ("split_mode", None),
    "main_gpu": ("main_gpu", 0),
    "tensor_split": ("tensor_split", None),
    "kv_overrides": ("kv_overrides", None),
    "n_batch": ("n_batch", None),
    "n_ubatch": ("n_ubatch", None),
    "n_threads": ("n_threads", None),
    "n_threads_batch": ("n_threads_batch", None),
    "rope_scaling_type": ("rope_scaling_type", -1),
    "attention_type": ("attention_type", -1),
    "pooling_type": ("pooling_type", -1),
    "rope_freq_base": ("rope_freq_base", 0.0),
    "rope_freq_scale": ("rope_freq_scale", 0.0),
    "yarn_ext_factor": ("yarn_ext_factor", -1.0),
    "yarn_attn_factor": ("yarn_attn_factor", 1.0),
    "yarn_beta_fast": ("yarn_beta_fast", 32.0),
    "yarn_beta_slow": ("yarn_beta_slow", 1.0),
    "yarn_orig_ctx": ("yarn_orig_ctx", 0),
    "offload_kqv": ("offload_kqv", True),
    "op_offload": ("op_offload", None),
    "swa_full": ("swa_full", None),
    "no_perf": ("no_perf", False),
    "type_k": ("type_k", None),
    "type_v": ("type_v", None),
}


def outdated(arguments: Mapping[str, Any], known: list[str]) -> None:
    """Accept what has no meaning any more or none here; warn where it was meant to have one, and refuse all else.

    Raises:
        UnknownArgumentError: An argument exists in no version; the message names the nearest one.
    """
    for name, value in arguments.items():
        if name in _CALLERS:
            if value is not None:
                warnings.warn(f"{name} has no effect on a model: {_CALLERS[name]}", UserWarning, stacklevel=4)
            continue
        if name not in _OUTDATED:
            raise unknown_argument(name, [*known, *_OUTDATED], "Llama()")
        if not any(value is other or value == other for other in _OUTDATED[name]):
            warnings.warn(f"{name}={value!r} has no effect: llama.cpp has no such setting", UserWarning, stacklevel=4)


def seed_of(seed: int | None) -> int | None:
    """None where a random one is asked for: -1, llama.cpp's largest number, or nothing."""
    return None if seed is None or seed in (-1, LLAMA_DEFAULT_SEED) else int(seed)


def numa_strategy(numa: bool | int | None) -> str | None:
    """The name of a strategy of ggml's; None where nothing is to be spread.

    Raises:
        InvalidArgumentError: There is no strategy of that number.
    """
    if not numa:
        return None
    if numa is True:
        return "distribute"
    if not isinstance(numa, int) or not 0 < numa < len(_NUMA):
        raise InvalidArgumentError(f"numa must be True, False or from 0 to {len(_NUMA) - 1}, not {numa!r}")
    return _NUMA[numa]


def llama_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :class:`pyllm.Llama`; those that stand for llama.cpp's own choice are left out."""
    arguments = {
        new: given[old]
        for old, (new, default) in _RENAMED.items()
        if given[old] is not None and (default is None or given[old] != default)
    }
    if "kv_overrides" in arguments:
        arguments["kv_overrides"] = dict(arguments["kv_overrides"])
    if given["n_ctx"] is not None:
        arguments["n_ctx"] = given["n_ctx"]
    if given["flash_attn"] is not None:
        arguments["flash_attn_type"] = "enabled" if given["flash_attn"] else "disabled"
    mode = {
        (True, False): None,
        (True, True): "mmap_mlock",
        (False, True): "mlock",
        (False, False): "none",
    }[bool(given["use_mmap"]), bool(given["use_mlock"])]
    if mode is not None:
        arguments["load_mode"] = mode
    if given["lora_path"] is not None:
        arguments["lora"] = [(given["lora_path"], float(given["lora_scale"]))]
    seed = seed_of(given["seed"])
    if seed is not None:
        arguments["seed"] = seed
    return arguments


__all__ = ["llama_arguments", "numa_strategy", "outdated", "seed_of"]

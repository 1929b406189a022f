"""Parameters as frozen dataclasses: of a model, of a context, of sampling.

None everywhere means llama.cpp's own default.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyllm.errors import InvalidArgumentError, UnknownArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParams:
    """How a model is loaded; the fields are the arguments of :class:`pyllm.core.model.Model`."""

    n_gpu_layers: int | None = None
    split_mode: str | int | None = None
    main_gpu: int | None = None
    tensor_split: Sequence[float] | None = None
    devices: Sequence[str] | None = None
    load_mode: str | int | None = None
    lazy_mode: str | int | None = None
    kv_overrides: Mapping[str, int | float | bool | str] | None = None
    tensor_buft_overrides: Mapping[str, str] | None = None
    progress_callback: Callable[[float], bool | None] | None = None
    vocab_only: bool | None = None
    check_tensors: bool | None = None
    use_extra_bufts: bool | None = None
    no_host: bool | None = None
    no_alloc: bool | None = None
    load_mtp: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams:
    """How a context is made; the fields are the arguments of :class:`pyllm.core.context.Context`."""

    n_ctx: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    n_seq_max: int | None = None
    n_threads: int | None = None
    n_threads_batch: int | None = None
    rope_scaling_type: str | int | None = None
    pooling_type: str | int | None = None
    attention_type: str | int | None = None
    flash_attn_type: str | int | None = None
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    yarn_orig_ctx: int | None = None
    type_k: str | int | None = None
    type_v: str | int | None = None
    embeddings: bool | None = None
    offload_kqv: bool | None = None
    no_perf: bool | None = None
    op_offload: bool | None = None
    swa_full: bool | None = None
    kv_unified: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen; the defaults are those of llama.cpp's own programs.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token each time.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the most likely tokens that sum up to this probability; 1 keeps all.
        min_p: Keep tokens at least so likely, relative to the most likely one; 0 keeps all.
        typical_p: Locally typical sampling; 1 is off.
        repeat_penalty: Divides the logits of tokens among the last ones; 1 is off.
        frequency_penalty: Subtracted for each occurrence; 0 is off.
        presence_penalty: Subtracted once for a token that occurred; 0 is off.
        repeat_last_n: How many tokens back the penalties look, the prompt included.
        logit_bias: Added to the logits of tokens, by id; ``-inf`` forbids one.
        grammar: A GBNF grammar that the text must follow.
        seed: None takes a random one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    logit_bias: Mapping[int, float] | None = None
    grammar: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InvalidArgumentError(f"temperature must be a number >= 0, not {self.temperature}")
        for name in ("top_p", "min_p", "typical_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidArgumentError(f"{name} must be from 0 to 1, not {getattr(self, name)}")

    @property
    def penalises(self) -> bool:
        """Whether any penalty is on."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0
        )


def field_names(*classes: type) -> list[str]:
    """Names of the fields of these dataclasses."""
    return [field.name for cls in classes for field in dataclasses.fields(cls)]


def unknown_argument(name: str, known: Iterable[str], function: str) -> UnknownArgumentError:
    """The error for a keyword that does not exist, naming the nearest one that does."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownArgumentError(f"{function} has no argument {name!r}{hint}")


def split_arguments(arguments: Mapping[str, Any], function: str, *classes: type) -> list[dict[str, Any]]:
    """Sort keyword arguments into the dataclasses they belong to.

    Raises:
        UnknownArgumentError: One belongs to none of them.
    """
    names = [set(field_names(cls)) for cls in classes]
    for name in arguments:
        if not any(name in owned for owned in names):
            raise unknown_argument(name, field_names(*classes), function)
    return [{name: value for name, value in arguments.items() if name in owned} for owned in names]


def given(params: ModelParams | ContextParams) -> dict[str, Any]:
    """The fields that are not None, as keyword arguments."""
    pairs = ((field.name, getattr(params, field.name)) for field in dataclasses.fields(params))
    return {name: value for name, value in pairs if value is not None}

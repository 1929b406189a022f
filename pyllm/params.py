"""Parameters as frozen dataclasses: of a model, of a context, of sampling.

None everywhere means llama.cpp's own default.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyllm.errors import InvalidArgumentError, UnknownArgumentError

if TYPE_CHECKING:
    from pyllm.structured.grammar import Grammar


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
    rpc: str | Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams:
    """How a context is made; the fields are the arguments of :class:`pyllm.core.context.Context`."""

    n_ctx: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    n_seq_max: int | None = None
    n_rs_seq: int | None = None
    n_outputs_max: int | None = None
    n_outputs_max_per_seq: int | None = None
    reserve_outputs: int | None = None
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
    abort_callback: Callable[[], object] | None = None
    capture: bool | None = None
    poison_stale: bool | None = None


# llama.cpp's own names of samplers, in the order in which its programs apply them.
SAMPLER_ORDER = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
# The letters that llama.cpp's --sampler-seq and /completion have for samplers.
SAMPLER_LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "i": "infill",
    "a": "adaptive_p",
}
# Those that can be asked for besides.
_OTHER_SAMPLERS = ("infill", "adaptive_p")
# Fields by the sampler that reads them: they have no effect where it is left out.
FIELDS_OF = {
    "penalties": ("repeat_penalty", "frequency_penalty", "presence_penalty"),
    "dry": ("dry_multiplier",),
    "top_n_sigma": ("top_n_sigma",),
    "top_k": ("top_k",),
    "typ_p": ("typical_p",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "xtc": ("xtc_probability",),
    "temperature": ("temperature", "dynatemp_range"),
    "adaptive_p": ("adaptive_target",),
}
_MAX_LAST_N = 2**20
# Smallest and largest value of each number; the types say whether it must be an integer.
_RANGES: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 1e30),
    "dynatemp_range": (float, 0, 1e30),
    "dynatemp_exponent": (float, -1e30, 1e30),
    "top_k": (int, -1, 2**31 - 1),
    "top_p": (float, 0, 1),
    "min_p": (float, 0, 1),
    "typical_p": (float, 0, 1),
    "top_n_sigma": (float, -1e30, 1e30),
    "xtc_probability": (float, 0, 1),
    "xtc_threshold": (float, 0, 1),
    "min_keep": (int, 0, 2**31 - 1),
    "repeat_penalty": (float, 1e-30, 1e30),
    "frequency_penalty": (float, -1e30, 1e30),
    "presence_penalty": (float, -1e30, 1e30),
    "repeat_last_n": (int, 0, _MAX_LAST_N),
    "dry_multiplier": (float, 0, 1e30),
    "dry_base": (float, 0, 1e30),
    "dry_allowed_length": (int, 0, 2**31 - 1),
    "dry_penalty_last_n": (int, 0, _MAX_LAST_N),
    "mirostat": (int, 0, 2),
    "mirostat_tau": (float, 0, 1e30),
    "mirostat_eta": (float, 0, 1e30),
    "adaptive_target": (float, -1e30, 1),
    "adaptive_decay": (float, 0, 0.99),
}


def number_range(name: str) -> tuple[type, float, float]:
    """Of a number among the fields of :class:`SamplingParams`: int or float, the smallest and the largest value."""
    return _RANGES[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen; the defaults are those of llama.cpp's own programs.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token each time.
        dynatemp_range: The temperature varies by so much around `temperature`, with the entropy; 0 is off.
        dynatemp_exponent: How the entropy becomes a temperature.
        top_k: Keep the k most likely tokens; 0 or -1 keeps all.
        top_p: Keep the most likely tokens that sum up to this probability; 1 keeps all.
        min_p: Keep tokens at least so likely, relative to the most likely one; 0 keeps all.
        typical_p: Locally typical sampling; 1 is off.
        top_n_sigma: Keep tokens within so many standard deviations of the largest logit; 0 or less is off.
        xtc_probability: How often the most likely choices are excluded; 0 is off.
        xtc_threshold: All tokens at least so likely are excluded then, but for the last; above 0.5 is off.
        min_keep: Tokens that top_p, min_p, typical_p and XTC leave at least.
        repeat_penalty: Divides the logits of tokens among the last ones; 1 is off.
        frequency_penalty: Subtracted for each occurrence; 0 is off.
        presence_penalty: Subtracted once for a token that occurred; 0 is off.
        repeat_last_n: How many tokens back the penalties look, the prompt included.
        dry_multiplier: Strength of DRY, a penalty on tokens that would prolong a repetition; 0 is off.
        dry_base: The penalty grows by this factor with each repeated token.
        dry_allowed_length: Repetitions up to this length are free.
        dry_penalty_last_n: How many tokens back DRY looks, the prompt included.
        dry_sequence_breakers: Texts at which a repetition ends.
        mirostat: 1 or 2: mirostat of that version, which uses `temperature` and leaves out all other samplers but
            logit_bias and grammar. 0 is off.
        mirostat_tau: The surprise that mirostat aims at.
        mirostat_eta: How fast it learns.
        adaptive_target: Prefer tokens near this probability, adapting over time; below 0 is off.
        adaptive_decay: How slowly that adapts, up to 0.99.
        logit_bias: Added to the logits of tokens, by id or by a text that is one token; ``-inf`` forbids one,
            and ``+inf`` forces it.
        grammar: A grammar that the text must follow, in GBNF or as a :class:`pyllm.structured.Grammar`. It is asked
            about each token that the samplers have chosen, and they choose again where it does not fit.
        samplers: The samplers to apply, in this order, by llama.cpp's names: those of :data:`SAMPLER_ORDER`,
            "infill" and "adaptive_p". None: :data:`SAMPLER_ORDER`.
        seed: None takes a random one.

    Raises:
        InvalidArgumentError: A value is out of its range, or would have no effect with these `samplers`.
    """

    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    min_keep: int = 0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    logit_bias: Mapping[int | str, float] | None = None
    grammar: str | Grammar | None = None
    samplers: Sequence[str] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (kind, low, high) in _RANGES.items():
            _check_number(name, getattr(self, name), kind, low, high)
        breakers: object = self.dry_sequence_breakers
        if not isinstance(breakers, list | tuple) or not all(isinstance(text, str) and text for text in breakers):
            raise InvalidArgumentError(
                f"dry_sequence_breakers must be a list of texts, not {self.dry_sequence_breakers!r}"
            )
        if self.logit_bias is not None and not isinstance(self.logit_bias, Mapping):
            raise InvalidArgumentError(f"logit_bias must be a dict of token to bias, not {self.logit_bias!r}")
        if self.grammar is not None and not isinstance(self.grammar, str) and not hasattr(self.grammar, "sampler"):
            raise InvalidArgumentError(f"grammar must be GBNF or a pyllm.structured.Grammar, not {self.grammar!r}")
        if self.seed is not None:
            _check_number("seed", self.seed, int, 0, 2**32 - 2)
        if self.samplers is not None:
            self._check_samplers(self.samplers)

    def _check_samplers(self, names: Sequence[str]) -> None:
        known = (*SAMPLER_ORDER, *_OTHER_SAMPLERS)
        if isinstance(names, str) or not isinstance(names, Sequence):
            what = "the text " if isinstance(names, str) else ""
            raise InvalidArgumentError(f"samplers must be a list of names, not {what}{names!r}")
        for name in names:
            if name not in known:
                raise InvalidArgumentError(f"there is no sampler {name!r}; there are {', '.join(known)}")
        if len(set(names)) < len(names):
            raise InvalidArgumentError(f"samplers must name each sampler once, not {list(names)}")
        if self.mirostat:
            return
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for sampler, fields in FIELDS_OF.items():
            for name in fields:
                if sampler not in names and getattr(self, name) != defaults[name]:
                    raise InvalidArgumentError(
                        f"{name}={getattr(self, name)} would have no effect: {sampler!r} is not in samplers"
                    )

    @property
    def penalises(self) -> bool:
        """Whether any penalty is on."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0
        )


def _check_number(name: str, value: object, kind: type, low: float, high: float) -> None:
    accepted = isinstance(value, numbers.Integral if kind is int else numbers.Real)
    if not accepted or isinstance(value, bool) or not low <= value <= high:  # type: ignore[operator]
        what = "an integer" if kind is int else "a number"
        if high >= 1e30 or high == 2**31 - 1:
            limits = "" if low <= -1e30 else " > 0" if low == 1e-30 else f" >= {low}"
        else:
            limits = f" of at most {high}" if low <= -1e30 else f" from {low} to {high}"
        raise InvalidArgumentError(f"{name} must be {what}{limits}, not {value!r}")


def field_names(*classes: type) -> list[str]:
    """Names of the fields of these dataclasses."""
    return [field.name for cls in classes for field in dataclasses.fields(cls)]


def unknown_argument(name: str, known: Iterable[str], function: str) -> UnknownArgumentError:
    """The error for a keyword that does not exist, naming the nearest one that does."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownArgumentError(f"{function} has no argument {name!r}{hint}")


def split_arguments(
    arguments: Mapping[str, Any], function: str, *classes: type, owner: Callable[..., Any] | None = None
) -> list[dict[str, Any]]:
    """Sort keyword arguments into the dataclasses they belong to.

    Args:
        arguments: The keyword arguments.
        function: What was called, for the error.
        *classes: The dataclasses.
        owner: What has arguments of its own beside them: they may be the ones that were meant.

    Raises:
        UnknownArgumentError: One belongs to none of them.
    """
    names = [set(field_names(cls)) for cls in classes]
    for name in arguments:
        if not any(name in owned for owned in names):
            own = () if owner is None else inspect.signature(owner).parameters
            raise unknown_argument(name, [*field_names(*classes), *own], function)
    return [{name: value for name, value in arguments.items() if name in owned} for owned in names]


def given(params: ModelParams | ContextParams) -> dict[str, Any]:
    """The fields that are not None, as keyword arguments."""
    pairs = ((field.name, getattr(params, field.name)) for field in dataclasses.fields(params))
    return {name: value for name, value in pairs if value is not None}

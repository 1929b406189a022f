"""Parameters as frozen dataclasses: of a model, of a context, of sampling.

None everywhere means llama.cpp's own default.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
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


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number among the fields of :class:`SamplingParams`: its only declaration.

    Range checks, flags of the commands, keys of config files, variables of the environment, fields of requests, their
    schemas and ``/props`` are made from it.

    Attributes:
        name: The field.
        default: Its default.
        low: The smallest value.
        high: The largest value.
        help: What it does, in a line.
        flags: Flags of llama.cpp's programs; a config file has them without dashes. None of them: it has no flag.
        variable: The variable of the environment that stands for the flag, or None.
    """

    name: str
    default: int | float
    low: float
    high: float
    help: str
    flags: tuple[str, ...] = ()
    variable: str | None = None

    @property
    def kind(self) -> type[int] | type[float]:
        """Whether it is an integer or any number."""
        return type(self.default)


_DECLARED = "pyllm.parameter"
_MOST = 1e30
_MOST_INT = 2**31 - 1
_MAX_LAST_N = 2**20


def _number(
    default: int | float, low: float, high: float, help: str, flags: str = "", variable: str | None = None
) -> Any:
    """A field of :class:`SamplingParams` that is a number; see :class:`Parameter`."""
    declared = (default, low, high, help, tuple(flags.split()), variable)
    return dataclasses.field(default=default, metadata={_DECLARED: declared})


@functools.cache
def sampling_numbers() -> Mapping[str, Parameter]:
    """The numbers among the fields of :class:`SamplingParams`, by name."""
    fields = dataclasses.fields(SamplingParams)
    return {one.name: Parameter(one.name, *one.metadata[_DECLARED]) for one in fields if _DECLARED in one.metadata}


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

    temperature: float = _number(
        0.8, 0, _MOST, "Temperature; 0: always the likeliest.", "--temp --temperature", "LLAMA_ARG_TEMPERATURE"
    )
    dynatemp_range: float = _number(0.0, 0, _MOST, "The temperature varies by so much; 0 is off.", "--dynatemp-range")
    dynatemp_exponent: float = _number(1.0, -_MOST, _MOST, "How entropy becomes a temperature.", "--dynatemp-exp")
    top_k: int = _number(40, -1, _MOST_INT, "Keep the k likeliest tokens; 0 keeps all.", "--top-k", "LLAMA_ARG_TOP_K")
    top_p: float = _number(
        0.95, 0, 1, "Keep the likeliest tokens up to this probability.", "--top-p", "LLAMA_ARG_TOP_P"
    )
    min_p: float = _number(
        0.05, 0, 1, "Keep tokens with this share of the best one's probability.", "--min-p", "LLAMA_ARG_MIN_P"
    )
    typical_p: float = _number(1.0, 0, 1, "Locally typical sampling; 1 is off.", "--typical --typical-p")
    top_n_sigma: float = _number(-1.0, -_MOST, _MOST, "Keep logits so near the best one.", "--top-nsigma --top-n-sigma")
    xtc_probability: float = _number(0.0, 0, 1, "Probability of leaving out likely tokens.", "--xtc-probability")
    xtc_threshold: float = _number(0.1, 0, 1, "From which probability on XTC does so.", "--xtc-threshold")
    min_keep: int = _number(0, 0, _MOST_INT, "Tokens that top_p, min_p, typical_p and XTC leave at least.")
    repeat_penalty: float = _number(
        1.0, 1e-30, _MOST, "Divides logits of tokens seen; 1 is off.", "--repeat-penalty", "LLAMA_ARG_REPEAT_PENALTY"
    )
    frequency_penalty: float = _number(
        0.0,
        -_MOST,
        _MOST,
        "Subtracted for each occurrence; 0 is off.",
        "--frequency-penalty",
        "LLAMA_ARG_FREQUENCY_PENALTY",
    )
    presence_penalty: float = _number(
        0.0,
        -_MOST,
        _MOST,
        "Subtracted once for tokens seen; 0 is off.",
        "--presence-penalty",
        "LLAMA_ARG_PRESENCE_PENALTY",
    )
    repeat_last_n: int = _number(64, 0, _MAX_LAST_N, "Tokens that the penalties look back at.", "--repeat-last-n")
    dry_multiplier: float = _number(0.0, 0, _MOST, "Strength of DRY against repetition; 0 is off.", "--dry-multiplier")
    dry_base: float = _number(1.75, 0, _MOST, "DRY's base.", "--dry-base")
    dry_allowed_length: int = _number(2, 0, _MOST_INT, "Repetitions so long are free for DRY.", "--dry-allowed-length")
    dry_penalty_last_n: int = _number(64, 0, _MAX_LAST_N, "Tokens that DRY looks back at.", "--dry-penalty-last-n")
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    mirostat: int = _number(0, 0, 2, "Mirostat 1 or 2; 0 is off.", "--mirostat")
    mirostat_tau: float = _number(5.0, 0, _MOST, "Mirostat's tau.", "--mirostat-ent")
    mirostat_eta: float = _number(0.1, 0, _MOST, "Mirostat's eta.", "--mirostat-lr")
    adaptive_target: float = _number(-1.0, -_MOST, 1, "Adaptive-p: tokens near this probability.", "--adaptive-target")
    adaptive_decay: float = _number(0.9, 0, 0.99, "How slowly adaptive-p follows.", "--adaptive-decay")
    logit_bias: Mapping[int | str, float] | None = None
    grammar: str | Grammar | None = None
    samplers: Sequence[str] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, one in sampling_numbers().items():
            _check_number(name, getattr(self, name), one.kind, one.low, one.high)
        breakers: object = self.dry_sequence_breakers
        if not isinstance(breakers, list | tuple) or not all(isinstance(text, str) and text for text in breakers):
            raise InvalidArgumentError(
                f"dry_sequence_breakers must be a list of texts, not {self.dry_sequence_breakers!r}",
                param="dry_sequence_breakers",
            )
        if self.logit_bias is not None and not isinstance(self.logit_bias, Mapping):
            raise InvalidArgumentError(
                f"logit_bias must be a dict of token to bias, not {self.logit_bias!r}", param="logit_bias"
            )
        if self.grammar is not None and not isinstance(self.grammar, str) and not hasattr(self.grammar, "sampler"):
            raise InvalidArgumentError(
                f"grammar must be GBNF or a pyllm.structured.Grammar, not {self.grammar!r}", param="grammar"
            )
        if self.seed is not None:
            _check_number("seed", self.seed, int, 0, 2**32 - 2)
        if self.samplers is not None:
            self._check_samplers(self.samplers)

    def _check_samplers(self, names: Sequence[str]) -> None:
        known = (*SAMPLER_ORDER, *_OTHER_SAMPLERS)
        if isinstance(names, str) or not isinstance(names, Sequence):
            what = "the text " if isinstance(names, str) else ""
            raise InvalidArgumentError(f"samplers must be a list of names, not {what}{names!r}", param="samplers")
        for name in names:
            if name not in known:
                raise InvalidArgumentError(
                    f"there is no sampler {name!r}; there are {', '.join(known)}", param="samplers"
                )
        if len(set(names)) < len(names):
            raise InvalidArgumentError(f"samplers must name each sampler once, not {list(names)}", param="samplers")
        if self.mirostat:
            return
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for sampler, fields in FIELDS_OF.items():
            for name in fields:
                if sampler not in names and getattr(self, name) != defaults[name]:
                    raise InvalidArgumentError(
                        f"{name}={getattr(self, name)} would have no effect: {sampler!r} is not in samplers", param=name
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
        raise InvalidArgumentError(f"{name} must be {what}{limits}, not {value!r}", param=name)


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

"""Sampling parameters that requests of all endpoints share: OpenAI's names and those of llama-server."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pyllm.params import FIELDS_OF, sampling_numbers
from pyllm.processors.base import LogitsProcessor, as_processors, copied, reset
from pyllm.server.constraints import ConstraintFields, GuidedFields
from pyllm.server.errors import invalid
from pyllm.server.settings import Settings
from pyllm.server.wire import (
    FINITE,
    Schema,
    Wire,
    about,
    at_least,
    expected_error,
    is_decimal,
    is_number,
    within,
)

MOST_TEXTS = 128
MOST_STOPS = 64
# More would be larger than everything else that a server sends.
MOST_LOGPROBS = 100
_N_SEEDS = 2**32 - 1
_LARGEST_SCALE = 3.0e38  # a float32 holds it
# Numbers of tokens, of which -1 is the whole context, as in llama-server.
_LAST_N = ("repeat_last_n", "dry_penalty_last_n")

Seed = (
    Annotated[int, Meta(ge=-(2**63), description="The same seed gives the same text where nothing else runs.")] | None
)
Stops = Annotated[
    str | Annotated[list[str], Meta(max_length=MOST_STOPS)] | None,
    about("Texts before which the answer ends; empty ones are left aside.", expected="a text or a list of texts"),
]
TokenLimit = Annotated[int, at_least(-1, "Most tokens of a text; -1: as many as there is room for.")] | None
SlotNumber = Annotated[int, within(-1, 2**31 - 1, "The slot that it is computed in, if that is free; -1: any.")] | None
# Fields of OpenAI and vLLM that would change the answer and cannot be obeyed, and the values at which they ask for
# nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "modalities": (["text"], []),
}
_BIAS: Schema = {"anyOf": [{"type": "number"}, {"const": False}]}
_PAIR: Schema = {"type": "array", "prefixItems": [{}, _BIAS], "minItems": 2, "maxItems": 2}


class LoraScale(Wire):
    """A LoRA adapter by its number, and its scale. No request makes the server read a file."""

    id: Annotated[int, at_least(0)]
    scale: Annotated[float, Meta(ge=-_LARGEST_SCALE, le=_LARGEST_SCALE)]


_LoraScale = Annotated[LoraScale, about("", expected="an object with id and scale")]
LoraScales = Annotated[list[_LoraScale], about("", expected="a list of objects with id and scale")]
Loras = Annotated[
    list[_LoraScale] | None,
    about(
        "The LoRA adapters of this request; those that are not named have the scale 0.",
        expected="a list of objects with id and scale",
    ),
]


def _number_struct(class_name: str, base: type[Wire], names: Iterable[str]) -> type[Wire]:
    """A wire type with numbers of :class:`pyllm.SamplingParams`, which checks their ranges itself."""
    fields: list[tuple[str, Any, None]] = []
    for name in names:
        one = sampling_numbers()[name]
        if one.kind is int:
            limits = about(one.help, minimum=-1 if name in _LAST_N else int(one.low), maximum=int(one.high))
            fields.append((name, Annotated[int | None, limits], None))
        else:
            number = Annotated[float, FINITE]
            fields.append((name, Annotated[number | None, about(one.help, minimum=one.low, maximum=one.high)], None))
    made: type[Any] = msgspec.defstruct(class_name, fields, bases=(base,), kw_only=True, module=__name__)
    return made


if TYPE_CHECKING:

    class _AllNumbers(ConstraintFields):
        pass

    class _FewNumbers(GuidedFields):
        temperature: float | None = None
        top_p: float | None = None

else:
    _AllNumbers = _number_struct("_AllNumbers", ConstraintFields, sampling_numbers())
    _FewNumbers = _number_struct("_FewNumbers", GuidedFields, ("temperature", "top_p", "top_k", "min_p"))


class FewSamplingFields(_FewNumbers):
    """Sampling parameters and constraints of the APIs that have no others."""

    seed: Seed = None
    id_slot: SlotNumber = None
    lora: Loras = None


class SamplingFields(_AllNumbers):
    """Sampling parameters and constraints of OpenAI's and llama-server's completions and chats."""

    seed: Seed = None
    id_slot: SlotNumber = None
    lora: Loras = None
    logit_bias: Annotated[
        Any,
        about(
            "Numbers that are added to logits, by token; false and -100 forbid one.",
            anyOf=[
                {"type": "object", "additionalProperties": _BIAS},
                {"type": "array", "items": _PAIR},
                {"type": "null"},
            ],
        ),
    ] = None
    ignore_eos: Annotated[bool | None, about("Whether the model cannot end a text.")] = None
    stop: Stops = None
    samplers: Annotated[str | list[str] | None, about("Names of samplers, in the order in which they are applied.")] = (
        None
    )
    dry_sequence_breakers: Annotated[str | list[str] | None, about("Texts at which a repetition ends.")] = None
    n: Annotated[int, within(1, MOST_TEXTS, "How many texts.")] | None = None
    max_tokens: TokenLimit = None
    max_completion_tokens: Annotated[int, at_least(-1, "The same.")] | None = None
    n_predict: Annotated[int, at_least(-1, "The same.")] | None = None
    cache_prompt: Annotated[bool | None, about("Whether what was computed for other prompts may be used.")] = None
    deterministic: Annotated[
        bool | None, about("The same seed gives the same text, independently of other requests.")
    ] = None
    speculative: Annotated[bool | None, about("False: tokens are not drafted for this text.")] = None
    repetition_penalty: Annotated[
        Annotated[float, FINITE] | None,
        about("repeat_penalty of vLLM and transformers, for every token so far.", minimum=1e-30, maximum=1e30),
    ] = None
    use_beam_search: Annotated[Any, about("Not supported.", enum=[False, None])] = None
    min_tokens: Annotated[Any, about("Not supported.", enum=[0, None])] = None
    stop_token_ids: Annotated[Any, about("Not supported.", enum=[[], None])] = None
    bad_words: Annotated[Any, about("Not supported.", enum=[[], None])] = None
    allowed_token_ids: Annotated[Any, about("Not supported.", enum=[[], None])] = None
    include_stop_str_in_output: Annotated[Any, about("Not supported.", enum=[False, None])] = None
    modalities: Annotated[Any, about("Text only.", enum=[["text"], [], None])] = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the model that limit parameters.

    Attributes:
        n_ctx: Tokens of the context.
        n_vocab: Tokens of the vocabulary.
        eog: The tokens that end a text.
        n_slots: Texts that are computed at once.
        adapters: Paths of the LoRA adapters, by their numbers.
    """

    n_ctx: int
    n_vocab: int
    eog: tuple[int, ...] = ()
    n_slots: int = 0
    adapters: tuple[str, ...] = ()


def sampling_arguments(
    fields: FewSamplingFields | SamplingFields, settings: Settings, sizes: Sizes, *, max_tokens: int | None = None
) -> dict[str, Any]:
    """Arguments of a completion, of what a request says about sampling, stops and the number of texts.

    Args:
        fields: The request.
        settings: The server's.
        sizes: Those of the model.
        max_tokens: Most tokens of a text, where the API has a name of its own for it.

    Raises:
        APIError: A value is out of range; the error names the parameter.
    """
    given = {name: getattr(fields, name, None) for name in sampling_numbers()}
    # Errors and answers repeat whole numbers as clients write them, 5 and not 5.0.
    result: dict[str, Any] = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in given.items()
        if value is not None
    }
    for name in _LAST_N:
        if result.get(name) == -1:
            result[name] = sizes.n_ctx
    all_fields = fields if isinstance(fields, SamplingFields) else None
    if all_fields is not None:
        result |= _vllm_arguments(all_fields, result, sizes)
    if fields.seed is not None and fields.seed != -1:
        # OpenAI's seeds are any 64-bit numbers.
        result["seed"] = fields.seed % _N_SEEDS
    if all_fields is not None and all_fields.dry_sequence_breakers is not None:
        result["dry_sequence_breakers"] = as_texts(all_fields.dry_sequence_breakers)
    if all_fields is not None and all_fields.samplers is not None:
        result["samplers"] = list(as_texts(all_fields.samplers))
    defaults = {name: value for name, value in settings.sampling.items() if name not in result}
    if fields.seed == -1:
        defaults.pop("seed", None)
    if "samplers" in result:
        # A request that names samplers need not know of the others' defaults.
        defaults = with_effect(defaults, result["samplers"])
    result = {**defaults, **result}
    bias = result.pop("logit_bias", {})
    if all_fields is not None:
        bias = {**bias, **logit_bias(all_fields.logit_bias, sizes.n_vocab)}
        if all_fields.ignore_eos:
            bias |= dict.fromkeys(sizes.eog, -math.inf)
    if bias:
        result["logit_bias"] = bias
    if all_fields is not None:
        result |= _text_arguments(all_fields)
        named = (all_fields.max_completion_tokens, all_fields.max_tokens, all_fields.n_predict)
        max_tokens = next((value for value in named if value is not None), None)
    if settings.logits_processors:
        result["logits_processor"] = [OfEachText(make) for make in settings.logits_processors]
    if fields.id_slot is not None:
        if fields.id_slot >= sizes.n_slots:
            raise expected_error("id_slot", f"from -1 to {sizes.n_slots - 1}", fields.id_slot)
        result["slot"] = fields.id_slot
    if fields.lora:  # an empty list: those of the server, as for llama-server
        result["lora"] = lora_pairs(fields.lora, sizes.adapters)
    if max_tokens is None or max_tokens == -1:
        result["max_tokens"] = settings.max_tokens
    else:
        result["max_tokens"] = max_tokens if settings.max_tokens is None else min(max_tokens, settings.max_tokens)
    return result


def _vllm_arguments(fields: SamplingFields, given: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Arguments for fields of vLLM; those that are not supported are errors."""
    for name, nothing in _REFUSED.items():
        value = getattr(fields, name)
        if value is not None and value not in nothing:
            raise invalid(name, f"{name} cannot be used here, and the answer would be another without it: leave it out")
    if fields.repetition_penalty is None or "repeat_penalty" in given:
        return {}
    # vLLM and transformers apply it to every token so far.
    return {
        "repeat_penalty": fields.repetition_penalty,
        "repeat_last_n": given.get("repeat_last_n", sizes.n_ctx),
    }


def _text_arguments(fields: SamplingFields) -> dict[str, Any]:
    result: dict[str, Any] = {}
    # Forms of other programs send an empty field as an empty text.
    stops = tuple(stop for stop in as_texts(fields.stop) if stop)
    if stops:
        result["stop"] = stops
    for name in ("n", "cache_prompt", "deterministic"):
        value = getattr(fields, name)
        if value is not None:
            result[name] = value
    if fields.speculative is not None:
        # None leaves it to the server: how drafts are made is for its operator to say.
        result["speculative"] = None if fields.speculative else False
    return result


def as_texts(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """A text or several, as several."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def lora_pairs(scales: Sequence[LoraScale], paths: Sequence[str], name: str = "lora") -> list[tuple[str, float]]:
    """The paths and scales that a list of numbers and scales stands for.

    Args:
        scales: The numbers and scales.
        paths: All adapters, by their numbers.
        name: What the list is called in errors; empty: it is the whole body.

    Raises:
        APIError: There is no such adapter, or one is there twice.
    """
    result: dict[str, float] = {}
    for i, one in enumerate(scales):
        where = f"{name}[{i}].id"
        if one.id >= len(paths):
            there = f"from 0 to {len(paths) - 1}" if paths else "one of none: the server was started without adapters"
            raise expected_error(where, there, one.id)
        if paths[one.id] in result:
            raise invalid(where, f"{where}: adapter {one.id} is there twice")
        result[paths[one.id]] = one.scale
    return list(result.items())


class OfEachText:
    """A logits processor of the server for one text: an engine, or another prompt of the request, clones it for others.

    Args:
        make: Makes processors, or gives one that all texts use; of that one texts at once have what copies it has.
    """

    def __init__(self, make: Callable[[], LogitsProcessor], *, before: LogitsProcessor | None = None) -> None:
        self._make = make
        self.made = make()
        (self._own,) = as_processors([copied(self.made) if self.made is before else self.made])

    def clone(self) -> OfEachText:
        """That of another text."""
        return OfEachText(self._make, before=self.made)

    def reset(self) -> None:
        """A text begins."""
        reset([self._own])

    def __call__(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> Any:
        return self._own(ids, logits)

    def __repr__(self) -> str:
        return repr(self._own)


def apart(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take from the arguments of a completion those that are the engine's own, which a chat does not know."""
    return {name: arguments.pop(name) for name in ("deterministic", "slot", "lora") if name in arguments}


def with_effect(arguments: dict[str, Any], samplers: Sequence[str] | None = None) -> dict[str, Any]:
    """The arguments without those of samplers that are left out.

    Args:
        arguments: Fields of :class:`pyllm.SamplingParams`, and others.
        samplers: The samplers. None: those among the arguments.
    """
    if samplers is None:
        samplers = arguments.get("samplers")
    if samplers is None:
        return arguments
    idle = {name for sampler, names in FIELDS_OF.items() if sampler not in samplers for name in names}
    return {name: value for name, value in arguments.items() if name not in idle}


def logit_bias(value: Any, n_vocab: int) -> dict[int | str, float]:
    """What is added to logits: OpenAI's object by ids, or llama-server's list of pairs, where false forbids a token."""
    result: dict[int | str, float] = {}
    for token, bias in bias_pairs(value, "an object of token ids and numbers", n_vocab):
        name = f"logit_bias[{token!r}]"
        key = int(token) if is_decimal(token) else token
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise invalid("logit_bias", f"{name}: a token must be an id or a text")
        if isinstance(key, int) and not 0 <= key < n_vocab:
            raise invalid("logit_bias", f"{name}: ids of tokens are from 0 to {n_vocab - 1}")
        if bias is False:
            result[key] = -math.inf
        elif not is_number(bias):
            raise invalid("logit_bias", f"{name} must be a number, not {bias!r}")
        else:
            # By OpenAI's words -100 is a ban.
            result[key] = -math.inf if bias <= -100 else float(bias)
    return result


def bias_pairs(value: Any, expected: str, n_vocab: int) -> list[Any]:
    """Tokens and what is added to their logits, as a request has them; the numbers are not checked.

    Args:
        value: The field.
        expected: What it must be, for the error.
        n_vocab: Tokens of the vocabulary. More entries would name a token twice, and a million of them would hold up
            the streams of others while they are read.

    Raises:
        APIError: It is neither an object nor a list of pairs, or has too many.
    """
    if value is None:
        return []
    if isinstance(value, (dict, list)) and len(value) > n_vocab:
        raise invalid("logit_bias", f"logit_bias has {len(value)} entries, and the model has {n_vocab} tokens")
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise expected_error("logit_bias", expected, value)
    return pairs

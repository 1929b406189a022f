"""The parameters of sampling that requests of all endpoints share: OpenAI's names and those of llama-server."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.params import FIELDS_OF
from pyllm.processors.base import LogitsProcessor, as_processors, copied, reset
from pyllm.server.errors import invalid
from pyllm.server.fields import Fields, is_decimal, is_number
from pyllm.server.lora.protocol import lora_pairs
from pyllm.server.settings import Settings

MOST_TEXTS = 128
MOST_STOPS = 64
# More would be larger than everything else that a server sends.
MOST_LOGPROBS = 100
_N_SEEDS = 2**32 - 1

# From llama-server's names to those of pyllm.
NUMBERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "top_n_sigma": "top_n_sigma",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repeat_penalty": "repeat_penalty",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "dynatemp_range": "dynatemp_range",
    "dynatemp_exponent": "dynatemp_exponent",
    "dry_multiplier": "dry_multiplier",
    "dry_base": "dry_base",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "adaptive_target": "adaptive_target",
    "adaptive_decay": "adaptive_decay",
}
INTEGERS = ("top_k", "min_keep", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat")
LAST_N = ("repeat_last_n", "dry_penalty_last_n")
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


@dataclass(frozen=True, slots=True)
class Sizes:
    """What of the model limits the values of parameters.

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


def sampling_arguments(fields: Fields, settings: Settings, sizes: Sizes) -> dict[str, Any]:
    """Arguments of a completion, of what a request says about sampling, stops and the number of texts.

    Args:
        fields: The request.
        settings: The server's.
        sizes: Those of the model.

    Raises:
        APIError: A value is out of range; the error names the parameter.
    """
    for name, nothing in _REFUSED.items():
        if name in fields and fields.get(name) not in nothing:
            raise invalid(name, f"{name} cannot be used here, and the answer would be another without it: leave it out")
    result: dict[str, Any] = {ours: fields.number(theirs) for theirs, ours in NUMBERS.items() if theirs in fields}
    for name in INTEGERS:
        if name in fields:
            value = fields.integer(name)
            # For llama-server -1 is the whole context.
            result[name] = sizes.n_ctx if value == -1 and name in LAST_N else value
    if "repetition_penalty" in fields and "repeat_penalty" not in result:
        # That of vLLM and transformers, who apply it to every token so far.
        result["repeat_penalty"] = fields.number("repetition_penalty")
        result.setdefault("repeat_last_n", sizes.n_ctx)
    if "dry_sequence_breakers" in fields:
        result["dry_sequence_breakers"] = fields.texts("dry_sequence_breakers")
    if "samplers" in fields:
        result["samplers"] = list(fields.texts("samplers"))
    seed = fields.integer("seed")
    if seed is not None and seed != -1:
        # OpenAI's seeds are any 64-bit numbers.
        result["seed"] = seed % _N_SEEDS
    defaults = {name: value for name, value in settings.sampling.items() if name not in result}
    if seed == -1:
        defaults.pop("seed", None)
    if "samplers" in result:
        # Who names samplers need not know of the others' defaults.
        defaults = with_effect(defaults, result["samplers"])
    result = {**defaults, **result}
    bias = {**result.pop("logit_bias", {}), **logit_bias(fields, sizes.n_vocab)}
    if fields.flag("ignore_eos"):
        bias |= dict.fromkeys(sizes.eog, -math.inf)
    if bias:
        result["logit_bias"] = bias
    # Forms of other programs send an empty field as an empty text.
    stops = tuple(stop for stop in fields.texts("stop", most=MOST_STOPS) if stop)
    if stops:
        result["stop"] = stops
    if "n" in fields:
        result["n"] = fields.integer("n", 1, MOST_TEXTS)
    if "cache_prompt" in fields:
        result["cache_prompt"] = fields.flag("cache_prompt")
    if "deterministic" in fields:
        result["deterministic"] = fields.flag("deterministic")
    if settings.logits_processors:
        result["logits_processor"] = [OfEachText(make) for make in settings.logits_processors]
    if "speculative" in fields:
        # None leaves it to the server: how drafts are made is for those who started it to say.
        result["speculative"] = None if fields.flag("speculative") else False
    slot = fields.integer("id_slot", -1, sizes.n_slots - 1)
    if slot is not None:
        result["slot"] = slot
    if fields.get("lora"):  # an empty list: those of the server, as for llama-server
        result["lora"] = lora_pairs(fields.get("lora"), sizes.adapters)
    result["max_tokens"] = _max_tokens(fields, settings)
    return result


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


def logit_bias(fields: Fields, n_vocab: int) -> dict[int | str, float]:
    """What is added to logits: OpenAI's object by ids, or llama-server's list of pairs, where false forbids a token."""
    value = fields.get("logit_bias")
    if value is None:
        return {}
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise fields.wrong("logit_bias", "an object of token ids and numbers")
    result: dict[int | str, float] = {}
    for token, bias in pairs:
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


def _max_tokens(fields: Fields, settings: Settings) -> int | None:
    name = fields.first("max_completion_tokens", "max_tokens", "n_predict")
    asked = fields.integer(name, -1)
    if asked is None or asked == -1:
        return settings.max_tokens
    return asked if settings.max_tokens is None else min(asked, settings.max_tokens)

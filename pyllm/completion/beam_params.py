"""The arguments of a beam search, checked before anything is computed."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pyllm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pyllm.core.model import Model

EarlyStopping = bool | Literal["never"]

# Arguments that only a beam search has, and what they are where they are not given.
DEFAULTS: dict[str, Any] = {"num_beams": None, "length_penalty": None, "early_stopping": None}

# Arguments of a completion that have no place in a beam search, and the values at which they ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "sampler": (None,),
    "best_of": (None,),
    "logprobs": (None,),
    "json_schema": (None,),
    "response_format": (None,),
    "regex": (None,),
    "choices": (None,),
    "speculative": (None, False),
}
# Of the sampling parameters: a beam search chooses the likeliest tokens, and nothing is random.
_ALLOWED_SAMPLING = ("seed",)
# So that no length to its power is too large for a float.
_MOST_PENALTY = 30


@dataclass(frozen=True, slots=True)
class BeamParams:
    """How to search.

    Attributes:
        num_beams: Beginnings that are kept.
        length_penalty: The score of a text is the sum of its log-probabilities, divided by its length in tokens to this
            power: above 0 prefers long texts, below 0 short ones.
        early_stopping: When the search ends, once there are `num_beams` finished texts. True: at once. False: when the
            best beginning could not beat the worst of them with its present length. "never": when it could not with
            any length.
    """

    num_beams: int
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False


def beam_params(own: Mapping[str, Any], sampling: Mapping[str, Any]) -> BeamParams | None:
    """How to search, from the arguments of a completion; None where they ask for no beam search.

    Args:
        own: All arguments of a completion but those of sampling, with their defaults.
        sampling: The arguments of sampling that were given.

    Raises:
        InvalidArgumentError: A number is out of range, or an argument cannot be combined with a beam search.
    """
    count = 1 if own["num_beams"] is None else own["num_beams"]
    if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1:
        raise InvalidArgumentError(f"num_beams must be an integer, at least 1, not {count!r}", param="num_beams")
    penalty, early = own["length_penalty"], own["early_stopping"]
    if count == 1:
        for name in ("length_penalty", "early_stopping"):
            if own[name] is not None:
                raise InvalidArgumentError(
                    f"{name}={own[name]!r} would have no effect: it belongs to a beam search, num_beams of at least 2",
                    param=name,
                )
        return None
    for name, nothing in _UNSUPPORTED.items():
        if not any(own[name] is value for value in nothing):
            raise InvalidArgumentError(f"a beam search (num_beams={count}) cannot be combined with {name}")
    for name, value in sampling.items():
        if name not in _ALLOWED_SAMPLING and value is not None and not (name == "temperature" and value == 0):
            raise InvalidArgumentError(
                f"a beam search (num_beams={count}) cannot be combined with {name}: it takes the likeliest texts, and "
                "only logits_processor changes what is likely"
            )
    if own["overflow"] == "shift":
        raise InvalidArgumentError(f"a beam search (num_beams={count}) cannot be combined with overflow='shift'")
    if penalty is None:
        penalty = 1.0
    if isinstance(penalty, bool) or not isinstance(penalty, numbers.Real) or not abs(float(penalty)) <= _MOST_PENALTY:
        raise InvalidArgumentError(
            f"length_penalty must be a number from -{_MOST_PENALTY} to {_MOST_PENALTY}, not {penalty!r}",
            param="length_penalty",
        )
    if early is not None and not isinstance(early, bool) and early != "never":
        raise InvalidArgumentError(
            f"early_stopping must be True, False or 'never', not {early!r}", param="early_stopping"
        )
    return BeamParams(int(count), float(penalty), False if early is None else early)


def check_request(beams: BeamParams, limit: int, processors: Iterable[object], model: Model) -> None:
    """Refuse what a beam search cannot do, as far as the context plays no part in it.

    Raises:
        InvalidArgumentError: The model has an encoder, a processor has a state, or no tokens are asked for.
    """
    asked = f"a beam search (num_beams={beams.num_beams})"
    if model.has_encoder:
        raise InvalidArgumentError(f"{asked} needs a model without an encoder; this is {model.path!r}")
    if limit < 1:
        raise InvalidArgumentError(f"{asked} needs max_tokens of at least 1")
    for processor in processors:
        if hasattr(processor, "reset") or hasattr(processor, "clone"):
            raise InvalidArgumentError(
                f"{asked} cannot be combined with the logits processor {processor!r}: it has a state, which belongs to "
                "one text, and beams branch at every token. A function of the ids alone can be"
            )

"""From numbers to strength of colour: one hue per kind of picture, stronger where there is more to see.

Strength alone tells, so that the pictures can be read by people who see colours differently, and on dark and on light
pages. All scales are fixed: colours mean the same in every picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllm.errors import InvalidArgumentError

#: Red, green, blue from 0 to 255, of a palette made for all kinds of colour vision (Okabe and Ito).
VERMILION = (213, 94, 0)
BLUE = (0, 114, 178)

#: Opacity of the strongest colour: text stays readable on it, black or white.
OPACITY = 0.75

LN2 = math.log(2)
LN10 = math.log(10)


@dataclass(frozen=True, slots=True)
class Scale:
    """What a strength of colour means.

    Attributes:
        name: What is shown: "probability", "entropy" or "rank".
        title: Its name in a legend.
        ticks: Places on the scale, from 0 to 1, with what to write there.
        strength: From values to strengths; NaN stays NaN.
        rgb: The hue.
    """

    name: str
    title: str
    ticks: tuple[tuple[float, str], ...]
    strength: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    rgb: tuple[int, int, int] = VERMILION

    def __call__(self, values: ArrayLike) -> NDArray[np.float64]:
        """Strengths from 0 to 1 of values; NaN stays NaN."""
        return np.clip(self.strength(np.asarray(values, np.float64)), 0.0, 1.0)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # -1 says that there is no rank.
    strengths: NDArray[np.float64] = np.log10(np.where(values < 0, np.nan, values) + 1) / 4
    return strengths


#: How improbable a token was; of log-probabilities (natural logarithm).
PROBABILITY = Scale(
    "probability",
    "probability of the token",
    ((0.0, "100 %"), (0.25, "10 %"), (0.5, "1 %"), (0.75, "0.1 %"), (1.0, "≤ 0.01 %")),
    lambda logprobs: -logprobs / LN10 / 4,
)

#: How open the choice was; of entropies in nats.
ENTROPY = Scale(
    "entropy",
    "entropy of the forecast, in bits",
    ((0.0, "0"), (0.25, "2"), (0.5, "4"), (0.75, "6"), (1.0, "≥ 8")),
    lambda nats: nats / LN2 / 8,
)

#: How many tokens were likelier; of ranks, where 0 is the likeliest.
RANK = Scale(
    "rank",
    "rank of the token; 0 is the likeliest",
    (
        (0.0, "0"),
        (math.log10(11) / 4, "10"),
        (math.log10(101) / 4, "100"),
        (math.log10(1001) / 4, "1000"),
        (1.0, "≥ 9999"),
    ),
    _ranks,
)

#: How sure a forecast is; of log-probabilities.
CERTAINTY = Scale(
    "certainty",
    "probability of the token shown",
    ((0.0, "0 %"), (0.25, "25 %"), (0.5, "50 %"), (0.75, "75 %"), (1.0, "100 %")),
    lambda logprobs: np.exp(logprobs),
    BLUE,
)

#: The ways to colour a scored text, by name.
MEASURES = {scale.name: scale for scale in (PROBABILITY, ENTROPY, RANK)}


def measure(name: str) -> Scale:
    """The scale of that name.

    Raises:
        InvalidArgumentError: There is none.
    """
    if name not in MEASURES:
        raise InvalidArgumentError(f"a text is coloured by {', '.join(map(repr, MEASURES))}, not by {name!r}")
    return MEASURES[name]


def percent(logprob: float) -> str:
    """A log-probability, for people.

    >>> percent(0.0), percent(math.log(0.0123)), percent(-30.0), percent(-math.inf)
    ('100 %', '1.2 %', '9e-12 %', '0 %')
    """
    value = 100 * math.exp(logprob)
    if value >= 99.95 or value == 0:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.095 else f"{value:.2g} %" if value >= 1e-4 else f"{value:.0e} %"


def mixed(strength: float, rgb: tuple[int, int, int]) -> tuple[Any, ...]:
    """The colour on white paper, as red, green and blue from 0 to 1; white for NaN."""
    alpha = 0.0 if math.isnan(strength) else OPACITY * strength
    return tuple(1 - alpha + alpha * c / 255 for c in rgb)


__all__ = [
    "BLUE",
    "CERTAINTY",
    "ENTROPY",
    "MEASURES",
    "OPACITY",
    "PROBABILITY",
    "RANK",
    "VERMILION",
    "Scale",
    "measure",
    "mixed",
    "percent",
]

"""Colours mean what the legends say."""

import math

import numpy as np
import pytest

from pyllm import errors
from pyllm.viz import scales


@pytest.mark.parametrize("scale", [*scales.MEASURES.values(), scales.CERTAINTY], ids=lambda scale: scale.name)
def test_ticks_stand_where_their_values_are(scale):
    units = {"probability": math.log, "certainty": math.log, "entropy": lambda bits: bits * math.log(2), "rank": float}
    for place, text in scale.ticks:
        number = float(text.strip("≤≥ %").replace(" ", ""))
        if text.endswith("%"):
            number = max(number / 100, 1e-30)
        assert math.isclose(float(scale(units[scale.name](number))), place, abs_tol=1e-6), text


def test_strengths_stay_between_0_and_1_and_nan_stays():
    values = [0.0, -1e9, -math.inf, math.nan, 1e-9]
    for scale in (scales.PROBABILITY, scales.CERTAINTY):
        strengths = scale(values)
        assert np.isnan(strengths).tolist() == [False, False, False, True, False]
        assert (strengths[~np.isnan(strengths)] >= 0).all() and (strengths[~np.isnan(strengths)] <= 1).all()
    assert np.isnan(scales.RANK([-1])).all()


@pytest.mark.parametrize(
    ("probability", "text"),
    [(1.0, "100 %"), (0.9996, "100 %"), (0.5, "50.0 %"), (0.0123, "1.2 %"), (1e-3, "0.1 %"), (5.2e-5, "0.0052 %"),
     (1e-9, "1e-07 %"), (0.0, "0 %")],
)  # fmt: skip
def test_percentages(probability, text):
    assert scales.percent(math.log(probability) if probability else -math.inf) == text


def contrast(a, b):
    """Contrast of two colours as WCAG defines it."""

    def luminance(rgb):
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("rgb", [scales.VERMILION, scales.BLUE])
@pytest.mark.parametrize(("paper", "ink"), [(1.0, 0.13), (0.07, 0.87)], ids=["light", "dark"])
def test_text_is_readable_on_every_strength(rgb, paper, ink):
    for strength in np.linspace(0, 1, 11):
        alpha = strength * scales.OPACITY
        colour = [paper * (1 - alpha) + alpha * c / 255 for c in rgb]
        assert contrast(colour, [ink] * 3) >= 3.9


def test_colours_on_paper():
    assert scales.mixed(0.0, scales.BLUE) == scales.mixed(math.nan, scales.BLUE) == (1, 1, 1)
    assert np.allclose(scales.mixed(1.0, (0, 255, 0)), (0.25, 1.0, 0.25))


def test_there_are_three_measures():
    assert scales.measure("rank") is scales.RANK
    with pytest.raises(errors.InvalidArgumentError, match="'probability', 'entropy', 'rank', not by 'surprise'"):
        scales.measure("surprise")

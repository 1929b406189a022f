"""A matplotlib figure that is laid out in inches and shows itself in a notebook. Imports matplotlib."""

from __future__ import annotations

import io
import math
from functools import cache
from typing import Any

import numpy as np

from pyllm.extras import missing

try:
    from matplotlib import rcParams
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.patches import Rectangle
except ImportError as error:
    raise missing("figures need matplotlib", extra="viz") from error

from pyllm.viz.scales import Scale, mixed

MARGIN = 0.15
LEGEND_HEIGHT = 0.55
LEGEND_WIDTH = 3.4


class Canvas(Figure):
    """A figure without pyplot: nothing has to be closed, and no window opens.

    Args:
        width: In inches.
        height: In inches.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height))

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=120)
        return file.getvalue()

    def place(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """Axes at a place in inches, from the lower left corner."""
        w, h = self.get_size_inches()
        return self.add_axes((left / w, bottom / h, width / w, height / h))

    def legend_of(self, scale: Scale) -> None:
        """Write the legend of a scale into the lower left corner, :data:`LEGEND_HEIGHT` inches high."""
        axes = self.place(MARGIN + 0.1, MARGIN + 0.15, LEGEND_WIDTH - 0.2, 0.12)
        steps: Any = np.array([[mixed(float(strength), scale.rgb) for strength in np.linspace(0, 1, 64)]])
        axes.imshow(steps, aspect="auto", extent=(0, 1, 0, 1), interpolation="bilinear")
        axes.set_yticks([])
        axes.set_xticks([place for place, _ in scale.ticks], [text for _, text in scale.ticks], size=6.5)
        axes.tick_params(length=2, pad=1.5, color="#808080")
        axes.spines[:].set_color("#808080")
        axes.set_title(scale.title, size=7.5, loc="left", pad=2.5)


def write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write a token: in a font of fixed width, and dollar signs are no formulas. See :func:`drawable`."""
    usual: dict[str, Any] = {"family": list(fonts()), "size": 9, "va": "center", "parse_math": False}
    axes.text(x, y, text, **(usual | style))


def box(
    axes: Axes, x: float, y: float, width: float, height: float, strength: float, rgb: tuple[int, int, int]
) -> None:
    """A rectangle in a colour; NaN has a frame instead."""
    edge = "#808080" if math.isnan(strength) else "#e0e0e0"
    axes.add_patch(Rectangle((x, y), width, height, facecolor=mixed(strength, rgb), edgecolor=edge, linewidth=0.5))


def fonts() -> tuple[str, ...]:
    """The fonts of fixed width that are there, of those in ``rcParams["font.monospace"]``."""
    return tuple(name for name in rcParams["font.monospace"] if _has_font(name))


@cache
def _has_font(name: str) -> bool:
    try:
        findfont(name, fallback_to_default=False)
    except ValueError:
        return False
    return True


@cache
def _has_glyph(character: str, names: tuple[str, ...]) -> bool:
    return any(get_font(findfont(name)).get_char_index(ord(character)) for name in names)


def drawable(text: str) -> str:
    """The text, with the number of each character that no font has.

    For others, put a font that has them into ``matplotlib.rcParams["font.monospace"]``.
    """
    names = fonts()
    return "".join(c if _has_glyph(c, names) else f"⟨U+{ord(c):04X}⟩" for c in text)


def ramp_map(rgb: tuple[int, int, int]) -> LinearSegmentedColormap:
    """From white to a hue."""
    return LinearSegmentedColormap.from_list("pyllm", [mixed(0.0, rgb), mixed(1.0, rgb)])


__all__ = ["LEGEND_HEIGHT", "LEGEND_WIDTH", "MARGIN", "Canvas", "box", "drawable", "fonts", "ramp_map", "write"]

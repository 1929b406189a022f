"""The same pictures as matplotlib figures, for papers and slides. Needs the extra ``viz``.

No figure belongs to pyplot: nothing has to be closed, no window opens, and a notebook shows the one that a cell ends
with. ``figure.savefig("picture.svg")`` writes a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError
from pyllm.viz.data import (
    Activations,
    LensTable,
    ScoredText,
    as_rows,
    check_shown,
    lens_rows,
    rms_by_position,
    summary,
    top_of_rows,
)
from pyllm.viz.pieces import NEWLINE, label, visible, width
from pyllm.viz.scales import BLUE, CERTAINTY, LN2, measure, mixed, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In inches: a character of 9 points in matplotlib's own font of fixed width, and what two lines are apart.
_COLUMN = 9 / 72 * 0.6021
_LINE = 0.24
_HEAD = 0.3


def token_map(scored: ScoredText, by: str = "probability", columns: int = 88) -> Figure:
    """A text, each token coloured by how it was forecast.

    Args:
        scored: What ``pyllm.eval.logprobs`` gives.
        by: "probability", "entropy" or "rank".
        columns: Characters in a line.

    Raises:
        InvalidArgumentError: `by` is something else, or there are no columns.
        MissingDependencyError: matplotlib is not installed.
    """
    from pyllm.viz.canvas import LEGEND_HEIGHT, LEGEND_WIDTH, MARGIN, Canvas, box, drawable, write

    check_shown(scored, ScoredText, "pyllm.eval.logprobs")
    scale = measure(by)
    if columns < 2:
        raise InvalidArgumentError(f"columns must be at least 2, not {columns}")
    strengths = scale({"probability": scored.logprobs, "entropy": scored.entropy, "rank": scored.ranks}[by])
    pieces = [scored.vocab.token_to_piece(token) for token in scored.tokens.tolist()]
    parts, n_lines = _broken([drawable(visible(piece)) for piece in pieces], columns)
    height = n_lines * _LINE
    canvas = Canvas(max(columns * _COLUMN, LEGEND_WIDTH) + 2 * MARGIN, _HEAD + height + LEGEND_HEIGHT + 2 * MARGIN)
    axes = canvas.place(MARGIN, MARGIN + LEGEND_HEIGHT, columns * _COLUMN, height)
    axes.set(xlim=(0, columns), ylim=(max(n_lines, 1), 0))
    axes.axis("off")
    axes.set_title(summary(scored), size=9, loc="left", weight="bold")
    for i, text, column, line in parts:
        box(axes, column, line + 0.08, width(text), 0.84, float(strengths[i]), scale.rgb)
        write(axes, column, line + 0.52, text)
    canvas.legend_of(scale)
    return canvas


def top_tokens(logits: ArrayLike, vocab: Vocab, k: int = 10) -> Figure:
    """The likeliest tokens of one row of logits, as bars.

    Args:
        logits: float32, shape (n_vocab,) or (1, n_vocab).
        vocab: What the columns are.
        k: How many tokens.

    Raises:
        InvalidArgumentError: These are several rows, or their columns are not those of the vocabulary.
        MissingDependencyError: matplotlib is not installed.
    """
    from pyllm.viz.canvas import MARGIN, Canvas, drawable, fonts

    rows = as_rows(logits, vocab)
    if len(rows) != 1:
        raise InvalidArgumentError(f"bars show one row of logits, not {len(rows)}; choose one, as in logits[-1]")
    top = top_of_rows(rows, vocab, k)[0]
    labels = [drawable(text) for text, _ in top.tokens]
    left = MARGIN + _COLUMN * max(map(width, labels), default=0)
    height = 0.24 * max(1, len(labels))
    canvas = Canvas(left + 3.6, _HEAD + height + 2 * MARGIN)
    axes = canvas.place(left + 0.1, MARGIN, 3.2, height)
    values = [math.exp(logprob) for _, logprob in top.tokens]
    axes.barh(range(len(values)), values, color=mixed(1.0, BLUE))
    for i, (value, (_, logprob)) in enumerate(zip(values, top.tokens, strict=True)):
        axes.text(value, i, f" {percent(logprob)}", va="center", size=8, parse_math=False)
    axes.set_yticks(range(len(labels)), labels, family=list(fonts()), size=9, parse_math=False)
    axes.set_xticks([])
    axes.set(xlim=(0, 1.2 * max(values, default=1.0)), ylim=(max(1, len(labels)) - 0.5, -0.5))
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(top.note or f"entropy {top.entropy / LN2:.1f} bits", size=9, loc="left", weight="bold")
    return canvas


def lens_table(lens: LensTable, layers: Sequence[int] | None = None) -> Figure:
    """The token that each layer would say next, at each position; the last layer stands on top.

    Args:
        lens: What :func:`pyllm.interp.logit_lens` gives.
        layers: Which of its layers; None means all.

    Raises:
        InvalidArgumentError: The lens has no such layer.
        MissingDependencyError: matplotlib is not installed.
    """
    from pyllm.viz.canvas import LEGEND_HEIGHT, LEGEND_WIDTH, MARGIN, Canvas, drawable, fonts, write

    def name(token: int) -> str:
        return drawable(label(lens.vocab.token_to_piece(token), 10))

    rows = lens_rows(lens, layers)
    names = [name(token) for token in lens.tokens[lens.positions].tolist()]
    cells = [[name(token) for token in lens.top_tokens[row, :, 0].tolist()] for row in rows]
    sure = CERTAINTY(lens.top_logprobs[rows, :, 0])
    columns = [max(map(width, (name, *column))) + 1 for name, *column in zip(names, *cells, strict=True)]
    edges = np.concatenate([[0], np.cumsum(columns)])
    height = _LINE * len(rows)
    canvas = Canvas(
        max(edges[-1] * _COLUMN + 0.9, LEGEND_WIDTH) + 2 * MARGIN, height + _HEAD + LEGEND_HEIGHT + 2 * MARGIN
    )
    axes = canvas.place(MARGIN + 0.6, MARGIN + LEGEND_HEIGHT, edges[-1] * _COLUMN, height)
    colours = np.array([[mixed(float(strength), BLUE) for strength in row] for row in sure])
    axes.pcolormesh(edges, np.arange(len(rows) + 1), colours, edgecolors="white", linewidth=1)
    for y, row in enumerate(cells):
        for x, text in enumerate(row):
            place = (edges[x] + edges[x + 1]) / 2
            write(axes, place, y + 0.54, text, ha="center", size=8)
    axes.set(xlim=(0, edges[-1]), ylim=(len(rows), 0))
    axes.xaxis.tick_top()
    axes.set_xticks((edges[1:] + edges[:-1]) / 2, names, family=list(fonts()), size=8, weight="bold", parse_math=False)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [str(lens.layers[row]) for row in rows], size=8)
    axes.set_ylabel("after layer", size=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    canvas.legend_of(CERTAINTY)
    return canvas


def activations(cache: Activations, name: str = "resid_post", vocab: Vocab | None = None) -> Figure:
    """How large an activation is, at each layer and position: its root mean square, on a logarithmic scale.

    Args:
        cache: What :meth:`pyllm.interp.Interp.run_with_cache` gives.
        name: A name with * for the layer, or its end: "blocks.*.hook_resid_post", "resid_post".
        vocab: Writes the tokens below the positions.

    Raises:
        InvalidArgumentError: The cache holds nothing of that name, or it has no positions.
        MissingDependencyError: matplotlib is not installed.
    """
    from pyllm.viz.canvas import MARGIN, Canvas, drawable, fonts, ramp_map

    profile, values = rms_by_position(cache, name)
    n_layers, n = values.shape
    wide, high = min(0.3 * n, 12.0), max(0.14 * n_layers, 0.6)
    canvas = Canvas(wide + 1.7, high + _HEAD + 1.1 + MARGIN)
    axes = canvas.place(0.6, 1.1, wide, high)
    sizes = np.log10(np.maximum(values, 1e-12))
    image = axes.imshow(sizes, aspect="auto", origin="lower", cmap=ramp_map(BLUE), interpolation="nearest")
    if vocab is not None and n <= 64:
        names = [drawable(label(vocab.token_to_piece(token), 10)) for token in cache.tokens[cache.positions].tolist()]
        axes.set_xticks(range(n), names, rotation=90, family=list(fonts()), size=7, parse_math=False)
    else:
        axes.set_xlabel("position", size=8)
    steps = range(0, n_layers, max(1, n_layers // 10))
    axes.set_yticks(steps, ["–" if profile.layers[i] is None else str(profile.layers[i]) for i in steps], size=8)
    axes.set_ylabel("layer", size=8)
    axes.tick_params(length=2)
    axes.set_title(profile.name, size=9, loc="left", weight="bold")
    bar = canvas.colorbar(image, cax=canvas.place(0.6 + wide + 0.15, 1.1, 0.12, high))
    bar.ax.tick_params(labelsize=7, length=2)
    bar.ax.set_title("log₁₀ RMS", size=7, loc="left")
    return canvas


def _broken(tokens: Sequence[str], columns: int) -> tuple[list[tuple[int, str, int, int]], int]:
    """Break tokens into lines: (index of the token, text, column, line) for each part, and the number of lines."""
    parts: list[tuple[int, str, int, int]] = []
    column = line = 0
    for i, text in enumerate(tokens):
        ends = text.endswith(NEWLINE)
        if column + width(text) > columns and column:
            column, line = 0, line + 1
        while text:
            n = next((n for n in range(1, len(text)) if width(text[: n + 1]) > columns), len(text))
            parts.append((i, text[:n], column, line))
            column += width(text[:n])
            text = text[n:]
            if text:
                column, line = 0, line + 1
        if ends:
            column, line = 0, line + 1
    return parts, line + (column > 0)


__all__ = ["activations", "lens_table", "token_map", "top_tokens"]

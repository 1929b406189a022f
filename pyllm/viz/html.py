"""Pictures for notebooks, as HTML that stands by itself: no JavaScript, nothing loaded, readable on dark pages.

The text of tokens comes from models and files. It is escaped everywhere, and characters that cannot be seen, or that
turn the direction of writing, are shown by their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike

from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError
from pyllm.viz.data import (
    Activations,
    LensTable,
    Profile,
    ScoredText,
    Top,
    as_rows,
    check_shown,
    lens_rows,
    profiles,
    summary,
    top_of,
    top_of_rows,
)
from pyllm.viz.page import Html, alternatives, cell, picture, ramp
from pyllm.viz.pieces import label, visible
from pyllm.viz.scales import BLUE, CERTAINTY, LN2, MEASURES, measure, percent

#: Rows of logits that a notebook shows.
MAX_ROWS = 16

#: Tokens of a text that are shown if nothing else is said: more make a notebook slow.
MAX_TOKENS = 1024

#: Positions of a lens that are shown if nothing else is said.
MAX_POSITIONS = 64

_HINT = "Point at a token, or click on it, to see what else was likely."
_LETTERS = {"probability": "p", "entropy": "e", "rank": "r"}


def token_map(scored: ScoredText, by: str = "probability", limit: int | None = MAX_TOKENS) -> Html:
    """A text, each token coloured by how it was forecast; a click changes what is coloured.

    Args:
        scored: What ``pyllm.eval.logprobs`` gives; with its ``top_k`` the picture shows what else was likely.
        by: What is shown first: "probability", "entropy" or "rank".
        limit: Show so many tokens; None shows all.

    Raises:
        InvalidArgumentError: `by` is something else, or the limit is less than 1.
    """
    check_shown(scored, ScoredText, "pyllm.eval.logprobs")
    chosen = measure(by)
    _check_limit(limit)
    strengths = {
        "probability": MEASURES["probability"](scored.logprobs),
        "entropy": MEASURES["entropy"](scored.entropy),
        "rank": MEASURES["rank"](scored.ranks),
    }
    cells = []
    for i, token in enumerate(scored.tokens[:limit].tolist()):
        piece = scored.vocab.token_to_piece(token)
        text = visible(piece) + ("\n" if piece.endswith(b"\n") else "")
        others = [(letter, float(strengths[name][i])) for name, letter in _LETTERS.items()]
        cells.append(cell(text, float(strengths[by][i]), _details(scored, i, label(piece)), others=others))
    choices = "".join(
        f'<label><input type="radio" name="by" value="{letter}"{" checked" if name == by else ""}>{name}</label>'
        for name, letter in _LETTERS.items()
    )
    ramps = "".join(
        f'<span class="legend for-{_LETTERS[name]}">{ramp(scale)}</span>' for name, scale in MEASURES.items()
    )
    style = "".join(
        f".pyllm:has([value={x}]:checked) .text .cell:not(.none){{--v:var(--{x},0)}}"
        f".pyllm:has([value={x}]:not(:checked)) .for-{x}{{display:none}}"
        for x in _LETTERS.values()
    )
    content = (
        f'<div class="head">{summary(scored)}</div><div class="legend">{choices}{ramps}</div>'
        f'<div class="text" dir="auto">{"".join(cells)}</div>{_left(len(scored.tokens) - len(cells), "token")}'
    )
    return picture(content, chosen.rgb, 3 + max(1, scored.top_tokens.shape[1]), _HINT, style)


def top_tokens(logits: ArrayLike, vocab: Vocab, k: int = 8) -> Html:
    """The likeliest tokens of rows of logits.

    Args:
        logits: One row or several: float32, shape (n_vocab,) or (n, n_vocab). At most :data:`MAX_ROWS` are shown.
        vocab: What the columns are.
        k: How many tokens of each row.

    Raises:
        InvalidArgumentError: The columns are not those of the vocabulary, or k is less than 1.
    """
    rows = as_rows(logits, vocab)
    tops = top_of_rows(rows[:MAX_ROWS], vocab, k)
    head = f'<div class="head">Logits <span class="dim">{rows.shape[0]} × {rows.shape[1]}</span></div>'
    if len(tops) == 1:
        return picture(head + _one_row(tops[0]), BLUE)
    lines = []
    for i, top in enumerate(tops):
        cells = "".join(
            f'<td class="mono cell" style="--v:{math.exp(logprob):.3g}">{escape(text)} '
            f'<span class="dim">{percent(logprob)}</span></td>'
            for text, logprob in top.tokens
        )
        bits = f"{top.entropy / LN2:.1f}" if math.isfinite(top.entropy) else "–"
        note = f'<td class="dim">{top.note}</td>' if top.note else ""
        lines.append(f'<tr><th class="number">{i}</th><td class="number">{bits}</td>{cells}{note}</tr>')
    header = f'<tr><th class="number">row</th><th class="number">bits</th><th colspan="{k}">likeliest tokens</th></tr>'
    table = f'<div class="scroll"><table>{header}{"".join(lines)}</table></div>'
    more = _left(len(rows) - len(tops), "row")
    return picture(f'{head}<div class="legend">{ramp(CERTAINTY)}</div>{table}{more}', BLUE)


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise InvalidArgumentError(f"limit must be at least 1, or None for everything, not {limit}")


def _left(n: int, what: str) -> str:
    return f'<div class="dim">and {n} {what}{"s" if n > 1 else ""} more</div>' if n > 0 else ""


def lens_table(lens: LensTable, layers: Sequence[int] | None = None, limit: int | None = MAX_POSITIONS) -> Html:
    """The token that each layer would say next, at each position; the last layer stands on top.

    Args:
        lens: What :func:`pyllm.interp.logit_lens` gives.
        layers: Which of its layers; None means all.
        limit: Show so many positions; None shows all.

    Raises:
        InvalidArgumentError: The lens has no such layer, or the limit is less than 1.
    """
    _check_limit(limit)
    rows = lens_rows(lens, layers)
    ids = lens.tokens[lens.positions][:limit].tolist()
    names = "".join(f'<th class="mono">{escape(label(lens.vocab.token_to_piece(token), 14))}</th>' for token in ids)
    lines = []
    for row in rows:
        strengths = CERTAINTY(lens.top_logprobs[row, : len(ids), 0])
        cells = []
        for i, strength in enumerate(strengths.tolist()):
            top = top_of(lens.top_tokens[row, i], lens.top_logprobs[row, i], lens.vocab)
            text = label(lens.vocab.token_to_piece(int(lens.top_tokens[row, i, 0])), 14)
            cells.append(cell(text, strength, _lens_details(lens, row, i, top), "td"))
        lines.append(f'<tr><th class="number">{lens.layers[row]}</th>{"".join(cells)}</tr>')
    content = (
        f'<div class="head">Logit lens <span class="dim">what each layer would say next</span></div>'
        f'<div class="legend">{ramp(CERTAINTY)}</div>'
        f'<div class="scroll"><table class="mono"><tr><th class="number">layer</th>{names}</tr>'
        f"{''.join(lines)}</table></div>{_left(len(lens.positions) - len(ids), 'position')}"
    )
    return picture(content, CERTAINTY.rgb, 3 + lens.top_tokens.shape[2], _HINT)


def activations(cache: Activations) -> Html:
    """What a cache holds: names, layers, shapes, and how large the values are in each layer.

    Args:
        cache: What :meth:`pyllm.interp.Interp.run_with_cache` gives.
    """
    found = profiles(cache)
    n, total = len(cache.positions), sum(cache[name].nbytes for name in cache.points)
    lines = "".join(_profile_row(cache, profile) for profile in found)
    content = (
        f'<div class="head">Activations <span class="dim">{len(cache.points)} arrays, positions: {n}, '
        f"{total / 2**20:.1f} MiB</span></div>"
        '<div class="legend dim">Colour: root mean square of a layer, relative to the largest in its line.</div>'
        '<div class="scroll"><table><tr><th>name</th><th>shape</th><th>root mean square</th><th>by layer</th></tr>'
        f"{lines}</table></div>"
    )
    return picture(content, BLUE, 3, "Point at a layer, or click on it, to see its name and its size.")


def _profile_row(cache: Activations, profile: Profile) -> str:
    largest = float(profile.rms.max()) or 1.0
    cells = []
    for name, layer, rms in zip(profile.names, profile.layers, profile.rms.tolist(), strict=True):
        more = (
            f'<span class="mono">{escape(name)}</span> <span class="dim">float32 {cache[name].shape}</span>'
            f"<div>root mean square {rms:.4g}</div>"
        )
        cells.append(cell("–" if layer is None else str(layer), rms / largest, more))
    shape = " × ".join(map(str, profile.shape))
    low, high = float(profile.rms.min()), float(profile.rms.max())
    spread = f"{high:.3g}" if len(profile.names) == 1 else f"{low:.3g} … {high:.3g}"
    return (
        f'<tr><th class="mono">{escape(profile.name)}</th><td>{shape}</td><td class="number">{spread}</td>'
        f'<td class="mono strip">{"".join(cells)}</td></tr>'
    )


def _lens_details(lens: LensTable, row: int, i: int, top: list[tuple[str, float]]) -> str:
    position = int(lens.positions[i])
    before = label(lens.vocab.token_to_piece(int(lens.tokens[position])))
    head = (
        f'after <span class="mono">{escape(before)}</span> <span class="dim">position {position}, '
        f"layer {lens.layers[row]}</span>"
    )
    mark = None
    if not math.isnan(lens.target_logprobs[row, i]):
        following = int(lens.tokens[position + 1])
        name = escape(label(lens.vocab.token_to_piece(following)))
        head += (
            f'<div>the text goes on with <span class="mono">{name}</span>: '
            f"{percent(float(lens.target_logprobs[row, i]))}, rank {int(lens.target_ranks[row, i])}</div>"
        )
        found = np.flatnonzero(lens.top_tokens[row, i] == following)
        mark = int(found[0]) if len(found) else None
    return head + alternatives(top, mark)


def _one_row(top: Top) -> str:
    note = f'<div class="dim">{top.note}</div>' if top.note else ""
    bits = f'<div class="dim">entropy {top.entropy / LN2:.1f} bits</div>' if math.isfinite(top.entropy) else ""
    return f"{alternatives(top.tokens)}{bits}{note}"


def _details(scored: ScoredText, i: int, text: str) -> str:
    token = int(scored.tokens[i])
    name = f'<span class="mono">{escape(text)}</span> <span class="dim">token {token}, position {i}</span>'
    if math.isnan(scored.logprobs[i]):
        return f"{name}<div>Nothing stands before it, so there was no forecast.</div>"
    top = top_of(scored.top_tokens[i], scored.top_logprobs[i], scored.vocab)
    found = np.flatnonzero(scored.top_tokens[i] == token)
    others = alternatives(top, int(found[0]) if len(found) else None)
    if not scored.top_tokens.shape[1]:
        others = '<div class="dim">logprobs(…, top_k=5) keeps what else was likely.</div>'
    return (
        f"{name}<div>probability {percent(float(scored.logprobs[i]))}, rank {int(scored.ranks[i])}, "
        f"entropy {float(scored.entropy[i]) / LN2:.1f} bits</div>"
        f"{others}"
    )


__all__ = ["MAX_POSITIONS", "MAX_ROWS", "MAX_TOKENS", "Html", "activations", "lens_table", "token_map", "top_tokens"]

"""What all HTML pictures share: the class that notebooks show, styles, legends and the panel for details."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from pyllm.viz.scales import OPACITY, Scale, percent

# Colours of text and background are the page's own; panels ask the notebook for them. A cell sets --v, the strength
# of its colour, and --c is the hue. What is under the pointer, or was clicked, shows its details in the panel.
_STYLE = f"""
.pyllm{{position:relative;font:14px/1.5 system-ui,sans-serif;max-width:72rem}}
.pyllm .mono,.pyllm .text{{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;font-size:13px}}
.pyllm .text{{white-space:pre-wrap;line-height:2;overflow-wrap:anywhere;margin:.4em 0}}
.pyllm .cell{{background:rgb(var(--c)/calc(var(--v,0)*{OPACITY}));cursor:default;border-radius:3px}}
.pyllm .text .cell{{padding:.2em 0;box-shadow:inset 0 0 0 1px rgb(128 128 128/.18)}}
.pyllm .none,.pyllm .text .none{{box-shadow:inset 0 0 0 1px rgb(128 128 128/.6)}}
.pyllm .cell:hover,.pyllm .cell:focus{{outline:2px solid currentColor;outline-offset:-1px}}
.pyllm .more{{display:none;position:absolute;left:0;right:0;bottom:0;height:var(--h);overflow:auto;
box-sizing:border-box;padding:.4em .8em;white-space:normal;font:14px/1.45 system-ui,sans-serif;z-index:1;
background:var(--jp-layout-color1,var(--vscode-editor-background,Canvas));
color:var(--jp-content-font-color1,var(--vscode-editor-foreground,CanvasText))}}
.pyllm .cell:focus>.more{{display:block}}
.pyllm .cell:hover>.more{{display:block;z-index:2}}
.pyllm .panel{{height:var(--h);box-sizing:border-box;padding:.4em .8em;opacity:.7;
border-top:1px solid rgb(128 128 128/.4)}}
.pyllm .scroll{{overflow-x:auto}}
.pyllm table{{border-collapse:separate;border-spacing:2px;margin:.3em 0;width:auto;border:0;font-size:inherit}}
.pyllm th,.pyllm td{{padding:.1em .5em;border:0;text-align:left;white-space:nowrap;background:none;color:inherit}}
.pyllm th{{font-weight:600}}
.pyllm td.number,.pyllm th.number{{text-align:right;font-variant-numeric:tabular-nums}}
.pyllm td.cell{{background:rgb(var(--c)/calc(var(--v,0)*{OPACITY}))}}
.pyllm .strip .cell{{display:inline-block;min-width:1.9em;text-align:center;font-size:11px;margin-right:1px}}
.pyllm .bar{{display:inline-block;height:.75em;min-width:1px;border-radius:1px;
background:rgb(var(--c)/.85)}}
.pyllm .this{{font-weight:600;text-decoration:underline}}
.pyllm .legend{{display:flex;flex-wrap:wrap;gap:.2em 1em;align-items:center;font-size:12px;margin:.3em 0}}
.pyllm .legend label{{display:inline-flex;gap:.3em;align-items:center;margin:0;font-weight:400}}
.pyllm .ramp{{display:inline-flex;flex-direction:column}}
.pyllm .ramp i{{height:.8em;width:26em;max-width:80vw;border-radius:2px;
background:linear-gradient(to right,rgb(var(--c)/0),rgb(var(--c)/{OPACITY}));
box-shadow:inset 0 0 0 1px rgb(128 128 128/.5)}}
.pyllm .ramp span{{position:relative;height:1.5em;width:100%;font-size:11px}}
.pyllm .ramp span b{{position:absolute;transform:translateX(-50%);font-weight:400;white-space:nowrap}}
.pyllm .ramp span b:first-child{{transform:none}}
.pyllm .ramp span b:last-child{{transform:translateX(-100%)}}
.pyllm .head{{font-weight:600}}
.pyllm .dim{{opacity:.7;font-weight:400}}
""".strip()


class Html:
    """A picture in HTML, which a notebook shows by itself. It needs no JavaScript and loads nothing.

    ``str(picture)`` is the HTML, :meth:`save` writes a page of its own.
    """

    def __init__(self, body: str) -> None:
        self._body = body

    def _repr_html_(self) -> str:
        return self._body

    def __str__(self) -> str:
        return self._body

    def __repr__(self) -> str:
        return f"<Html, {len(self._body)} characters; a notebook shows it, save(path) writes a page>"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a page that every browser shows, in light or dark as it is set.

        Args:
            path: Where to; a file that is there is replaced.
        """
        target = Path(path)
        target.write_text(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>pyllm</title>'
            f'<meta name="color-scheme" content="light dark"></head>\n<body>{self._body}</body></html>\n',
            encoding="utf-8",
        )
        return target


def picture(
    content: str, rgb: tuple[int, int, int], panel_lines: int = 0, hint: str = "", extra_style: str = ""
) -> Html:
    """Put content into its frame.

    Args:
        content: HTML.
        rgb: The hue.
        panel_lines: Lines of the panel below, where cells show their details; 0 for none.
        hint: What stands in the panel until something is chosen.
        extra_style: CSS of this picture.
    """
    style = f"--c:{' '.join(map(str, rgb))};--h:{panel_lines * 1.8 + 1:.2f}em"
    # A form that goes nowhere keeps the choices of two pictures on a page apart.
    panel = f'<div class="panel">{hint}</div>' if panel_lines else ""
    sheet = f"<style>{_STYLE}{extra_style}</style>"
    return Html(f'<form class="pyllm" method="dialog" style="{style}">{sheet}{content}{panel}</form>')


def ramp(scale: Scale) -> str:
    """The legend of a scale."""
    ticks = "".join(f'<b style="left:{100 * place:.0f}%">{escape(text)}</b>' for place, text in scale.ticks)
    return f'<span class="ramp"><i></i><span>{ticks}</span></span><span>{escape(scale.title)}</span>'


def alternatives(tokens: Iterable[tuple[str, float]], this: int | None = None) -> str:
    """A table of tokens with bars.

    Args:
        tokens: What to write and the log-probability, for each.
        this: Index of the one that is marked.
    """
    rows = []
    for i, (text, logprob) in enumerate(tokens):
        mark = ' class="mono this"' if i == this else ' class="mono"'
        width = 12 * min(1.0, 2.718281828459045**logprob)
        rows.append(
            f'<tr><td{mark}>{escape(text)}</td><td class="number">{percent(logprob)}</td>'
            f'<td><i class="bar" style="width:{width:.2f}em"></i></td></tr>'
        )
    return f"<table>{''.join(rows)}</table>"


def cell(
    text: str, strength: float, more: str = "", tag: str = "span", others: Sequence[tuple[str, float]] = ()
) -> str:
    """Text on colour, with details.

    Args:
        text: What is written; anything.
        strength: From 0 to 1; NaN draws a frame.
        more: HTML of the details.
        tag: The element.
        others: Further strengths, by the letter of their CSS variable.
    """
    nothing = strength != strength
    style = "" if nothing else f"--v:{strength:.3g}"
    style += "".join(f";--{letter}:{value:.3g}" for letter, value in others if value == value)
    details = f'<span class="more" dir="ltr">{more}</span>' if more else ""
    focus = ' tabindex="0"' if more else ""
    kind = "cell none" if nothing else "cell"
    return f'<{tag} class="{kind}" style="{style.lstrip(";")}"{focus}>{escape(text)}{details}</{tag}>'


__all__ = ["Html", "alternatives", "cell", "picture", "ramp"]

"""Figures show the same, and need matplotlib only when they are made."""

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from support import isolation
from support.numerics import softmax

from pyllm import errors, viz
from pyllm.interp import Interp, logit_lens
from pyllm.viz import scales
from pyllm.viz.canvas import drawable
from pyllm.viz.pieces import label, visible, width


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def draw(figure):
    """Draw it, so that what matplotlib does not like is heard of; the pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.mark.parametrize("columns", [88, 20, 2])
def test_the_text_is_there_in_lines(scored, columns):
    figure = viz.token_map(scored, columns=columns)
    pieces = [visible(scored.vocab.token_to_piece(token)) for token in scored.tokens.tolist()]
    assert "".join(texts(figure)) == drawable("".join(pieces))
    boxes = figure.axes[0].patches
    assert len(boxes) == len(texts(figure))
    for box, text in zip(boxes, texts(figure), strict=True):
        assert box.get_width() == width(text)
        assert box.get_x() + box.get_width() <= columns
    lines = [(round(box.get_y()), box.get_x()) for box in boxes]
    assert lines == sorted(set(lines))


@pytest.mark.parametrize("by", ["probability", "entropy", "rank"])
def test_boxes_have_the_colours_of_the_numbers(scored, by):
    figure = viz.token_map(scored, by, columns=400)
    values = {"probability": scored.logprobs, "entropy": scored.entropy, "rank": scored.ranks}[by]
    shown = [to_rgb(box.get_facecolor()) for box in figure.axes[0].patches]
    expected = [scales.mixed(float(s), scales.VERMILION) for s in scales.measure(by)(values)]
    assert np.allclose(shown, expected)
    assert scales.measure(by).title in [axes.get_title("left") for axes in figure.axes]


def test_formulas_in_a_text_are_text(tiny_model):
    from pyllm import eval

    figure = viz.token_map(eval.logprobs(tiny_model, "$x^2$ and \\frac{1}{2} $", n_threads=1))
    draw(figure)
    assert "$" in "".join(texts(figure))


def test_figures_are_drawn_without_complaints(scored, decoded, tiny_model):
    for figure in (viz.token_map(scored), viz.top_tokens(decoded.logits[-1], tiny_model.vocab)):
        pixels = draw(figure)
        assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 10
        file = io.BytesIO()
        figure.savefig(file, format="svg")
        assert b"</svg>" in file.getvalue()


def test_a_notebook_gets_a_picture(scored):
    assert viz.token_map(scored)._repr_png_().startswith(b"\x89PNG")


def test_bars_are_probabilities(decoded, tiny_model):
    row = decoded.logits.copy()[-1]
    figure = viz.top_tokens(row, tiny_model.vocab, 6)
    p = np.sort(softmax(row))[::-1][:6]
    assert np.allclose([bar.get_width() for bar in figure.axes[0].patches], p, rtol=1e-4)
    best = np.argsort(-row, kind="stable")[:6]
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names == [drawable(label(tiny_model.vocab.token_to_piece(int(token)))) for token in best]


def test_bars_want_one_row(decoded, tiny_model):
    with pytest.raises(errors.InvalidArgumentError, match="one row of logits, not"):
        viz.top_tokens(decoded.logits, tiny_model.vocab)
    nothing = np.full(len(tiny_model.vocab), -np.inf, np.float32)
    assert draw(viz.top_tokens(nothing, tiny_model.vocab)).size
    assert viz.top_tokens(nothing, tiny_model.vocab).axes[0].get_title("left") == "all tokens are forbidden"


@pytest.fixture(scope="module")
def lab(tiny_model):
    with Interp(tiny_model, n_ctx=64, n_threads=1) as lab:
        yield lab


def test_a_lens_table(lab):
    lens = logit_lens(lab, "the people look at it")
    figure = viz.lens_table(lens)
    draw(figure)
    expected = [
        label(lab.vocab.token_to_piece(t), 10) for layer in (1, 0) for t in lens.top_tokens[layer, :, 0].tolist()
    ]
    assert texts(figure) == list(map(drawable, expected))
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["1", "0"]
    colours = figure.axes[0].collections[0].get_facecolor()[:, :3].reshape(2, -1, 3)
    sure = np.exp(lens.top_logprobs[::-1, :, 0])
    assert np.allclose(colours, [[scales.mixed(float(s), scales.BLUE) for s in row] for row in sure], atol=1e-3)


def test_activations_by_layer_and_position(lab):
    _, cache = lab.run_with_cache("the people look at it")
    for vocab in (None, lab.vocab):
        figure = viz.activations(cache, "resid_post", vocab)
        draw(figure)
        values = figure.axes[0].images[0].get_array()
        expected = np.sqrt((cache.stack("resid_post").astype(float) ** 2).mean(axis=2))
        assert np.allclose(values, np.log10(expected))
    pattern = viz.activations(cache, "blocks.*.attn.hook_pattern").axes[0].images[0].get_array()
    assert pattern.shape == (2, len(cache.tokens))
    with pytest.raises(errors.InvalidArgumentError, match=r"no 'resid'.*blocks\.\*\.hook_resid_post"):
        viz.activations(cache, "resid")


@pytest.mark.parametrize(("argument", "value"), [("by", "length"), ("columns", 0), ("columns", 1)])
def test_wrong_arguments(scored, argument, value):
    with pytest.raises(errors.InvalidArgumentError, match=str(value)):
        viz.token_map(scored, **{argument: value})


@pytest.mark.parametrize("module", [viz, viz.html])
@pytest.mark.parametrize("name", ["token_map", "lens_table", "activations"])
@pytest.mark.parametrize("value", ["a text", None, np.zeros(3, np.float32)])
def test_what_cannot_be_shown_is_refused(module, name, value):
    with pytest.raises(errors.InvalidArgumentError, match=f"gives, and {type(value).__name__} has no"):
        getattr(module, name)(value)


def test_no_global_state_of_matplotlib_is_touched():
    isolation.survive(
        "import sys; from pyllm import viz; assert 'matplotlib' not in sys.modules\n"
        "import pyllm.viz.canvas; assert 'matplotlib.pyplot' not in sys.modules"
    )


def test_what_no_font_has_is_shown_by_its_number():
    assert drawable("ab\U000f0000é") == "ab⟨U+F0000⟩é"


def test_without_matplotlib_the_error_says_what_to_install(scored, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib" or name == "pyllm.viz.canvas"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(errors.MissingDependencyError, match=r"pip install 'matplotlib>="):
        viz.token_map(scored)
    assert viz.html.token_map(scored)  # HTML needs nothing

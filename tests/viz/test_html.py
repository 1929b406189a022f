"""Pictures in HTML: what they show, and that nothing in a token or a name gets out of its place."""

import math
import re

import numpy as np
import pytest
from support.numerics import softmax

from pyllm import errors, eval
from pyllm.core import kernels
from pyllm.core.batch import Batch
from pyllm.interp import Interp, logit_lens
from pyllm.viz import html
from pyllm.viz.pieces import label, visible


def strength(element, variable="v"):
    match = re.search(rf"--{variable}:([\d.e+-]+)", element["attrs"]["style"])
    return float(match[1]) if match else None


# The heat map


def test_every_token_is_there_once_and_in_order(scored, parse):
    cells = parse(html.token_map(scored)).find("span", "cell")
    pieces = [scored.vocab.token_to_piece(token) for token in scored.tokens.tolist()]
    assert [cell["own"].removesuffix("\n") for cell in cells] == [visible(piece) for piece in pieces]
    assert any(cell["own"].endswith("⏎\n") for cell in cells) == any(piece.endswith(b"\n") for piece in pieces)


def test_colours_are_those_of_the_numbers(scored, parse):
    for by, values in (
        ("probability", -np.log10(np.exp(scored.logprobs.astype(float))) / 4),
        ("entropy", scored.entropy / np.log(2) / 8),
        ("rank", np.log10(np.maximum(scored.ranks, 0) + 1.0) / 4),
    ):
        cells = parse(html.token_map(scored, by)).find("span", "cell")
        shown = [strength(cell) for cell in cells[1:]]
        assert np.allclose(shown, np.clip(values[1:], 0, 1), rtol=0.01, atol=1e-3)
        assert [strength(cell, by[0]) for cell in cells[1:]] == shown


def test_the_first_token_has_no_colour(scored, parse):
    first = parse(html.token_map(scored)).find("span", "cell")[0]
    assert "none" in first["attrs"]["class"]
    assert strength(first) is None
    assert "no forecast" in first["text"]


def test_details_tell_the_numbers_and_the_alternatives(scored, parse):
    details = parse(html.token_map(scored)).find("span", "more")
    for i in range(1, len(scored)):
        text = details[i]["text"]
        assert f"token {scored.tokens[i]}, position {i}" in text
        assert f"rank {scored.ranks[i]}," in text
        for token in scored.top_tokens[i].tolist():
            assert label(scored.vocab.token_to_piece(token)) in text


def test_a_token_is_marked_among_its_alternatives(scored, parse):
    marked = parse(html.token_map(scored)).find("td", "this")
    assert len(marked) == int((scored.ranks[1:] < scored.top_tokens.shape[1]).sum())


def test_one_measure_is_chosen(scored, parse):
    for by in ("probability", "entropy", "rank"):
        buttons = parse(html.token_map(scored, by)).find("input")
        assert [b["attrs"]["value"] for b in buttons if "checked" in b["attrs"]] == [by[0]]
    with pytest.raises(errors.InvalidArgumentError, match="not by 'size'"):
        html.token_map(scored, "size")


def test_a_form_goes_nowhere(scored, parse):
    (form,) = parse(html.token_map(scored)).find("form")
    assert form["attrs"]["method"] == "dialog"
    assert "action" not in form["attrs"]


def test_texts_scored_without_alternatives_say_how_to_get_them(tiny_model, parse):
    scored = eval.logprobs(tiny_model, "the people", n_threads=1)
    assert "top_k=5" in parse(scored).find("span", "more")[-1]["text"]


def test_a_single_token(tiny_model, parse):
    tree = parse(eval.logprobs(tiny_model, [5], n_threads=1))
    assert tree.find("div", "head")[0]["text"] == "1 token"


def test_long_texts_are_cut_unless_all_is_asked_for(scored, parse):
    tree = parse(html.token_map(scored, limit=5))
    assert len(tree.find("span", "cell")) == 5
    assert f"and {len(scored) - 5} tokens more" in tree.find("form")[0]["text"]
    assert "more</div>" not in str(html.token_map(scored, limit=len(scored)))
    assert len(parse(html.token_map(scored, limit=None)).find("span", "cell")) == len(scored)
    with pytest.raises(errors.InvalidArgumentError, match="at least 1, or None for everything, not -1"):
        html.token_map(scored, limit=-1)


# Logits


@pytest.fixture
def rows(decoded):
    return decoded.logits.copy()


def test_one_row_shows_its_best_tokens(rows, tiny_model, parse):
    cells = parse(html.top_tokens(rows[-1], tiny_model.vocab, 5)).find("tr")
    best = np.argsort(-rows[-1], kind="stable")[:5]
    p = softmax(rows[-1])
    for cell, token in zip(cells, best, strict=True):
        assert cell["text"].startswith(label(tiny_model.vocab.token_to_piece(int(token))))
        assert f"{100 * p[token]:.1f} %" in cell["text"]


def test_many_rows_are_cut(rows, tiny_model, parse):
    tree = parse(html.top_tokens(rows, tiny_model.vocab, 3))
    assert len(tree.find("tr")) == html.MAX_ROWS + 1
    assert len(tree.find("td", "cell")) == 3 * html.MAX_ROWS
    assert f"and {len(rows) - html.MAX_ROWS} rows more" in tree.find("form")[0]["text"]
    bits = [float(row["text"]) for row in tree.find("td", "number")]
    assert np.allclose(bits, kernels.entropy(rows[: html.MAX_ROWS]) / math.log(2), atol=0.051)


def test_rows_that_are_no_distributions_are_named(rows, tiny_model, parse):
    rows = rows[:3]
    rows[0] = -np.inf
    rows[1, 7] = np.nan
    rows[2, 2:] = -np.inf
    tree = parse(html.top_tokens(rows, tiny_model.vocab, 4))
    text = [line["text"] for line in tree.find("tr")][1:]
    assert "all tokens are forbidden" in text[0] and "not a number" in text[1]
    assert len(tree.find("td", "cell")) == 2  # what is forbidden is not shown


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 1, 459)])
def test_other_columns_are_refused(tiny_model, shape):
    with pytest.raises(errors.InvalidArgumentError, match=f"{len(tiny_model.vocab)}.*not "):
        html.top_tokens(np.zeros(shape, np.float32), tiny_model.vocab)


def test_k_is_at_least_one(rows, tiny_model, parse):
    with pytest.raises(errors.InvalidArgumentError, match="at least 1, not 0"):
        html.top_tokens(rows, tiny_model.vocab, 0)
    n = len(tiny_model.vocab)
    assert len(parse(html.top_tokens(rows[0], tiny_model.vocab, 10 * n)).find("tr")) == n


def test_logits_show_themselves_until_they_are_stale(decoded, ids, parse):
    logits = decoded.logits
    assert f"{len(ids)} × {decoded.n_vocab}" in parse(logits).find("div", "head")[0]["text"]
    decoded.decode(Batch.from_arrays(ids[:1]))
    assert logits._repr_html_() is None
    assert "stale" in repr(logits)
    left = decoded.logits
    decoded.close()  # the picture kept no view
    assert left._repr_html_() is None


def test_embeddings_have_no_picture(make_context, ids):
    context = make_context(embeddings=True, pooling_type="none")
    context.decode(Batch.from_arrays(ids, outputs="all"))
    assert context.embeddings._repr_html_() is None


# Lenses and caches


@pytest.fixture(scope="module")
def lab(tiny_model):
    with Interp(tiny_model, n_ctx=64, n_threads=1) as lab:
        yield lab


def test_a_lens_shows_the_last_layer_on_top(lab, parse):
    lens = logit_lens(lab, "the people look at it", top=3)
    tree = parse(lens)
    n = len(lens.positions)
    lines = tree.find("tr")
    heads = [cell["text"] for cell in tree.find("th")]
    assert heads[: n + 1] == ["layer", *(label(lab.vocab.token_to_piece(t)) for t in lens.tokens.tolist())]
    assert heads[n + 1 :] == ["1", "0"]
    cells = tree.find("td", "cell")
    for row, layer in enumerate((1, 0)):
        for i in range(n):
            cell = cells[row * n + i]
            assert cell["own"] == label(lab.vocab.token_to_piece(int(lens.top_tokens[layer, i, 0])), 14)
            assert math.isclose(strength(cell), math.exp(lens.top_logprobs[layer, i, 0]), rel_tol=0.01, abs_tol=1e-3)
            assert f"position {i}, layer {layer}" in cell["text"]
            goes_on = f"rank {lens.target_ranks[layer, i]}" in cell["text"]
            assert goes_on == (i < n - 1)
    assert len(lines) > 2


def test_layers_of_a_lens_can_be_chosen(lab, parse):
    lens = logit_lens(lab, "the people", layers=[1])
    assert [cell["text"] for cell in parse(html.lens_table(lens)).find("th", "number")] == ["layer", "1"]
    with pytest.raises(errors.InvalidArgumentError, match="has the layers 1, not 0"):
        html.lens_table(lens, [0])
    with pytest.raises(errors.InvalidArgumentError, match="at least one"):
        html.lens_table(lens, [])


def test_long_lenses_are_cut(lab, parse):
    lens = logit_lens(lab, "the people look at it")
    n = len(lens.positions)
    tree = parse(html.lens_table(lens, limit=n - 1))
    assert len(tree.find("td", "cell")) == 2 * (n - 1)
    assert "and 1 position more" in tree.find("form")[0]["text"]


def test_a_cache_shows_all_it_holds(lab, parse):
    _, cache = lab.run_with_cache("the people look")
    tree = parse(cache)
    cells = tree.find("span", "cell")
    assert len(cells) == len(cache)
    for cell in cells:
        name = next(name for name in cache if cell["text"].find(name + " ") >= 0)
        rms = float(np.sqrt(np.mean(np.where(np.isfinite(cache[name]), cache[name], 0).astype(float) ** 2)))
        assert f"root mean square {rms:.4g}" in cell["text"]
        assert 0 <= strength(cell) <= 1
    names = [cell["text"] for cell in tree.find("th", "mono")]
    assert "blocks.*.hook_resid_post" in names and len(names) == len(set(names))


def test_raw_names_of_a_graph_have_a_picture_too(lab, parse):
    _, cache = lab.run_with_cache("the people look", lambda name: name.startswith(("ffn_", "Qcur")))
    names = [cell["text"] for cell in parse(cache).find("th", "mono")]
    assert any(name.startswith("ffn_") and name.endswith("-*") for name in names)


# The page


def test_a_saved_page_is_whole(scored, tmp_path):
    picture = html.token_map(scored)
    path = picture.save(tmp_path / "map.html")
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and str(picture) in page and 'charset="utf-8"' in page
    assert "save" in repr(picture) and len(repr(picture)) < 120

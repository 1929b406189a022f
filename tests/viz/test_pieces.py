"""Tokens are shown whole, and nothing in them reaches the text around."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.viz.pieces import label, visible, width


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (b" the", " the"),
        (b"a\tb\r\n", "a⇥b␍⏎"),
        (b"\x00\x1b[31m", "␀⟨U+001B⟩[31m"),
        ("\u202eabc\u202c".encode(), "⟨U+202E⟩abc⟨U+202C⟩"),
        ("a\u200bb\u00a0c".encode(), "a⟨U+200B⟩b⟨U+00A0⟩c"),
        ("\u2028".encode(), "⟨U+2028⟩"),
        (b"\xf0\x9f", "\\xf0\\x9f"),
        ("日本 é".encode(), "日本 é"),
        (b"<b>&\"'", "<b>&\"'"),
        (b"", ""),
    ],
)
def test_what_is_shown(piece, shown):
    assert visible(piece) == shown


@given(st.binary(max_size=12) | st.text(max_size=12).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_everything_that_is_shown_can_be_seen(piece):
    for character in visible(piece):
        assert character == " " or unicodedata.category(character)[0] in "LMNPS"


def test_labels_show_spaces_and_are_short():
    assert label(b" a b") == "␣a␣b"
    assert label(b"") == "∅"
    assert label("\u0301".encode()) == "◌\u0301"
    assert label(b"x" * 100, 10) == "xxxxxxxxx…"


def test_width_is_that_of_a_terminal():
    assert [width(text) for text in ("abc", "日本", "e\u0301", "")] == [3, 4, 1, 0]

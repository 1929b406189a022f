"""Text in pieces: stop strings never leak, characters are never cut."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyllm import errors
from pyllm.core.text_stream import TextStream

# Few letters, so that stop strings really occur, and begin without ending.
letters = st.text(alphabet="ab é🙂", max_size=30)
stops = st.lists(st.text(alphabet="ab é🙂", min_size=1, max_size=5), max_size=4)


def cut(text: bytes, stop: list[bytes]) -> tuple[bytes, bytes | None]:
    """The text up to the stop string that begins first; of two at one place the one named first."""
    found = [(text.find(value), i) for i, value in enumerate(stop) if value in text]
    if not found:
        return text, None
    at, which = min(found)
    return text[:at], stop[which]


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data in pieces of these lengths, over and over."""
    out, start, i = [], 0, 0
    while start < len(data):
        size = cuts[i % len(cuts)] if cuts else len(data)
        out.append(data[start : start + size])
        start, i = start + size, i + 1
    return out


@given(letters, stops, st.lists(st.integers(1, 4), min_size=1, max_size=4))
@settings(max_examples=500, deadline=None)
@example("aab", ["ab"], [1])
@example("aaab", ["aab"], [1])
@example("a🙂b", ["🙂b"], [1])
@example("abab", ["aba", "bb"], [3, 1])
def test_takes_are_the_text_up_to_the_first_stop_string(text, stop, cuts):
    stream = TextStream(stop)
    data, encoded = text.encode(), [value.encode() for value in stop]
    seen, fed = "", b""
    for piece in pieces_of(data, cuts):
        fed += piece
        stopped = stream.append(piece)
        part = stream.take()
        seen += part
        part.encode()  # whole characters
        expected, which = cut(fed, encoded)
        assert stopped == (which is not None)
        # Nothing that was handed out may turn out to be a part of a stop string, however the text goes on.
        assert expected.startswith(seen.encode())
        for value in encoded:
            for size in range(1, len(value)):
                if not stopped and fed.endswith(value[:size]):
                    assert len(seen.encode()) <= len(fed) - size
        if stopped:
            break
    seen += stream.take(all=True)
    expected, which = cut(fed, encoded)
    assert seen.encode() == expected == stream.text
    assert stream.stopped == (None if which is None else which.decode())


@given(st.text(max_size=40), st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_no_character_is_ever_cut(text, cuts):
    stream = TextStream()
    seen = ""
    for piece in pieces_of(text.encode(), cuts):
        assert stream.append(piece) is False
        seen += stream.take()
        assert text.startswith(seen), "no character is broken, and none is held back without need"
    assert seen == text and stream.take(all=True) == ""


@given(st.binary(max_size=40), st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_text_come_out_replaced_and_are_kept_as_they_are(data, cuts):
    stream = TextStream()
    seen = ""
    for piece in pieces_of(data, cuts):
        stream.append(piece)
        seen += stream.take()
    seen += stream.take(all=True)
    assert stream.text == data
    assert seen.replace("\ufffd", "") == data.decode("utf-8", "replace").replace("\ufffd", "")


def test_nothing_is_held_back_longer_than_needed():
    stream = TextStream("STOP")
    for piece, expected in (
        (b"a", "a"),
        (b"S", ""),
        (b"T", ""),
        (b"x", "STx"),
        (b"SS", "S"),
        (b"TO", ""),
        (b"O", "STOO"),
    ):
        stream.append(piece)
        assert stream.take() == expected
    assert stream.append(b"STOP!") and stream.take() == "" and stream.stopped == "STOP"
    assert stream.text == b"aSTxSSTOO"


def test_a_stop_string_in_one_piece_with_what_is_around_it():
    stream = TextStream(["\n\n"])
    assert stream.append(b"one\n\ntwo") and stream.take() == "one"
    assert stream.append(b"three") and stream.take() == "" and stream.text == b"one", "after the end nothing is taken"


def test_the_earliest_stop_string_wins():
    stream = TextStream(["cd", "bcde", "b"])
    assert stream.append(b"abcde") and stream.text == b"a" and stream.stopped == "bcde"


def test_a_stop_string_does_not_begin_before_what_was_handed_out():
    stream = TextStream("ab")
    stream.append(b"xa")
    assert stream.take() == "x"
    assert stream.take(all=True) == "a", "the generation seemed to be over"
    assert not stream.append(b"b") and stream.take() == "b"


def test_an_unfinished_character_at_the_end():
    stream = TextStream()
    stream.append("é🙂".encode()[:-1])
    assert stream.take() == "é" and stream.take() == ""
    assert stream.take(all=True) == "\ufffd" and stream.text == "é🙂".encode()[:-1]


@pytest.mark.parametrize("data", [b"\x80", b"\xff", b"\xc0\xaf", b"\xe2\x28\xa1", b"\xf5\x80\x80\x80"])
def test_bytes_that_begin_no_character_are_not_held_back(data):
    stream = TextStream()
    stream.append(data + b"a")
    assert stream.take() == (data + b"a").decode("utf-8", "replace")


def test_stop_strings_of_all_kinds():
    assert TextStream().stops == TextStream(None).stops == TextStream([]).stops == ()
    assert TextStream("ab").stops == ("ab",) and TextStream(b"\xff").stops == (b"\xff",)
    stream = TextStream(iter(["a", b"\xff"]))
    assert stream.stops == ("a", b"\xff") and stream.append(b"x\xffy") and stream.stopped == b"\xff"


@pytest.mark.parametrize("wrong", ["", [""], ["a", ""], b"", [3], [None]])
def test_stop_strings_that_are_none(wrong):
    if wrong in ("", b""):
        assert TextStream(wrong or None).stops == ()
        return
    with pytest.raises(errors.InvalidArgumentError, match="stop string"):
        TextStream(wrong)


def test_pieces_are_bytes():
    for wrong in ("text", None, 3):
        with pytest.raises(TypeError):
            TextStream().append(wrong)


def test_a_long_text():
    stream, data = TextStream(["END", "🙂🙂🙂"]), "naïve text 🙂 E" * 20_000
    for piece in pieces_of(data.encode(), [7, 1, 30]):
        stream.append(piece)
    assert stream.take() + stream.take(all=True) == data

"""Regular expressions as grammars: the same texts, no more and no less."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structured.walks import texts_of

from pyllm.errors import InvalidArgumentError
from pyllm.structured import regex_grammar

PATTERNS = [
    "abc",
    "",
    "a|b|",
    "(ab|c)*d",
    "(a*)*",
    "(a*|b?)+c",
    "((a?){3}b?){2}",
    "(?:x|yy){2,3}?",
    "[a-c0-2_.-]{2}",
    "[^a-z]{1,3}",
    r"[\]\\\[^-]+",
    r"\d{3}-\d{4}",
    r"\w+\s\W",
    r"[^\W\d]{2}",
    r"[\s\S]{0,3}",
    ".{2}",
    "(?s:.){2}",
    "^start(ed)?$",
    "^(a|b$)",
    r"\A[+-]?(0|[1-9]\d*)(\.\d+)?\Z",
    "(?i)straße",
    "(?i:k)[K-M]",
    "(?x) a b # comment\n c",
    r"\x41\u00e9\t\.\"\\",
    r"(?P<year>\d{4})-(?P<month>0[1-9]|1[0-2])",
    "é🙂?[à-ü]",
    "(a{0}b|c{0,0})d",
    "(?:)*a(?:(|b)){,2}(?:(?:){2})+?",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_the_grammar_writes_matches(pattern):
    for text in texts_of(regex_grammar(pattern), 8, limit=80):
        assert re.fullmatch(pattern, text), f"{pattern!r} does not match {text!r}"


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_matches_follows_the_grammar(pattern, data):
    text = data.draw(st.from_regex(re.compile(pattern), fullmatch=True).filter(lambda text: "\0" not in text))
    if re.fullmatch(pattern, text):
        assert regex_grammar(pattern).matches(text), f"{text!r} matches {pattern!r}"


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(alphabet="abcd01-_.xy \néK", max_size=6))
def test_any_text_is_judged_alike(pattern, text):
    assert regex_grammar(pattern).matches(text) == bool(re.fullmatch(pattern, text))


def test_flags_of_a_compiled_expression_count():
    grammar = regex_grammar(re.compile("a.b", re.IGNORECASE | re.DOTALL))
    assert grammar.matches("A\nb") and not grammar.matches("A\n\nb")
    assert regex_grammar(re.compile(r"\d", re.ASCII)).matches("5")
    assert not regex_grammar(re.compile(r"\d", re.ASCII)).matches("٣")
    assert regex_grammar(r"\d").matches("٣")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a(?=b)b", r"position 1: looking ahead or back cannot be expressed"),
        ("(?<!x)y", r"position 0: looking"),
        (r"(a)b\1", r"position 4: a reference to a group"),
        (r"(?P<n>a)(?P=n)", r"position 8: a reference"),
        (r"a\bb", r"position 1: a word boundary"),
        ("a^b", r"position 1: '\^' behind the beginning"),
        ("(a$)b", r"position 2: '\$' before the end"),
        ("a++b", r"position 1: a repetition that never gives back"),
        ("(?>a|ab)c", r"position 0: a group that never gives back"),
        ("(a)?(?(1)b|c)", r"position 4: a condition"),
        ("[a", r"no regular expression: unterminated character set at position 0"),
        ("a{3000}", "2000 are possible"),
        ("(" * 5000 + ")" * 5000, "too complicated|too deep"),
        ("a" * 20000, "16384 characters"),
        (b"abc", "must be text"),
        (re.compile(b"abc"), "for bytes"),
    ],
)
def test_what_cannot_be_had(pattern, message):
    with pytest.raises(InvalidArgumentError, match=message):
        regex_grammar(pattern)

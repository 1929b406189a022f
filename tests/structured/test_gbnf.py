"""Grammars are checked before llama.cpp reads them: with line and column, and as strictly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyllm.core.gbnf import check, endless, literal
from pyllm.core.samplers import Grammar as GrammarSampler
from pyllm.errors import GrammarError, InvalidArgumentError
from pyllm.structured import Grammar

GRAMMARS = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "grammars"

BROKEN = {
    "": "empty",
    "  # nothing\n": "empty",
    "root": "line 1, column 5: '::=' must stand behind the name 'root', and the text ends",
    'root ::= "a"\n  b = "c"': "line 2, column 5: '::=' must stand",
    'root ::= "a': "line 1, column 10: the text that begins here has no closing",
    "root ::= [a-": "line 1, column 10: the class that begins here has no closing",
    "root ::= [z-a]": "line 1, column 11: the range z-a ends before it begins",
    'root ::= "a"\n\nb ::= c': "line 3, column 7: there is no rule 'c'",
    'root ::= ("a" | "b"\nc ::= "d"': "must stand here, for the '(' at line 1, column 10, and there is ':'",
    'root ::= "a")': "line 1, column 13: the rule 'root' must end here, and there is ')'",
    "root ::= * [a]": "line 1, column 10: there is nothing to repeat",
    'root ::= "a"{3,2}': "line 1, column 13: the repetition {3,2} ends before it begins",
    'root ::= "a"{2001}': "at most 2000 repetitions",
    'root ::= "a"{x}': "the number of repetitions must stand here, and there is 'x'",
    'root ::= "a"{2': "must be closed",
    'root ::= ("a"{0,50} "c"){50}': "llama.cpp takes 2000",
    r'root ::= "\q"': r"line 1, column 11: there is no escape '\q'",
    r'root ::= "\x1"': "takes 2 hexadecimal digits",
    r"root ::= [\U00110000]": "there is no character",
    'root ::= root "a" | "b"': "the rule 'root' begins with itself",
    'root ::= a "x"\na ::= "b"? root': "begins with itself",
    'root ::= n root "x" | "y"\nn ::= m\nm ::= "" | "k"': "the rule 'root' begins with itself",
    "root ::= <[x]>": "a token must stand here",
    "root ::= !": "a token must stand here",
    "wurzel ::= [a]": "it has no rule 'root' to begin with, only wurzel",
    'root ::= "\0"': "NUL",
}


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_wrong_is_said_with_its_place(text):
    with pytest.raises(GrammarError) as caught:
        check(text)
    assert BROKEN[text] in str(caught.value)


@pytest.mark.parametrize("text", [text for text in BROKEN if "{" not in text or "2001" in text])
def test_llama_cpp_never_sees_it(text, tiny_model, capfd):
    with pytest.raises(GrammarError):
        GrammarSampler(tiny_model.vocab, text)
    assert capfd.readouterr() == ("", "")


def allowed(model, text):
    """How many tokens may come first."""
    _, logits, _, _ = GrammarSampler(model.vocab, text).apply(np.zeros(model.n_vocab, np.float32))
    return int(np.isfinite(logits).sum())


@pytest.mark.parametrize("path", sorted(GRAMMARS.glob("*.gbnf")), ids=lambda path: path.name)
def test_llama_cpps_own_grammars_are_fine(path, tiny_model):
    text = path.read_text(encoding="utf-8")
    check(text)
    assert allowed(tiny_model, text)


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a"{0,5000}',
        'root ::= a\r\na ::= "b"\r',
        "root ::= | [^\\] a]",
        'root ::= ( "a" # why\n | "b" )+',
        "root ::= [a\\-z-] .",
        'root ::= <[5]> !<[6]> "x"',
        'root ::= ("a"?)*',
        'root ::= (("a"?)* "b"?)* "c"',
        'root ::= (call? space)+\ncall ::= "x" "y"\nspace ::= | " "',
    ],
)
def test_odd_but_right(text, tiny_model):
    check(text)
    assert allowed(tiny_model, text)


def test_traits():
    assert check("root ::= <[5]>").names_tokens and not check('root ::= "<[5]>"').names_tokens
    assert check("root ::= [^é]").excludes_wide and not check("root ::= [^a-z] [é]").excludes_wide
    assert endless(check('root ::= "a" root')) == ["root"]
    assert endless(check('root ::= "a" root | "b"\nnever ::= "x" never')) == []


@pytest.mark.parametrize("text", ["", 'a"b\\c', "tab\there\nand\r\x01", "[a-z]{3} ::= | #", "é🙂<[1]>"])
def test_a_literal_is_its_text(text):
    grammar = Grammar(f"root ::= {literal(text)}")
    assert grammar.matches(text)
    assert not grammar.matches(text + "x")


def test_matches():
    grammar = Grammar('root ::= "é" [^a]+ | number\nnumber ::= [0-9]{2,3}')
    assert [text for text in ("éb", "é🙂🙂", "12", "123") if not grammar.matches(text)] == []
    assert [text for text in ("", "é", "éa", "1", "1234", "12 ", "b") if grammar.matches(text)] == []
    assert Grammar('start ::= "x"', root="start").matches(b"x")
    assert not grammar.matches(b"\xc3")
    with pytest.raises(GrammarError, match="column 10"):
        Grammar("root ::= [").matches("a")


@pytest.mark.parametrize("arguments", [{"text": b"x"}, {"text": 5}, {"text": "x", "trigger_patterns": "abc"}])
def test_a_grammar_of_the_wrong_kind(arguments):
    with pytest.raises(InvalidArgumentError):
        Grammar(**arguments)

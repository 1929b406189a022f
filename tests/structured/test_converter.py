"""llama.cpp's own converter of JSON schemas: what it makes, and that it is silent about what it refuses."""

from __future__ import annotations

import json

import pytest

from pyllm.core.grammar import json_schema_to_grammar
from pyllm.errors import GrammarError
from pyllm.structured import Grammar


def test_it_converts():
    grammar = Grammar(json_schema_to_grammar(json.dumps({"type": "array", "items": {"enum": ["pattern", 2]}})))
    assert grammar.matches('["pattern", 2]') and not grammar.matches("[3]")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"type": "x"}', "unrecognized type x"),
        ('{"$ref": "#/$defs/x"}', "x not found|cannot resolve"),
        ('{"type": "string", "pattern": "\\\\d"}', "understands in part only"),
        ('{"a": "\\u0000"}\0', "NUL"),
    ],
)
def test_what_it_refuses(schema, message, capfd):
    with pytest.raises((GrammarError, ValueError), match=message):
        json_schema_to_grammar(schema)
    assert capfd.readouterr() == ("", "")

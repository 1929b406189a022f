"""JSON schemas as grammars, by llama.cpp's converter (wraps ``common/json-schema-to-grammar.h``).

The converter leaves out without a word what it does not know. :mod:`pyllm.structured` does not, and rests on this.
"""

import json

from libcpp cimport bool
from libcpp.string cimport string

from pyllm import errors
from pyllm.core import common as _  # no-cython-lint: it makes the log of that library silent
from pyllm.core cimport guard
from pyllm.core.arguments cimport c_text
from pyllm.includes cimport json_schema_to_grammar as lib


def json_schema_to_grammar(schema, *, bint force_gbnf=True):
    """Convert a JSON schema into GBNF as llama.cpp's own programs do.

    What the converter does not know has no effect: limits of numbers, ``multipleOf``, ``uniqueItems``, most formats.
    :func:`pyllm.structured.grammar_of` either holds to them or refuses.

    Args:
        schema: The schema, as JSON.
        force_gbnf: No other kind of grammar, in a llama.cpp that was built with llguidance.

    Returns:
        str: The grammar; it begins with the rule ``root``.

    Raises:
        GrammarError: It is no schema, or one that the converter refuses; the message holds its words.

    Wraps ``json_schema_to_grammar``.
    """
    cdef string text, failure, result
    cdef bool c_force = force_gbnf
    encoded = c_text(schema, "a JSON schema")
    try:
        parsed = json.loads(encoded)
    except (ValueError, RecursionError) as cause:
        raise errors.GrammarError(f"the schema is not JSON: {cause}") from None
    _refuse_patterns(parsed)
    text = encoded
    guard.enter()
    with nogil:
        result = lib.schema_to_grammar(text, c_force, failure)
    if not failure.empty():
        message = failure.data()[:failure.size()].decode("utf-8", "replace").replace("\n", " ")
        raise errors.GrammarError(f"llama.cpp cannot convert the schema: {message}")
    return result.data()[:result.size()].decode()


def _refuse_patterns(node):
    # The converter would write to stderr where it does not understand one, and accept any text in its place.
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            raise errors.GrammarError(
                f"the schema has a pattern ({node['pattern']!r}), which llama.cpp's converter understands in part "
                "only: use pyllm.structured.grammar_of"
            )
        for key, value in node.items():
            if key not in ("const", "enum"):
                _refuse_patterns(value)
    elif isinstance(node, list):
        for value in node:
            _refuse_patterns(value)

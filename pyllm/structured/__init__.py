"""Text of a certain form: grammars, JSON schemas, regular expressions, choices.

What :meth:`pyllm.Llama.create_completion` takes as ``grammar``, ``json_schema``, ``response_format``, ``regex`` and
``choices`` becomes one :class:`Grammar` here.
"""

from pyllm.structured.choices import choices_grammar
from pyllm.structured.form import FORM_ARGUMENTS, Form, form_of, grammar_of
from pyllm.structured.grammar import Grammar
from pyllm.structured.models import json_schema_of
from pyllm.structured.regex import regex_grammar

__all__ = [
    "FORM_ARGUMENTS",
    "Form",
    "Grammar",
    "choices_grammar",
    "form_of",
    "grammar_of",
    "json_schema_of",
    "regex_grammar",
]

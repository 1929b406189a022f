"""Grammars that a text must follow."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LLAMA_GRAMMAR_DEFAULT_ROOT = "root"


class LlamaGrammar:
    """A GBNF grammar.

    Args:
        _grammar: Its text.

    Raises:
        GrammarError: It is none; the message says where.
    """

    def __init__(self, *args: object, _grammar: str, **kwargs: object) -> None:
        from pyllm.core.gbnf import check

        check(_grammar, LLAMA_GRAMMAR_DEFAULT_ROOT)
        self._grammar = _grammar
        self._root = LLAMA_GRAMMAR_DEFAULT_ROOT

    def __str__(self) -> str:
        return self._grammar

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """A grammar from its text."""
        return cls(_grammar=grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """A grammar from a file."""
        return cls(_grammar=Path(file).read_text(encoding="utf-8"))

    @classmethod
    def from_json_schema(cls, json_schema: str | Mapping[str, Any], verbose: bool = True) -> LlamaGrammar:
        """A grammar for the JSON that a schema allows.

        Raises:
            GrammarError, InvalidArgumentError: The schema cannot be turned into one; no other JSON is allowed instead.
        """
        return cls(_grammar=json_schema_to_gbnf(json_schema))


def json_schema_to_gbnf(schema: str | Mapping[str, Any], prop_order: list[str] | None = None) -> str:
    """The grammar for a JSON schema, by llama.cpp itself; properties come in the order of the schema."""
    from pyllm.structured import grammar_of

    if prop_order:
        from pyllm.errors import InvalidArgumentError

        raise InvalidArgumentError("prop_order is not supported: properties come in the order that the schema has them")
    grammar = grammar_of(json_schema=schema if isinstance(schema, str) else json.dumps(schema))
    assert grammar is not None
    return grammar.text


def __getattr__(name: str) -> str:
    if name == "JSON_GBNF":
        return json_schema_to_gbnf({})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["LLAMA_GRAMMAR_DEFAULT_ROOT", "LlamaGrammar", "json_schema_to_gbnf"]

"""JSON schemas as grammars.

llama.cpp's converter writes the rules for objects, arrays, unions and references. What it would leave out without a
word is done here first: numbers in ranges, patterns, formats and long texts are rules of our own; parts of ``allOf``
and neighbours of ``anyOf`` and ``$ref`` are joined; and what no grammar can express is an error that names its place.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from pyllm.core.gbnf import check, endless, literal
from pyllm.errors import GrammarError, InvalidArgumentError
from pyllm.structured.expression import other_texts, to_rules
from pyllm.structured.grammar import Grammar
from pyllm.structured.leaves import CHARACTER, NAME, LeafError, leaf_rules
from pyllm.structured.merge import MergeError, merge_schemas
from pyllm.structured.validity import is_valid, same

MAX_DEPTH = 128
# llama.cpp reads a grammar in a time that grows with the square of its alternatives: these take 0.2 seconds.
MOST_VALUES = 10_000
MAX_NODES = 20000

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# Keywords that say nothing about which texts are valid.
_NOTES = {
    *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "$comment"),
    *("$schema", "$id", "$anchor", "$defs", "definitions", "discriminator", "contentMediaType", "contentEncoding"),
    *("contentSchema", "externalDocs", "xml", "$vocabulary", "$dynamicAnchor", "name", "strict"),
}
_OF_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_OF_STRINGS = {"minLength", "maxLength", "pattern", "format"}
_OF_ARRAYS = {"items", "prefixItems", "minItems", "maxItems", "additionalItems"}
_OF_OBJECTS = {"properties", "required", "additionalProperties", "minProperties", "maxProperties"}
_EVERYWHERE = {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "nullable"}
_KNOWN = _OF_NUMBERS | _OF_STRINGS | _OF_ARRAYS | _OF_OBJECTS | _EVERYWHERE
# Known ones that a grammar cannot express, with values that ask for nothing.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "multipleOf": (),
    "unevaluatedProperties": (True,),
    "unevaluatedItems": (True,),
    "patternProperties": ({},),
    "propertyNames": (True, {}, {"type": "string"}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
}

# Names of properties that llama.cpp's converter takes for the root and for all other properties.
_ODD_NAMES = ("", "*")


def schema_grammar(schema: Any, *, strict: bool = True) -> Grammar:
    """A grammar for JSON that is valid by a schema.

    Args:
        schema: The schema, as Python values.
        strict: What no grammar can express (``uniqueItems``, ``not``, ``multipleOf``, …) is an error. False: a
            warning, and left aside.

    Raises:
        InvalidArgumentError: The schema is none, contradicts itself, or asks for what cannot be had; the message
            names the place, as in ``$.properties.age``.
    """
    from pyllm.core.grammar import json_schema_to_grammar

    converted = _Converter(schema, strict).convert()
    try:
        text = json_schema_to_grammar(json.dumps(converted.document))
    except GrammarError as cause:
        raise InvalidArgumentError(f"json_schema: {cause}", param="json_schema") from None
    text = _mended(text, converted)
    try:
        never = endless(check(text))
    except GrammarError as cause:
        raise InvalidArgumentError(
            f"json_schema makes a grammar that llama.cpp cannot use: {cause}", param="json_schema"
        ) from None
    if never:
        raise InvalidArgumentError(
            "json_schema describes values that never end: something in it requires itself", param="json_schema"
        )
    return Grammar(text, control_tokens=False)


def _mended(text: str, converted: _Converter) -> str:
    """Put our rules where llama.cpp's converter wrote the marks, and better ones for some of its own."""
    rules = dict(line.split(" ::= ", 1) for line in text.splitlines())
    prefix = "leaf"
    while any(name.startswith(prefix) for name in rules):
        prefix += "x"
    own = [leaf.replace(NAME, f"{prefix}-{i}").rstrip("\n") for i, leaf in enumerate(converted.leaves)]
    if "char" in rules or any(" char{" in leaf for leaf in own):
        rules["char"] = CHARACTER
    if "integral-part" in rules:
        rules["integral-part"] = '"0" | [1-9] [0-9]{0,15}'
    if "number" in rules:
        # Its exponents are bounded here: what a double cannot hold is read as infinity.
        rules["number"] = '"-"? integral-part ("." decimal-part)? ([eE] [-+]? [0-9]{1,2})?'
    mark = re.compile(rf'"\\"{re.escape(converted.mark)}(\d+)\\""')
    for name, body in rules.items():
        for i, odd in enumerate(_ODD_NAMES):
            body = body.replace(literal(f'"{converted.name_mark}{i}"'), literal(f'"{odd}"'))
        rules[name] = mark.sub(lambda match: f"{prefix}-{match[1]}", body)
    if converted.keys:
        own += _further_keys(rules, converted, prefix)
    return "\n".join([*(f"{name} ::= {body}" for name, body in rules.items()), *own]) + "\n"


def _further_keys(rules: dict[str, str], converted: _Converter, prefix: str) -> list[str]:
    """Let the properties that stand for others have any other name, and come any number of times."""
    key = re.compile(rf'"\\"{converted.key_mark}(\d+)\\""')
    pair = rf"((?:[A-Za-z0-9-]+-)?{converted.key_mark}\d+-kv\d*)(?![A-Za-z0-9-])"
    for name, body in rules.items():
        body = key.sub(lambda match: f"{prefix}-key-{match[1]}", body)
        body = re.sub(rf'\( "," space {pair} \)\?', r'( "," space \1 )*', body)
        rules[name] = re.sub(rf'(?<![A-Za-z0-9-])(?<!"," space ){pair}', r'\1 ( "," space \1 )*', body)
    return [
        to_rules({f"{prefix}-key-{i}": other_texts(names)}, json=True, prefix=f"{prefix}-key-{i}-").rstrip("\n")
        for i, names in enumerate(converted.keys)
    ]


class _Converter:
    """Turns a schema into one that llama.cpp's converter gets right, with marks where rules of ours belong."""

    def __init__(self, schema: Any, strict: bool) -> None:
        self.schema = schema
        self.strict = strict
        self.leaves: list[str] = []
        self.known_leaves: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.definitions: dict[str, Any] = {}
        self.n_nodes = 0
        self.document: dict[str, Any] = {}
        # The names of properties, for each object that may have others besides: a property that stands for those.
        self.keys: list[tuple[str, ...]] = []
        # No text of the schema looks like a mark.
        text = json.dumps(schema)
        self.mark, self.key_mark, self.name_mark = "@", "others", "named"
        while f"{self.mark}0" in text:
            self.mark += "@"
        while self.key_mark in text:
            self.key_mark += "x"
        while self.name_mark in text:
            self.name_mark += "x"

    def convert(self) -> _Converter:
        try:
            root = self.node(self.schema, "$", 0)
        except RecursionError:
            raise InvalidArgumentError("json_schema is nested too deep", param="json_schema") from None
        self.document = {**root, "$defs": self.definitions} if self.definitions else root
        return self

    def fail(self, path: str, message: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"json_schema: {path}: {message}", param="json_schema")

    def cannot(self, path: str, message: str) -> None:
        """What a grammar cannot express."""
        if self.strict:
            raise self.fail(path, f"{message}, which a grammar cannot express")
        warnings.warn(f"json_schema: {path}: {message}, which a grammar cannot express: not enforced", stacklevel=2)

    # ---- one schema

    def node(self, schema: Any, path: str, depth: int) -> dict[str, Any]:
        self.n_nodes += 1
        if depth > MAX_DEPTH:
            raise self.fail(path, f"nested more than {MAX_DEPTH} deep")
        if self.n_nodes > MAX_NODES:
            raise self.fail(path, f"the schema has more than {MAX_NODES} parts")
        if schema is True:
            return {}
        if schema is False:
            raise self.fail(path, "false allows no value at all")
        if not isinstance(schema, Mapping):
            raise self.fail(path, f"a schema must be an object, not {json.dumps(schema)}")
        schema = self.only_known({key: value for key, value in schema.items() if key not in _NOTES}, path)
        if "$ref" in schema:
            return self.reference(schema, path, depth)
        if "allOf" in schema:
            return self.all_of(schema, path, depth)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self.any_of(key, schema, path, depth)
        if schema.pop("nullable", False) is True:
            return {"anyOf": [self.node(schema, path, depth + 1), {"type": "null"}]}
        if "const" in schema or "enum" in schema:
            return self.values(schema, path)
        return self.typed(schema, path, depth)

    def only_known(self, schema: dict[str, Any], path: str) -> dict[str, Any]:
        kept = {}
        for key, value in schema.items():
            if key in _KNOWN:
                kept[key] = value
            elif key.startswith("x-"):
                continue
            elif not (key in _HARMLESS and any(value == other for other in _HARMLESS[key])):
                self.cannot(f"{path}.{key}", f"there is {key!r}")
        return kept

    def reference(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        ref = schema["$ref"]
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise self.fail(f"{path}.$ref", f"only references into the same schema are possible ('#/…'), not {ref!r}")
        others = {key: value for key, value in schema.items() if key != "$ref"}
        if others:
            return self.node(self.merged([others, self.target(ref, path)], path), path, depth + 1)
        if ref not in self.names:
            name = f"d{len(self.names)}"
            self.names[ref] = name
            self.definitions[name] = self.node(self.target(ref, path), _path(ref), depth + 1)
            self.check_cycle(ref, path)
        return {"$ref": f"#/$defs/{self.names[ref]}"}

    def target(self, ref: str, path: str) -> Any:
        found = self.schema
        for part in ref.split("/")[1:]:
            key = re.sub(r"%([0-9A-Fa-f]{2})", lambda m: chr(int(m[1], 16)), part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise self.fail(f"{path}.$ref", f"{ref!r} leads nowhere: there is no {key!r}")
        return found

    def check_cycle(self, ref: str, path: str) -> None:
        """References that lead to nothing but references."""
        seen, name = set(), self.names[ref]
        while name not in seen:
            seen.add(name)
            following = self.definitions.get(name, {}).get("$ref")
            if following is None:
                return
            name = following.removeprefix("#/$defs/")
        raise self.fail(f"{path}.$ref", f"{ref!r} leads to itself and to nothing else")

    def merged(self, parts: list[Any], path: str) -> Any:
        try:
            return merge_schemas(parts)
        except MergeError as cause:
            raise self.fail(path, str(cause)) from None

    def all_of(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        parts = schema["allOf"]
        if not isinstance(parts, list) or not parts:
            raise self.fail(f"{path}.allOf", "must be a list of schemas, and not empty")
        others = {key: value for key, value in schema.items() if key != "allOf"}
        resolved = [self.resolved(part, f"{path}.allOf[{i}]", depth) for i, part in enumerate(parts)]
        return self.node(self.merged([others, *resolved], path), path, depth + 1)

    def resolved(self, schema: Any, path: str, depth: int) -> Any:
        """A part without a reference of its own, to be joined with others."""
        if depth > MAX_DEPTH:
            raise self.fail(path, "the reference leads to itself")
        if isinstance(schema, Mapping) and "$ref" in schema:
            others = {key: value for key, value in schema.items() if key != "$ref"}
            target = self.resolved(self.target(str(schema["$ref"]), path), path, depth + 1)
            return self.merged([others, target], path) if others else target
        if isinstance(schema, Mapping) and "allOf" in schema:
            others = {key: value for key, value in schema.items() if key != "allOf"}
            parts = [self.resolved(part, f"{path}.allOf[{i}]", depth + 1) for i, part in enumerate(schema["allOf"])]
            return self.merged([others, *parts], path)
        return schema

    def any_of(self, key: str, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        branches = schema[key]
        if not isinstance(branches, list) or not branches:
            raise self.fail(f"{path}.{key}", "must be a list of schemas, and not empty")
        others = {name: value for name, value in schema.items() if name != key}
        found = []
        for i, branch in enumerate(branches):
            place = f"{path}.{key}[{i}]"
            if branch is False:
                continue
            if others:
                try:
                    branch = merge_schemas([others, self.resolved(branch, place, depth)])
                except MergeError as cause:
                    if cause.contradiction:
                        continue
                    raise self.fail(place, str(cause)) from None
            found.append(self.node(branch, place, depth + 1))
        if not found:
            raise self.fail(f"{path}.{key}", "none of the alternatives is possible")
        return {"anyOf": found} if len(found) > 1 else found[0]

    def values(self, schema: dict[str, Any], path: str) -> dict[str, Any]:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list) or not values:
            raise self.fail(f"{path}.enum", "must be a list of values, and not empty")
        if len(values) > MOST_VALUES:
            raise self.fail(f"{path}.enum", f"has {len(values)} values, and at most {MOST_VALUES} can be chosen from")
        if "const" in schema and "enum" in schema:
            values = [value for value in values if any(same(value, other) for other in schema["enum"])]
        others = {key: value for key, value in schema.items() if key not in ("const", "enum")}
        try:
            kept = [value for value in values if is_valid(value, others, lambda ref: self.target(ref, path))]
        except re.error as cause:
            raise self.fail(f"{path}.pattern", f"is no regular expression: {cause}") from None
        except (TypeError, AttributeError):
            raise self.fail(path, f"a keyword has a value that it cannot have: {json.dumps(others)[:80]}") from None
        if not kept:
            raise self.fail(path, f"none of the values {json.dumps(values)[:80]} fits the rest of the schema")
        return {"const": kept[0]} if len(kept) == 1 else {"enum": kept}

    def typed(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        types = schema.get("type")
        names = self.implied(schema) if types is None else [types] if isinstance(types, str) else types
        if not isinstance(names, list) or not names or not all(name in _TYPES for name in names):
            raise self.fail(f"{path}.type", f"must be one or several of {', '.join(_TYPES)}, not {json.dumps(types)}")
        if names == list(_TYPES):
            return {}
        found = [getattr(self, f"of_{name}")(schema, path, depth) for name in names]
        return found[0] if len(found) == 1 else {"anyOf": found}

    @staticmethod
    def implied(schema: dict[str, Any]) -> list[str]:
        """The types meant where none is named: those that the keywords speak of. Any value is possible by none."""
        names = []
        if schema.keys() & _OF_OBJECTS:
            names.append("object")
        if schema.keys() & _OF_ARRAYS:
            names.append("array")
        if schema.keys() & _OF_STRINGS:
            names.append("string")
        if schema.keys() & _OF_NUMBERS:
            names.append("number")
        return names or list(_TYPES)

    # ---- by type

    def leaf(self, rules: str) -> dict[str, Any]:
        """A mark that llama.cpp's converter takes for a constant."""
        if rules not in self.known_leaves:
            self.known_leaves[rules] = f"{self.mark}{len(self.leaves)}"
            self.leaves.append(rules)
        return {"const": self.known_leaves[rules]}

    def own(self, kind: str, schema: dict[str, Any], path: str) -> dict[str, Any]:
        try:
            return self.leaf(leaf_rules(kind, schema))
        except LeafError as cause:
            if cause.cannot:
                self.cannot(f"{path}.{cause.key}", str(cause))
                return self.own(kind, {key: value for key, value in schema.items() if key != cause.key}, path)
            raise self.fail(f"{path}.{cause.key}", str(cause)) from None

    def of_null(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        return {"type": "null"}

    def of_boolean(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        return {"type": "boolean"}

    def of_integer(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        bounds = {key: value for key, value in schema.items() if key in _OF_NUMBERS}
        return self.own("integer", bounds, path)

    def of_number(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        bounds = {key: value for key, value in schema.items() if key in _OF_NUMBERS}
        return self.own("number", bounds, path) if bounds else {"type": "number"}

    def of_string(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        asked = {key: value for key, value in schema.items() if key in _OF_STRINGS}
        return self.own("string", asked, path) if asked else {"type": "string"}

    def count(self, schema: dict[str, Any], key: str, path: str, default: int | None) -> int | None:
        value = schema.get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise self.fail(f"{path}.{key}", f"must be an integer of at least 0, not {json.dumps(value)}")
        return value

    def of_array(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        least = self.count(schema, "minItems", path, 0) or 0
        most = self.count(schema, "maxItems", path, None)
        if most is not None and most < least:
            raise self.fail(path, f"minItems={least} is more than maxItems={most}")
        items, first = schema.get("items", True), schema.get("prefixItems", [])
        place = "prefixItems"
        if isinstance(items, list):
            items, first, place = schema.get("additionalItems", True), items, "items"
        if not isinstance(first, list):
            raise self.fail(f"{path}.{place}", "must be a list of schemas")
        if first:
            if len(first) < least and items is not False:
                # A tuple that goes on: the further items are named one by one.
                first = [*first, *[items] * (least - len(first))]
            if len(first) < least:
                raise self.fail(path, f"minItems={least}, and prefixItems allows {len(first)}")
            first = first if most is None else first[:most]
            found = [self.node(item, f"{path}.{place}[{i}]", depth + 1) for i, item in enumerate(first)]
            return {"type": "array", "prefixItems": found} if found else {"type": "array", "items": {}, "maxItems": 0}
        if items is False or most == 0:
            if least:
                raise self.fail(path, f"minItems={least}, and no items are allowed")
            return {"type": "array", "items": {}, "maxItems": 0}
        result: dict[str, Any] = {"type": "array", "items": self.node(items, f"{path}.items", depth + 1)}
        if least:
            result["minItems"] = least
        if most is not None:
            result["maxItems"] = most
        for key, value in (("minItems", least), ("maxItems", most or 0)):
            if value > 1000:
                raise self.fail(f"{path}.{key}", f"must be at most 1000, not {value}")
        return result

    def of_object(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        more = schema.get("additionalProperties", not properties)
        if not isinstance(properties, Mapping):
            raise self.fail(f"{path}.properties", "must be an object of schemas")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self.fail(f"{path}.required", "must be a list of names")
        if not isinstance(more, (bool, Mapping)):
            raise self.fail(f"{path}.additionalProperties", "must be a boolean or a schema")
        found: dict[str, Any] = {}
        for name, value in properties.items():
            if value is False and name not in required:
                continue
            found[name] = self.node(value, f"{path}.properties.{name}", depth + 1)
        for name in required:
            if name not in found:
                if schema.get("additionalProperties", True) is False:
                    raise self.fail(f"{path}.required", f"{name!r} is required, and there is no such property")
                found[name] = self.node(True if isinstance(more, bool) else more, f"{path}.required", depth + 1)
        self.check_counts(schema, path, len(set(required)), len(found), bool(more))
        names = list(map(self.safe_name, dict.fromkeys(required)))
        result: dict[str, Any] = {
            "type": "object",
            "properties": {self.safe_name(name): value for name, value in found.items()},
            "required": names,
        }
        if more is True and not found:
            return {"type": "object"}
        result["additionalProperties"] = False
        if more is not False and (more is not True or "additionalProperties" in schema):
            value = self.node(more, f"{path}.additionalProperties", depth + 1)
            if found:
                result["properties"][f"{self.key_mark}{len(self.keys)}"] = value
                self.keys.append(tuple(found))
            else:
                result["additionalProperties"] = value
        return result

    def safe_name(self, name: str) -> str:
        """What stands for the name of a property that the converter would take for something else."""
        return f"{self.name_mark}{_ODD_NAMES.index(name)}" if name in _ODD_NAMES else name

    def check_counts(self, schema: dict[str, Any], path: str, n_required: int, n_named: int, more: bool) -> None:
        least = self.count(schema, "minProperties", path, 0) or 0
        most = self.count(schema, "maxProperties", path, None)
        if least > n_required:
            self.cannot(f"{path}.minProperties", f"minProperties={least} is more than the {n_required} required")
        if most is not None and (more or most < n_named):
            self.cannot(f"{path}.maxProperties", f"maxProperties={most} limits what else is allowed")


def _path(ref: str) -> str:
    return "$" + "".join(f".{part}" for part in ref.split("/")[1:])

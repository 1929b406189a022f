"""JSON schemas as grammars: only valid JSON, all that should be possible, and nothing left out without a word."""

from __future__ import annotations

import datetime
import enum
import json
import random
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from structured.walks import texts_of
from typing_extensions import TypedDict

from pyllm.errors import InvalidArgumentError
from pyllm.structured import grammar_of, json_schema_of
from pyllm.structured.schema import schema_grammar

jsonschema = pytest.importorskip("jsonschema")
pydantic = pytest.importorskip("pydantic")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 3, None]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "boolean"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value"],
        }
    },
    "$ref": "#/$defs/node",
}
# By name: the schema, values that must be possible, and values that must not.
SCHEMAS: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "any": (True, [1, "x", None, [1, {"a": []}]], []),
    "nothing said": ({"description": "?"}, [1, "x", {"a": 1}], []),
    "object": ({"type": "object"}, [{}, {"a": 1}], [1, []]),
    "person": (
        PERSON,
        [{"name": "Jo", "age": 5}, {"name": "Jo", "age": 150, "mail": "a@b.org", "tags": [None, 3]}],
        [{"name": "", "age": 5}, {"name": "Jo", "age": 151}, {"name": "Jo", "age": 5, "x": 1}, {"age": 5}],
    ),
    "additional properties": (
        {"type": "object", "properties": {"a]-^": {"type": "null"}}, "additionalProperties": {"type": "boolean"}},
        [{"a]-^": None}, {"a": True}, {"b": False, "a]-^x": True}],
        [{"b": None}, {"a]-^": True}],
    ),
    "map": ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1, "b": -2}], [{"a": "x"}]),
    "required by name only": ({"type": "object", "required": ["x"]}, [{"x": 1}], [{}]),
    "tree": (TREE, [{"value": True}, {"value": True, "next": {"value": False, "next": None}}], [{"next": None}]),
    "the whole again": (
        {"type": "object", "properties": {"child": {"$ref": "#"}}, "additionalProperties": False},
        [{}, {"child": {"child": {}}}],
        [{"child": 1}],
    ),
    "pointer with escapes": (
        {"definitions": {"a/b~c": {"const": 5}}, "$ref": "#/definitions/a~1b~0c"}, [5], [6],
    ),
    "like names": (
        {"$defs": {"a.b": {"const": 1}, "a-b": {"const": 2}}, "type": "array", "maxItems": 2,
         "prefixItems": [{"$ref": "#/$defs/a.b"}, {"$ref": "#/$defs/a-b"}]},
        [[1, 2]], [[1, 1], [2, 2]],
    ),
    "tuple": (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        [[1, "x"]], [[1], [1, 2], [1, "x", 3]],
    ),
    "array of few": ({"type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 3},
                     [[None] * 2, [None] * 3], [[None], [None] * 4]),
    "no items": ({"type": "array", "maxItems": 0}, [[]], [[1]]),
    "types": ({"type": ["string", "null"], "maxLength": 3}, ["abc", None], ["abcd", 1]),
    "constants": ({"enum": ["x", 1, 1.5, True, None, {"a": [1]}]}, ["x", 1, 1.5, True, None], ["y", 2, False]),
    "enum of a type": ({"type": "string", "enum": ["x", None, 3]}, ["x"], [None, 3]),
    "all of": (
        {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                   {"properties": {"b": {"type": "null"}, "a": {"minimum": 3, "maximum": 4}}, "required": ["b"]}]},
        [{"a": 3, "b": None}], [{"a": 5, "b": None}, {"a": 3}],
    ),
    "neighbours of any of": (
        {"type": "object", "required": ["k"], "properties": {"k": {"type": "string", "maxLength": 2}},
         "anyOf": [{"properties": {"x": {"type": "null"}}, "required": ["x"]}, {"properties": {"y": {"const": 1}}}]},
        [{"k": "a", "x": None}, {"k": "a", "y": 1}], [{"x": None}, {"k": "abc", "y": 1}],
    ),
    "neighbours of a reference": (
        {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 7, "description": "big"}, [7, 100], [6],
    ),
    "a property without a name": (
        {"type": "object", "properties": {"": {"type": "integer"}, "*": {"const": 2}, "a": {}}, "required": ["a", ""]},
        [{"": 1, "a": 1, "*": 2}, {"": 1, "a": 1}], [1, {"a": 1}, {"": 1, "a": 1, "*": 3}],
    ),
    "constants of an inner form": (
        {"enum": [[1, "y"], [1], {"a": 1}, {"b": 1}, True, 1],
         "allOf": [{"type": ["array", "object"], "items": {"$ref": "#/$defs/one"}, "required": ["a"]}],
         "$defs": {"one": {"type": "integer", "enum": [1]}}},
        [[1]], [[1, "y"], {"b": 1}, True, 1],
    ),
    "true is not one": ({"allOf": [{"enum": [1, 2]}, {"enum": [True, 2]}]}, [2], [1, True]),
    "nullable": ({"type": "boolean", "nullable": True}, [True, None], [1]),
    "pattern": ({"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}, ["AB-12"], ["AB-", "xAB-1"]),
    "pattern somewhere": ({"type": "string", "pattern": "b+"}, ["b", 'a"\nb\\'], ["a"]),
    "pattern of quotes": ({"type": "string", "pattern": '^["\\\\\\n]*$'}, ['"\\\n'], ["a"]),
    "pattern and length": (
        {"type": "string", "pattern": "^[a-z]*$", "minLength": 2, "maxLength": 3}, ["ab"], ["a", "AB"],
    ),
    "long text": ({"type": "string", "minLength": 2500, "maxLength": 5000}, ["x" * 2500, "x" * 5000], ["x" * 2499]),
    "characters": ({"type": "string", "minLength": 2, "maxLength": 2}, ["é🙂", '"\\', "\n\t"], ["a", "abc"]),
}  # fmt: skip
FORMATS = {
    "date": (["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "2024-04-31", "0000-01-01"]),
    "time": (["23:59:59Z", "00:00:00.123+02:00"], ["24:00:00Z", "23:60:00Z"]),
    "date-time": (["2024-02-29T12:00:00Z"], ["2024-02-30T12:00:00Z", "2024-02-29"]),
    "duration": (["P3D", "PT5M", "P1DT2H"], ["P", "3D", "PT"]),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
    "uuid4": (["123e4567-e89b-42d3-a456-426614174000"], ["123e4567-e89b-12d3-a456-426614174000"]),
    "ipv4": (["0.0.0.0", "255.249.199.9"], ["256.1.1.1", "01.1.1.1"]),
    "ipv6": (["1:2:3:4:5:6:7:8"], ["1:2"]),
    "email": (["a.b@example.org"], ["a", "@b.c"]),
    "uri": (["https://example.org/a?b=c"], ["example"]),
    "hostname": (["a-b.example.org"], ["-a.org"]),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_possible_and_what_is_not(name):
    schema, good, bad = SCHEMAS[name]
    grammar = grammar_of(json_schema=schema)
    assert [value for value in good if not grammar.matches(json.dumps(value, ensure_ascii=False))] == []
    assert [value for value in bad if grammar.matches(json.dumps(value, ensure_ascii=False))] == []


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name not in ("long text", "nullable")])
def test_what_is_written_is_valid(name):
    schema = SCHEMAS[name][0]
    validator = jsonschema.Draft202012Validator(schema)
    for text in texts_of(grammar_of(json_schema=schema), 5):
        validator.validate(json.loads(text))


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    grammar = grammar_of(json_schema={"type": "string", "format": name})
    good, bad = FORMATS[name]
    assert [value for value in good if not grammar.matches(json.dumps(value))] == []
    assert [value for value in bad if grammar.matches(json.dumps(value))] == []


@pytest.mark.parametrize("seed", range(12))
def test_integers_between_limits(seed):
    chooser = random.Random(seed)
    low, high = sorted(chooser.randint(-(10**n), 10**n) for n in (chooser.randint(1, 4), chooser.randint(1, 4)))
    limits: dict[str, Any] = {"minimum": low, "maximum": high}
    if seed % 3 == 1:
        del limits["minimum"]
    if seed % 3 == 2:
        del limits["maximum"]
    grammar = grammar_of(json_schema={"type": "integer", **limits})
    edges = [low - 1, low, low + 1, high - 1, high, high + 1, 0, 1, -1, 9, 10, 99, 100, -10, -100]
    for value in [*edges, *(chooser.randint(low - 50, high + 50) for _ in range(10))]:
        inside = limits.get("minimum", value) <= value <= limits.get("maximum", value)
        assert grammar.matches(str(value)) == inside, (value, limits)
    assert not grammar.matches("007") and not grammar.matches("-0")


@pytest.mark.parametrize(
    "limits",
    [
        {"minimum": 0, "maximum": 1},
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"minimum": -1.25, "maximum": 12.5},
        {"exclusiveMinimum": 0.05},
        {"maximum": -3.5},
        {"minimum": 3, "maximum": 3},
        {"minimum": 99.95, "exclusiveMaximum": 100.05},
        {"minimum": 1, "exclusiveMinimum": True, "maximum": 2},
        {"minimum": 5, "exclusiveMinimum": 5},
    ],
)
def test_numbers_between_limits(limits):
    grammar = grammar_of(json_schema={"type": "number", **limits})
    texts = "0 1 -1 0.5 0.05 0.051 0.999 1.0001 1.0 2 3 3.5 -3.5 -3.51 -1.25 -1.26 12.5 12.51 5 5.1 99.95 99.949 100"
    for text in (*texts.split(), "100.04", "100.05", "-0.5", "0.00001", "3.000"):
        assert grammar.matches(text) == is_inside(Decimal(text), limits), text
    validator = jsonschema.Draft202012Validator({key: v for key, v in limits.items() if not isinstance(v, bool)})
    for text in texts_of(grammar, 20):
        validator.validate(json.loads(text))


def is_inside(value: Decimal, limits: dict[str, Any]) -> bool:
    low, high = limits.get("exclusiveMinimum"), limits.get("exclusiveMaximum")
    least, most = Decimal(str(limits.get("minimum", "-1e9"))), Decimal(str(limits.get("maximum", "1e9")))
    inside = least <= value <= most and not (low is True and value == least)
    inside = inside and (low is None or low is True or value > Decimal(str(low)))
    return inside and (high is None or value < Decimal(str(high)))


REFUSED = [
    ({"type": "strin"}, r"\$.type: must be one or several of null, boolean, .*not \"strin\""),
    ({"properties": {"a": {"type": "array", "items": {"type": 5}}}}, r"\$.properties.a.items.type"),
    ({"type": "object", "properties": {"a": 5}}, r"\$.properties.a: a schema must be an object, not 5"),
    ({"$ref": "#/$defs/x"}, r"\$.\$ref: '#/\$defs/x' leads nowhere: there is no '\$defs'"),
    ({"$ref": "http://example.org/x"}, "only references into the same schema"),
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "leads to itself"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "never end"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, r"\$.minimum: there is no integer from 5 to 3"),
    ({"type": "integer", "minimum": "x"}, r"\$.minimum: must be a number"),
    ({"type": "string", "minLength": -1}, r"\$.minLength: must be an integer"),
    ({"type": "string", "pattern": "["}, r"\$.pattern: is no regular expression"),
    ({"type": "string", "minLength": 5, "maxLength": 3}, "must be at least minLength=5"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems=3 is more than maxItems=2"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "no value is of type"),
    ({"type": "string", "enum": [1, 2]}, "none of the values"),
    ({"enum": []}, r"\$.enum: must be a list of values"),
    ({"anyOf": []}, r"\$.anyOf: must be a list of schemas"),
    ({"type": "object", "properties": {"a": False}, "required": ["a"]}, r"\$.properties.a: false allows no value"),
    ({"type": "object", "required": ["a"], "additionalProperties": False, "properties": {"b": {}}}, "'a' is required"),
    (False, "false allows no value"),
    ("{", "is not JSON"),
    ("[1]", "must be a JSON object"),
    (5, "must be a schema"),
]
INEXPRESSIBLE = [
    ({"type": "array", "uniqueItems": True}, r"\$.uniqueItems"),
    ({"properties": {"a": {"type": "integer", "multipleOf": 5}}}, r"\$.properties.a.multipleOf"),
    ({"not": {"type": "string"}}, r"\$.not"),
    ({"if": {"type": "string"}}, r"\$.if"),
    ({"type": "object", "patternProperties": {"^x": {}}}, r"\$.patternProperties"),
    ({"type": "object", "minProperties": 2}, "minProperties=2"),
    ({"type": "string", "format": "regex"}, r"\$.format: there is the format 'regex', and known are date"),
    ({"type": "string", "pattern": "a(?=b)"}, r"\$.pattern: .*looking ahead"),
    ({"type": "string", "format": "date", "maxLength": 5}, r"\$.maxLength"),
    ({"type": "array", "contains": {"type": "null"}}, r"\$.contains"),
    ({"typ": "string"}, r"\$.typ: there is 'typ'"),
]


@pytest.mark.parametrize(("schema", "message"), REFUSED)
def test_wrong_schemas_are_refused(schema, message, capfd):
    for arguments in ({"json_schema": schema}, {"response_format": format_of(schema, False)}):
        with pytest.raises(InvalidArgumentError, match=message):
            grammar_of(**arguments)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("schema", "message"), INEXPRESSIBLE)
def test_what_no_grammar_can_express(schema, message, capfd):
    with pytest.raises(InvalidArgumentError, match=message):
        grammar_of(json_schema=schema)
    with pytest.raises(InvalidArgumentError, match=message):
        grammar_of(response_format=format_of(schema, True))
    with pytest.warns(UserWarning, match=message):
        assert grammar_of(response_format=format_of(schema, False)) is not None
    assert capfd.readouterr() == ("", "")


def format_of(schema: Any, strict: bool) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": strict, "schema": schema}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"type": "json"}, r"must be one of text, json_object, json_schema, not 'json'"),
        ("json_object", "must be a dict"),
        ({"type": "json_schema"}, 'needs "json_schema"'),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, 'has no "schema"'),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}, "must be a boolean"),
        ({"type": "json_object", "schemas": {}}, "has no 'schemas'"),
    ],
)
def test_wrong_response_formats(value, message):
    with pytest.raises(InvalidArgumentError, match=message):
        grammar_of(response_format=value)


def test_one_form_at_a_time():
    assert grammar_of() is None and grammar_of(response_format={"type": "text"}) is None
    with pytest.raises(InvalidArgumentError, match="give only one of json_schema, regex"):
        grammar_of(json_schema={}, regex="a")
    assert grammar_of(regex="a", response_format={"type": "text"}) is not None


# ---- pydantic


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(pydantic.BaseModel):
    x: int = pydantic.Field(ge=-5, le=10)
    y: float | None = pydantic.Field(default=None, gt=0, lt=2.5)


class Everything(pydantic.BaseModel):
    point: Point
    color: Color
    points: list[Point] = pydantic.Field(min_length=1, max_length=2)
    day: datetime.date
    time: datetime.datetime
    id: uuid.UUID
    name: Annotated[str, pydantic.Field(min_length=2, max_length=4)]
    code: Annotated[str, pydantic.Field(pattern=r"^[A-Z]\d{2}$")]
    union: int | bool | list[int]
    map: dict[str, int]
    pair: tuple[int, Literal["a", "b"]]
    literal: Literal["a", 1, None]
    child: Everything | None = None


@dataclass
class Plain:
    a: int
    b: str = "x"


class Typed(TypedDict):
    a: int


def test_texts_of_a_pydantic_model_are_valid_by_it():
    for text in texts_of(grammar_of(json_schema=Everything), 6, limit=4000):
        Everything.model_validate_json(text)


def test_other_things_that_pydantic_knows():
    adapter = pydantic.TypeAdapter(list[Color])
    for source in (Point, adapter, Plain, Typed, list[int], Color, int | None):
        assert grammar_of(json_schema=source) is not None
    assert grammar_of(json_schema=adapter).matches('["red","blue"]')
    assert grammar_of(json_schema=Plain).matches('{"a":1}')
    assert json.loads(json_schema_of(Point) or "") == Point.model_json_schema()
    assert json_schema_of({"type": "json_object"}) == '{"type": "object"}'
    assert json_schema_of({"type": "text"}) is None and json_schema_of(None) is None
    assert json.loads(json_schema_of(format_of({"type": "null"}, True)) or "") == {"type": "null"}


def test_a_type_that_pydantic_does_not_know():
    class Unknown:
        pass

    with pytest.raises(InvalidArgumentError, match="pydantic has no schema for"):
        grammar_of(json_schema=list[Unknown])


def test_too_many_values_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"properties.a.enum: has 10001 values, and at most 10000"):
        schema_grammar({"type": "object", "properties": {"a": {"enum": list(range(10_001))}}})

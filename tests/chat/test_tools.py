"""Python functions as tools: what a model is told about them, and how their calls are carried out."""

from __future__ import annotations

import datetime
import enum
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
import pytest

from pyllm.chat.schemas import schema_of, value_of
from pyllm.chat.tools import Tool, as_tools, check_choice
from pyllm.chat.types import ToolCall, ToolFunction
from pyllm.errors import InvalidArgumentError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: float = 0.0


POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "number"}}, "required": ["x"]}


class Box(TypedDict, total=False):
    at: Point
    label: str


class Label(TypedDict):
    text: str
    size: NotRequired[int]


@dataclass
class Tree:
    trees: list[Tree]


class Shape(enum.Enum):
    LINE = (1, 2)


def paint(
    where: Point,
    colour: Colour = Colour.RED,
    size: Annotated[int, "in pixels"] = 1,
    note: str | None = None,
):
    """Paint a point.

    It is permanent.

    Args:
        where: The place,
            on the canvas.
        colour (Colour): Its colour.
        size: Not this one.

    Returns:
        Nothing.
    """
    return f"{where.x} {colour.name} {size} {note}"


def asked(name, **arguments):
    return ToolCall("c", ToolFunction(name, json.dumps(arguments)))


def test_a_function_describes_itself():
    tool = Tool.of(paint)
    assert tool.name == "paint" and tool.description == "Paint a point."
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "where": {
                "type": "object",
                "properties": {"x": {"type": "integer"}, "y": {"type": "number"}},
                "required": ["x"],
                "description": "The place, on the canvas.",
            },
            "colour": {"type": "string", "enum": ["red", "blue"], "description": "Its colour."},
            "size": {"type": "integer", "description": "in pixels"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["where"],
    }
    assert tool["function"]["parameters"] == tool.parameters and tool["type"] == "function"


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str, {"type": "string"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (Any, {}),
        (list, {"type": "array", "items": {}}),
        (Sequence[int], {"type": "array", "items": {"type": "integer"}}),
        (set[str], {"type": "array", "items": {"type": "string"}}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (tuple[int, str], {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (Literal["a", 1], {"enum": ["a", 1]}),
        (Literal[1, 2], {"type": "integer", "enum": [1, 2]}),
        (datetime.date, {"type": "string", "format": "date"}),
        (Annotated[int, {"no": "hash"}], {"type": "integer"}),
        (list[Annotated[int, {"no": "hash"}]], {"type": "array", "items": {"type": "integer"}}),
        (
            Label,
            {
                "type": "object",
                "properties": {"text": {"type": "string"}, "size": {"type": "integer"}},
                "required": ["text"],
            },
        ),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (
            Box,
            {"type": "object", "properties": {"at": schema_of(Point, ""), "label": {"type": "string"}}, "required": []},
        ),
    ],
)
def test_types(hint, schema):
    assert schema_of(hint, "x") == schema


def test_pydantic_models():
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", n=(int, ...))
    outer = pydantic.create_model("Outer", inner=(inner, ...))

    def f(value):
        return value.inner.n

    f.__annotations__["value"] = outer
    tool = Tool.of(f)
    # References look for definitions in the schema of all arguments.
    assert "Inner" in tool.parameters["$defs"] and "$defs" not in tool.parameters["properties"]["value"]
    assert tool(asked("f", value={"inner": {"n": 3}})) == "3"
    for hint in (outer | None, list[outer], dict[str, outer], tuple[int, outer], list[Annotated[outer | None, "x"]]):
        f.__annotations__["value"] = hint
        parameters = Tool.of(f).parameters
        assert list(parameters["$defs"]) == ["Inner"] and '"$defs"' not in json.dumps(parameters["properties"])

    def g(one, two):
        pass

    other = pydantic.create_model("Inner", m=(int, ...))
    g.__annotations__ |= {"one": outer, "two": pydantic.create_model("Other", inner=(other, ...))}
    with pytest.raises(InvalidArgumentError, match=r"g\.two: there are two different types with the name 'Inner'"):
        Tool.of(g)


@pytest.mark.parametrize(
    ("hint", "value", "made"),
    [
        (Colour, "blue", Colour.BLUE),
        (Point, {"x": 1}, Point(1)),
        (list[Point], [{"x": 1}], [Point(1)]),
        (dict[str, Colour], {"a": "red"}, {"a": Colour.RED}),
        (tuple[int, Colour], [1, "red"], (1, Colour.RED)),
        (set[int], [1, 1], {1}),
        (float, 3, 3.0),
        (Colour | None, None, None),
        (int | str, "7", "7"),
        (datetime.date | int, "2024-02-29", datetime.date(2024, 2, 29)),
    ],
)
def test_values_become_what_the_hint_says(hint, value, made):
    found = value_of(hint, value)
    assert found == made and type(found) is type(made)


class TestCalls:
    def test_arguments_are_converted(self):
        assert Tool.of(paint)(asked("paint", where={"x": 1}, colour="blue")) == "1 BLUE 1 None"

    def test_results_become_text(self):
        def result():
            return results.pop()

        results = []
        for value, text in (
            ("as it is", "as it is"),
            (None, "null"),
            ({"a": [1, 2.5]}, '{"a": [1, 2.5]}'),
            (Point(1), '{"x": 1, "y": 0.0}'),
            (np.arange(2), "[0, 1]"),
            ({"é"}, '["é"]'),
        ):
            results.append(value)
            assert Tool.of(result)(asked("result")) == text

    def test_exceptions_become_text(self):
        def fail(x: int):
            raise LookupError("no such thing")

        tool = Tool.of(fail)
        assert tool(asked("fail", x=1)) == "Error: LookupError: no such thing"
        assert tool(asked("fail")).startswith("Error: TypeError: ")
        assert tool(asked("fail", y=1)).startswith("Error: TypeError: ")
        assert tool(ToolCall("c", ToolFunction("fail", '{"x":'))).startswith("Error: InvalidArgumentError: ")

    def test_ctrl_c_does_not(self):
        def stop():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Tool.of(stop)(asked("stop"))


def no_hint_exists(x: Undefined):  # noqa: F821
    pass


def everything(*args):
    pass


async def later():
    pass


def odd(x: np.ndarray):
    pass


def unnamed(x, /):
    pass


def plant(tree: Tree):
    pass


def draw(shape: Shape):
    pass


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: 1, "must be a function with a name"),
        (no_hint_exists, "type hints of no_hint_exists cannot be evaluated"),
        (everything, r"takes \*args"),
        (later, "the tool later is async"),
        (odd, r"odd.x: there is no JSON schema for the type .*ndarray"),
        (plant, r"plant.tree.trees: Tree is a member of itself"),
        (draw, r"draw.shape: a value to choose must be one of JSON, not \(1, 2\)"),
        (Point, "must be a function, not the class Point"),
        (unnamed, "parameter x of the tool unnamed has no name in calls"),
    ],
)
def test_functions_that_cannot_be_described(function, words):
    with pytest.raises(InvalidArgumentError, match=words):
        as_tools([function])


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ("paint", "tools must be a list"),
        ([3], r"tools\[0\] must be a Python function or"),
        ([{"type": "web_search"}], r"tools\[0\]: the type of a tool must be 'function', not 'web_search'"),
        ([{"type": "custom", "custom": {"name": "f"}}], "not 'custom': describe it as a function with one argument"),
        ([{"function": {"name": "x" * 129}}], r"tools\[0\].function.name must be letters"),
        ([{"type": "x", "function": {"name": "f"}}], "must be 'function', not 'x'"),
        ([{"type": "function", "function": {"name": "a b"}}], r"tools\[0\].function.name must be letters"),
        ([{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}], "schema of an object"),
        ([{"type": "function", "function": {"name": "f", "parameters": {"x": {1}}}}], "parameters is no JSON"),
        ([Tool("a b")], r"tools\[0\].function.name must be letters"),
        ([Tool("f", parameters={"type": "array"})], "schema of an object"),
        ([Tool("f", parameters=None)], r"tools\[0\].parameters must be"),
        ([Tool("f", parameters={"properties": {"x": {"default": float("inf")}}})], "parameters is no JSON"),
        ([paint, paint], r"tools\[1\]: there are two tools with the name 'paint'"),
    ],
)
def test_wrong_tools(tools, words):
    with pytest.raises(InvalidArgumentError, match=words):
        as_tools(tools)


@pytest.mark.parametrize("name", ["2fa_code", "-now", "12306__tickets", "a.b", "x" * 64])
def test_names(name):
    (tool,) = as_tools([{"type": "function", "function": {"name": name, "parameters": None}}])
    assert tool.name == name


def test_choices():
    tools = as_tools([paint, {"function": {"name": "draw"}}])
    assert check_choice(None, []) == ("auto", None) == check_choice("auto", tools)
    assert check_choice("required", tools) == ("required", None) == check_choice({"type": "required"}, tools)
    named = {"type": "function", "function": {"name": "paint"}}
    flat = {"type": "function", "name": "paint"}
    assert check_choice(named, tools) == ("required", tools[:1]) == check_choice(flat, tools)
    for mode in ("auto", "required"):
        for inner in ({"mode": mode, "tools": [named]}, {"mode": mode, "tools": [flat]}):
            assert check_choice({"type": "allowed_tools", "allowed_tools": inner}, tools) == (mode, tools[:1])
            assert check_choice({"type": "allowed_tools", **inner}, tools) == (mode, tools[:1])
    for wrong, words in (
        ("any", "tool_choice must be 'auto'"),
        (5, "tool_choice must be 'auto'"),
        ({"type": "function"}, "tool_choice must be 'auto'"),
        ({"type": "function", "function": "x"}, "tool_choice must be 'auto'"),
        ({"type": "web_search_preview"}, "tool_choice must be 'auto'.* not {'type': 'web_search_preview'}"),
        ({"type": "function", "function": {"name": "x"}}, "'x', which is not offered; there are paint, draw"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "x"}]}, "'x', which is not offered"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "a mode, 'auto' or 'required', and a list of tools"),
        ({"type": "allowed_tools", "mode": "none", "tools": [flat]}, "a mode, 'auto' or 'required'"),
        ({"type": "allowed_tools", "allowed_tools": 5}, "a mode, 'auto' or 'required'"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            check_choice(wrong, tools)
    with pytest.raises(InvalidArgumentError, match="there are no tools"):
        check_choice("required", [])

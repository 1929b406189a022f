"""Wire types: what a declaration refuses is named with its path, and with what would be right."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta

from pyllm.server import APIError
from pyllm.server.wire import FINITE, Wire, about, at_least, decode, within


class Part(Wire):
    name: str
    size: Annotated[int, at_least(1)] | None = None


class Whole(Wire, kw_only=True):
    flag: bool | None = None
    count: Annotated[int, within(1, 9)] | None = None
    share: Annotated[float, FINITE] | None = None
    kind: Literal["a", "b"] | None = None
    part: Part | None = None
    parts: list[Part] | None = None
    tags: str | Annotated[list[str], Meta(max_length=2)] | None = None
    filled: Annotated[list[str], Meta(min_length=1)] | None = None
    tools: Annotated[list[dict[str, Any]] | None, about("", expected="a list of tools")] = None
    needed: int


@pytest.mark.parametrize(
    ("values", "param", "message"),
    [
        ({"needed": None}, "needed", "needed is missing"),
        ({"needed": "1"}, "needed", 'needed must be an integer, not "1"'),
        ({"needed": True}, "needed", "needed must be an integer, not true"),
        ({"flag": 1}, "flag", "flag must be true or false, not 1"),
        ({"count": 0}, "count", "count must be from 1 to 9, not 0"),
        ({"count": 2.5}, "count", "count must be an integer, not 2.5"),
        ({"share": "x"}, "share", 'share must be a number, not "x"'),
        ({"kind": "c"}, "kind", "kind must be 'a' or 'b', not \"c\""),
        ({"part": []}, "part", "part must be an object, not []"),
        ({"part": {}}, "part.name", "part.name is missing"),
        ({"part": {"name": "x", "size": 0}}, "part.size", "part.size must be at least 1, not 0"),
        (
            {"part": {"name": "x", "size": 2**63}},
            "part.size",
            "part.size must be an integer of at most 64 bits, not 9223372036854775808",
        ),
        ({"parts": [{"name": "x"}, {"name": 5}]}, "parts[1].name", "parts[1].name must be text, not 5"),
        ({"parts": [None]}, "parts[0]", "parts[0] must be an object, not null"),
        ({"tags": ["x", 5]}, "tags", 'tags must be a text or a list of texts, not ["x", 5]'),
        ({"tags": ["x", "y", "z"]}, "tags", "tags has 3 texts; there may be 2"),
        ({"filled": []}, "filled", "filled must be a list of texts that is not empty, not []"),
        ({"tools": 5}, "tools", "tools must be a list of tools, not 5"),
        ({"tools": ["x" * 200]}, "tools[0]", f'tools[0] must be an object, not "{"x" * 76}...'),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(APIError) as caught:
        decode(Whole, {"needed": 1, **values})
    assert (caught.value.status, caught.value.param, caught.value.message) == (400, param, message)


def test_parts_of_a_request_have_their_place_in_errors() -> None:
    with pytest.raises(APIError) as caught:
        decode(Part, {"name": 5}, "messages[2].content[0]")
    assert caught.value.param == "messages[2].content[0].name"
    with pytest.raises(APIError) as caught:
        decode(list[Part], 5)
    assert (caught.value.param, caught.value.message) == (None, "the body must be a list of objects, not 5")


def test_null_is_absent_unknown_fields_are_ignored_and_whole_numbers_are_integers() -> None:
    body = {"needed": 3.0, "flag": None, "part": {"name": "x", "size": 2.0, "more": 5}, "unknown": [1]}
    assert decode(Whole, body) == Whole(needed=3, part=Part(name="x", size=2))
    assert body["needed"] == 3.0 and isinstance(body["needed"], float)  # the body stays as it is

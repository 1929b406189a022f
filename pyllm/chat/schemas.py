"""From type hints to JSON schemas, and from JSON values back to what the hints ask for."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from pyllm.errors import InvalidArgumentError

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    None: {"type": "null"},
    Any: {},
    object: {},
    datetime.datetime: {"type": "string", "format": "date-time"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.time: {"type": "string", "format": "time"},
    uuid.UUID: {"type": "string", "format": "uuid"},
}
_FROM_TEXT: dict[Any, Callable[[str], Any]] = {
    datetime.datetime: datetime.datetime.fromisoformat,
    datetime.date: datetime.date.fromisoformat,
    datetime.time: datetime.time.fromisoformat,
    uuid.UUID: uuid.UUID,
}
_LISTS = (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Set)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def schema_of(hint: Any, where: str, inside: tuple[type, ...] = ()) -> dict[str, Any]:
    """The JSON schema of the values that a type hint allows.

    Args:
        hint: str, int, float, bool, None, dates, UUID, enums, Literal, Optional and unions, lists, tuples, sets,
            dicts with text keys, TypedDict, dataclasses, pydantic models, Any; Annotated with a text describes it.
        where: What the errors call it.
        inside: The classes that it is a member of.

    Raises:
        InvalidArgumentError: There is no schema for it.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        schema = schema_of(arguments[0], where, inside)
        texts = [text for text in arguments[1:] if isinstance(text, str)]
        return {**schema, "description": " ".join(texts)} if texts else schema
    if origin in (typing.Required, typing.NotRequired):
        return schema_of(arguments[0], where, inside)
    plain = _found(_PLAIN, hint)
    if plain is not None:
        return dict(plain)
    if origin is Literal:
        return _enum_schema(list(arguments), where)
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(one, where, inside) for one in arguments]}
    if (origin or hint) in _LISTS:
        items = schema_of(arguments[0], where, inside) if arguments else {}
        return {"type": "array", "items": items}
    if (origin or hint) is tuple:
        return _tuple_schema(arguments, where, inside)
    if (origin or hint) in _DICTS:
        if arguments and arguments[0] is not str:
            raise InvalidArgumentError(
                f"{where}: the keys of a JSON object are texts, not {arguments[0]!r}", param=where
            )
        values = schema_of(arguments[1], where, inside) if arguments else {}
        return {"type": "object", "additionalProperties": values or True}
    if isinstance(hint, type):
        return _class_schema(hint, where, inside)
    raise InvalidArgumentError(
        f"{where}: there is no JSON schema for the type {hint!r}; describe the tool by a dict", param=where
    )


def _found(table: Mapping[Any, Any], hint: Any) -> Any:
    try:
        return table.get(hint)
    except TypeError:
        return None  # a hint that has no hash, such as Annotated with a dict


def _enum_schema(values: list[Any], where: str) -> dict[str, Any]:
    for value in values:
        if value is not None and type(value) not in (str, int, float, bool):
            raise InvalidArgumentError(f"{where}: a value to choose must be one of JSON, not {value!r}", param=where)
    kinds = {type(value) for value in values}
    # Templates like to say the type of a parameter.
    kind = _PLAIN.get(kinds.pop(), {}) if len(kinds) == 1 else {}
    return {**kind, "enum": values}


def _tuple_schema(arguments: tuple[Any, ...], where: str, inside: tuple[type, ...]) -> dict[str, Any]:
    if not arguments:
        return {"type": "array"}
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": schema_of(arguments[0], where, inside)}
    return {"type": "array", "prefixItems": [schema_of(one, where, inside) for one in arguments]}


def _class_schema(hint: type, where: str, inside: tuple[type, ...]) -> dict[str, Any]:
    if hasattr(hint, "model_json_schema"):
        schema: dict[str, Any] = hint.model_json_schema()
        return schema
    if issubclass(hint, enum.Enum):
        return _enum_schema([member.value for member in hint], where)
    if hint in inside:
        raise InvalidArgumentError(
            f"{where}: {hint.__name__} is a member of itself, which only pydantic models may be; "
            "describe the tool by a dict",
            param=where,
        )
    inside = (*inside, hint)
    if dataclasses.is_dataclass(hint):
        fields = [field for field in dataclasses.fields(hint) if field.init]
        required = [
            field.name
            for field in fields
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        hints = hints_of(hint, where)
        return object_schema({field.name: hints[field.name] for field in fields}, required, where, inside)
    if typing.is_typeddict(hint):
        hints = hints_of(hint, where)
        required = sorted(hint.__required_keys__)  # type: ignore[attr-defined]
        # Where hints are texts, Python's own list of what is required does not know of NotRequired.
        required = [name for name in required if typing.get_origin(hints[name]) is not typing.NotRequired]
        return object_schema(hints, required, where, inside)
    raise InvalidArgumentError(
        f"{where}: there is no JSON schema for the type {hint!r}; describe the tool by a dict", param=where
    )


def object_schema(
    hints: Mapping[str, Any], required: list[str], where: str, inside: tuple[type, ...] = ()
) -> dict[str, Any]:
    """The schema of an object with these members; definitions of its members are moved up to it."""
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for name, hint in hints.items():
        properties[name] = schema_of(hint, f"{where}.{name}", inside)
        _move_definitions(properties[name], definitions, f"{where}.{name}")
    result: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if definitions:
        result["$defs"] = definitions
    return result


def _move_definitions(schema: dict[str, Any], definitions: dict[str, Any], where: str) -> None:
    """Take the definitions out of a schema and those in it: references count from the outermost."""
    for name, definition in schema.pop("$defs", {}).items():
        if definitions.setdefault(name, definition) != definition:
            raise InvalidArgumentError(f"{where}: there are two different types with the name {name!r}", param=where)
    inner = [*schema.get("anyOf", ()), *schema.get("prefixItems", ()), *schema.get("properties", {}).values()]
    for one in (*inner, schema.get("items"), schema.get("additionalProperties")):
        if isinstance(one, dict):
            _move_definitions(one, definitions, where)


def hints_of(thing: Any, where: str) -> dict[str, Any]:
    """Its type hints, those that are texts evaluated."""
    try:
        return typing.get_type_hints(thing, include_extras=True)
    except (NameError, TypeError) as error:
        raise InvalidArgumentError(f"the type hints of {where} cannot be evaluated: {error}") from None


def value_of(hint: Any, value: Any) -> Any:
    """A JSON value as what a type hint asks for: enums, dates, sets, dataclasses, pydantic models are made of it.

    Raises:
        ValueError, TypeError: It cannot be.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        return value_of(arguments[0], value)
    if origin in (Union, types.UnionType):
        return _union_value(arguments, value)
    kind = origin or hint
    from_text = _found(_FROM_TEXT, hint)
    if from_text is not None:
        return from_text(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in _LISTS and isinstance(value, list):
        values = [value_of(arguments[0], one) for one in value] if arguments else value
        return kind(values) if kind in (set, frozenset) else values
    if kind is tuple and isinstance(value, list):
        hints = list(arguments) or [Any]
        if (len(hints) == 2 and hints[1] is Ellipsis) or not arguments:
            hints = [hints[0]] * len(value)
        return tuple(value_of(one, item) for one, item in zip(hints, value, strict=True))
    if kind in _DICTS and isinstance(value, dict) and arguments:
        return {key: value_of(arguments[1], item) for key, item in value.items()}
    if isinstance(hint, type):
        return _class_value(hint, value)
    return value


def _union_value(hints: tuple[Any, ...], value: Any) -> Any:
    problem: Exception | None = None
    # What is of a type already is meant to be of it: only the rest is made into something.
    for hint in hints:
        if isinstance(hint, type) and type(value) is hint:
            return value
    for hint in hints:
        try:
            return value_of(hint, value)
        except (ValueError, TypeError) as error:
            problem = error
    raise problem or ValueError(f"{value!r} is none of {hints!r}")


def _class_value(hint: type, value: Any) -> Any:
    if hasattr(hint, "model_validate"):
        return hint.model_validate(value)
    if issubclass(hint, enum.Enum):
        return hint(value)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints = typing.get_type_hints(hint, include_extras=True)
        return hint(**{name: value_of(hints.get(name, Any), item) for name, item in value.items()})
    return value

"""From what people have (a dict, a text, a pydantic model, a dataclass) to a JSON schema."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, is_typeddict

from pyllm.errors import InvalidArgumentError
from pyllm.extras import missing

Parser = Callable[[str], Any]

# Arrays and objects within each other: more of them are not for grammars but for stacks.
MAX_LEVELS = 400


def json_schema_of(source: Any) -> str | None:
    """The JSON schema behind a value of ``json_schema`` or ``response_format``, as JSON.

    Args:
        source: A schema as a dict or as JSON; a pydantic model or TypeAdapter; where pydantic is installed also a
            dataclass, a TypedDict or any other type it knows; or a ``response_format`` dict.

    Returns:
        str | None: The schema. None where the form is plain text; ``{}`` stands for any JSON.

    Raises:
        InvalidArgumentError: It is nothing of the kind.
        MissingDependencyError: It takes pydantic, which is not installed.
    """
    if source is None:
        return None
    if isinstance(source, Mapping) and source.get("type") in ("text", "json_object", "json_schema"):
        from pyllm.structured.form import form_of

        form = form_of(response_format=source)
        return None if form is None else form.schema
    schema, _ = schema_and_parser(source)
    return json.dumps(schema, ensure_ascii=False)


def schema_and_parser(source: Any) -> tuple[Any, Parser]:
    """The schema as Python values, and what turns JSON text into the value it describes."""
    if isinstance(source, Mapping):
        return _shallow(_plain(source)), json.loads
    if isinstance(source, bool):
        return source, json.loads
    if isinstance(source, (str, bytes)):
        try:
            schema = json.loads(source)
        except ValueError as cause:
            raise InvalidArgumentError(f"json_schema is not JSON: {cause}", param="json_schema") from None
        except RecursionError:
            raise _too_deep() from None
        if not isinstance(schema, (dict, bool)):
            raise InvalidArgumentError(
                f"json_schema must be a JSON object, not {type(schema).__name__}", param="json_schema"
            )
        return _shallow(schema), json.loads
    try:
        return _of_pydantic(source)
    except Exception as cause:
        # Pydantic's own class is known only where it is installed.
        if type(cause).__module__.startswith("pydantic"):
            raise InvalidArgumentError(
                f"json_schema: pydantic has no schema for {source!r}: {cause}", param="json_schema"
            ) from None
        raise


def _of_pydantic(source: Any) -> tuple[Any, Parser]:
    if callable(getattr(source, "model_json_schema", None)):
        return source.model_json_schema(), source.model_validate_json
    if callable(getattr(source, "json_schema", None)) and callable(getattr(source, "validate_json", None)):
        return source.json_schema(), source.validate_json
    return _of_type(source)


def _of_type(source: Any) -> tuple[Any, Parser]:
    known = isinstance(source, type) or is_typeddict(source) or dataclasses.is_dataclass(source)
    if not known and not hasattr(source, "__origin__") and type(source).__module__ not in ("typing", "types"):
        raise InvalidArgumentError(
            f"json_schema must be a schema, as a dict or as JSON, or a pydantic model, not {source!r}",
            param="json_schema",
        )
    try:
        from pydantic import TypeAdapter
    except ImportError:
        raise missing(f"json_schema={source!r} takes pydantic, which is not installed", "pydantic") from None
    adapter: TypeAdapter[Any] = TypeAdapter(source)
    return adapter.json_schema(), adapter.validate_json


def _plain(schema: Mapping[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(schema, default=dict, allow_nan=False))
    except (TypeError, ValueError) as cause:
        raise InvalidArgumentError(f"json_schema holds what is no JSON: {cause}", param="json_schema") from None
    except RecursionError:
        raise _too_deep() from None


def _shallow(schema: Any) -> Any:
    """The same, if whatever walks through it afterwards can do so."""
    level, depth = [schema], 0
    while level:
        depth += 1
        if depth > MAX_LEVELS:
            raise _too_deep()
        level = [
            child
            for value in level
            if isinstance(value, (dict, list))
            for child in (value.values() if isinstance(value, dict) else value)
        ]
    return schema


def _too_deep() -> InvalidArgumentError:
    return InvalidArgumentError(
        f"json_schema is nested too deep: more than {MAX_LEVELS} arrays and objects", param="json_schema"
    )

"""The config file of a command: the values of its flags, and tables for its models.

A file holds what flags hold, by their names without dashes in front::

    port = 8080
    ctx-size = 16384

    [models.small]
    model = "smollm2"

Flags come before variables of the environment, those before the file, and the file before the defaults.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import typer

from pyllm.extras import install_command

_TABLES = "models"
_META = "pyllm.config"


@dataclass(frozen=True)
class Key:
    """A key that a config file may have.

    Attributes:
        name: The name of the parameter.
        kind: What its value is.
        several: Whether it may be a list of these.
        low: The smallest number, or None.
        high: The largest, or None.
    """

    name: str
    kind: Any
    several: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Config:
    """A config file that was read.

    Attributes:
        path: The file.
        values: Values by the names of parameters.
        models: The same for each model, by its name.
    """

    path: Path
    values: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]


def use_config(
    ctx: typer.Context, path: Path | None, function: Callable[..., None], *, refused: Collection[str] = ()
) -> Path | None:
    """What the callback of ``--config`` does, which must be eager: the file has the defaults of a command.

    Args:
        ctx: The command.
        path: The file, or None.
        function: The function of the command, whose annotations say of what kind each flag is.
        refused: Names of parameters that tables of models may not have.
    """
    if path is not None and not ctx.resilient_parsing:
        config = read_config(path, config_keys(ctx, function), extra=MODEL_KEYS, refused=refused)
        ctx.meta[_META] = config
        ctx.default_map = {**(ctx.default_map or {}), **config.values}
    return path


def config_of(ctx: typer.Context) -> Config | None:
    """The config file of a command, or None."""
    return ctx.meta.get(_META)


# What tables of models know besides.
MODEL_KEYS: Mapping[str, tuple[str, ...]] = {"load": ("start", "demand")}


def read_config(
    path: Path,
    keys: Mapping[str, Key],
    *,
    extra: Mapping[str, tuple[str, ...]],
    refused: Collection[str] = (),
) -> Config:
    """Read a config file, and check it against the flags of a command.

    Args:
        path: A file that ends in .toml, .yaml or .yml.
        keys: The keys that it may have.
        extra: Keys of the tables of models beside them, and the values that each may have.
        refused: Names of parameters that these tables may not have: they are about the whole command.

    Raises:
        typer.BadParameter: The file cannot be read, a key is unknown, or a value is of the wrong kind.
    """
    found = _parse(path)
    tables = found.pop(_TABLES, {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise typer.BadParameter(f"{path}: {_TABLES} must hold a table for each model: [{_TABLES}.NAME]")
    values = _checked(found, keys, {}, str(path), others=(_TABLES,))
    for name, value in values.items():
        # Whoever names no API key in a file may have meant to name some: it must not be as if nothing were said.
        if value == []:
            raise typer.BadParameter(f"{path}: {name.replace('_', '-')} is an empty list: leave it out, or name some")
    models = {
        str(name): _checked(table, keys, extra, f"{path}: [{_TABLES}.{name}]", refused=refused)
        for name, table in tables.items()
    }
    return Config(path, values, models)


def _parse(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"cannot read {path}: {error.strerror or error}") from error
    suffix = path.suffix.lower()
    if suffix == ".toml":
        import tomllib

        try:
            return tomllib.loads(data.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{path} is not TOML: {error}") from error
    if suffix not in (".yaml", ".yml"):
        raise typer.BadParameter(f"{path}: the name must end in .toml, .yaml or .yml, which says what it is")
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"{path}: YAML needs PyYAML: {install_command('PyYAML')}") from error
    try:
        found = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} is not YAML: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{path} must hold keys and values, not {type(found).__name__}")
    return found


def config_keys(ctx: typer.Context, function: Callable[..., None]) -> dict[str, Key]:
    """The flags of a command, by all of their names, without dashes in front."""
    annotations = {name: one.annotation for name, one in inspect.signature(function).parameters.items()}
    keys: dict[str, Key] = {}
    for parameter in ctx.command.params:
        if parameter.param_type_name == "option" and parameter.name in annotations and parameter.name != "config":
            key = _key(parameter.name, annotations[parameter.name])
            for flag in parameter.opts:
                keys.setdefault(_plain(flag), key)
    return keys


def _key(name: str, annotation: Any) -> Key:
    annotated, option = get_args(annotation)
    (kind,) = [one for one in get_args(annotated) or (annotated,) if one is not type(None)]
    several = get_origin(kind) is list
    if several:
        (kind,) = get_args(kind)
    if option.hidden and kind is str:
        kind = object  # of a flag without effect: a number is as good as its text
    return Key(name, kind, several, option.min, option.max)


def _plain(key: str) -> str:
    return key.lstrip("-").replace("_", "-")


def _checked(
    table: Mapping[Any, Any],
    keys: Mapping[str, Key],
    extra: Mapping[str, tuple[str, ...]],
    where: str,
    *,
    others: tuple[str, ...] = (),
    refused: Collection[str] = (),
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for text, value in table.items():
        plain = _plain(str(text))
        if plain in extra:
            if value not in extra[plain]:
                expected = " or ".join(map(repr, extra[plain]))
                raise typer.BadParameter(f"{where}: {text} must be {expected}, not {value!r}")
            result[plain] = value
            continue
        if plain not in keys:
            near = difflib.get_close_matches(plain, [*keys, *extra, *others], 1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise typer.BadParameter(f"{where}: there is no key {text!r}{hint}")
        key = keys[plain]
        if key.name in refused:
            raise typer.BadParameter(f"{where}: {text!r} is about the server: put it above the tables of models")
        if key.name in said:
            raise typer.BadParameter(f"{where}: {said[key.name]!r} and {text!r} say the same")
        said[key.name] = text
        result[key.name] = _value(value, key, f"{where}: {text}")
    return result


def _value(value: Any, key: Key, where: str) -> Any:
    """A value as the flag would give it."""
    if key.several:
        return [_one(item, key, where) for item in (value if isinstance(value, list) else [value])]
    return _one(value, key, where)


def _one(value: Any, key: Key, where: str) -> Any:
    classes, words = _KINDS.get(key.kind, _KINDS[str])
    # true is a number for Python, and for nobody else.
    right = isinstance(value, classes) and (key.kind is bool or not isinstance(value, bool))
    if not right:
        raise typer.BadParameter(f"{where} must be {words}, not {value!r}")
    if key.low is not None and not value >= key.low:
        raise typer.BadParameter(f"{where} must be at least {key.low:g}, not {value!r}")
    if key.high is not None and not value <= key.high:
        raise typer.BadParameter(f"{where} must be at most {key.high:g}, not {value!r}")
    return key.kind(value) if key.kind in (float, Path) else str(value) if key.kind is object else value


_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    Path: ((str,), "a path"),
    object: ((str, int, float), "a text or a number"),
}

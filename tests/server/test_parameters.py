"""A number of SamplingParams is declared once: commands, config files, requests, schemas and /props follow from it."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from pyllm.cli.config import config_keys, read_config
from pyllm.cli.main import app
from pyllm.errors import InvalidArgumentError
from pyllm.params import Parameter, SamplingParams, sampling_numbers
from pyllm.server import APIError, Settings
from pyllm.server.completions import ROUTES, CompletionRequest
from pyllm.server.native_answer import described
from pyllm.server.openapi import make_document
from pyllm.server.sampling import Sizes
from pyllm.server.wire import decode

SIZES = Sizes(512, 100)
NUMBERS = list(sampling_numbers().values())
WITH_FLAGS = [one for one in NUMBERS if one.flags]


def named(numbers: list[Parameter]) -> Any:
    return pytest.mark.parametrize("one", numbers, ids=lambda one: one.name)


def inside(one: Parameter) -> int | float:
    """A value in its range, and not the default."""
    found = one.kind(max(one.low, min(one.high, 1)))
    return found if found != one.default else one.kind(max(one.low, 0))


def arguments(**fields: Any) -> dict[str, Any]:
    return decode(CompletionRequest, {"prompt": "x", **fields}).arguments(["x"], Settings(), SIZES)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    schemas = make_document(ROUTES, keys=False)["components"]["schemas"]
    return schemas["CompletionRequest"]["properties"]


def options(command: str) -> dict[str, Any]:
    found = typer.main.get_command(app).commands[command]
    return {flag: one for one in found.params for flag in one.opts}


@named(NUMBERS)
def test_requests_have_it_with_its_range(one: Parameter, schema: dict[str, Any]) -> None:
    assert arguments(**{one.name: inside(one)})[one.name] == inside(one)
    described = schema[one.name]
    assert described["type"] == ["integer" if one.kind is int else "number", "null"]
    assert described["description"] == one.help
    assert described["maximum"] == one.high
    # Of numbers of tokens a request may ask for the whole context.
    assert described["minimum"] == (-1 if one.name.endswith("last_n") else one.low)


@named(NUMBERS)
def test_what_is_no_number_names_it(one: Parameter) -> None:
    with pytest.raises(APIError, match=f"^{one.name} must be an? (integer|number), not") as caught:
        arguments(**{one.name: "x"})
    assert caught.value.param == one.name


@named(NUMBERS)
def test_its_range_is_checked_and_named(one: Parameter) -> None:
    for wrong in (one.low - 1, one.high + 1):
        # Next to the largest floats there is no other number.
        if one.low <= wrong <= one.high:
            continue
        with pytest.raises(InvalidArgumentError, match=f"^{one.name} must be") as caught:
            SamplingParams(**{one.name: one.kind(wrong)})
        assert caught.value.param == one.name


def test_all_are_shown() -> None:
    assert set(sampling_numbers()) <= set(described(SamplingParams()))


@named(WITH_FLAGS)
def test_commands_have_its_flags(one: Parameter) -> None:
    for command in ("run", "chat", "serve"):
        known = options(command)
        for flag in one.flags:
            assert known[flag].help.startswith(one.help)
            assert known[flag].envvar == (one.variable if command == "serve" else None)


@named(WITH_FLAGS)
def test_config_files_have_its_flags_without_dashes(one: Parameter, tmp_path: Any) -> None:
    from pyllm.cli import serve

    context = typer.Context(typer.main.get_command(app).commands["serve"])
    keys = config_keys(context, serve.serve)
    path = tmp_path / "pyllm.toml"
    path.write_text(f"{one.flags[-1].lstrip('-')} = {inside(one)}\n")
    (value,) = read_config(path, keys, extra={}).values.values()
    assert value == inside(one)

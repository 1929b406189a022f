"""docs/server-flags.md is true: it has all flags of llama-server, and says of each whether `pyllm serve` has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from pyllm.cli.main import app

pytest.importorskip("starlette")
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "server-flags.md"
THEIRS = ROOT / "llama_cpp_src" / "llama.cpp" / "tools" / "server" / "README.md"
FLAG = r"(?<![\w-])--?[A-Za-z][\w.-]*"


def ours() -> dict[str, Any]:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {
        flag: parameter
        for parameter in command.params
        if parameter.param_type_name == "option"
        for flag in (*parameter.opts, *parameter.secondary_opts)
    } | {"-h": None, "--help": None}


def rows() -> list[tuple[list[str], str, str]]:
    """The rows of the tables: flags, what is said, and why."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `-"):
            found.append((re.findall(FLAG, cells[0]), cells[1], cells[-1]))
    return found


@pytest.mark.skipif(not THEIRS.is_file(), reason="the sources of llama.cpp are not here")
def test_every_flag_of_llama_server_is_there() -> None:
    text = THEIRS.read_text(encoding="utf-8")
    text = text[text.index("HELP_START") : text.index("HELP_END")]
    theirs = {
        flag
        for line in text.splitlines()
        if (match := re.match(r"\| `([^`]*)` \|", line))
        for flag in re.findall(FLAG, match[1].replace("\\", ""))
    }
    assert len(theirs) > 200
    known = {flag for flags, _, _ in rows() for flag in flags}
    # Of values in brackets some look like flags.
    assert {flag for flag in theirs - known if flag.startswith("--")} == set()


def test_what_is_said_of_each_flag_holds() -> None:
    mine = ours()
    wrong = []
    for flags, state, why in rows():
        if state in ("yes", "accepted"):
            lacking = {flag for flag in flags if flag not in mine} - set(re.findall(FLAG, why))
            wrong += [f"{flag} is not here" for flag in lacking - {"--usage"}]
        elif state in ("no", "otherwise"):
            wrong += [f"{flag} is here" for flag in flags if flag in mine and flag != "--draft"]
            assert why, flags
    assert wrong == []


def test_every_flag_of_ours_is_there() -> None:
    known = {flag for flags, _, _ in rows() for flag in flags}
    mine = {flag: parameter for flag, parameter in ours().items() if parameter is not None}
    shown = {parameter.name for flag, parameter in mine.items() if flag in known}
    assert {parameter.name for parameter in mine.values()} - shown == set()


@pytest.mark.skipif(not THEIRS.is_file(), reason="the sources of llama.cpp are not here")
def test_variables_of_the_environment_are_llama_servers() -> None:
    """Whoever sets LLAMA_ARG_… for a flag that is here has the flag."""
    mine, lacking = ours(), []
    for line in THEIRS.read_text(encoding="utf-8").splitlines():
        match, variable = re.match(r"\| `([^`]*)` \|", line), re.search(r"env: (\w+)", line)
        if not match or not variable:
            continue
        for flag in re.findall(FLAG, match[1]):
            parameter = mine.get(flag)
            if parameter is not None and flag not in ("--draft", "--model", "-m", "-hf", "-hfr", "--hf-repo"):
                variables = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or []
                if variable[1] not in variables:
                    lacking.append((flag, variable[1]))
    assert lacking == []

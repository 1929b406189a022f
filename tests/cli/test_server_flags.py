"""docs/server-flags.md is true: it has all flags of llama-server, and says of each what `pyllm serve` does with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from support import programs

from pyllm.cli.llama_server_flags import FLAGS
from pyllm.cli.main import app

pytest.importorskip("starlette")
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "server-flags.md"
THEIRS = ROOT / "llama_cpp_src" / "llama.cpp" / "tools" / "server" / "README.md"
FLAG = r"(?<![\w-])--?[A-Za-z][\w.-]*"
STATES = {"accepted": "accepted", "ignored": "ignored", "refused": "no"}


def ours() -> dict[str, Any]:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {
        flag: parameter
        for parameter in command.params
        if parameter.param_type_name == "option"
        for flag in (*parameter.opts, *parameter.secondary_opts)
    } | {"-h": None, "--help": None, "--usage": None}


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
    # Each is taken by the parser, whatever becomes of it then.
    assert {flag for flag in theirs if flag in known} - set(ours()) == set()


def test_what_is_said_of_each_flag_holds() -> None:
    declared = {name: flag for flag in FLAGS for name in flag.names}
    said: set[str] = set()
    for flags, state, why in rows():
        for name in flags:
            flag = declared.get(name)
            if flag is None:
                assert state not in STATES.values(), name
                continue
            assert set(flags) == set(flag.names)
            assert (state, why.partition(" (`")[0]) == (STATES[flag.effect], flag.reason)
            assert all(f"`{value}`" in why for value in flag.taken)
            said.add(name)
    assert said == set(declared)


def test_every_flag_of_ours_is_there() -> None:
    known = {flag for flags, _, _ in rows() for flag in flags}
    mine = {flag: parameter for flag, parameter in ours().items() if parameter is not None}
    shown = {parameter.name for flag, parameter in mine.items() if flag in known}
    assert {parameter.name for parameter in mine.values()} - shown == set()


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch, tiny_models: Any, caplog: pytest.LogCaptureFixture) -> Any:
    """`warned(flags…)`: what the server logs when it is started so; nothing is loaded, and nothing listens."""
    import logging

    class Runner:
        def __init__(self, app: Any, **config: Any) -> None:
            pass

        def run(self) -> None:
            pass

    monkeypatch.setattr("pyllm.server.loader.serve_model", lambda spec: _Nothing())
    monkeypatch.setattr("pyllm.server.make_app", lambda *arguments, **more: None)
    monkeypatch.setattr("pyllm.server.run.Runner", Runner)
    monkeypatch.setattr("pyllm.server.log.set_up_log", lambda **settings: None)

    def warned(*arguments: str) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "pyllm.server"):
            done = programs.invoke("serve", tiny_models["llama"], "--port", "0", *arguments)
        assert done.returncode == 0, done.stderr
        return [record.getMessage() for record in caplog.records]

    return warned


class _Nothing:
    engine = embedder = None

    def close(self) -> None:
        pass


# Lines that people have in their configurations of llama-swap and docker.
@pytest.mark.parametrize(
    "line",
    [
        "-ngl 99 -fa on -c 4096 -np 2 --no-mmap --jinja",
        "-ngl all -fa auto -ctk q8_0 -ctv q8_0 -b 512 -ub 512 --temp 0.7 --top-k 20 --min-p 0 --repeat-penalty 1.1",
        "-ncmoe 20 -fit off -fitt 512 -sps 0.5 -t 2 -tb 2 --mlock",
        "--cpu-moe --no-warmup --metrics --slots -cb --no-webui --reasoning-format none --reasoning-budget 0",
        "--cache-reuse 256 --numa distribute --prio 2 --poll 50 --no-perf --no-mmproj --cache-idle-slots -cram 1024",
        "--host 127.0.0.1 -a a,b,c --tags chat,small --offline --no-jinja --no-cont-batching --context-shift",
        "--swa-full --threads-http 4 --log-colors off --log-timestamps --log-prefix --sleep-idle-seconds 300",
        "-ot blk.0.ffn=CPU -dev none -sm layer -ts 1 -mg 0 --spec-default --embd-normalize 2 -lv 3",
        "--cors-origins localhost --cors-methods GET,POST --cors-headers * --cors-credentials --reuse-port",
        "-md smollm2 -ctkd f16 -ngld 99 -devd none --draft-p-min 0.5 --sampler-seq kpt --keep 64 -sm row",
        "--mmproj mmproj.gguf --image-min-tokens 64 --mmproj-offload --media-path /tmp --ui-mcp-proxy --tools all",
    ],
)
def test_everyday_lines_start(warned, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # --offline sets it, for the tests that follow as well
    flags = {flag for flag in line.split() if flag.startswith("-")}
    ignored = {name for flag in FLAGS if flag.effect == "ignored" for name in flag.names} & flags
    said = warned(*line.split())
    assert len(said) <= len(ignored)
    assert all(" has no effect: " in message for message in said)
    silent = {"-fit", "--log-colors"}  # with a value that holds anyway, or may
    assert len(said) >= len(ignored - silent)


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.effect == "refused"], ids=lambda flag: flag.field)
def test_what_must_not_be_ignored_is_an_error_with_its_reason(tiny_models, flag) -> None:
    for name in flag.names:
        done = programs.invoke("serve", tiny_models["llama"], name, *["5"] * flag.takes_value)
        assert done.returncode == 2
        words = " ".join(done.stderr.replace("│", " ").split())
        assert " ".join(flag.reason.split()[:4]) in words


@pytest.mark.parametrize("flag", ["-spx", "-npx", "-cbx", "-st", "-mfoo", "-vv"])
def test_letters_are_no_bundle(tiny_models, flag: str) -> None:
    done = programs.invoke("serve", tiny_models["llama"], flag, "0.5")
    assert done.returncode == 2
    assert f"there is no flag {flag}" in " ".join(done.stderr.replace("│", " ").split())


def test_letters_with_numbers_and_values_that_look_like_flags(warned) -> None:
    assert warned("-c512", "-s-1", "--chat-template-kwargs", '{"a": 1}', "-l", "5-inf") == []


def test_variables_of_flags_without_effect_are_read(warned, monkeypatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_CACHE_REUSE", "256")
    (message,) = warned()
    assert message.startswith("--cache-reuse has no effect: ")


def test_the_config_file_may_have_flags_without_effect(warned, tmp_path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("cache-reuse = 256\nno-jinja = true\n")
    assert len(warned("--config", str(path))) == 2


@pytest.mark.parametrize("columns", ["80", "100"])
def test_help_fits(monkeypatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        lines = programs.invoke(command, "--help").stdout.splitlines()
        assert max(map(len, lines)) <= int(columns)
        # No name and no variable is cut off.
        assert "…" not in "".join(lines).replace("BUFFER,…", "").replace("VALUE,…", "").replace("hf:…", "").replace(
            "https://…", ""
        )


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
            # What has a flag of its own for "no" has the variable at the other one.
            if flag.startswith(("--no-", "-no-")) or flag in ("-nocb", "-nkvo", "-nr"):
                continue
            if parameter is not None and flag not in ("--draft", "--model", "-m", "-hf", "-hfr", "--hf-repo"):
                variables = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or []
                if variable[1] not in variables:
                    lacking.append((flag, variable[1]))
    assert lacking == []

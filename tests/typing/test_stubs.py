"""What a type checker says about pyllm."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyllm

HERE = Path(__file__).parent
CORE = Path(pyllm.__file__).parent / "core"
pytestmark = pytest.mark.timeout(300)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, cwd=HERE.parent.parent
    )


def check(program: Path) -> subprocess.CompletedProcess[str]:
    # Silent: what is wrong in pyllm itself is another test's business.
    return run("mypy", "--strict", "--no-error-summary", "--show-error-codes", "--follow-imports=silent", program)


def test_every_compiled_module_has_a_stub_and_the_package_says_so():
    compiled = {path.name.split(".")[0] for path in CORE.iterdir() if path.suffix in (".so", ".pyd")}
    stubs = {path.stem for path in CORE.glob("*.pyi")}
    assert compiled and compiled == stubs - {"__init__"}
    assert (CORE.parent / "py.typed").exists()


def test_stubs_agree_with_the_modules():
    done = run("mypy.stubtest", "pyllm.core", "--concise", "--allowlist", HERE / "stubtest-allowlist.txt")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_good_program_passes():
    done = check(HERE / "good.py")
    assert (done.returncode, done.stdout) == (0, "")


def test_mistakes_are_found():
    lines = (HERE / "bad.py").read_text().splitlines()
    expected = {i: line.partition("# E: ")[2] for i, line in enumerate(lines, 1) if "  # E: " in line}
    done = check(HERE / "bad.py")
    found = {int(m[1]): m[2] for m in re.finditer(r"bad\.py:(\d+): error: .*\[([\w-]+)\]", done.stdout)}
    assert found == expected, done.stdout

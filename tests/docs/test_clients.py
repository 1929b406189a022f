"""docs/howto/clients.md: what it shows of other programs and libraries runs against a real server.

What needs packages that the tests do not have is run in environments of its own, which are kept below build/clients.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs.pages import ROOT, Block, blocks
from support.servers import Process

pytest.importorskip("uvicorn")

PAGE = ROOT / "docs" / "howto" / "clients.md"
ADDRESS = "http://localhost:8080"
FOLDER = ROOT / "build" / "clients"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TESTED = {re.split(r"[^\w-]", name)[0] for name in PROJECT["optional-dependencies"]["test"]}
# What the endpoint of each is: a client that asks another one says nothing of this server.
NAMES = [
    "openai", "anthropic", "LangChain", "LlamaIndex", "LiteLLM", "instructor", "pydantic-ai", "openai-agents",
    "Vercel AI SDK", "aider", "lm-evaluation-harness", "llm",
]  # fmt: skip
BLOCKS = [block for block in blocks(PAGE) if block.packages]
# Without them these programs ask their makers' servers first.
VARIABLES = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "AIDER_ANALYTICS": "false",
    "AIDER_CHECK_UPDATE": "false",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    """The server that the page starts, at a port of its own."""
    from pyllm import hub

    for alias in ("smollm2", "minilm"):
        hub.pull(alias)
    (command,) = re.findall(r"^pyllm serve (--model .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    process = Process(*shlex.split(command))
    yield process
    process.close()


def environment(packages: tuple[str, ...]) -> Path:
    """A folder with these packages, which is made at the first time."""
    folder = FOLDER / f"{packages[0].split(':')[-1].replace('/', '-')}-{zlib.crc32(repr(packages).encode()):08x}"
    done = folder / "done"
    if done.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    if packages[0].startswith("npm:"):
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("there is no npm here")
        folder.mkdir(parents=True)
        names = [name.removeprefix("npm:") for name in packages]
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *names]
    else:
        venv.create(folder, with_pip=True)
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800)
    if made.returncode:
        last = (made.stderr.strip() or "no word").splitlines()[-1]
        pytest.skip(f"{', '.join(packages)} cannot be installed here: {last}")
    done.touch()
    return folder


def run(block: Block, url: str, programs: Path, packages: Path | None, folder: Path) -> str:
    """Run a block at this address; what it prints.

    Args:
        block: The block.
        url: The server's address.
        programs: The folder of the environment's programs.
        packages: The folder of npm's packages, where the block needs them.
        folder: Where it runs, and what it takes for the home of its user.
    """
    assert ADDRESS in block.code
    code = block.code.replace(ADDRESS, url)
    script = folder / {"python": "snippet.py", "js": "snippet.mjs", "sh": "snippet.sh"}[block.language]
    script.write_text(code + "\n", encoding="utf-8")
    if packages is not None:
        (folder / "node_modules").symlink_to(packages / "node_modules")
    command = {"python": [str(programs / "python")], "js": ["node"], "sh": ["sh", "-e"]}[block.language]
    own = {"HOME": str(folder), "LLM_USER_PATH": str(folder), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*command, str(script)],
        cwd=folder,
        env={**os.environ, **VARIABLES, **own},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_has_a_block_for_each() -> None:
    headings = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == NAMES
    assert len(BLOCKS) == len(NAMES)


@pytest.mark.model
@pytest.mark.skipif(os.name == "nt", reason="the environments are laid out as on POSIX")
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=name, marks=[] if TESTED.issuperset(block.packages) else [pytest.mark.slow])
        for name, block in zip(NAMES, BLOCKS, strict=True)
    ],
)
@pytest.mark.timeout(2400)
def test_a_client_gets_its_answers(server: Process, block: Block, tmp_path: Path) -> None:
    programs, packages = Path(sys.executable).parent, None
    if not TESTED.issuperset(block.packages):
        made = environment(block.packages)
        programs, packages = (programs, made) if block.language == "js" else (made / "bin", None)
    first = len(server.lines)
    printed = run(block, server.url, programs, packages, tmp_path)
    assert printed.strip()
    asked = [line for line in server.lines[first:] if str(line.get("path", "")).startswith("/v1/")]
    assert asked
    assert [line for line in asked if line["status"] != 200] == []
    # A vector of minilm.
    assert "minilm" not in block.code or printed.split()[-1] == "384"

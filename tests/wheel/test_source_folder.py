"""A checkout that was never built shadows an installed pyllm when Python starts in it; that is explained."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyllm


def test_sources_without_compiled_modules_say_what_to_do(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("*.so", "*.so.*", "*.pyd", "*.dylib", "*.dll", "__pycache__")
    shutil.copytree(Path(pyllm.__file__).parent, tmp_path / "pyllm", ignore=ignore)
    code = "import pyllm; print('light'); from pyllm import Llama"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "light\n")
    assert f"imported from {tmp_path / 'pyllm' / 'core'}" in done.stderr
    assert "nothing compiled" in done.stderr and "make build" in done.stderr

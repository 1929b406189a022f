"""Scripts in a process of their own, for what could end or hang the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PRELUDE = Path(__file__).with_name("isolation_prelude.py").read_text(encoding="utf-8")


# Limits end what hangs, before pytest's own does; a busy machine may need minutes for what takes a second elsewhere.
def run(
    script: str, *arguments: object, timeout: float = 550, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script after the names of `isolation_prelude.py`; `arguments` become ``sys.argv[1:]``."""
    # Freed memory is overwritten, so that using it shows; a crash tells where it happened, without a debugger.
    settings = {"MALLOC_PERTURB_": "165", "PYTHONFAULTHANDLER": "1", "GGML_NO_BACKTRACE": "1"}
    environment = os.environ | settings | (env or {})
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )


def survive(
    script: str, *arguments: object, timeout: float = 550, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script that must reach its end, exit with 0 and leave nothing on stderr."""
    result = run(script + "\nprint('reached the end')", *arguments, timeout=timeout, env=env)
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    assert result.stderr == "", result.stderr[-4000:]
    assert result.stdout.endswith("reached the end\n"), result.stdout[-2000:]
    return result

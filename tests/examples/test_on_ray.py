"""Examples for Ray do what docs/howto/deploy.md says. Run by hand, where `ray[serve,data]` is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.programs import free_port

pytest.importorskip("ray.serve")
pytest.importorskip("ray.data")
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "on_ray"
pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.usefixtures("smollm2_path")]

ASK = """
import json, sys, time
import httpx
import ray
from ray import serve

from serving import build

ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"port": int(sys.argv[1])})
handle = serve.run(build({"model": "smollm2"}))
answer = handle.complete.remote("The capital of France is", max_tokens=2, temperature=0).result()
client = httpx.Client(base_url=f"http://127.0.0.1:{sys.argv[1]}", headers={"x-api-key": "second"}, timeout=300)
refused = client.get("/v1/models", headers={"x-api-key": "third"}).status_code
body = {"prompt": "The capital of France is", "max_tokens": 2, "temperature": 0, "stream": True}
chunks = []
with client.stream("POST", "/v1/completions", json=body) as response:
    for line in response.iter_lines():
        if line.startswith("data: {"):
            chunks.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
with client.stream("POST", "/v1/completions", json={**body, "max_tokens": 1500, "ignore_eos": True}) as response:
    next(response.iter_lines())
until = time.monotonic() + 60
while any(slot["is_processing"] for slot in client.get("/slots").json()) and time.monotonic() < until:
    time.sleep(0.2)
freed = not any(slot["is_processing"] for slot in client.get("/slots").json())
serve.shutdown()
print(json.dumps({"handle": answer["choices"][0]["text"], "http": "".join(chunks), "refused": refused, "freed": freed}))
"""


def run(arguments: list[str], folder: Path, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLES}", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ray_serve(tmp_path: Path) -> None:
    script = tmp_path / "ask.py"
    script.write_text(ASK)
    # Ray writes on standard output, too.
    *_, last = run([str(script), str(free_port())], tmp_path, LLAMA_API_KEY="first,second").splitlines()
    got: dict[str, Any] = json.loads(last)
    assert got == {"handle": " Paris.", "http": " Paris.", "refused": 401, "freed": True}


def test_ray_data(tmp_path: Path) -> None:
    lines = run([str(EXAMPLES / "batches.py")], tmp_path).splitlines()
    assert len(lines) == 6
    assert {"France: Paris", "Italy: Rome", "Japan: Tokyo"} <= set(lines)

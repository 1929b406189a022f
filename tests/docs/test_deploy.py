"""docs/howto/deploy.md shows files that are well-formed, and flags, variables, paths and numbers that there are."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from docs.pages import ROOT, Block, blocks

from pyllm.cli.main import app
from pyllm.engine import Engine
from pyllm.server.admin import METRICS, ROUTES
from pyllm.server.metrics import ServerMetrics

PAGE = ROOT / "docs" / "howto" / "deploy.md"
TEXT = PAGE.read_text(encoding="utf-8")
LAST_BYTES = 5
# Flags of other programs, with what they are for.
OTHERS = {
    "pip": {"--no-deps", "--wheel-dir", "--no-cache-dir"},
    "apt": {"--no-install-recommends"},
    "useradd": {"--system", "--uid"},
    "Dockerfile": {"--mount", "--interval", "--start-period"},
    "docker": {"--name", "--read-only", "--cap-drop", "--memory", "--stop-timeout", "--cpus", "--format"},
    "systemctl": {"--now"},
    "serve": {"--app-dir"},
}


def of_language(language: str) -> list[Block]:
    return [block for block in blocks(PAGE) if block.language == language]


@cache
def command() -> Any:
    return typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]


def options() -> list[Any]:
    return [one for one in command().params if one.param_type_name == "option"]


def parsed(words: list[str]) -> dict[str, Any]:
    """What `pyllm serve` understands of its arguments; it raises as the program ends."""
    words = [re.sub(r"\$\{\w+\}|\{\{port\}\}", "8080", word) for word in words]
    context = typer.Context(command(), info_name="serve")
    values, rest, _ = command().make_parser(context).parse_args(words)
    assert rest == []
    return values


def after_serve(line: str) -> list[str]:
    """The arguments of `pyllm serve` in a line."""
    words = shlex.split(line)
    at = next(i for i in range(1, len(words)) if words[i] == "serve" and Path(words[i - 1]).name == "pyllm")
    return words[at + 1 :]


def unit() -> configparser.ConfigParser:
    (block,) = of_language("ini")
    parser = configparser.ConfigParser(strict=True, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(block.code)
    return parser


def documents() -> list[Any]:
    return [document for block in of_language("yaml") for document in yaml.safe_load_all(block.code)]


def deployment() -> Any:
    (found,) = [one for one in documents() if one.get("kind") == "Deployment"]
    return found["spec"]["template"]


def container() -> Any:
    (found,) = deployment()["spec"]["containers"]
    return found


def with_key(document: str) -> Any:
    (found,) = [one for one in documents() if document in one]
    return found


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Containerfile: (name, what follows)."""
    (block,) = of_language("dockerfile")
    lines = re.sub(r"\\\n\s*", "", block.code).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]  # type: ignore[misc]


def test_every_flag_of_the_page_is_there() -> None:
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    ours = {flag for one in options() for flag in (*one.opts, *one.secondary_opts)}
    others = {flag for flags in OTHERS.values() for flag in flags}
    assert sorted(said - ours - others - {"--ctx-size"}) == []
    # What is called a flag of others is none of ours, and is on the page.
    assert sorted(others & ours) == []
    assert sorted(others - said) == []


def test_every_variable_of_the_page_is_read() -> None:
    said = set(re.findall(r"LLAMA_\w+", TEXT))
    known = {name for one in options() for name in ([one.envvar] if isinstance(one.envvar, str) else one.envvar or ())}
    assert said
    assert sorted(said - known) == []


def test_commands_are_understood() -> None:
    model, *others = (after_serve(line) for line in commands())
    assert parsed(model)["port"] is not None
    for words in others:
        assert parsed(words)["named"]


def commands() -> list[str]:
    return [
        unit()["Service"]["ExecStart"],
        with_key("healthCheckTimeout")["models"]["small"]["cmd"],
        with_key("backend_name")["version_configs"]["1"]["run_command"],
    ]


def test_the_unit() -> None:
    service = unit()["Service"]
    values = parsed(after_serve(service["ExecStart"]))
    assert int(service["TimeoutStopSec"]) > int(values["shutdown_timeout"]) + LAST_BYTES
    credential = service["LoadCredential"].partition(":")[0]
    assert str(values["api_key_file"]) == f"%d/{credential}"
    limit = next(one for one in options() if one.name == "max_connections").default
    assert int(service["LimitNOFILE"]) > limit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    (block,) = of_language("ini")
    # It looks whether the program is there.
    file = tmp_path / "pyllm.service"
    file.write_text(block.code.replace("/opt/pyllm/bin/pyllm", sys.executable) + "\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, timeout=550
    )
    assert [line for line in done.stderr.splitlines() if file.name in line] == []
    assert done.returncode == 0, done.stderr


def test_the_image() -> None:
    found = dict(instructions())
    entry, arguments = json.loads(found["ENTRYPOINT"]), json.loads(found["CMD"])
    assert entry == ["pyllm", "serve"]
    values = parsed(arguments)
    variables = dict(one.split("=") for one in found["ENV"].split())
    # Not for everybody: without the file of keys it does not start.
    assert variables["LLAMA_ARG_HOST"] == "0.0.0.0"
    assert values["api_key_file"]
    assert variables["LLAMA_ARG_PORT"] == found["EXPOSE"]
    check = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    assert check[:2] == ["python", "-c"]
    compile(check[2], "HEALTHCHECK", "exec")
    assert f":{found['EXPOSE']}/health" in check[2]
    (run,) = [line for line in re.sub(r"\\\n\s*", "", TEXT).splitlines() if line.startswith("docker run")]
    words = shlex.split(run)
    given = parsed(words[words.index("pyllm", words.index("-v")) + 1 :])
    assert int(words[words.index("--stop-timeout") + 1]) > int(given["shutdown_timeout"]) + LAST_BYTES
    assert given["api_key_file"]


def test_the_deployment() -> None:
    pod, spec = deployment(), container()
    values = parsed(spec["args"])
    paths = {route.path for route in ROUTES} | {METRICS.path}
    (port,) = spec["ports"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = spec[probe]["httpGet"]
        assert asked["path"] in paths
        assert asked["port"] == port["name"]
    annotations = pod["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == METRICS.path
    assert values["metrics"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    before = int(spec["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > before + int(values["shutdown_timeout"]) + LAST_BYTES
    assert {one["name"] for one in spec["env"]} == {"LLAMA_API_KEY"}
    assert {one["name"] for one in spec["volumeMounts"]} == {one["name"] for one in pod["spec"]["volumes"]}


def test_other_programs_ask_what_there_is() -> None:
    paths = {route.path for route in ROUTES}
    swapped = with_key("healthCheckTimeout")["models"]["small"]
    assert swapped["checkEndpoint"] in paths
    assert int(parsed(after_serve(swapped["cmd"]))["shutdown_timeout"]) < 5
    assert with_key("backend_name")["health_check_path"] in paths


def test_numbers_have_the_names_of_the_page(tiny_models) -> None:
    said = set(re.findall(r"`(llamacpp:\w+|pyllm_\w+)`", TEXT))
    with Engine(tiny_models["llama"], n_ctx=128, n_parallel=1, n_threads=1) as engine:
        text = ServerMetrics(engine).text().decode()
    assert len(said) >= 3
    assert sorted(name for name in said if f"\n{name} " not in text) == []


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not here")
def test_nginx_takes_its_file(tmp_path: Path) -> None:
    (block,) = of_language("nginx")
    without_tls = re.sub(r"listen 443 ssl;|ssl_certificate\w* .*?;", "", block.code)
    file = tmp_path / "nginx.conf"
    file.write_text(
        f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{without_tls}\n}}\n"
    )
    done = subprocess.run(["nginx", "-t", "-c", str(file)], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr


def test_the_body_is_as_large_as_the_server_takes() -> None:
    (block,) = of_language("nginx")
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", block.code)
    assert int(megabytes) << 20 == next(one for one in options() if one.name == "max_body").default

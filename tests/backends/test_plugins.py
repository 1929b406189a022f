"""Backends of other packages: which are loaded, which are refused and why, and drivers that are broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import fake_backend

import pyllm
from pyllm.backends import discover, needs, trial
from pyllm.version import __version__

pytestmark = fake_backend.NEEDED

REPORT = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from pyllm.core import backend
    backend.load_backends()
    backend.load_backends()
from dataclasses import asdict
print(json.dumps({
    "backends": {info.name: asdict(info) for info in backend.backends()},
    "devices": [device.name for device in backend.devices()],
    "warnings": [str(one.message) for one in caught],
    "categories": [one.category.__name__ for one in caught],
}))
"""


@pytest.fixture(scope="session")
def module(tmp_path_factory) -> Path:
    return fake_backend.build(tmp_path_factory.mktemp("fake"), rpath=False)


@pytest.fixture
def site(tmp_path, module) -> Path:
    """A folder for PYTHONPATH in which one plug-in is installed."""
    folder = tmp_path / "site"
    install(folder, module, "fake")
    return folder


def install(site: Path, module: Path, name: str, *, version: str = __version__, build_id: str | None = None) -> Path:
    """Put a plug-in into a folder, as pip would."""
    package = site / f"pyllm_backend_{name}"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"def library():\n    return __file__.replace('__init__.py', {module.name!r})\n"
    )
    shutil.copy(module, package / module.name)
    (package / "build.json").write_text(json.dumps({"build_id": build_id or discover.own_build_id()}))
    metadata = site / f"pyllm_{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pyllm-{name}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[pyllm.backends]\n{name} = pyllm_backend_{name}:library\n")
    return package


@pytest.fixture
def run(tmp_path):
    """Run code in a process of its own, with a cache folder of its own."""

    def run(code: str, site: Path | None = None, status: int = 0, **environment: str) -> str:
        folders = [str(Path(pyllm.__file__).parents[1]), *([str(site)] if site else [])]
        settings = {
            "PYTHONPATH": os.pathsep.join(folders),
            "PYLLM_CACHE": str(tmp_path / "cache"),
            "FAKE_DEVICES": "100",
        }
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=os.environ | settings | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == status, result.stderr
        return result.stdout

    return run


@pytest.fixture
def report(run):
    def report(site: Path | None = None, **environment: str) -> dict:
        return json.loads(run(REPORT, site, **environment))

    return report


def test_an_installed_plugin_is_in_use(site, report):
    found = report(site)
    assert found["devices"] == ["FAKE0", "CPU"] and found["warnings"] == []
    assert found["backends"]["FAKE"]["loaded"] is True
    assert found["backends"]["FAKE"]["path"] == str(site / "pyllm_backend_fake/libggml-fake.so")
    assert report()["devices"] == ["CPU"], "without the package nothing of it is left"


def test_a_model_is_put_on_the_device_of_a_plugin(site, run, tiny_models):
    path = tiny_models.make("llama", n_layer=2)
    code = f"""
    from pyllm.core.context import Context
    from pyllm.core.model import Model
    from pyllm.core.breakdown import memory_breakdown
    from pyllm import errors
    for devices in (["FAKE0"], []):
        with Model({str(path)!r}, devices=devices) as model, Context(model, n_ctx=64) as context:
            print(sorted({{buffer.device for buffer in memory_breakdown(context) if buffer.model}}))
    try:
        Model({str(path)!r}, devices=["FAKE7"])
    except errors.InvalidArgumentError as error:
        print(error)
    """
    lines = run(code, site).splitlines()
    assert "FAKE0" in lines[0] and "FAKE0" not in lines[1]
    assert "'FAKE7'" in lines[2] and "'FAKE0'" in lines[2]


@pytest.mark.parametrize(
    ("change", "reason", "remedy"),
    [
        ({"version": "0.0.1"}, f"for pyllm 0.0.1 and this is pyllm {__version__}", f"pyllm-fake=={__version__}"),
        ({"build_id": "0123"}, "its build id is 0123 and that of this pyllm is ", f"pyllm-fake=={__version__}"),
    ],
)
def test_a_plugin_of_another_build_is_not_opened(tmp_path, module, report, change, reason, remedy):
    install(tmp_path / "site", module, "fake", **change)
    marker = tmp_path / "marker"
    found = report(tmp_path / "site", FAKE_MARKER=str(marker))
    info = found["backends"]["fake"]
    assert info["loaded"] is False and reason in info["reason"] and remedy in info["remedy"]
    assert sys.executable in info["remedy"]  # the environment of the process, and no other one of the PATH
    assert found["devices"] == ["CPU"] and not marker.exists()
    assert found["categories"] == ["BackendWarning"]
    assert reason in found["warnings"][0] and remedy in found["warnings"][0]


def test_a_damaged_plugin_is_a_warning(tmp_path, module, report):
    package = install(tmp_path / "site", module, "fake")
    (package / "__init__.py").write_text("def library():\n    return 1 / 0\n")
    found = report(tmp_path / "site")
    assert "entry point failed: ZeroDivisionError" in found["warnings"][0]
    (package / "__init__.py").write_text("def library():\n    return '/nowhere/libggml-fake.so'\n")
    found = report(tmp_path / "site")
    assert "the file does not exist" in found["warnings"][0] and "--force-reinstall" in found["warnings"][0]
    package.joinpath("build.json").unlink()
    (package / "__init__.py").write_text(
        "def library():\n    return __file__.replace('__init__.py', 'libggml-fake.so')\n"
    )
    found = report(tmp_path / "site")
    assert "no build.json" in found["warnings"][0] and found["devices"] == ["CPU"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash", "a trial in a child process ended with SIGSEGV: the driver is broken"),
        ("crash-device", "a trial in a child process ended with SIGSEGV: the driver is broken"),
        ("exit", "a trial in a child process ended with status 3"),
        ("hang", "a trial in a child process did not end within 3 s"),
        ("hang-device", "a trial in a child process did not end within 3 s"),
        ("throw", "the driver is too old"),
        ("throw-device", "the driver is too old"),
        ("null", "ggml_backend_init returned NULL"),
        ("null-device", "the device 'FAKE0' could not be started"),
    ],
)
def test_a_broken_driver_leaves_this_process_alone(site, report, tmp_path, fault, reason):
    environment = {"FAKE_FAULT": fault, "FAKE_MARKER": str(tmp_path / "marker")}
    environment |= {"PYLLM_BACKEND_TIMEOUT": "3"} if "hang" in fault else {}
    found = report(site, **environment)
    assert found["devices"] == ["CPU"] and found["categories"] == ["BackendWarning"]
    assert reason in found["backends"]["fake"]["reason"], found["backends"]["fake"]
    assert reason in found["warnings"][0] and "PYLLM_BACKENDS=cpu" in found["warnings"][0]
    if "hang" in fault:
        assert "seen before" in report(site, **environment)["warnings"][0]
        return  # on a busy machine the time is over before the module is there
    first = (tmp_path / "marker").read_text().split()
    assert len(first) == 1, "only the child loads it"
    assert reason in report(site, **environment)["warnings"][0]
    tried = len((tmp_path / "marker").read_text().split()) - 1
    assert tried == ("throw" in fault or "null" in fault), "a crash is remembered, an error may be mended"


def test_a_backend_without_devices_is_a_warning(site, report):
    found = report(site, FAKE_DEVICES="")
    assert found["devices"] == ["CPU"] and "it finds no device on this machine" in found["warnings"][0]


def test_what_worked_is_not_tried_again(site, report, tmp_path, module):
    def processes() -> int:
        marker = tmp_path / "marker"
        marker.unlink(missing_ok=True)
        assert "FAKE0" in report(site, FAKE_MARKER=str(marker))["devices"]
        return len(set(marker.read_text().split()))

    assert [processes(), processes()] == [2, 1]
    copy = site / "pyllm_backend_fake" / module.name
    os.utime(copy, ns=(1, 1))
    assert [processes(), processes()] == [2, 1], "another file is tried again"
    (tmp_path / "cache/backends.json").write_text("[1, 2")
    assert [processes(), processes()] == [2, 1], "a damaged file is as good as none"


def test_a_setting_of_the_driver_is_a_new_case(site, report, tmp_path):
    assert report(site, GGML_FAKE_VISIBLE="0")["devices"] == ["FAKE0", "CPU"]
    marker = tmp_path / "marker"
    report(site, GGML_FAKE_VISIBLE="1", FAKE_MARKER=str(marker))
    assert len(set(marker.read_text().split())) == 2


def test_failures_are_forgotten(monkeypatch, tmp_path):
    monkeypatch.setenv("PYLLM_CACHE", str(tmp_path))
    trial._remember("bad", "it crashed")
    trial._remember("good", "")
    assert set(trial._remembered()) == {"bad", "good"}
    later = trial.time.time() + 25 * 3600
    monkeypatch.setattr(trial.time, "time", lambda: later)
    assert set(trial._remembered()) == {"good"}
    for i in range(100):
        trial._remember(str(i), "")
    assert len(trial._remembered()) == 64


def test_a_cache_that_cannot_be_written_costs_a_trial_each_time(site, report, tmp_path):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        found = report(site, PYLLM_CACHE=str(tmp_path / "file" / "below"))
        assert found["devices"] == ["FAKE0", "CPU"] and found["warnings"] == []


def test_a_program_with_python_inside_is_not_started(monkeypatch, tmp_path):
    """`sys.executable` is the program then, and it would run once more instead of our code."""
    program = tmp_path / "editor"
    monkeypatch.setattr(sys, "executable", str(program))
    assert trial.failure(discover.Module("fake", str(tmp_path / "libggml-fake.so"))) == ""


# --- PYLLM_BACKENDS, PYLLM_BACKEND_PATH ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "devices"),
    [("cpu", ["CPU"]), ("fake", ["FAKE0", "CPU"]), ("cpu, FAKE", ["FAKE0", "CPU"]), (" ", ["FAKE0", "CPU"])],
)
def test_names_of_the_backends_to_use(site, report, wanted, devices):
    found = report(site, PYLLM_BACKENDS=wanted)
    assert found["devices"] == devices and found["warnings"] == []
    if devices == ["CPU"]:
        assert found["backends"]["fake"]["reason"] == "PYLLM_BACKENDS leaves it out"


def test_a_name_that_no_backend_has(site, report):
    found = report(site, PYLLM_BACKENDS="cpu,vulkn")
    assert found["devices"] == ["CPU"] and found["categories"] == ["BackendWarning"]
    assert "'vulkn'" in found["warnings"][0] and "cpu, fake" in found["warnings"][0]


def test_files_and_folders_to_look_in(tmp_path, module, report):
    package = install(tmp_path / "elsewhere", module, "fake")
    (package.parent / "pyllm_fake-0.dist-info").mkdir()
    for path in (package, package / module.name):
        found = report(PYLLM_BACKEND_PATH=str(path))
        assert found["devices"] == ["FAKE0", "CPU"] and found["warnings"] == []
    (tmp_path / "empty").mkdir()
    for path, reason in (("empty", "the folder holds no backend module"), ("none.so", "the file does not exist")):
        found = report(PYLLM_BACKEND_PATH=f"{package}{os.pathsep}{tmp_path / path}")
        assert found["devices"] == ["FAKE0", "CPU"] and reason in found["warnings"][0]


def test_one_module_of_a_kind(tmp_path, module, report):
    """Two of them would register each device twice."""
    site = tmp_path / "site"
    install(site, module, "fake12")
    install(site, module, "fake13")
    found = report(site)
    assert found["devices"] == ["FAKE0", "CPU"] and found["warnings"] == []
    assert "fake13" in found["backends"]["FAKE"]["path"]
    assert "PYLLM_BACKENDS=fake12 chooses this one" in found["backends"]["fake12"]["reason"]
    found = report(site, PYLLM_BACKENDS="fake12")
    assert "fake12" in found["backends"]["FAKE"]["path"] and found["devices"] == ["FAKE0", "CPU"]
    (site / "pyllm_backend_fake13/build.json").write_text('{"build_id": "0"}')
    found = report(site)
    assert "fake12" in found["backends"]["FAKE"]["path"], "the other one where the first does not fit"


def test_a_cpu_module_from_elsewhere_stays_out(tmp_path, report):
    shutil.copy(next(fake_backend.LIBRARIES.glob("*ggml-cpu*")), tmp_path / "libggml-cpu-mine.so")
    (tmp_path / "build.json").write_text(json.dumps({"build_id": discover.own_build_id()}))
    found = report(PYLLM_BACKEND_PATH=str(tmp_path))
    assert found["devices"] == ["CPU"] and found["warnings"] == []
    assert "PYLLM_CPU_VARIANT" in found["backends"]["cpu-mine"]["reason"]


# --- libraries and remedies ------------------------------------------------------------------------------------------


def test_libraries_of_packages_are_loaded_first(tmp_path):
    """A module that is linked to a library of another package is found to be complete."""
    compiler = str(fake_backend.COMPILER)
    runtime = tmp_path / "site/nvidia/fake/lib/libpyllmfakert.so.12"
    runtime.parent.mkdir(parents=True)
    shared = [compiler, "-xc", "-shared", "-fPIC", "-"]
    subprocess.run(
        [*shared, "-o", runtime, f"-Wl,-soname,{runtime.name}"],
        input="int seven(void) { return 7; }",
        text=True,
        check=True,
    )
    target = tmp_path / "libggml-needy.so"
    source = "int seven(void); int ask(void) { return seven(); }"
    subprocess.run(
        [*shared, "-o", target, f"-L{runtime.parent}", f"-l:{runtime.name}"], input=source, text=True, check=True
    )
    (tmp_path / "build.json").write_text(
        json.dumps({"preload": [f"nvidia/fake/lib/{runtime.name}"], "requires": ["rt-cu12"]})
    )
    code = "import ctypes, sys; from pyllm.backends import needs\n"
    code += "needs.preload(sys.argv[1], sys.argv[2:]); print(ctypes.CDLL(sys.argv[1]).ask())"

    def run(*folders: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(target), *map(str, folders)]
        environment = os.environ | {"PYTHONPATH": str(Path(pyllm.__file__).parents[1])}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert run(tmp_path / "site").stdout == "7\n"
    missing = run()
    assert missing.returncode == 1 and runtime.name in missing.stderr
    module = discover.Module("needy", str(target))
    assert needs.remedy(module, missing.stderr).endswith(" install rt-cu12")


@pytest.mark.parametrize(
    ("kind", "reason", "advice"),
    [
        ("cuda", "libcuda.so.1: cannot open shared object file: No such file or directory", "NVIDIA's driver"),
        ("vulkan", "libvulkan.so.1: cannot open shared object file: No such file or directory", "mesa-vulkan-drivers"),
        ("vulkan", "it finds no device on this machine", "GGML_VK_VISIBLE_DEVICES"),
        ("cuda", "it finds no device on this machine", "nvidia-smi"),
        ("hip", "libamdhip64.so.6: cannot open shared object file", "ROCm"),
        ("sycl", "libsycl.so.8: cannot open shared object file", "oneAPI"),
        ("fake", "it finds no device on this machine", ""),
    ],
)
def test_what_to_do_about_a_missing_driver(kind, reason, advice):
    found = needs.remedy(discover.Module(kind, f"/x/libggml-{kind}.so"), reason)
    assert advice in found and bool(advice) == bool(found)

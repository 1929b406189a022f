"""Backends and devices: what is found, where it is looked for, what is rejected."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyllm
from pyllm import errors
from pyllm.backends import discover
from pyllm.core import backend

LIB = Path(pyllm.__file__).parent / "lib"


def test_the_cpu_is_there():
    cpus = [device for device in backend.devices() if device.type == "cpu"]
    assert len(cpus) == 1
    cpu = cpus[0]
    assert cpu.name == "CPU" and cpu.description and cpu.memory_total >= cpu.memory_free >= 0
    assert cpu.memory_total > 2**28
    loaded = [info for info in backend.backends() if info.loaded and "CPU" in info.devices]
    assert [info.name for info in loaded] == [cpu.backend] and loaded[0].reason == ""


def test_what_a_device_can_do_and_its_memory():
    device = next(device for device in backend.devices() if device.type == "cpu")
    assert device.id is None
    # As ggml-cpu.cpp has it: it computes in the calling thread, on any memory.
    assert device.caps == backend.DeviceCaps(
        async_=False, host_buffer=False, buffer_from_host_ptr=True, events=False, mmap_support=True
    )
    first, *others = device.buffer_types
    assert first == backend.BufferType("CPU", "default", first.alignment, None, True)
    assert first.alignment >= 32 and first.alignment & (first.alignment - 1) == 0
    for other in others:
        assert other.kind in ("host", "extra") and other.name and other.alignment > 0
        assert other.max_size is None or other.max_size > 0
        if other.name == "CPU_REPACK":
            assert (other.kind, other.is_host) == ("extra", False), "its layout is not ggml's usual one"
    for value, name in ((device, "name"), (device.caps, "events"), (first, "name")):
        with pytest.raises(AttributeError):
            setattr(value, name, None)
        assert value in {value}


def test_features_of_a_backend():
    for info in backend.backends():
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in info.features.items())
        assert info in {info}
        if "CPU" in info.devices:
            assert info.features == backend.cpu_features() != {}
        if not info.loaded:
            assert info.features == {}


def test_modules_come_from_our_own_folder():
    for info in backend.backends():
        if info.loaded and info.path:
            assert Path(info.path).parent.resolve() == LIB.resolve()
        assert info.loaded or info.reason


@pytest.mark.process
def test_neither_the_current_folder_nor_that_of_the_program_is_searched(tmp_path):
    """A module that would kill the process on loading lies where ggml itself would look."""
    for name in ("libggml-cuda.so", "libggml-vulkan.so", "libggml-cpu-evil.so"):
        (tmp_path / name).write_bytes(b"\x7fELF not a library")
    code = "from pyllm.core import backend; print([b.path for b in backend.backends()])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(pyllm.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in done.stdout and "evil" not in done.stdout


@pytest.mark.process
def test_the_path_that_upstream_reads_from_the_environment_is_not_loaded(tmp_path):
    """GGML_BACKEND_PATH names modules of whatever ggml: another version's would share no layout with ours."""
    module = tmp_path / "libggml-other.so"
    compiler = shutil.which("cc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("needs a C compiler")
    marker = tmp_path / "loaded"
    source = (
        "#include <stdio.h>\n__attribute__((constructor)) static void run(void) "
        f'{{ FILE * file = fopen("{marker}", "w"); if (file) fclose(file); }}'
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-xc", "-", "-o", module], input=source, text=True, check=True)
    done = in_child("backend.load_backends()", GGML_BACKEND_PATH=str(module))
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    assert in_child(f"import ctypes; ctypes.CDLL({str(module)!r})").returncode == 0
    assert marker.exists(), "the module says when it is loaded"


def in_child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code with `backend` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", f"from pyllm.core import backend; {code}"],
        env={**os.environ, "PYTHONPATH": str(Path(pyllm.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.process
def test_a_cpu_variant_that_does_not_exist_is_refused():
    code = """
for _ in range(2):
    try:
        backend.load_backends()
    except Exception as error:
        print(type(error), error)
"""
    done = in_child(code, PYLLM_CPU_VARIANT="z80")
    assert done.stdout.count("BackendError") == 2, done.stderr
    assert "PYLLM_CPU_VARIANT='z80' does not exist; " in done.stdout


def test_the_best_cpu_module_is_chosen():
    scores = {"cpu-x64": 1, "cpu-haswell": 64, "cpu-zen4": 0, "cpu-broken": -1}
    assert discover.best_cpu(scores, None) == "cpu-haswell"
    assert discover.best_cpu(scores, "x64") == discover.best_cpu(scores, "CPU-X64") == "cpu-x64"
    with pytest.raises(errors.BackendError, match=r"'zen4' needs instructions.*can run: x64, haswell$"):
        discover.best_cpu(scores, "zen4")
    with pytest.raises(errors.BackendError, match=r"does not exist.*one CPU module"):
        discover.best_cpu({"cpu": 1}, "haswell")
    assert discover.best_cpu({}, None) == ""


def test_loading_twice_changes_nothing():
    before = backend.devices()
    backend.load_backends()
    assert [device.name for device in backend.devices()] == [device.name for device in before]


def test_cpu_features_and_system_info():
    features = backend.cpu_features()
    assert features and all(isinstance(key, str) and isinstance(value, str) for key, value in features.items())
    if platform.machine() in ("x86_64", "AMD64"):
        flags = Path("/proc/cpuinfo")
        if flags.exists() and " avx2 " in flags.read_text():
            assert features.get("AVX2") == "1"
    info = backend.system_info()
    assert info == info.strip() and "CPU" in info


def test_buffer_types():
    address = backend.buffer_type_address("CPU")
    assert isinstance(address, int) and address != 0
    with pytest.raises(errors.InvalidArgumentError, match=r"'nowhere'.*'CPU'"):
        backend.buffer_type_address("nowhere")


def test_the_version_is_that_of_the_sources():
    version = backend.llama_version()
    assert version and version[0].isdigit()


@pytest.mark.parametrize("content", [None, b"", b"no library"])
def test_a_module_that_cannot_be_loaded(tmp_path, content):
    path = tmp_path / "libggml-wrong.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.BackendError, match="libggml-wrong") as caught:
        backend.load_backend(path)
    assert caught.value.function == "ggml_backend_load" and caught.value.log


def test_a_library_that_is_no_backend():
    library = next(path for path in LIB.iterdir() if "ggml-base" in path.name)
    with pytest.raises(errors.BackendError):
        backend.load_backend(library)


def test_what_this_build_can_do():
    assert set(backend.support()) == {"mmap", "mlock", "gpu_offload", "rpc"}
    assert backend.support()["mmap"] is True
    assert backend.limits()["parallel_sequences"] >= 64
    before = backend.time_us()
    assert backend.time_us() >= before > 0


def test_numa_strategies():
    backend.numa_init("disabled")
    with pytest.raises(errors.InvalidArgumentError, match="'distribute'"):
        backend.numa_init("nonsense")

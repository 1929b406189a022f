"""Devices with little memory: what llama.cpp's own fit makes of them, and that a Llama runs with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import fake_backend, isolation

pytestmark = fake_backend.NEEDED

PRELUDE = """
import sys
from pyllm import Llama, errors, memory
from pyllm.core import backend
library, path = sys.argv[1:3]
assert backend.load_backend(library) == "FAKE"
gpus = [device for device in backend.devices() if device.type == "gpu"]
budget = {device.name: device.memory_free for device in gpus}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A backend with devices that are none."""
    return fake_backend.build(tmp_path_factory.mktemp("fake"))


@pytest.fixture(scope="module")
def path(tiny_models) -> Path:
    return tiny_models.make("llama", n_layer=8, n_embd=128, n_ff=1024, n_ctx_train=16384)


def survive(script: str, library: Path, path: Path, megabytes: str) -> None:
    isolation.survive(PRELUDE + script, library, path, env={"FAKE_DEVICES": megabytes})


def test_all_goes_to_a_device_with_room(library, path):
    script = """
fitted = memory.fit(path, budget=budget)
assert fitted.n_gpu_layers == -1 and fitted.n_ctx == 16384, fitted
assert fitted.tensor_split is None and fitted.tensor_buft_overrides is None
device, host = fitted.estimate.devices
assert (device.name, host.name) == ("FAKE0", "host") and device.context > 0 == host.context
assert device.used <= device.free
with Llama(path, n_threads=1, **fitted.arguments) as llm:
    llm("the", max_tokens=3)
"""
    survive(script, library, path, "4000")


def test_context_shrinks_before_layers_stay_behind(library, path):
    script = """
whole = memory.estimate(path, n_ctx=16384).devices[0].used
small = memory.estimate(path, n_ctx=4096).devices[0].used
fitted = memory.fit(path, budget={"FAKE0": (whole + small) // 2})
assert 4096 < fitted.n_ctx < 16384 and fitted.n_gpu_layers == -1, fitted
assert fitted.estimate.devices[0].used <= (whole + small) // 2
fitted = memory.fit(path, n_ctx=16384, budget={"FAKE0": (whole + small) // 2})
assert fitted.n_ctx == 16384 and 0 < fitted.n_gpu_layers < 9, fitted
again = memory.fit(path, n_ctx=0, budget={"FAKE0": (whole + small) // 2})
assert again.arguments == fitted.arguments, again
assert fitted.estimate.devices[0].used <= (whole + small) // 2
with Llama(path, n_threads=1, **fitted.arguments) as llm:
    llm("the", max_tokens=3)
"""
    survive(script, library, path, "4000")


def test_two_devices_share(library, path):
    script = """
first, second, _ = memory.estimate(path, n_ctx=4096).devices
limits = {"FAKE0": int(first.used * 0.85), "FAKE1": int(second.used * 1.3)}
fitted = memory.fit(path, n_ctx=4096, budget=limits)
assert len(fitted.tensor_split) == 2 and fitted.n_gpu_layers > 0, fitted
for device in fitted.estimate.devices[:-1]:
    assert 0 < device.model and device.used <= limits[device.name], fitted
with Llama(path, n_threads=1, **fitted.arguments) as llm:
    llm("the", max_tokens=3)
"""
    survive(script, library, path, "300,300")


def test_a_llama_is_fitted_by_itself(library, path):
    script = """
# All of it fits, a gigabyte left free.
with Llama(path, n_threads=1) as llm:
    assert llm.context.n_ctx == 16384
    from pyllm.core.breakdown import memory_breakdown
    assert {buffer.device for buffer in memory_breakdown(llm.context) if buffer.context} == {"FAKE0"}
# What was said stays as it was said.
with Llama(path, n_gpu_layers=0, n_threads=1) as llm:
    assert {buffer.device for buffer in memory_breakdown(llm.context) if buffer.context} == {"host"}
"""
    survive(script, library, path, "4000")


def test_a_device_that_is_full_leaves_all_on_the_host(library, path):
    script = """
with Llama(path, n_threads=1) as llm:
    from pyllm.core.breakdown import memory_breakdown
    assert {buffer.device for buffer in memory_breakdown(llm.context) if buffer.context} == {"host"}
    assert llm.context.n_ctx >= 4096
    text = llm("the", max_tokens=3, temperature=0).text
"""
    survive(script, library, path, "20")


def test_other_threads_log_and_load_meanwhile(library, path):
    script = """
import logging, threading
lines = []
class Handler(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("pyllm.llama").addHandler(Handler())
logging.getLogger("pyllm.llama").setLevel(logging.DEBUG)
failed = []
def fit():
    try:
        for _ in range(3):
            memory.fit(path, n_ctx=4096, budget=budget)
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=fit) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
lines.clear()
memory.estimate(path)
assert lines  # the log is back where it was
try:
    from pyllm.core.fit import fit_params
    fit_params("/nowhere.gguf", margins=[0])
except errors.ModelLoadError as error:
    assert "nowhere" in str(error)
else:
    raise SystemExit("no error")
lines.clear()
memory.estimate(path)
assert lines
for wrong in (dict(margins=[-1]), dict(margins=[0] * 1000), dict(margins=[0.5]), dict(margins=[0], n_ctx_min=1.5),
              dict(margins=[0], n_ctx_min=-1)):
    try:
        fit_params(path, **wrong)
    except (errors.InvalidArgumentError, TypeError):
        pass
    else:
        raise SystemExit("no error")
"""
    survive(script, library, path, "400")

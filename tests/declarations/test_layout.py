"""The .pxd files against the C++ compiler, which knows sizes, offsets, values and signatures best.

From what a .pxd declares a C++ file is written that includes the real header and asserts, at compile time, that
both agree: each struct beside a mirror of the declared fields, each enumerator and constant beside its value, each
function and typedef beside its type. Nothing is linked, so no build of llama.cpp is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support.headers import Constant, Enum, Function, Struct, Typedef, parse_pxd

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "llama_cpp_src" / "llama.cpp"
INCLUDES = ROOT / "pyx" / "pyllm" / "includes"
MODULES = ("ggml", "ggml_backend", "ggml_cpu", "ggml_opt", "gguf", "llama", "llama_ext")

# Cython has no anonymous unions: a .pxd lists their members as plain fields. Which ones overlap is said here.
UNIONS = {"llama_model_kv_override": ("val_i64", "val_f64", "val_bool", "val_str")}

COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))), None)

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: neither $CXX nor c++, g++ or clang++ is there"),
    pytest.mark.skipif(
        not (SOURCES / "include" / "llama.h").is_file(),
        reason="llama.cpp's sources are not there; fetch them with: python llama_cpp_src/fetch.py",
    ),
]


def pxd_text(name: str) -> str:
    return (INCLUDES / f"{name}.pxd").read_text(encoding="utf-8")


@cache
def enum_names() -> frozenset[str]:
    return frozenset(enum for name in MODULES for enum in parse_pxd(pxd_text(name)).enums)


def cpp(declared: str) -> str:
    """Return a declared type as C++: ``enum`` in front where a function hides the enum's name."""
    text = re.sub(r"\w+", lambda m: f"enum {m[0]}" if m[0] in enum_names() else m[0], declared)
    return text.replace("map<", "std::map<")


def member(name: str, declared: str) -> str:
    """Return a C++ declaration of ``name`` with a type in the spelling of `headers.canonical`."""
    if "(*)" in declared:
        return cpp(declared).replace("(*)", f"(*{name})", 1)
    base, array, length = declared.partition(" [")
    return f"{cpp(base)} {name}{array}{length}"


def struct_checks(struct: Struct) -> Iterator[str]:
    name, union = struct.name, UNIONS.get(struct.name, ())
    fields = {field.name: member(field.name, field.type) + ";" for field in struct.fields or ()}
    lines = [text for field, text in fields.items() if field not in union]
    if union:
        lines.append("union { " + " ".join(fields[field] for field in union) + " };")
    yield f"struct mirror_{name} {{ {' '.join(lines)} }};"
    yield f'static_assert(sizeof(mirror_{name}) == sizeof(::{name}), "size of {name}");'
    for field in fields:
        yield (
            f"static_assert(offsetof(mirror_{name}, {field}) == offsetof(::{name}, {field}), "
            f'"offset of {name}.{field}");'
        )
        yield (
            f"static_assert(std::is_same_v<decltype(mirror_{name}::{field}), decltype(::{name}::{field})>, "
            f'"type of {name}.{field}");'
        )


def checks(text: str) -> Iterator[str]:
    """Yield the C++ assertions for the text of a .pxd."""
    for item in parse_pxd(text).items:
        if isinstance(item, Struct) and item.fields is not None:
            yield from struct_checks(item)
        elif isinstance(item, Enum):
            for name, value in item.values:
                assert value is not None, f"{name} has no value in the .pxd"
                yield f'static_assert(static_cast<long long>({name}) == {value}LL, "value of {name}");'
        elif isinstance(item, Function):
            params = ", ".join(cpp(param.type) for param in item.params)
            yield (
                f"static_assert(std::is_same_v<decltype(&::{item.name}), {cpp(item.result)} (*)({params})>, "
                f'"signature of {item.name}");'
            )
        elif isinstance(item, Typedef):
            yield f'static_assert(std::is_same_v<::{item.name}, {cpp(item.type)}>, "type of {item.name}");'
        elif isinstance(item, Constant):
            # Braces: a value that does not fit is an error.
            yield f"constexpr {item.type} constant_{item.name}{{{item.name}}};"


def compile_checks(name: str, text: str, folder: Path) -> list[str]:
    """Compile the assertions for a .pxd's text and return the compiler's errors, one line each."""
    header = re.search(r'^cdef extern from "(.*)" nogil:', text, re.M)
    assert header is not None, f"{name}.pxd has no extern block"
    source = folder / f"{name}.cpp"
    includes = ["<cstddef>", "<cstdint>", "<cstdio>", "<map>", "<type_traits>", f'"{header[1]}"']
    lines = [*(f"#include {include}" for include in includes), *checks(text)]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    folders = [f"-I{SOURCES / folder}" for folder in ("include", "ggml/include", "src")]
    command = [str(COMPILER), "-std=c++17", "-fsyntax-only", *folders, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    errors = [line.split("error: ")[1] for line in done.stderr.splitlines() if "error: " in line]
    return errors or ([] if done.returncode == 0 else [done.stderr])


@pytest.mark.parametrize("name", MODULES)
def test_compiler_agrees(name: str, tmp_path: Path) -> None:
    errors = compile_checks(name, pxd_text(name), tmp_path)
    assert not errors, f"{len(errors)} differences:\n" + "\n".join(errors)


def test_every_struct_and_function_is_asserted() -> None:
    """The checks are as many as the declarations: none is lost on the way."""
    declared = parse_pxd(pxd_text("llama"))
    lines = list(checks(pxd_text("llama")))
    whole = [struct for struct in declared.structs.values() if struct.fields]
    assert sum('"size of ' in line for line in lines) == len(whole) > 20
    assert sum('"offset of ' in line for line in lines) == sum(len(struct.fields or ()) for struct in whole)
    assert sum('"signature of ' in line for line in lines) == len(declared.functions) > 200
    assert sum('"value of ' in line for line in lines) == sum(len(enum.values) for enum in declared.enums.values())


def test_all_mismatches_are_reported_at_once(tmp_path: Path) -> None:
    """A wrong size, offset, type, value, constant and signature in one file: each is named."""
    text = pxd_text("llama")
    for pattern, replacement in (
        (r"(        llama_token token\n)(        float bias\n)", r"\2\1"),  # llama_logit_bias, another order
        (r"        size_t max_buf_size\n", ""),  # llama_model_quantize_params, shorter
        (r"uint32_t n_seq_max\n", "int32_t n_seq_max\n"),  # same size, another type
        (r"LLAMA_VOCAB_TYPE_WPM = 3", "LLAMA_VOCAB_TYPE_WPM = 4"),
        (r"const uint32_t LLAMA_DEFAULT_SEED", "const int32_t LLAMA_DEFAULT_SEED"),  # does not fit
        (r"llama_n_ctx\(const ", "llama_n_ctx("),
        (r"        bool val_bool\n", "        int64_t val_bool\n"),  # inside a union
    ):
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, f"{pattern!r} is not there once"
    report = "\n".join(compile_checks("llama", text, tmp_path))
    for expected in (
        "offset of llama_logit_bias.bias",
        "offset of llama_logit_bias.token",
        "size of llama_model_quantize_params",
        "type of llama_context_params.n_seq_max",
        "value of LLAMA_VOCAB_TYPE_WPM",
        "signature of llama_n_ctx",
        "type of llama_model_kv_override.val_bool",
    ):
        assert expected in report
    assert "narrowing" in report or "cannot be narrowed" in report

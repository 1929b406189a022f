"""Moves the pin to another version of the carrier package, and tells what that means for our declarations.

python llama_cpp_src/fetch.py bump VERSION
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from fetch import (
    HERE,
    PIN_FILE,
    STAMP,
    TARGET,
    Pin,
    pip_download,
    put_in_place,
    say,
    sha256_of,
    temporary_folder,
    unpack,
)

# The headers that pyx/pyllm/includes declares; each may use constants of those before it.
PUBLIC_HEADERS = (
    "ggml/include/ggml.h", "ggml/include/ggml-backend.h", "ggml/include/ggml-cpu.h", "ggml/include/ggml-opt.h",
    "ggml/include/gguf.h", "include/llama.h", "src/llama-ext.h", "tools/mtmd/mtmd.h", "tools/mtmd/mtmd-helper.h",
)  # fmt: skip
PARSER = HERE.parent / "tests/support/headers.py"
DECLARATIONS = HERE.parent / "pyx/pyllm/includes"


def bump(version: str, target: Path = TARGET, pin_file: Path = PIN_FILE) -> Pin:
    """Brings the tree that `version` of the carrier holds, rewrites PIN.toml, and prints what the headers changed."""
    old = Pin.read(pin_file)
    draft = replace(old, version=version, sha256="")
    before = describe(target)
    with temporary_folder(target.parent, draft, target) as folder:
        say(f"downloading {draft.package} {version} with pip")
        archive = pip_download(draft, folder, verify=False)
        tree = unpack(archive, folder / "tree", draft.tree)
        new = replace(
            draft,
            llama_version=llama_version(tree),
            commit=carried_commit(archive, version),
            sha256=sha256_of(archive),
        )
        (tree / STAMP).write_text(new.stamp, encoding="utf-8")
        put_in_place(tree, target, folder)
        new.rewrite(pin_file)
    say(f"{pin_file.name}: llama.cpp {old.llama_version} ({old.commit}) -> {new.llama_version} ({new.commit})")
    if new.commit == "unknown":
        say(f"the archive does not say which commit it carries: look it up and write it into {pin_file.name}")
    report_changes(before, describe(target))
    return new


def llama_version(tree: Path) -> str:
    """The version that upstream's CMakeLists.txt states."""
    text = (tree / "CMakeLists.txt").read_text(encoding="utf-8")
    numbers = [re.search(rf"set\(LLAMA_VERSION_{part}\s+(\d+)\)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    suffix = "-dev" if re.search(r"option\(LLAMA_BUILD_IS_DEV\s+\"[^\"]*\"\s+ON\)", text) else ""
    return ".".join(number[1] for number in numbers if number) + suffix if all(numbers) else "unknown"


def carried_commit(archive: Path, version: str) -> str:
    """Upstream's commit as the archive's own change log states it for `version`, or "unknown"."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if PurePosixPath(member.name).parts[1:] == ("CHANGELOG.md",) and (file := tar.extractfile(member)):
                _, _, rest = file.read().decode("utf-8", "replace").partition(f"## [{version}]")
                found = re.search(r"llama\.cpp[@/](?:commit/)?([0-9a-f]{7,40})", rest.partition("\n## [")[0])
                return found[1][:9] if found else "unknown"
    return "unknown"


def describe(tree: Path) -> dict[str, dict[str, str]]:
    """What each public header declares: header -> {name of a function, field, enumerator...: its C}."""
    parse = header_parser()
    constants: dict[str, int] = {}
    return {
        name: describe_header(name, (tree / name).read_text(encoding="utf-8"), parse, constants)
        for name in PUBLIC_HEADERS
        if (tree / name).is_file()
    }


def header_parser() -> Callable[..., Any] | None:
    """The parser of the tests, where the tests are there (a source archive has none)."""
    spec = importlib.util.spec_from_file_location("pyllm_header_parser", PARSER)
    if not PARSER.exists() or spec is None or spec.loader is None:
        return None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parse: Callable[..., Any] = module.parse_header
    return parse


def describe_header(
    name: str, text: str, parse: Callable[..., Any] | None, constants: dict[str, int]
) -> dict[str, str]:
    """One header's declarations; only its names, as far as plain text shows them, where it cannot be parsed."""
    if parse is not None:
        try:
            found = parse(text, constants)
        except ValueError as error:
            say(f"{name} is beyond our parser ({str(error)[:40]!r}...), so its names alone are compared")
        else:
            return {
                **{
                    function: f"{item.result} {function}({', '.join(f'{p.type} {p.name}' for p in item.params)})"
                    for function, item in found.functions.items()
                    if not item.deprecated
                },
                **{
                    f"{struct}.{field.name}": f"{field.type} {field.name}"
                    for struct, item in found.structs.items()
                    for field in item.fields or ()
                },
                **{value: str(number) for item in found.enums.values() for value, number in item.values},
            }
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    names = re.findall(r"\b(?:llama|ggml|gguf|mtmd|LLAMA|GGML|GGUF|MTMD)_\w+|\b[a-z]\w+(?=\s*[;,(\[])", text)
    return dict.fromkeys(names, "")


def report_changes(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> None:
    """Prints, for every public header, what came, went and changed, and what of it our declarations name."""
    files = DECLARATIONS.glob("*.pxd")
    declared = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in files)))
    for header in PUBLIC_HEADERS:
        old, new = before.get(header, {}), after.get(header, {})
        if old == new:
            continue
        say(f"{header}:")
        for name in sorted(old.keys() | new.keys()):
            known = "declared" if name.rpartition(".")[2] in declared else "not declared"
            if name not in old:
                say(f"  + {name}   {new[name]}   ({known})")
            elif name not in new:
                say(f"  - {name}   {old[name]}   ({known})")
            elif old[name] != new[name]:
                say(f"  ~ {name}   {old[name]}  ->  {new[name]}   ({known})")


if __name__ == "__main__":
    sys.exit("use: python llama_cpp_src/fetch.py bump VERSION")

"""llama.h is complete: each function is called by some module, or stands in a short list with its reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.headers import parse_header

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "llama_cpp_src" / "llama.cpp" / "include" / "llama.h"
REFERENCE = ROOT / "docs" / "reference.md"

# What is not called, and why nothing is missing. The same table stands in docs/reference.md.
REASONS = {
    "llama_backend_free": "backends serve the whole process until it ends",
    "llama_batch_ext_add": "an entry needs a token or an embedding; `BatchExt.add` gives both in one call",
    "llama_batch_ext_set_embd_state": "it always returns false at the pinned version",
    "llama_batch_ext_set_output_embd": "it does the same as `llama_batch_ext_set_output_logits`",
    "llama_batch_free": "`Batch` owns its arrays",
    "llama_batch_get_one": "`Batch` fills the struct by itself",
    "llama_batch_init": "`Batch` fills the struct by itself",
    "llama_flash_attn_type_name": "`enums.FlashAttnType` has the names",
    "llama_load_mode_from_str": "`enums.LoadMode` has the names",
    "llama_load_mode_name": "`enums.LoadMode` has the names",
    "llama_memory_seq_div": "it rotates the keys in the wrong direction; `Memory.div` uses `llama_memory_seq_add`",
    "llama_opt_param_filter_all": "without a `param_filter`, `Trainer` takes every tensor by itself",
    "llama_perf_context_print": "nothing is printed; `Context.perf` has the numbers",
    "llama_perf_sampler_print": "nothing is printed; `Chain.perf` has the numbers",
    "llama_sampler_copy": "it frees members of a chain that objects point to; `Sampler.clone` makes a new one",
    "llama_sampler_sample": "`Sampler.sample` looks at the row first: it asserts where every logit is -inf or NaN",
    "llama_state_load_file": "it does not notice the end of a short file; `State.load_file` reads files by itself",
    "llama_state_seq_load_file": "it does not notice the end of a short file; `State.load_file` reads files by itself",
}


def functions() -> set[str]:
    if not HEADER.is_file():
        pytest.skip("llama.cpp's sources are not there; fetch them with: python llama_cpp_src/fetch.py")
    names: dict[str, int] = {}
    for include in ("ggml.h", "ggml-backend.h"):
        parse_header((ROOT / "llama_cpp_src/llama.cpp/ggml/include" / include).read_text(encoding="utf-8"), names)
    found = parse_header(HEADER.read_text(encoding="utf-8"), names).functions
    return {name for name, function in found.items() if not function.deprecated}


def code(text: str) -> str:
    """The text without comments and strings: what is only spoken of does not count."""
    text = re.sub(r'""".*?"""', "", text, flags=re.S)
    return re.sub(r'"(?:[^"\\\n]|\\.)*"|#[^\n]*', "", text)


def called() -> set[str]:
    """Every C function that a module calls, or whose address it takes."""
    aliases = {
        alias: name
        for path in (ROOT / "pyx").rglob("*.pxd")
        for alias, name in re.findall(r'\b(llama_\w+) "(llama_\w+)"\s*\(', path.read_text(encoding="utf-8"))
    }
    found: set[str] = set()
    for path in (ROOT / "pyx").rglob("*.p[yx][xd]"):
        if path.suffix == ".pyx":
            found.update(re.findall(r"\b\w+\.(llama_\w+)", code(path.read_text(encoding="utf-8"))))
    for path in (ROOT / "pyx").rglob("*.hpp"):
        text = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
        found.update(re.findall(r"\b(llama_\w+)\(", code(text)))
    return {aliases.get(name, name) for name in found}


def test_every_function_is_called_or_has_a_reason() -> None:
    missing = functions() - called() - set(REASONS)
    assert not missing, f"{len(missing)} functions of llama.h cannot be reached: {sorted(missing)}"


def test_no_reason_is_out_of_date() -> None:
    assert set(REASONS) <= functions(), "no such functions in llama.h"
    assert not set(REASONS) & called(), "these are called now"
    assert len(REASONS) <= 20


def test_the_reference_has_the_same_table() -> None:
    rows = re.findall(r"^\| `(llama_\w+)` \| (.*) \|$", REFERENCE.read_text(encoding="utf-8"), re.M)
    assert dict(rows) == REASONS


def test_what_is_only_spoken_of_does_not_count() -> None:
    text = '"""Wraps ``lib.llama_a``."""\nlib.llama_b(x)  # not lib.llama_c\nfail("lib.llama_d")\n'
    assert re.findall(r"\b\w+\.(llama_\w+)", code(text)) == ["llama_b"]

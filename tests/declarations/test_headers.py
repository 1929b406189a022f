"""The .pxd files against the pinned headers: nothing missing, nothing invented, nothing different."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from support.headers import (
    Constant,
    Declarations,
    Enum,
    Field,
    Function,
    Struct,
    Typedef,
    parse_header,
    parse_pxd,
)

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "llama_cpp_src" / "llama.cpp"
INCLUDES = ROOT / "pyx" / "pyllm" / "includes"

# The headers in the order in which they include each other, and the .pxd of each.
HEADERS = {
    "ggml_opt": "ggml/include/ggml-opt.h",
    "ggml": "ggml/include/ggml.h",
    "ggml_backend": "ggml/include/ggml-backend.h",
    "ggml_cpu": "ggml/include/ggml-cpu.h",
    "gguf": "ggml/include/gguf.h",
    "llama": "include/llama.h",
    "llama_ext": "src/llama-ext.h",
}
# Of these headers a part is declared; of all others everything that is not deprecated.
PARTIAL = {"ggml", "ggml_backend", "ggml_opt"}

# In C a function may share its name with an enum or struct; in Cython it may not. The function gives way.
RENAMED = {
    "llama_pooling_type": "llama_get_pooling_type",
    "llama_vocab_type": "llama_vocab_get_type",
    "ggml_backend_dev_type": "ggml_backend_dev_get_type",
}

pytestmark = pytest.mark.skipif(
    not (SOURCES / "include" / "llama.h").is_file(),
    reason="llama.cpp's sources are not there; fetch them with: python llama_cpp_src/fetch.py",
)


@cache
def header_text(name: str) -> str:
    return (SOURCES / HEADERS[name]).read_text(encoding="utf-8")


@cache
def known_names() -> dict[str, int]:
    """Values of all macros and enumerators of ggml.h, which the other headers build on."""
    names: dict[str, int] = {}
    parse_header(header_text("ggml"), names)
    return names


@cache
def header(name: str) -> Declarations:
    return parse_header(header_text(name), dict(known_names()))


def pxd_text(name: str) -> str:
    return (INCLUDES / f"{name}.pxd").read_text(encoding="utf-8")


def params_differ(ours: tuple[Field, ...], theirs: tuple[Field, ...]) -> bool:
    """Whether the types differ, or two names where both sides give one (``from_`` stands for ``from``)."""
    if [param.type for param in ours] != [param.type for param in theirs]:
        return True
    pairs = zip(ours, theirs, strict=True)
    return any(a.name and b.name and a.name.rstrip("_") != b.name.rstrip("_") for a, b in pairs)


def show(function: Function) -> str:
    params = ", ".join(f"{param.type} {param.name}".strip() for param in function.params)
    return f"{function.result} {function.name}({params})"


def compare_functions(ours: Declarations, theirs: Declarations) -> list[str]:
    problems = []
    for name, function in ours.functions.items():
        real = theirs.functions.get(name)
        if real is None or real.deprecated:
            problems.append(f"{name}: the header has no such function" + (" (deprecated)" if real else ""))
        elif function.result != real.result or params_differ(function.params, real.params):
            problems.append(f"{name}: declared as {show(function)}, the header has {show(real)}")
        if function.handler != "except +translate":
            problems.append(f"{name}: is not `except +translate` but {function.handler!r}")
        if function.alias != RENAMED.get(name, ""):
            problems.append(f"{name}: is called {function.alias or name} here, not {RENAMED.get(name, name)}")
    return problems


def compare_types(ours: Declarations, theirs: Declarations, text: str, *, whole: bool) -> list[str]:
    """Compare structs, enums, typedefs and constants; ``text`` is the header's."""
    problems = []
    for name, struct in ours.structs.items():
        real = theirs.structs.get(name)
        if real is None and (struct.fields is not None or not re.search(rf"\bstruct\s+{name}\b", text)):
            problems.append(f"{name}: the header has no such struct")
        elif real is not None and (struct.fields is not None or whole):
            mine = [(field.name, field.type) for field in struct.fields or ()]
            other = [(field.name, field.type) for field in real.fields or ()]
            if sorted(mine) == sorted(other) and mine != other:
                problems.append(f"{name}: fields in another order than {[field for field, _ in other]}")
            problems += [
                f"{name}.{f}: the header has no such field of type {t}" for f, t in mine if (f, t) not in other
            ]
            problems += [f"{name}.{f}: the field of type {t} is missing" for f, t in other if (f, t) not in mine]
        for field in struct.fields or ():
            if "(*)" in field.type and field.handler != "noexcept nogil":
                problems.append(f"{name}.{field.name}: a callback that is not `noexcept nogil`")
    for name, enum in ours.enums.items():
        values = theirs.enums[name].values if name in theirs.enums else ()
        problems += [f"{name}.{n}: the header has no {n} = {v}" for n, v in enum.values if (n, v) not in values]
        problems += [f"{name}.{n}: the value {v} is missing" for n, v in values if (n, v) not in enum.values]
        if not values:
            problems.append(f"{name}: the header has no such enum")
    for name, typedef in ours.typedefs.items():
        there = theirs.typedefs.get(name)
        if there is None or there.type != typedef.type:
            problems.append(
                f"{name}: declared as {typedef.type}, the header has {there.type if there else 'no such type'}"
            )
        if "(*)" in typedef.type and typedef.handler != "noexcept nogil":
            problems.append(f"{name}: a callback that is not `noexcept nogil`")
    for name, constant in ours.constants.items():
        if name not in theirs.constants:
            problems.append(f"{name}: the header has no such macro")
        elif theirs.constants[name].value.startswith('"') != (constant.type == "const char *"):
            problems.append(f"{name}: a {constant.type}, but the macro is {theirs.constants[name].value}")
    return problems


def compare_order(ours: Declarations, theirs: Declarations) -> list[str]:
    """Name what stands earlier in the header than something that precedes it in the .pxd."""

    def first_positions(declarations: Declarations) -> dict[tuple[type, str], int]:
        positions: dict[tuple[type, str], int] = {}
        for i, item in enumerate(declarations.items):
            positions.setdefault((type(item), item.name), i)
        return positions

    there = first_positions(theirs)
    problems, reached = [], -1
    for key in first_positions(ours):
        if key in there and there[key] < reached:
            problems.append(f"{key[1]}: stands earlier in the header")
        reached = max(reached, there.get(key, -1))
    return problems


def compare(name: str, text: str, real_text: str | None = None) -> list[str]:
    """Return what is wrong with the text of a .pxd, one line for each problem.

    Args:
        name: The module below ``pyllm.includes``.
        text: Text of the .pxd.
        real_text: Text of the header, if not the pinned one.
    """
    real_text = header_text(name) if real_text is None else real_text
    ours, theirs = parse_pxd(text), parse_header(real_text, dict(known_names()))
    problems = compare_functions(ours, theirs) + compare_order(ours, theirs)
    problems += compare_types(ours, theirs, real_text, whole=name not in PARTIAL)
    if name not in PARTIAL:
        for item in theirs.items:
            if not (isinstance(item, Function) and item.deprecated) and item.name not in ours.of(type(item)):
                problems.append(f"{item.name}: {type(item).__name__.lower()} of the header that is not declared")
    return problems


@pytest.mark.parametrize("name", HEADERS)
def test_pxd_agrees_with_header(name: str) -> None:
    problems = compare(name, pxd_text(name))
    assert not problems, f"{len(problems)} differences:\n" + "\n".join(problems)


@pytest.mark.parametrize("name", HEADERS)
def test_extern_block_names_its_header(name: str) -> None:
    blocks = re.findall(r"^cdef extern from (.*):$", pxd_text(name), re.M)
    assert blocks == [f'"{Path(HEADERS[name]).name}" nogil']


def test_every_pxd_is_checked() -> None:
    """A new .pxd beside these must be added to HEADERS; the names in front are no mirrors of a header.

    Nor are those of common/: it is C++, of which only what is used is declared, and the compiler checks each use.
    """
    there = {path.stem for path in INCLUDES.glob("*.pxd")} - {"__init__", "_translate"}
    assert set(HEADERS) <= there
    there -= {name for name in there if (SOURCES / "common" / f"{name.replace('_', '-')}.h").is_file()}
    c_headers = {name for name in there if not re.search(r"\bnamespace\b|\bcppclass\b", pxd_text(name))}
    assert c_headers - set(HEADERS) == set()


def test_parser_sees_the_whole_header() -> None:
    """Each identifier in front of a bracket in llama.h is a function, or is accounted for here."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|^\s*#.*?$", "", header_text("llama"), flags=re.S | re.M)
    called = set(re.findall(r"\b(llama_\w+)\s*\(", text))
    assert called == set(header("llama").functions)
    values = set(re.findall(r"\b(LLAMA_[A-Z0-9_]+)\s*(?:=|,|\n\s*\})", text))
    listed = {n for enum in header("llama").enums.values() for n, _ in enum.values}
    assert values == listed


# What the checker must notice: (what is replaced in llama.pxd, by what, the name in the report).
DOCTORED = {
    "dropped function": (r"    int32_t llama_decode\(.*\n", "", "llama_decode: function of the header that is not"),
    "invented function": (
        r"(    int32_t llama_decode\()",
        r"    int32_t llama_invented() except +translate\n\1",
        "llama_i",
    ),
    "changed parameter": (
        r"llama_encode\(llama_context \* ctx",
        "llama_encode(llama_model * ctx",
        "llama_encode: declared",
    ),
    "dropped parameter": (
        r"(llama_get_logits_ith\(llama_context \* ctx), int32_t i",
        r"\1",
        "llama_get_logits_ith: decl",
    ),
    "swapped names": (
        r"seq_id_src, llama_seq_id seq_id_dst",
        "seq_id_dst, llama_seq_id seq_id_src",
        "llama_memory_seq_cp",
    ),
    "dropped const": (r"llama_n_ctx\(const ", "llama_n_ctx(", "llama_n_ctx: declared as"),
    "changed result": (r"int32_t llama_tokenize", "uint32_t llama_tokenize", "llama_tokenize: declared as"),
    "missing enumerator": (
        r"        LLAMA_VOCAB_TYPE_WPM = 3\n",
        "",
        "llama_vocab_type.LLAMA_VOCAB_TYPE_WPM: the value 3",
    ),
    "wrong enumerator": (
        r"LLAMA_FTYPE_MOSTLY_BF16 = 32",
        "LLAMA_FTYPE_MOSTLY_BF16 = 33",
        "llama_ftype.LLAMA_FTYPE_MOSTLY_BF16",
    ),
    "reordered field": (
        r"(        uint32_t n_ctx\n)(        uint32_t n_batch\n)",
        r"\2\1",
        "llama_context_params: fields",
    ),
    "missing field": (r"        bool swa_full\n", "", "llama_context_params.swa_full"),
    "changed field": (r"uint32_t n_seq_max\n", "int32_t n_seq_max\n", "llama_context_params.n_seq_max"),
    "missing struct": (r"    struct llama_perf_sampler_data:\n.*\n.*\n", "", "llama_perf_sampler_data: struct"),
    "missing constant": (r"    const int LLAMA_TOKEN_NULL\n", "", "LLAMA_TOKEN_NULL: constant"),
    "wrong constant": (r"const uint32_t LLAMA_DEFAULT_SEED", "const char * LLAMA_DEFAULT_SEED", "LLAMA_DEFAULT_SEED"),
    "wrong typedef": (r"ctypedef int32_t llama_pos", "ctypedef int64_t llama_pos", "llama_pos: declared as int64_t"),
    "no handler": (r"(llama_free\(llama_context \* ctx\)) except \+translate", r"\1", "llama_free: is not"),
    "plain handler": (r"(llama_free\(llama_context \* ctx\)) except \+translate", r"\1 except +", "llama_free: is not"),
    "callback may raise": (r"(\(\*accept\)\(.*\)) noexcept nogil", r"\1", "llama_sampler_i.accept: a callback"),
    "another order": (
        r"(    void llama_backend_init.*\n)(    void llama_backend_free.*\n)",
        r"\2\1",
        "llama_backend_init",
    ),
}


@pytest.mark.parametrize("case", DOCTORED)
def test_checker_notices(case: str) -> None:
    pattern, replacement, expected = DOCTORED[case]
    doctored, count = re.subn(pattern, replacement, pxd_text("llama"))
    assert count == 1, "the text to doctor is not there once"
    problems = compare("llama", doctored)
    assert any(problem.startswith(expected) for problem in problems), problems


def test_checker_notices_a_new_upstream_declaration() -> None:
    """What a later llama.h adds is reported, and what it deprecates."""
    text = header_text("llama")
    anchor = "    LLAMA_API void llama_free("
    added = text.replace(anchor, "    LLAMA_API int llama_new(void);\n" + anchor)
    assert compare("llama", pxd_text("llama"), added) == ["llama_new: function of the header that is not declared"]
    old = "LLAMA_API int64_t llama_time_us(void);"
    deprecated = text.replace(old, f'DEPRECATED({old[:-1]}, "use another");')
    assert compare("llama", pxd_text("llama"), deprecated) == [
        "llama_time_us: the header has no such function (deprecated)"
    ]


def test_header_parser_reads_every_form() -> None:
    """One small header with every form that the real ones use."""
    found = parse_header("""
        #ifndef A_H
        #define A_H
        #define SIZE 4 // a comment
        #define NAME "a"
        #ifdef _MSC_VER
        int only_there(void);
        #else
        LLAMA_API int only_here(void);
        #endif
        #ifdef __cplusplus
        extern "C" {
        #endif
            enum e { E_A, E_B = 1 << 3, E_C, E_D = E_B, };
            typedef struct s { int a[SIZE]; /* no */ const struct s * next; union { int i; float f; }; } s;
            struct opaque;
            typedef bool (*callback)(enum e what, void * data);
            DEPRECATED(LLAMA_API void old(int a), "hint, with a comma");
            GGML_API DEPRECATED(void older(int), "hint");
            LLAMA_API struct s * const_first(struct s const * a, const char ** names, enum e);
        #ifdef __cplusplus
        }
        #endif
        #endif
    """)
    assert found.constants == {"SIZE": Constant("SIZE", "4"), "NAME": Constant("NAME", '"a"')}
    assert found.enums == {"e": Enum("e", (("E_A", 0), ("E_B", 8), ("E_C", 9), ("E_D", 8)))}
    assert found.structs["opaque"] == Struct("opaque", None)
    assert found.structs["s"].fields == (
        Field("a", "int [4]"),
        Field("next", "const s *"),
        Field("i", "int", union=True),
        Field("f", "float", union=True),
    )
    assert found.typedefs == {"callback": Typedef("callback", "bool (*)(e, void *)")}
    assert [name for name, function in found.functions.items() if function.deprecated] == ["old", "older"]
    assert "only_there" not in found.functions
    assert show(found.functions["const_first"]) == "s * const_first(const s * a, const char ** names, e)"

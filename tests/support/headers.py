"""Read C headers and Cython extern blocks into one common shape, so that the two can be compared.

This is no C compiler: it knows just the subset of C in which llama.cpp writes its public headers
(prototypes, structs, enums, typedefs, object-like macros) and the subset of Cython in which pyllm's
``includes/*.pxd`` mirror them. What it cannot read it reports as an error instead of skipping it.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

# Words that say nothing about a type: linkage, visibility and attribute macros.
_NOISE = re.compile(
    r"\[\[noreturn\]\]|\bextern\b|\b(?:LLAMA_API|GGML_API|GGML_BACKEND_API|GGML_CALL|GGML_NORETURN|GGML_RESTRICT)\b"
    r"|\bGGML_ATTRIBUTE_FORMAT\s*\([^)]*\)"
)
_SIZEOF = {"int32_t": 4, "int64_t": 8, "float": 4, "double": 8}
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.LShift: operator.lshift,
    ast.BitOr: operator.or_,
}


class DeclarationError(ValueError):
    """A declaration that the parsers of this module do not understand."""


@dataclass(frozen=True)
class Field:
    """A struct member or a parameter.

    Attributes:
        name: The name in C; empty for an unnamed parameter.
        type: The type in the spelling of `canonical`; a function pointer is ``R (*)(A, B)``, an array ``T [n]``.
        union: Whether it is a member of an anonymous union (known for C only).
        handler: The exception clause of a function pointer in a .pxd.
    """

    name: str
    type: str
    union: bool = False
    handler: str = ""


@dataclass(frozen=True)
class Function:
    """A prototype.

    Attributes:
        name: The name in C.
        result: The type that is returned.
        params: The parameters in order.
        deprecated: Whether the header marks it so (known for C only).
        handler: The exception clause of a .pxd.
        alias: The name in the .pxd, where it is another than in C.
    """

    name: str
    result: str
    params: tuple[Field, ...]
    deprecated: bool = False
    handler: str = ""
    alias: str = ""


@dataclass(frozen=True)
class Struct:
    """A struct; ``fields`` is None where only the name is declared."""

    name: str
    fields: tuple[Field, ...] | None


@dataclass(frozen=True)
class Enum:
    """An enum with its enumerators in order; a value is None where a .pxd gives none."""

    name: str
    values: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Typedef:
    """A typedef. ``handler`` is the exception clause of a function pointer in a .pxd."""

    name: str
    type: str
    handler: str = ""


@dataclass(frozen=True)
class Constant:
    """An object-like macro (``value`` is its text), or a constant of a .pxd (``type`` is its C type)."""

    name: str
    value: str = ""
    type: str = ""


Item = Function | Struct | Enum | Typedef | Constant
T = TypeVar("T", bound=Item)


@dataclass
class Declarations:
    """Everything one file declares, in the order of the file."""

    items: list[Item] = field(default_factory=list)

    def of(self, kind: type[T]) -> dict[str, T]:
        """The declarations of one kind by name."""
        return {item.name: item for item in self.items if isinstance(item, kind)}

    @property
    def functions(self) -> dict[str, Function]:
        return self.of(Function)

    @property
    def structs(self) -> dict[str, Struct]:
        """The structs; a definition wins over a forward declaration."""
        found: dict[str, Struct] = {}
        for item in self.items:
            if isinstance(item, Struct) and (item.fields is not None or item.name not in found):
                found[item.name] = item
        return found

    @property
    def enums(self) -> dict[str, Enum]:
        return self.of(Enum)

    @property
    def typedefs(self) -> dict[str, Typedef]:
        return self.of(Typedef)

    @property
    def constants(self) -> dict[str, Constant]:
        return self.of(Constant)


def evaluate(expression: str, names: dict[str, int]) -> int:
    """Return the value of an integer constant expression of C.

    Args:
        expression: The text, for example ``1 << 3`` or ``GGML_MAX_DIMS``.
        names: Values of the macros and enumerators that are known so far.

    Raises:
        DeclarationError: The expression is not one of the few forms that are understood.
    """
    text = re.sub(r"sizeof\s*\(\s*(\w+)\s*\)", lambda m: str(_SIZEOF.get(m[1], m[0])), expression.strip())
    text = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]+\b", r"\1", text)

    def walk(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        raise DeclarationError(f"not a constant expression: {expression!r}")

    try:
        return walk(ast.parse(text, mode="eval").body)
    except SyntaxError as error:
        raise DeclarationError(f"not a constant expression: {expression!r}") from error


def canonical(text: str) -> str:
    """Return a type in one spelling: no tags, single spaces, ``const`` in front, ``bool`` for ``_Bool``."""
    text = _NOISE.sub(" ", text)
    text = re.sub(r"\b(struct|enum|union)\b", " ", text)
    text = re.sub(r"\s*\*\s*", " * ", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^(\w+) const\b", r"const \1", text)
    return text.replace("( * )", "(*)").replace("* *", "**")


def split(text: str, separator: str) -> list[str]:
    """Split at ``separator`` outside of brackets and return the parts that are not empty."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def declarator(text: str, names: dict[str, int], *, named: bool = True) -> Field:
    """Read ``type name``, ``type name[n]``, ``type (*name)(...)`` or, where a name may be missing, ``type``."""
    text = _NOISE.sub(" ", text).strip()
    quoted = re.search(r'\s*"(\w+)"', text)  # Cython's way to give the name in C
    text = text.replace(quoted[0], "") if quoted else text
    if pointer := re.fullmatch(r"(.*?)\(\s*\*\s*(\w*)\s*\)\s*\((.*)\)", text, re.S):
        params = ", ".join(param.type for param in parameters(pointer[3], names))
        return Field(quoted[1] if quoted else pointer[2], f"{canonical(pointer[1])} (*)({params})")
    array = re.search(r"\[(.*)\]\s*$", text, re.S)
    suffix = f" [{evaluate(array[1], names)}]" if array else ""
    text = text[: array.start()] if array else text
    match = re.fullmatch(r"(.*[\s*])(\w+)\s*", text, re.S)
    words = re.sub(r"\b(const|struct|enum|unsigned)\b|\*", " ", text).split()
    if match and (named or len(words) > 1):
        return Field(quoted[1] if quoted else match[2], canonical(match[1]) + suffix)
    if named:
        raise DeclarationError(f"a declaration without a name: {text!r}")
    return Field("", canonical(text) + suffix)


def parameters(text: str, names: dict[str, int]) -> tuple[Field, ...]:
    """Read a parameter list; ``(void)`` is empty."""
    parts = split(text, ",")
    return () if parts in ([], ["void"]) else tuple(declarator(part, names, named=False) for part in parts)


def function(text: str, names: dict[str, int], *, deprecated: bool = False, handler: str = "") -> Function:
    """Read a prototype such as ``int32_t llama_decode(llama_context * ctx, llama_batch batch)``."""
    match = re.fullmatch(r'(.*?[\s*\]])(\w+)(\s*"\w+")?\s*\((.*)\)', _NOISE.sub(" ", text).strip(), re.S)
    if not match:
        raise DeclarationError(f"not a prototype: {text!r}")
    cname = match[3].strip().strip('"') if match[3] else ""
    return Function(
        name=cname or match[2],
        result=canonical(match[1]),
        params=parameters(match[4], names),
        deprecated=deprecated,
        handler=handler,
        alias=match[2] if cname else "",
    )


def _preprocess(text: str) -> tuple[str, dict[str, str]]:
    """Return a header as g++ on a 64-bit Unix sees it (without comments) and its object-like macros."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text.replace("\\\n", " "), flags=re.S)
    defined = {"__cplusplus": "1", "__GNUC__": "1"}
    macros: dict[str, str] = {}
    lines: list[str] = []
    active: list[bool] = []  # whether each open #if branch is being read
    taken: list[bool] = []  # whether a branch of each open #if was already read

    def holds(condition: str) -> bool:
        condition = re.sub(r"defined\s*\(?\s*(\w+)\s*\)?", lambda m: str(int(m[1] in defined | macros)), condition)
        condition = re.sub(r"[A-Za-z_]\w*", "0", condition.replace("&&", " and ").replace("||", " or "))
        return bool(re.fullmatch(r"\s*1\s*", condition))

    for line in text.split("\n"):
        directive = re.match(r"\s*#\s*(\w+)\s*(.*)", line)
        if not directive:
            if all(active):
                lines.append(line)
            continue
        word, rest = directive[1], directive[2].strip()
        if word in ("if", "ifdef", "ifndef"):
            known = rest.split()[0] in defined | macros
            active.append(holds(rest) if word == "if" else known == (word == "ifdef"))
            taken.append(active[-1])
        elif word in ("elif", "else"):
            active[-1] = not taken[-1] and (word == "else" or holds(rest))
            taken[-1] = taken[-1] or active[-1]
        elif word == "endif":
            active.pop()
            taken.pop()
        elif word == "define" and all(active):
            macro = re.match(r"(\w+)(\(?)\s*(.*)", rest)
            if macro and not macro[2] and macro[3] and not _NOISE.fullmatch(macro[1]):
                macros[macro[1]] = macro[3].strip()
                lines.append(f"__define {macro[1]};")
            elif macro:
                defined[macro[1]] = ""  # a function, an attribute or an include guard
    return "\n".join(lines), macros


def _struct_fields(body: str, names: dict[str, int]) -> Iterator[Field]:
    for part in split(re.sub(r"\w+ \w+\([^()]*\) const \{.*?\}", "", body, flags=re.S), ";"):
        inner = re.fullmatch(r"(union|struct)\s*\{(.*)\}\s*(\w*)", part, re.S)
        if inner and inner[1] == "union":
            yield from (Field(f.name, f.type, union=True) for f in _struct_fields(inner[2], names))
        elif inner:
            yield Field(inner[3], "struct {...}")
        else:
            yield declarator(part.split("=")[0], names)


def _enum_values(body: str, names: dict[str, int]) -> Iterator[tuple[str, int]]:
    value = -1
    for part in split(body, ","):
        name, _, expression = part.partition("=")
        value = evaluate(expression, names) if expression else value + 1
        names[name.strip()] = value
        yield name.strip(), value


def parse_header(text: str, names: dict[str, int] | None = None) -> Declarations:
    """Read a C header.

    Args:
        text: The header's text.
        names: Values of macros and enumerators of the headers it includes; this header's own are added.
    """
    names = {} if names is None else names
    text, macros = _preprocess(text)
    for name, value in macros.items():
        try:
            names[name] = evaluate(value, names)
        except DeclarationError:
            continue  # a macro that is no integer: a string, a type, an attribute
    text = re.sub(r'extern\s+"C"\s*\{', " ", _NOISE.sub(lambda m: " " if m[0] != "extern" else m[0], text))
    text = re.sub(r"\}\s*\Z", "", text)  # closes extern "C"
    found = Declarations()
    for statement in split(text, ";"):
        found.items.extend(_c_items(statement, names, macros))
    return found


def _c_items(text: str, names: dict[str, int], macros: dict[str, str]) -> Iterator[Item]:
    if macro := re.fullmatch(r"__define (\w+)", text):
        if macros[macro[1]].startswith(("(", '"', "-")) or macros[macro[1]][:1].isalnum():
            yield Constant(macro[1], macros[macro[1]])
    elif deprecated := re.search(r"\b(?:GGML_)?DEPRECATED\s*\((.*)\)\s*$", text, re.S):
        yield function(split(deprecated[1], ",")[0], names, deprecated=True)
    elif compound := re.fullmatch(r"(typedef\s+)?(struct|enum)\s*(\w*)\s*\{(.*)\}\s*(\w*)", text, re.S):
        name = compound[5] or compound[3]
        if compound[2] == "struct":
            yield Struct(name, tuple(_struct_fields(compound[4], names)))
        else:
            yield Enum(name, tuple(_enum_values(compound[4], names)))
    elif opaque := re.fullmatch(r"(?:typedef\s+)?struct\s+(\w+)(?:\s+\1)?", text):
        yield Struct(opaque[1], None)
    elif text.startswith("typedef"):
        found = declarator(text.removeprefix("typedef"), names)
        yield Typedef(found.name, found.type)
    elif alias := re.fullmatch(r"using\s+(\w+)\s*=\s*(.*)", text, re.S):
        yield Typedef(alias[1], canonical(alias[2]).replace("std::", ""))
    elif not re.match(r"static\b", text):
        yield function(text, names)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (indentation, text) of a .pxd's lines, without comments, open brackets joined."""
    pending, indent = "", 0
    for line in text.split("\n"):
        line = re.sub(r"#.*", "", line).rstrip()
        if not pending:
            indent = len(line) - len(line.lstrip())
        pending = f"{pending} {line.strip()}".strip()
        if pending and pending.count("(") == pending.count(")"):
            yield indent, pending
            pending = ""


def _clause(text: str) -> tuple[str, str]:
    """Split ``f(...) except +translate`` into the declaration and its exception clause."""
    match = re.fullmatch(r"(.*?)\s+(except\b.*|noexcept\b.*|nogil)", text)
    return (match[1], match[2]) if match else (text, "")


def parse_pxd(text: str) -> Declarations:
    """Read the extern blocks of a .pxd, whose members are indented by four spaces and eight."""
    lines = list(_logical_lines(text))
    found = Declarations()
    inside = False
    for i, (indent, line) in enumerate(lines):
        if indent == 0:
            inside = line.startswith("cdef extern from")
        elif inside and indent == 4:
            body = []
            for deeper, member in lines[i + 1 :]:
                if deeper <= 4:
                    break
                body.append(member)
            found.items.append(_pxd_item(line, [member for member in body if member != "pass"]))
    return found


def _pxd_item(line: str, body: list[str]) -> Item:
    if match := re.fullmatch(r"(?:ctypedef )?struct (\w+):?", line):
        fields = []
        for member in body:
            declaration, handler = _clause(member)
            found = declarator(declaration, {})
            fields.append(Field(found.name, found.type, handler=handler))
        return Struct(match[1], tuple(fields) or None)
    if match := re.fullmatch(r"enum (\w+):", line):
        values = (member.partition("=") for member in body)
        return Enum(
            match[1], tuple((name.strip(), evaluate(value, {}) if value else None) for name, _, value in values)
        )
    line, handler = _clause(line)
    if line.startswith("ctypedef "):
        # a template in Cython's brackets, map[K, V], becomes map<K, V>
        found = declarator(re.sub(r"\[([^\]]*[A-Za-z][^\]]*)\]", r"<\1>", line.removeprefix("ctypedef ")), {})
        return Typedef(found.name, found.type, handler)
    if match := re.fullmatch(r"const (\w+|char \*) (\w+)", line):
        return Constant(match[2], type=match[1].replace("char *", "const char *"))
    return function(line, {}, handler=handler)

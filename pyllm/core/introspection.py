"""What Python's own tools are told about compiled classes: `pickle` and `copy`, `inspect.signature` and `help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import ast
    import inspect


def not_pickled(instead: str) -> Callable[..., NoReturn]:
    """A `__reduce__` for objects that cannot be pickled or copied.

    Args:
        instead: Why not, and what to do instead, as the end of a sentence.
    """

    def __reduce__(self: Any) -> NoReturn:  # noqa: N807
        raise TypeError(f"{_a(type(self))} cannot be pickled or copied: {instead}")

    return __reduce__


def not_copied(instead: str) -> Callable[..., NoReturn]:
    """A `__copy__` and `__deepcopy__` for objects that can be pickled, but whose copy would surprise.

    Args:
        instead: Why not, and what to do instead, as the end of a sentence.
    """

    def __copy__(self: Any, memo: Any = None) -> NoReturn:  # noqa: N807
        raise TypeError(f"{_a(type(self))} is not copied: {instead}")

    return __copy__


def _a(cls: type) -> str:
    return f"{'an' if cls.__name__[0] in 'AEIO' else 'a'} {cls.__name__}"


class StubSignature:
    """The signature of a compiled class, read from its stub when `inspect.signature` or `help` asks for it.

    Cython keeps none of a constructor. The stubs are installed beside the modules.
    """

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        definer = next(cls for cls in owner.__mro__ if vars(cls).get("__signature__") is self)
        before = owner.__mro__[: owner.__mro__.index(definer)]
        # A subclass with a constructor of its own has that signature.
        inherited = not any("__init__" in vars(cls) or "__new__" in vars(cls) for cls in before)
        found = _from_stub(definer) if instance is None and inherited else None
        if found is None:
            raise AttributeError("__signature__")
        return found


def _from_stub(cls: type) -> inspect.Signature | None:
    import ast
    import sys
    from pathlib import Path

    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    stub = Path(file).with_name(cls.__module__.rpartition(".")[2] + ".pyi") if file else None
    if stub is None or not stub.is_file():  # a frozen application carries no stubs
        return None
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name in ("__new__", "__init__"):
                    return _signature(item.args)
    return None


def _signature(arguments: ast.arguments) -> inspect.Signature:
    import ast
    from inspect import Parameter, Signature

    found: list[Parameter] = []

    def add(argument: ast.arg, kind: Any, default: ast.expr | None = None) -> None:
        value = Parameter.empty if default is None else ast.literal_eval(default)
        annotation = Parameter.empty if argument.annotation is None else ast.unparse(argument.annotation)
        found.append(Parameter(argument.arg, kind, default=value, annotation=annotation))

    places = arguments.args[1:]  # without the object itself
    defaults = [None] * (len(places) - len(arguments.defaults)) + list(arguments.defaults)
    for argument, default in zip(places, defaults, strict=True):
        add(argument, Parameter.POSITIONAL_OR_KEYWORD, default)
    if arguments.vararg is not None:
        add(arguments.vararg, Parameter.VAR_POSITIONAL)
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        add(argument, Parameter.KEYWORD_ONLY, value)
    if arguments.kwarg is not None:
        add(arguments.kwarg, Parameter.VAR_KEYWORD)
    return Signature(found)


signature = StubSignature()

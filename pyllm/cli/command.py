"""The class of all commands: how their flags are read, and how their help looks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand

_OTHERS = "Options"
# What follows a letter in "-c4096" or "-s-1": a number. Anything else behind one dash is a flag of several letters.
_ATTACHED = re.compile(r"-?\d[\d.]*")
_NAMES_WIDTH = 32
_LONGEST = 72


class Command(TyperCommand):
    """A command with llama.cpp's flags, of which some have one dash and several letters.

    Click would read an unknown ``-sps`` as ``-s ps``, the seed "ps". Here it is an unknown flag. Help is written in
    two columns that fit into 80 characters.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments of a command line."""
        args = list(args)
        for i in self._flags_in(args):
            args[i] = self._with_dashes(args[i])
            self._check(args[i])
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            if getattr(parameter, "hidden", False):
                continue
            is_option = parameter.param_type_name == "option"
            group = getattr(parameter, "rich_help_panel", None) or (_OTHERS if is_option else "Arguments")
            row = _option(parameter, ctx) if is_option else _argument(parameter)
            groups.setdefault(group, []).append(row)
        last = groups.pop(_OTHERS, [])
        for title, rows in [*groups.items(), (_OTHERS, last)]:
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=_NAMES_WIDTH)
        self.format_epilog(ctx, formatter)

    def _options(self) -> list[Any]:
        return [parameter for parameter in self.params if parameter.param_type_name == "option"]

    def _flags_in(self, args: list[str]) -> Iterator[int]:
        """The indices of the words of a command line that stand where a flag stands; their values are left out."""
        takes_value = {
            name: not parameter.is_flag and not parameter.count
            for parameter in self._options()
            for name in (*parameter.opts, *parameter.secondary_opts)
        }
        indices = iter(range(len(args)))
        for i in indices:
            if args[i] == "--":
                return
            if len(args[i]) > 1 and args[i].startswith("-"):
                yield i
            if takes_value.get(self._with_dashes(args[i])):
                next(indices, None)

    @staticmethod
    def _with_dashes(word: str) -> str:
        """A flag as it is declared: llama.cpp's programs take ``--ctx_size`` for ``--ctx-size``."""
        name, sign, value = word.partition("=")
        return name.replace("_", "-") + sign + value if name.startswith("--") else word

    def _check(self, word: str) -> None:
        if word.startswith("--") or len(word) == 2:
            return
        names = {name for parameter in self._options() for name in (*parameter.opts, *parameter.secondary_opts)} | {
            "-h"
        }
        name, sign, value = word.partition("=")
        if word in names or (word[:2] in names and _ATTACHED.fullmatch(word[2:])):
            return
        if sign and name in names:
            raise typer.BadParameter(f"a flag with one dash takes its value as the next word: {name} {value}")
        near = difflib.get_close_matches(word, sorted(name for name in names if len(name) > 2), 1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise typer.BadParameter(f"there is no flag {word}{hint}")


def _option(parameter: Any, ctx: Any) -> tuple[str, str]:
    names = sorted((*parameter.opts, *parameter.secondary_opts), key=lambda name: (name.startswith("--"), name))
    # Click knows " /-nr" for a flag that has a short name for its opposite only.
    names = [name.strip() for name in names if name.strip()]
    positive = [name for name in parameter.opts if name.strip()]
    names = [*(name for name in names if name in positive), *(name for name in names if name not in positive)]
    metavar = "" if parameter.is_flag else f" {_metavar(parameter)}"
    shown = ", ".join(names)
    while len(names) > 2 and len(shown) + len(metavar) > _LONGEST:
        del names[-2]  # there are others that mean the same
        shown = ", ".join(names)
    details = []
    if parameter.envvar and getattr(parameter, "show_envvar", True):
        variables = parameter.envvar if isinstance(parameter.envvar, str) else ", ".join(parameter.envvar)
        details.append(f"env: {variables}")
    default = parameter.get_default(ctx, call=False)
    if isinstance(default, bool):
        if default and parameter.secondary_opts:
            details.append("default: on")
    elif isinstance(default, (int, float, str)) and default != "":
        details.append(f"default: {default}")
    limits = _limits(parameter)
    if limits:
        details.insert(0, limits)
    text = parameter.help or ""
    return shown + metavar, f"{text} [{'; '.join(details)}]" if details else text


def _argument(parameter: Any) -> tuple[str, str]:
    name = parameter.metavar or parameter.name.upper()
    default = parameter.show_default if isinstance(parameter.show_default, str) else ""
    text = getattr(parameter, "help", None) or ""
    return name if parameter.required else f"[{name}]", f"{text} [default: {default}]" if default else text


def _metavar(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    descriptor = getattr(parameter, "type_descriptor", None)
    kind = str(descriptor.annotation if descriptor is not None else _of_type(parameter, "name"))
    return "N" if "int" in kind or "float" in kind else "FILE" if "path" in kind.lower() else "TEXT"


def _limits(parameter: Any) -> str:
    low, high = _of_type(parameter, "min"), _of_type(parameter, "max")
    return "" if low is None or high is None else f"{low} to {high}"


def _of_type(parameter: Any, name: str) -> Any:
    # Newer versions of Typer have the limits in the parameter itself, older ones in its type.
    return getattr(getattr(parameter, "type", parameter), name, None)


__all__ = ["Command"]

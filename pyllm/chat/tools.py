"""Tools: what a model is told about them, and Python functions as tools."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyllm.chat.schemas import hints_of, object_schema, value_of
from pyllm.chat.types import ToolCall
from pyllm.errors import InvalidArgumentError
from pyllm.types import Shaped

_NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)
CHOICES = ("auto", "none", "required")


@dataclass(frozen=True)
class Tool(Shaped):
    """A tool that a model may call.

    Attributes:
        name: Its name.
        description: What it does, for the model to read.
        parameters: JSON schema of an object: its arguments.
        function: The Python function, or None where somebody else carries it out.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    function: Callable[..., Any] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """A Python function as a tool: name, type hints and docstring describe it.

        The first paragraph of the docstring is the description; lines below ``Args:``, or ``:param name:``, describe
        parameters, as does ``Annotated[int, "in degrees"]``.

        Raises:
            InvalidArgumentError: It has no name, takes ``*args`` or ``**kwargs``, or the type of a parameter has no
                JSON schema; the error names the parameter.
        """
        name = getattr(function, "__name__", "")
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"a tool must be a function with a name, not {function!r}: write it with def, or make a Tool"
            )
        if isinstance(function, type):
            raise InvalidArgumentError(f"a tool must be a function, not the class {name}: write one that makes it")
        if inspect.iscoroutinefunction(function):
            raise InvalidArgumentError(f"the tool {name} is async: give a function that can be called as it is")
        hinted = function if inspect.isroutine(function) else type(function).__call__
        hints = hints_of(hinted, name)
        hints.pop("return", None)
        parameters, required = {}, []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise InvalidArgumentError(f"the tool {name} takes {parameter}, which cannot be described to a model")
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise InvalidArgumentError(f"the parameter {parameter.name} of the tool {name} has no name in calls")
            parameters[parameter.name] = hints.get(parameter.name, Any)
            if parameter.default is parameter.empty:
                required.append(parameter.name)
        schema = object_schema(parameters, required, name)
        description, descriptions = _docstring(inspect.getdoc(function) or "")
        for parameter_name, text in descriptions.items():
            if parameter_name in schema["properties"]:
                schema["properties"][parameter_name].setdefault("description", text)
        return cls(name, description, schema, function)

    def to_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's API."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def __call__(self, call: ToolCall) -> str:
        """Carry out a call, and give the text for the model; an exception of the function becomes its text."""
        if self.function is None:
            raise InvalidArgumentError(f"the tool {self.name} has no Python function")
        try:
            hinted = self.function if inspect.isroutine(self.function) else type(self.function).__call__
            hints = hints_of(hinted, self.name)
            arguments = {name: value_of(hints.get(name, Any), value) for name, value in call.arguments.items()}
            return _text(self.function(**arguments))
        except Exception as error:
            return f"Error: {type(error).__name__}: {error}"


def as_tools(tools: Sequence[Tool | Mapping[str, Any] | Callable[..., Any]] | None) -> list[Tool]:
    """Tools as people give them: dicts in OpenAI's shape, Python functions, or :class:`Tool`.

    Raises:
        InvalidArgumentError: One is none of these, or two have the same name; the error names it as ``tools[i]``.
    """
    if tools is None:
        return []
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise InvalidArgumentError(f"tools must be a list, not {tools!r}", param="tools")
    result: list[Tool] = []
    for i, tool in enumerate(tools):
        made = _made(tool, f"tools[{i}]")
        if any(other.name == made.name for other in result):
            raise InvalidArgumentError(
                f"tools[{i}]: there are two tools with the name {made.name!r}", param=f"tools[{i}]"
            )
        result.append(made)
    return result


def _made(tool: Any, where: str) -> Tool:
    if isinstance(tool, Tool):
        if not isinstance(tool.parameters, Mapping):
            raise InvalidArgumentError(
                f"{where}.parameters must be the JSON schema of an object", param=f"{where}.parameters"
            )
        _from_dict(tool, where)
        return tool
    return Tool.of(tool) if callable(tool) else _from_dict(tool, where)


def _from_dict(tool: Any, where: str) -> Tool:
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else "function"
    if kind == "custom":
        raise InvalidArgumentError(
            f"{where}: the type of a tool must be 'function', not 'custom': describe it as a function with one "
            "argument that is a text",
            param=where,
        )
    if kind != "function":
        raise InvalidArgumentError(f"{where}: the type of a tool must be 'function', not {kind!r}", param=where)
    if not isinstance(tool, Mapping) or not isinstance(tool.get("function"), Mapping):
        raise InvalidArgumentError(
            f"{where} must be a Python function or {{'type': 'function', 'function': {{'name': …}}}}, not {tool!r}",
            param=where,
        )
    function = tool["function"]
    name, description = function.get("name"), function.get("description") or ""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"{where}.function.name must be letters, digits, '_', '-' and '.', not {name!r}",
            param=f"{where}.function.name",
        )
    if not isinstance(description, str):
        raise InvalidArgumentError(
            f"{where}.function.description must be text, not {description!r}", param=f"{where}.function.description"
        )
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise InvalidArgumentError(
            f"{where}.function.parameters must be the JSON schema of an object", param=f"{where}.function.parameters"
        )
    try:
        json.dumps(dict(parameters), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{where}.function.parameters is no JSON: {error}") from None
    return Tool(name, description, dict(parameters))


def check_choice(choice: Any, tools: list[Tool]) -> tuple[str, list[Tool] | None]:
    """Which calls are allowed: ("auto" | "none" | "required", the tools that may be called, or None for all of them).

    Args:
        choice: A word; ``{"type": <word>}``; ``{"type": "function", "function": {"name": …}}``, or the same without the
            inner object; ``{"type": "allowed_tools", "allowed_tools": {"mode": <word>, "tools": […]}}``, likewise.
        tools: What is offered.

    Raises:
        InvalidArgumentError: The choice is unknown, or there is no such tool.
    """
    if isinstance(choice, Mapping) and choice.get("type") in CHOICES:
        choice = choice["type"]
    if choice is None:
        return "auto", None
    if isinstance(choice, str) and choice in CHOICES:
        if choice == "required" and not tools:
            raise InvalidArgumentError(
                "tool_choice must be 'auto' or 'none', not 'required': there are no tools", param="tool_choice"
            )
        return choice, None
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        mode, named = (allowed.get("mode"), allowed.get("tools")) if isinstance(allowed, Mapping) else (None, None)
        if mode not in ("auto", "required") or not isinstance(named, Sequence) or isinstance(named, str) or not named:
            raise InvalidArgumentError(
                "tool_choice must have a mode, 'auto' or 'required', and a list of tools where its type is "
                f"'allowed_tools', not {choice!r}",
                param="tool_choice",
            )
        return mode, [_named(one, tools) for one in named]
    return "required", [_named(choice, tools)]


def _named(choice: Any, tools: list[Tool]) -> Tool:
    """The tool that a choice names, in the form of either of OpenAI's APIs."""
    if isinstance(choice, Mapping) and choice.get("type", "function") == "function":
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if isinstance(name, str):
            for tool in tools:
                if tool.name == name:
                    return tool
            known = ", ".join(tool.name for tool in tools) or "no tools"
            raise InvalidArgumentError(
                f"tool_choice names {name!r}, which is not offered; there are {known}", param="tool_choice"
            )
    raise InvalidArgumentError(
        "tool_choice must be 'auto', 'none', 'required', {'type': 'function', 'function': {'name': …}} or "
        f"{{'type': 'allowed_tools', 'allowed_tools': {{'mode': …, 'tools': […]}}}}, not {choice!r}",
        param="tool_choice",
    )


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    if dataclasses.is_dataclass(result) and not isinstance(result, (type, Mapping)):
        result = dataclasses.asdict(result)
    elif hasattr(result, "model_dump"):
        result = result.model_dump()
    return json.dumps(result, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph, and what is said about each parameter."""
    paragraphs = text.split("\n\n", 1)
    description = " ".join(line.strip() for line in paragraphs[0].splitlines() if not line.strip().startswith(":"))
    found = {match[1]: match[2].strip() for match in re.finditer(r"^:param (?:\S+ )?(\w+):(.*)$", text, re.MULTILINE)}
    block = re.search(r"^(?:Args|Arguments|Parameters):[ \t]*\n((?:[ \t]+.*(?:\n|$)|[ \t]*\n)+)", text, re.MULTILINE)
    if block:
        lines = inspect.cleandoc("\n" + block[1]).splitlines()
        name = ""
        for line in lines:
            start = re.match(r"(\w+)(?: ?\([^)]*\))?:(.*)", line)
            if start:
                name = start[1]
                found[name] = start[2].strip()
            elif name and line.startswith(" "):
                found[name] = f"{found[name]} {line.strip()}".strip()
    return description.strip(), found

"""From the arguments of a call to those of :class:`pyllm.Llama`, and from its results to plain dicts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from pyllm.compat.llama_cpp.arguments import seed_of
from pyllm.compat.llama_cpp.llama_grammar import LlamaGrammar
from pyllm.errors import InvalidArgumentError

_UNCHANGED = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "repeat_penalty",
    "mirostat_tau",
    "mirostat_eta",
)
_NOT_THERE = {"tfs_z": 1.0, "penalize_nl": True}


def sampling_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`pyllm.SamplingParams` from arguments by their names in llama-cpp-python."""
    for name, default in _NOT_THERE.items():
        if given.get(name, default) != default:
            warnings.warn(f"{name} has no effect: llama.cpp has no such sampler", UserWarning, stacklevel=4)
    arguments = {name: given[name] for name in _UNCHANGED if name in given}
    if given.get("mirostat_mode"):
        arguments["mirostat"] = given["mirostat_mode"]
    if given.get("grammar") is not None:
        arguments["grammar"] = grammar_text(given["grammar"])
    if given.get("logit_bias"):
        arguments["logit_bias"] = {_token(key): float(value) for key, value in given["logit_bias"].items()}
    return arguments


def _token(key: Any) -> int:
    # JSON has texts for keys: "15043" is the token of that number.
    try:
        return int(key)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"logit_bias must have token ids for keys, not {key!r}") from None


def grammar_text(grammar: LlamaGrammar | str) -> str:
    """The text of a grammar."""
    if isinstance(grammar, (LlamaGrammar, str)):
        return str(grammar)
    raise InvalidArgumentError(f"grammar must be a LlamaGrammar, not {grammar!r}")


def call_arguments(given: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :meth:`pyllm.Llama.create_completion`, and, as far as both have them, of chats.

    Args:
        given: By their names in llama-cpp-python.
        extra: By pyllm's names; they count more.
    """
    arguments = sampling_arguments(given)
    limit = given.get("max_tokens")
    arguments["max_tokens"] = None if limit is None or limit <= 0 else limit
    stop = given.get("stop")
    if stop:
        arguments["stop"] = stop
    seed = seed_of(given.get("seed"))
    if seed is not None:
        arguments["seed"] = seed
    for name in ("logits_processor", "stopping_criteria"):
        if given.get(name) is not None and given[name] != []:
            arguments[name] = given[name]
    return {**arguments, **extra}


def completion_dict(result: Any, model: str) -> dict[str, Any]:
    """A completion or a chunk of one as a plain dict."""
    shaped: dict[str, Any] = result.to_dict()
    shaped["model"] = model
    for choice in shaped["choices"]:
        # There are no other reasons there.
        if choice.get("finish_reason") == "abort":
            choice["finish_reason"] = "stop"
    return shaped


# ---- chats


def chat_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages in which functions, as they were before there were tools, are tools."""
    renewed: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidArgumentError(f"messages[{i}] must be a dict, not {message!r}")
        message = dict(message)
        call = message.pop("function_call", None)
        if call is not None:
            message["tool_calls"] = [{"id": f"call_{i}", "type": "function", "function": dict(call)}]
            message.setdefault("content", None)
        if message.get("role") == "function":
            message["role"] = "tool"
            message.setdefault("tool_call_id", _last_call(renewed) or f"call_{i}")
        renewed.append(message)
    return renewed


def _last_call(messages: list[dict[str, Any]]) -> str | None:
    for message in reversed(messages):
        if message.get("tool_calls"):
            return str(message["tool_calls"][-1].get("id"))
    return None


def tools_of(given: Mapping[str, Any]) -> tuple[list[dict[str, Any]] | None, Any, bool]:
    """The tools, which of them to use, and whether they were given as functions."""
    tools, choice = given.get("tools"), given.get("tool_choice")
    functions, call = given.get("functions"), given.get("function_call")
    if tools and functions:
        raise InvalidArgumentError("give tools or functions, not both")
    if functions:
        tools = [{"type": "function", "function": function} for function in functions]
        choice = {"type": "function", "function": dict(call)} if isinstance(call, Mapping) else call
    if not tools:
        return None, None, False
    names = [_tool_name(tool, f"{'functions' if functions else 'tools'}[{i}]") for i, tool in enumerate(tools)]
    if isinstance(choice, Mapping):
        # Only the name is wanted; some hand over the whole tool.
        name = _tool_name(choice, "function_call" if functions else "tool_choice")
        choice = {"type": "function", "function": {"name": name}}
    elif isinstance(choice, str) and choice in names and choice not in ("auto", "none", "required"):
        choice = {"type": "function", "function": {"name": choice}}
    return list(tools), choice, bool(functions)


def _tool_name(tool: Any, where: str) -> str:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        said = function if where.startswith("function") else tool
        raise InvalidArgumentError(f"{where} must be a dict that has the name of a function, not {said!r}")
    return name


def response_format_of(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A response format as OpenAI has it: a schema beside "json_object" is one of "json_schema"."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f'response_format must be a dict like {{"type": "json_object"}}, not {value!r}')
    form = dict(value)
    if form.get("type") == "json_object" and form.get("schema"):
        return {"type": "json_schema", "json_schema": {"name": "schema", "schema": form["schema"]}}
    return form


def chat_dict(result: Any, model: str, *, functions: bool) -> dict[str, Any]:
    """A chat completion or a chunk of one as a plain dict.

    Args:
        result: It.
        model: What to call the model.
        functions: Whether a call of a tool is to be one of a function, as it was before there were tools.
    """
    shaped = completion_dict(result, model)
    if functions:
        for choice in shaped["choices"]:
            said = choice.get("message") or choice.get("delta") or {}
            if said.get("tool_calls"):
                said["function_call"] = dict(said["tool_calls"][0]["function"])
            if choice.get("finish_reason") == "tool_calls":
                choice["finish_reason"] = "function_call"
    return shaped


__all__ = [
    "call_arguments",
    "chat_dict",
    "chat_messages",
    "completion_dict",
    "grammar_text",
    "response_format_of",
    "sampling_arguments",
    "tools_of",
]

"""A plugin for `llm`: models of pyllm by the names ``pyllm/…`` on its command line.

It is found by itself where pyllm and llm are installed. ``pyllm/smollm2`` and the other known models are there at once;
``PYLLM_LLM_MODELS`` names more, as whatever :class:`pyllm.Llama` takes for a model, separated by commas.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import llm

if TYPE_CHECKING:
    import pyllm

_PREFIX = "pyllm/"
_OPEN: dict[str, pyllm.Llama] = {}
_LOCK = threading.Lock()


def _open(model: str) -> pyllm.Llama:
    """The Llama of a model: one for each, for as long as the program runs."""
    from pyllm import Llama

    with _LOCK:
        if model not in _OPEN:
            _OPEN[model] = Llama(model, cache_prompt=True)
        return _OPEN[model]


class Options(llm.Options):  # type: ignore[misc]
    """What ``llm -o NAME VALUE`` can set; nothing: as llama.cpp has it."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


class PyllmModel(llm.Model):  # type: ignore[misc]
    """A model that answers.

    Args:
        model: What :class:`pyllm.Llama` takes for it.
    """

    can_stream = True
    supports_schema = True
    supports_tools = True

    class Options(Options):
        """See above; llm looks for it here."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.model_id = f"{_PREFIX}{model}"

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: Any = None
    ) -> Iterator[str]:
        """Answer; `llm` calls it."""
        arguments: dict[str, Any] = {
            name: value for name, value in prompt.options.model_dump().items() if value is not None
        }
        if prompt.schema:
            arguments["json_schema"] = prompt.schema
        if prompt.tools:
            arguments["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description or "",
                        "parameters": tool.input_schema or {"type": "object", "properties": {}},
                    },
                }
                for tool in prompt.tools
            ]
        completion = None
        for chunk in _open(self.model).stream_chat(_messages(prompt, conversation), **arguments):
            completion = chunk.completion or completion
            if chunk.text:
                yield chunk.text
        if completion is None:
            return
        for call in completion.tool_calls or ():
            response.add_tool_call(llm.ToolCall(tool_call_id=call.id, name=call.name, arguments=call.arguments))
        response.set_usage(input=completion.usage.prompt_tokens, output=completion.usage.completion_tokens)

    def __str__(self) -> str:
        return f"pyllm: {self.model_id}"


class PyllmEmbeddings(llm.EmbeddingModel):  # type: ignore[misc]
    """A model that makes vectors of texts.

    Args:
        model: What :class:`pyllm.Llama` takes for it.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.model_id = f"{_PREFIX}{model}"

    def embed_batch(self, items: Iterable[str | bytes]) -> Iterator[list[float]]:
        """The vectors of texts; `llm` calls it."""
        vectors = _open(self.model).embed(list(items), overflow="truncate")
        yield from (vector.tolist() for vector in vectors)


def _messages(prompt: llm.Prompt, conversation: Any) -> list[dict[str, Any]]:
    """The conversation so far, and what is asked now."""
    messages: list[dict[str, Any]] = []
    for before in conversation.responses if conversation is not None else ():
        if before.prompt.system and not messages:
            messages.append({"role": "system", "content": before.prompt.system})
        messages += _asked(before.prompt)
        said: dict[str, Any] = {"role": "assistant", "content": before.text_or_raise()}
        calls = before.tool_calls_or_raise()
        if calls:
            from json import dumps

            said["tool_calls"] = [
                {
                    "id": call.tool_call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": dumps(call.arguments)},
                }
                for call in calls
            ]
        messages.append(said)
    if prompt.system and not messages:
        messages.append({"role": "system", "content": prompt.system})
    return messages + _asked(prompt)


def _asked(prompt: llm.Prompt) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": result.tool_call_id, "name": result.name, "content": result.output}
        for result in prompt.tool_results or ()
    ]
    if prompt.prompt:
        messages.append({"role": "user", "content": prompt.prompt})
    return messages


def _others() -> list[str]:
    return [name.strip() for name in os.environ.get("PYLLM_LLM_MODELS", "").split(",") if name.strip()]


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Any) -> None:
    """Tell llm which models answer."""
    from pyllm import hub

    for model in hub.list_models():
        if model.alias != "minilm":
            register(PyllmModel(model.alias))
    for name in _others():
        register(PyllmModel(name))


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_embedding_models(register: Any) -> None:
    """Tell llm which models make vectors."""
    register(PyllmEmbeddings("minilm"))
    for name in _others():
        register(PyllmEmbeddings(name))

"""Formats of chats by name: functions that make a prompt of messages, and handlers that answer them.

Without a format, chats go by the template in the model's file. That is what to prefer: only there tools, thinking and
text that looks like control tokens are told apart.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from pyllm.compat.llama_cpp.calls import chat_messages, response_format_of, tools_of
from pyllm.compat.llama_cpp.processors import StoppingCriteriaList
from pyllm.errors import InvalidArgumentError, PyllmError
from pyllm.extras import missing

# Names there, and llama.cpp's own for the same format.
_BUILT_IN = {
    "llama-2": "llama2-sys",
    "llama-3": "llama3",
    "chatml": "chatml",
    "qwen": "chatml",
    "zephyr": "zephyr",
    "vicuna": "vicuna",
    "gemma": "gemma",
    "openchat": "openchat",
    "chatglm3": "chatglm3",
    "mistral-instruct": "mistral-v1",
}
# Where the turn of the model ends, in formats whose tokens may be plain text to a model.
_STOPS = {"chatml": ["<|im_end|>"], "qwen": ["<|im_end|>"], "zephyr": ["</s>"], "gemma": ["<end_of_turn>"]}

LlamaChatCompletionHandler = Callable[..., Any]


class LlamaChatCompletionHandlerNotFoundException(PyllmError, LookupError):
    """There is no format of that name."""


class LlamaChatCompletionHandlerRegistry:
    """The handlers by name."""

    _instance: LlamaChatCompletionHandlerRegistry | None = None
    _chat_handlers: dict[str, LlamaChatCompletionHandler]

    def __new__(cls) -> LlamaChatCompletionHandlerRegistry:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
            cls._instance._chat_handlers = {}
        return cls._instance

    def register_chat_completion_handler(
        self, name: str, chat_handler: LlamaChatCompletionHandler, overwrite: bool = False
    ) -> None:
        """Add one.

        Raises:
            InvalidArgumentError: There is one of that name, and it is not to be replaced.
        """
        if not overwrite and name in self._chat_handlers:
            raise InvalidArgumentError(f"there is a chat format {name!r} already; overwrite=True replaces it")
        self._chat_handlers[name] = chat_handler

    def unregister_chat_handler(self, name: str) -> None:
        """Take one out."""
        self.get_chat_completion_handler_by_name(name)
        del self._chat_handlers[name]

    def get_chat_completion_handler_by_name(self, name: str) -> LlamaChatCompletionHandler:
        """The handler of that name.

        Raises:
            LlamaChatCompletionHandlerNotFoundException: There is none.
        """
        if name not in self._chat_handlers:
            raise LlamaChatCompletionHandlerNotFoundException(
                f"there is no chat format {name!r}; there are {', '.join(sorted(self._chat_handlers))}; "
                "without chat_format the template in the model's file is used"
            )
        return self._chat_handlers[name]


def get_chat_completion_handler(name: str) -> LlamaChatCompletionHandler:
    """The handler of that name."""
    return LlamaChatCompletionHandlerRegistry().get_chat_completion_handler_by_name(name)


def register_chat_completion_handler(
    name: str,
) -> Callable[[LlamaChatCompletionHandler], LlamaChatCompletionHandler]:
    """Decorator: the function is the handler of that name."""

    def register(handler: LlamaChatCompletionHandler) -> LlamaChatCompletionHandler:
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler)
        return handler

    return register


@dataclasses.dataclass
class ChatFormatterResponse:
    """A prompt.

    Attributes:
        prompt: Its text, in which names of control tokens are such tokens.
        stop: Where the answer ends.
        stopping_criteria: Where it ends besides.
        added_special: Whether the token that begins texts stands in the prompt already.
    """

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    added_special: bool = False


class ChatFormatter(Protocol):
    """A function that makes a prompt of messages."""

    def __call__(self, *, messages: list[dict[str, Any]], **kwargs: Any) -> ChatFormatterResponse: ...


def register_chat_format(name: str) -> Callable[[ChatFormatter], ChatFormatter]:
    """Decorator: the function makes the prompts of the format of that name."""

    def register(formatter: ChatFormatter) -> ChatFormatter:
        handler = chat_formatter_to_chat_completion_handler(formatter)
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler)
        return formatter

    return register


class Jinja2ChatFormatter:
    """A template in the language of Jinja, read by llama.cpp's own engine.

    Args:
        template: Its text.
        eos_token: What ends a text.
        bos_token: What begins one.
        add_generation_prompt: Whether the prompt ends with the beginning of the answer.
        stop_token_ids: Tokens at which the answer ends besides.
    """

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: Sequence[int] | None = None,
    ) -> None:
        from pyllm.core.chat import ChatTemplates

        self.template, self.eos_token, self.bos_token = template, eos_token, bos_token
        self.add_generation_prompt = add_generation_prompt
        self.stop_token_ids = None if stop_token_ids is None else set(stop_token_ids)
        self._templates = ChatTemplates(None, template=template, bos=bos_token, eos=eos_token)

    def __call__(self, *, messages: list[dict[str, Any]], tools: Any = None, **kwargs: Any) -> ChatFormatterResponse:
        """The prompt."""
        prompt = self._templates.apply(messages, tools=tools, add_generation_prompt=self.add_generation_prompt)
        criteria = None
        if self.stop_token_ids is not None:
            ids = self.stop_token_ids
            criteria = StoppingCriteriaList([lambda tokens, logits: int(tokens[-1]) in ids])
        return ChatFormatterResponse(prompt.prompt, [self.eos_token], criteria, added_special=True)

    def to_chat_handler(self) -> LlamaChatCompletionHandler:
        """A handler that answers by this template, tools and thinking included."""

        def handler(*, llama: Any, messages: Any, **given: Any) -> Any:
            known, more = _split(given)
            more.setdefault("chat_template", self.template)
            return llama.answer({"messages": messages, **known}, more)

        return handler


def chat_formatter_to_chat_completion_handler(chat_formatter: ChatFormatter) -> LlamaChatCompletionHandler:
    """A handler that answers with a completion of the prompt that a formatter makes.

    A tool is called only where `tool_choice` names it; its arguments then follow its schema.
    """

    def handler(*, llama: Any, messages: Any, **given: Any) -> Any:
        known, more = _split(given)
        renewed = chat_messages(messages)
        tools, choice, functions = tools_of(known)
        tool = _forced(tools, choice)
        if tools is not None and tool is None and choice in ("auto", "required"):
            raise InvalidArgumentError(
                f"this chat format cannot do tool_choice={choice!r}: name a tool, or leave chat_format away"
            )
        # The messages as the caller has them; formats for functions know those.
        response = chat_formatter(
            messages=[dict(message) for message in messages],
            functions=known.get("functions"),
            function_call=known.get("function_call"),
            tools=tools,
            tool_choice=choice,
        )
        del renewed
        prompt = llama.tokenize(response.prompt.encode(), add_bos=not response.added_special, special=True)
        arguments = {
            name: value
            for name, value in known.items()
            if name not in ("functions", "function_call", "tools", "tool_choice", "response_format", "top_logprobs")
        }
        arguments["stop"] = [*_as_list(known.get("stop")), *_as_list(response.stop)]
        if response.stopping_criteria is not None:
            arguments["stopping_criteria"] = response.stopping_criteria
        arguments["logprobs"] = (known.get("top_logprobs") or 0) if known.get("logprobs") else None
        form = response_format_of(known.get("response_format"))
        if tool is not None:
            more["json_schema"] = tool["function"].get("parameters") or {"type": "object"}
        elif form is not None:
            more["response_format"] = form
        result = llama.create_completion(prompt, **arguments, **more)
        name = None if tool is None else str(tool["function"]["name"])
        if known.get("stream"):
            return _chat_chunks(result, name, functions)
        return _chat(result, name, functions)

    return handler


def _split(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments that llama-cpp-python has, and others."""
    import inspect

    from pyllm.compat.llama_cpp.chats import Chats

    names = inspect.signature(Chats.create_chat_completion).parameters
    known = {name: value for name, value in given.items() if name in names}
    return known, {name: value for name, value in given.items() if name not in names}


def _as_list(stop: str | Sequence[str] | None) -> list[str]:
    return [] if stop is None else [stop] if isinstance(stop, str) else list(stop)


def _forced(tools: list[dict[str, Any]] | None, choice: Any) -> dict[str, Any] | None:
    if tools is None or not isinstance(choice, Mapping):
        return None
    name = choice["function"]["name"]
    for tool in tools:
        if tool["function"]["name"] == name:
            return tool
    raise InvalidArgumentError(f"tool_choice names {name!r}, which is none of the tools")


def _chat(completion: Mapping[str, Any], tool: str | None, functions: bool) -> dict[str, Any]:
    """A completion as an answer of a chat."""
    return {
        **completion,
        "id": f"chat{completion['id']}",
        "object": "chat.completion",
        "choices": [
            {
                "index": choice["index"],
                "message": {"role": "assistant", **_content(choice["text"], tool, functions, completion["id"])},
                "logprobs": _logprobs(choice["logprobs"]),
                "finish_reason": _reason(choice["finish_reason"], tool, functions),
            }
            for choice in completion["choices"]
        ],
    }


def _content(text: str, tool: str | None, functions: bool, call_id: str) -> dict[str, Any]:
    if tool is None:
        return {"content": text}
    call = {"name": tool, "arguments": text}
    shaped: dict[str, Any] = {
        "content": None,
        "tool_calls": [{"id": f"call_{call_id}", "type": "function", "function": call}],
    }
    return {**shaped, "function_call": dict(call)} if functions else shaped


def _reason(reason: str | None, tool: str | None, functions: bool) -> str | None:
    if tool is None or reason != "stop":
        return reason
    return "function_call" if functions else "tool_calls"


def _chat_chunks(chunks: Iterator[Mapping[str, Any]], tool: str | None, functions: bool) -> Iterator[dict[str, Any]]:
    """Pieces of a completion as pieces of an answer."""
    first = True
    for chunk in chunks:
        shaped = {**chunk, "id": f"chat{chunk['id']}", "object": "chat.completion.chunk"}
        if first:
            yield {**shaped, "choices": [_chunk_choice(chunk["choices"][0], {"role": "assistant"}, None)]}
        choices = []
        for choice in chunk["choices"]:
            delta: dict[str, Any] = {}
            if tool is None:
                delta = {"content": choice["text"]} if choice["text"] else {}
            elif choice["text"] or first:
                call = {"name": tool if first else None, "arguments": choice["text"]}
                delta["tool_calls"] = [{"index": 0, "id": f"call_{chunk['id']}", "type": "function", "function": call}]
                if functions:
                    delta["function_call"] = {"name": tool if first else "", "arguments": choice["text"]}
            choices.append(_chunk_choice(choice, delta, _reason(choice["finish_reason"], tool, functions)))
        first = False
        yield {**shaped, "choices": choices}


def _chunk_choice(choice: Mapping[str, Any], delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {
        "index": choice["index"],
        "delta": delta,
        "logprobs": _logprobs(choice.get("logprobs")) if "role" not in delta else None,
        "finish_reason": reason,
    }


def _logprobs(logprobs: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    rows = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    return {
        "content": [
            {
                **_token(token, logprob),
                "top_logprobs": [_token(other, value) for other, value in (top or {}).items()],
            }
            for token, logprob, top in rows
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": 0.0 if logprob is None else logprob, "bytes": None}


# ---- templates of transformers


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> Jinja2ChatFormatter:
    """The template of a tokenizer_config.json.

    Raises:
        InvalidArgumentError: It has none, or lacks the tokens.
    """
    found = {}
    for name in ("chat_template", "bos_token", "eos_token"):
        value = tokenizer_config.get(name)
        value = value.get("content") if isinstance(value, Mapping) else value
        if not isinstance(value, str):
            raise InvalidArgumentError(f"the tokenizer's configuration has no {name}")
        found[name] = value
    return Jinja2ChatFormatter(
        found["chat_template"], found["eos_token"], found["bos_token"], add_generation_prompt=add_generation_prompt
    )


def hf_tokenizer_config_to_chat_completion_handler(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> LlamaChatCompletionHandler:
    """A handler for the template of a tokenizer_config.json."""
    return hf_tokenizer_config_to_chat_formatter(tokenizer_config, add_generation_prompt).to_chat_handler()


def hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path: str) -> ChatFormatter:
    """The template of a tokenizer of transformers, applied by transformers."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing("this needs transformers", "transformers") from error
    tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path)

    def format_with_tokenizer(*, messages: list[dict[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False)
        return ChatFormatterResponse(str(prompt), str(tokenizer.eos_token), added_special=True)

    return format_with_tokenizer


def hf_autotokenizer_to_chat_completion_handler(pretrained_model_name_or_path: str) -> LlamaChatCompletionHandler:
    """A handler for a tokenizer of transformers."""
    return chat_formatter_to_chat_completion_handler(hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path))


# ---- the formats there are


def _built_in(name: str, template: str) -> ChatFormatter:
    def format_built_in(*, messages: list[dict[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
        from pyllm.core.chat_template import apply_template

        plain = [{"role": str(message["role"]), "content": _text(message)} for message in messages]
        return ChatFormatterResponse(apply_template(template, plain), _STOPS.get(name))

    return format_built_in


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None:
        return json.dumps(message["tool_calls"]) if message.get("tool_calls") else ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if part.get("type") != "text":
            raise InvalidArgumentError(f"this chat format takes text, and no part of type {part.get('type')!r}")
        texts.append(str(part["text"]))
    return "".join(texts)


for _name, _template in _BUILT_IN.items():
    register_chat_format(_name)(_built_in(_name, _template))


def _by_template(*, llama: Any, messages: Any, **given: Any) -> Any:
    known, more = _split(given)
    return llama.answer({"messages": messages, **known}, more)


# Any model calls functions, so this needs no format of its own.
register_chat_completion_handler("chatml-function-calling")(_by_template)


def __getattr__(name: str) -> Any:
    if name.endswith("ChatHandler") or name == "Llama3VisionAlpha":
        raise ImportError(f"{name} is for pictures, which pyllm.compat.llama_cpp does not read")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

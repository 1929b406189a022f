"""The arguments of a chat completion, checked, and the prompt they lead to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllm.chat.generic import OPEN, GenericCalls, explained
from pyllm.chat.guide import Guide
from pyllm.chat.messages import SYSTEM_ROLES, Messages, content_text, plain_messages
from pyllm.chat.rules import FORM_SCHEMA, answer_rules
from pyllm.chat.templates import TemplateStore
from pyllm.chat.tools import Tool, as_tools, check_choice
from pyllm.chat.types import Message
from pyllm.completion.request import argument_names
from pyllm.core.chat import ChatPrompt
from pyllm.errors import InvalidArgumentError
from pyllm.params import unknown_argument
from pyllm.structured import Form, Grammar, form_of

if TYPE_CHECKING:
    from pyllm.completion.host import GenerationHost

_DEFAULTS: dict[str, Any] = {
    "tools": None,
    "tool_choice": None,
    "parallel_tool_calls": None,
    "response_format": None,
    "json_schema": None,
    "grammar": None,
    "regex": None,
    "choices": None,
    "logprobs": False,
    "top_logprobs": None,
    "chat_template": None,
    "chat_template_kwargs": None,
    "enable_thinking": True,
    "reasoning_format": "auto",
    "reasoning_budget": None,
    "continue_final_message": None,
    "add_generation_prompt": None,
    "response_prefix": None,
}
# What a completion takes and a chat does not: its prompt is made of messages.
_NOT_HERE = ("echo", "suffix", "special")
# Variables of templates that are made of other arguments.
_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt")
_REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")


class ChatRequest:
    """What a call asks for.

    Args:
        host: The Llama or the Engine that it asks.
        messages: The chat so far.
        arguments: See :meth:`pyllm.Llama.create_chat_completion`.

    Attributes:
        ids: The tokens of the prompt: int32, shape (n,).
        completion_arguments: What the completion is asked with that generates the answer.
        markers: See :class:`pyllm.chat.answer.Reader`.
        most_calls: See :class:`pyllm.chat.answer.Reader`.
        given: See :class:`pyllm.chat.answer.Reader`.

    Raises:
        InvalidArgumentError: Something is wrong with a message, a tool or another argument.
        UnknownArgumentError: There is no such argument.
        ChatTemplateError: The template refuses the messages.
    """

    def __init__(self, host: GenerationHost, messages: Messages, arguments: dict[str, Any]) -> None:
        known = [*_DEFAULTS, *(name for name in argument_names() if name not in _NOT_HERE)]
        for name in arguments:
            if name not in known:
                raise unknown_argument(name, [*known, "stream"], "a chat")
        own = {**_DEFAULTS, **{name: value for name, value in arguments.items() if name in _DEFAULTS}}
        self._own = own
        self._vocab = host.vocab
        self._store = template_store(host)
        self._templates = self._store.get(own["chat_template"])
        self._messages = self._with_prefix(plain_messages(messages))
        self.tools = as_tools(own["tools"])
        self.tool_choice, self._allowed = check_choice(own["tool_choice"], self.tools)
        self._form = self._checked_form()
        self.top_logprobs = _top_logprobs(own["logprobs"], own["top_logprobs"])
        self._check_template_arguments()

        self._callable = [] if self.tool_choice == "none" else self.tools
        self._parallel = self._parallel_calls()
        self.most_calls = None if self._parallel else 1
        self._generic: GenericCalls | None = None
        self.prompt = self._apply()
        self._reader = self._answer_prompt()
        self.ids: NDArray[np.int32] = self.prompt.tokenize_array(host.vocab)
        self.markers = self._markers()
        self.given = self._given()
        self._form_from_start = False
        self.completion_arguments = self._completion_arguments(arguments)

    # ---- reading an answer

    def read(self, text: str, *, partial: bool, ids: list[str]) -> dict[str, Any]:
        """The message that a text stands for; see :class:`pyllm.chat.answer.Reader`."""
        found = self._reader.parse(text, partial=partial, ids=ids)
        if self._generic is None or not found.get("content"):
            return found
        # Reasoning is gone from the content already; the calls are in what is left.
        message = self._generic.parse(found["content"], partial=partial, ids=ids)
        if found.get("reasoning_content"):
            message["reasoning_content"] = found["reasoning_content"]
        return message

    @property
    def form(self) -> Form | None:
        """The form that the content has to have, or None."""
        return self._form

    def formed_text(self, content: str) -> str:
        """What of an answer's content has the form.

        A JSON schema holds the whole of it, from the beginning that the prompt has; other forms what comes after.
        """
        begun = (
            Message("assistant", self._messages[-1].get("content")).text if self._own["continue_final_message"] else ""
        )
        if self._own["response_prefix"] is None:
            return begun + content if self._form_from_start else content
        return content if self._form_from_start else content.removeprefix(begun)

    # ---- checking

    def _with_prefix(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        prefix, continued = self._own["response_prefix"], self._own["continue_final_message"]
        if continued not in (False, None, True, "content", "reasoning"):
            raise InvalidArgumentError(
                f"continue_final_message must be True, False, 'content' or 'reasoning', not {continued!r}",
                param="continue_final_message",
            )
        last = messages[-1]
        if continued and self._own["add_generation_prompt"]:
            raise InvalidArgumentError(
                "add_generation_prompt begins a new answer and continue_final_message goes on with the last one: "
                "set one of them"
            )
        if prefix is not None:
            if not isinstance(prefix, str):
                raise InvalidArgumentError(f"response_prefix must be text, not {prefix!r}", param="response_prefix")
            if continued or last["role"] == "assistant":
                raise InvalidArgumentError(
                    "response_prefix begins a new answer: the last message must not be an assistant's; "
                    "continue_final_message=True goes on with one"
                )
            if prefix:
                messages.append({"role": "assistant", "content": prefix})
                self._own["continue_final_message"] = "content"
            return messages
        if continued is None:
            # As llama-server and Anthropic's API do.
            continued = self._own["add_generation_prompt"] is None and last["role"] == "assistant"
            continued = self._own["continue_final_message"] = continued and not last.get("tool_calls")
        if continued:
            where = f"messages[{len(messages) - 1}]"
            if last["role"] != "assistant" or last.get("tool_calls"):
                raise InvalidArgumentError(
                    "continue_final_message needs a last message of role 'assistant' without tool_calls, not "
                    f"{where} of role {last['role']!r}"
                )
            if len(messages) > 1 and messages[-2]["role"] == "assistant":
                raise InvalidArgumentError(
                    f"{where}: two messages of the assistant end the chat, and only one can be continued: join them, "
                    "or set continue_final_message to False for a new answer",
                    param=where,
                )
        return messages

    def _checked_form(self) -> Form | None:
        own = self._own
        names = ("grammar", "json_schema", "response_format", "regex", "choices")
        form = form_of(**{name: own[name] for name in names})
        if form is not None and self.tools and self.tool_choice != "none":
            raise InvalidArgumentError(
                "an answer that may call tools cannot be held to a form too: leave the form out, or set "
                "tool_choice='none' in the call that asks for it"
            )
        return form

    def _check_template_arguments(self) -> None:
        own = self._own
        if own["reasoning_format"] not in _REASONING_FORMATS:
            raise InvalidArgumentError(
                f"reasoning_format must be one of {', '.join(_REASONING_FORMATS)}, not {own['reasoning_format']!r}",
                param="reasoning_format",
            )
        kwargs = own["chat_template_kwargs"]
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise InvalidArgumentError(
                f"chat_template_kwargs must be a dict, not {kwargs!r}", param="chat_template_kwargs"
            )
        for name in kwargs or ():
            if name in _OWN_VARIABLES:
                raise InvalidArgumentError(f"chat_template_kwargs has {name!r}, which the call has an argument for")
        budget = own["reasoning_budget"]
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < -1):
            raise InvalidArgumentError(
                f"reasoning_budget must be at least 0 tokens, or None or -1 for no limit, not {budget!r}",
                param="reasoning_budget",
            )
        for name in ("enable_thinking", "parallel_tool_calls", "add_generation_prompt"):
            if own[name] is not None and not isinstance(own[name], bool):
                raise InvalidArgumentError(f"{name} must be True or False, not {own[name]!r}", param=name)

    def _parallel_calls(self) -> bool:
        wanted: bool | None = self._own["parallel_tool_calls"]
        return self._templates.caps.get("supports_parallel_tool_calls", False) if wanted is None else wanted

    # ---- the prompt

    def _render(self, messages: list[dict[str, Any]], tools: list[Tool], choice: str) -> ChatPrompt:
        own = self._own
        continued = own["continue_final_message"] or False
        begins = own["add_generation_prompt"]
        kwargs = dict(own["chat_template_kwargs"] or {})
        # As a variable of the template it is the same switch.
        thinking = kwargs.get("enable_thinking", own["enable_thinking"])
        # Completions hold their form with grammars of our own, and so do chats.
        schema = None if self._form is None or self._form.schema is None else FORM_SCHEMA
        return self._templates.apply(
            self._with_system_first(messages),
            tools=[tool.to_dict() for tool in tools],
            tool_choice=choice,
            parallel_tool_calls=self._parallel,
            json_schema=schema,
            add_generation_prompt=not continued if begins is None else begins,
            continue_final_message=continued,
            enable_thinking=bool(thinking),
            reasoning_format=own["reasoning_format"],
            chat_template_kwargs=kwargs,
        )

    def _with_system_first(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages; those of the system as one at the beginning where the template does not write all of them."""
        roles: list[str] = []
        for message in messages:
            if message["role"] in SYSTEM_ROLES:
                # A chat between them is an exchange, whatever is in it.
                roles += ["assistant"] if roles and roles[-1] == "user" else []
                roles.append(message["role"])
            elif not roles or roles[-1] in SYSTEM_ROLES:
                roles.append("user")
        system = [message for message in messages if message["role"] in SYSTEM_ROLES]
        alone = len(system) == 1 and messages[0] is system[0]
        if not system or alone or self._store.tells_all(self._templates, tuple(roles)):
            return messages
        text = "\n\n".join(content_text(message) for message in system)
        rest = [message for message in messages if message["role"] not in SYSTEM_ROLES]
        return [{"role": system[0]["role"], "content": text}, *rest]

    def _apply(self) -> ChatPrompt:
        if self.tools and not self._knows_tools():
            if self._callable:
                offered = self._allowed or self.tools
                required = self.tool_choice == "required"
                self._generic = GenericCalls(offered, required=required, parallel=self._parallel)
            return self._render(explained(self._messages, self.tools), [], "auto")
        if any(message.get("tool_calls") or message["role"] == "tool" for message in self._messages):
            caps = self._templates.caps
            if not caps.get("supports_tool_calls"):
                return self._render(explained(self._messages, []), [], "auto")
        return self._render(self._messages, self.tools, self.tool_choice)

    def _knows_tools(self) -> bool:
        """Whether the template describes tools, and llama.cpp knows what their calls look like."""
        caps = self._templates.caps
        if not (caps.get("supports_tools") and caps.get("supports_tool_calls")):
            return False
        if not self._callable:
            return True
        return bool(self._render(self._messages, self.tools, "required").grammar)

    def _answer_prompt(self) -> ChatPrompt:
        """The prompt that tells how to read the answer, and what it may be."""
        if self._allowed is not None and self._generic is None and len(self.tools) > len(self._allowed):
            # All tools are in the prompt, as in the calls before, and some are allowed.
            return self._render(self._messages, self._allowed, self.tool_choice)
        return self.prompt

    def _markers(self) -> tuple[str, ...]:
        reader = self._reader
        words = [value for kind, value, _ in reader.grammar_triggers if kind in ("word", "token")]
        if self._generic is not None:
            words.append(OPEN)
        return tuple(word for word in (*words, reader.thinking_start_tag) if word)

    def _given(self) -> dict[str, Any]:
        # A prefix belongs to the answer; a message that goes on is there already.
        if not self._own["continue_final_message"] or self._own["response_prefix"] is not None:
            return {}
        return self.read("", partial=True, ids=[])

    # ---- generating

    def _completion_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        result = {name: value for name, value in arguments.items() if name not in _DEFAULTS}
        stop = result.get("stop") or ()
        if not isinstance(stop, Iterable):
            raise InvalidArgumentError(f"stop must be a text or a list of texts, not {stop!r}", param="stop")
        stops = [stop] if isinstance(stop, (str, bytes)) else list(stop)
        stops += [text for text in self.prompt.additional_stops if text not in stops]
        result["stop"] = stops
        preserved = self._preserved_tokens()
        if preserved:
            result["special"] = preserved
        if self.top_logprobs is not None:
            result["logprobs"] = self.top_logprobs
        guide = self._guide(preserved)
        if guide is not None:
            if result.get("sampler") is not None:
                raise InvalidArgumentError(
                    "a sampler was given, and the tools or the form of the answer need one of their own: "
                    "describe the sampler by arguments instead"
                )
            result["grammar"] = guide
        return result

    def _preserved_tokens(self) -> tuple[int, ...]:
        """Control tokens that the parser must see as text."""
        encoded = [self._tokens(text) for text in self._reader.preserved_tokens]
        return tuple(sorted({ids[0] for ids in encoded if len(ids) == 1}))

    def _guide(self, preserved: tuple[int, ...]) -> Guide | None:
        reader, form = self._reader, self._form
        ends = [self._tokens(tag) for tag in reader.thinking_end_tags if tag]
        start = self._tokens(reader.thinking_start_tag) if reader.thinking_start_tag else []
        budget = self._own["reasoning_budget"]
        if budget is not None and budget >= 0 and not (start and ends):
            raise InvalidArgumentError(
                f"reasoning_budget={budget} would have no effect: this chat template has no tags around reasoning",
                param="reasoning_budget",
            )
        grammar, prefilled = self._grammar(preserved)
        self._form_from_start = prefilled
        limited = budget is not None and budget >= 0
        if grammar is None and not limited:
            return None
        # A grammar of the template that holds from the first token on has a rule for reasoning in it.
        waits = grammar is not None and not prefilled
        return Guide(
            text="" if grammar is None else grammar.text,
            root="root" if grammar is None else grammar.root,
            trigger_patterns=() if grammar is None else grammar.trigger_patterns,
            trigger_tokens=() if grammar is None else grammar.trigger_tokens,
            control_tokens=True if form is None or prefilled else grammar.control_tokens if grammar else None,
            beginning=tuple(self._beginning()),
            prefilled=prefilled,
            reasoning_start=tuple(start),
            reasoning_ends=tuple(tuple(end) for end in ends),
            reasoning_budget=budget if limited else None,
            waits=waits,
        )

    def _beginning(self) -> list[int]:
        """The tokens with which the prompt begins the answer."""
        text = self._reader.generation_prompt
        if not text:
            return []
        ids = self._tokens(text)
        # Some tokenizers put a space before a text that begins with a control token.
        first = self._vocab.token_to_piece(ids[0])
        return ids[1:] if first[:1].isspace() and not text[0].isspace() else ids

    def _grammar(self, preserved: tuple[int, ...]) -> tuple[Grammar | None, bool]:
        """The grammar to hold the answer to, and whether the beginning that the prompt has is part of it."""
        reader = self._reader
        if self._generic is not None:
            return self._generic.grammar, False
        if not reader.grammar:
            return (None if self._form is None else self._form.grammar), False
        form = None if self._form is None else self._form.grammar
        rules = answer_rules(reader, calls=self.tool_choice == "required", form=form)
        if not reader.grammar_lazy:
            return Grammar(rules), True
        patterns, tokens = [], []
        for kind, value, token in reader.grammar_triggers:
            ids = self._tokens(value) if kind == "word" else []
            if kind == "token":
                tokens.append(token)
            elif len(ids) == 1 and ids[0] in preserved:
                tokens.append(ids[0])
            else:
                patterns.append(_PATTERNS[kind](value))
        return Grammar(rules, trigger_patterns=tuple(patterns), trigger_tokens=tuple(tokens)), False

    def _tokens(self, text: str) -> list[int]:
        return self._vocab.tokenize(text, add_special=False, parse_special=True)


# As common_sampler_init makes regular expressions of triggers.
_PATTERNS: dict[str, Callable[[str], str]] = {
    "word": lambda value: re.sub(r"([.^$|()*+?\[\]{}\\])", r"\\\1", value),
    "pattern": lambda value: value,
    "pattern_full": lambda value: f"^{value.removeprefix('^').removesuffix('$')}$",
}


def template_store(host: GenerationHost) -> TemplateStore:
    """The templates of a Llama or an Engine."""
    own = vars(host)
    store: TemplateStore | None = own.get("_template_store")
    if store is None:
        # Two threads that come at once get the same one.
        store = own.setdefault("_template_store", TemplateStore(host.model, own.get("chat_template")))
    return store


def _top_logprobs(logprobs: Any, top: Any) -> int | None:
    if not isinstance(logprobs, bool) and logprobs is not None:
        raise InvalidArgumentError(
            f"logprobs must be True or False, not {logprobs!r}; top_logprobs says how many of the likeliest tokens",
            param="logprobs",
        )
    if top is not None and not logprobs:
        raise InvalidArgumentError(f"top_logprobs={top!r} has no effect without logprobs=True", param="top_logprobs")
    if not logprobs:
        return None
    return 0 if top is None else top  # the completion checks its range

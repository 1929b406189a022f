"""Chat templates, tool calls and reasoning, through llama.cpp's own chat support (wraps ``common_chat_*``).

A :class:`ChatTemplates` turns messages into a :class:`ChatPrompt`: the text of the prompt, a grammar that keeps tool
calls in shape, and a parser for what the model answers. Templates are run by llama.cpp's own interpreter.
"""

import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence

from libcpp cimport bool
from libcpp.map cimport map as cpp_map
from libcpp.string cimport string
from libcpp.utility cimport pair
from libcpp.vector cimport vector

from pyllm import errors
from pyllm.core.arguments cimport c_text
from pyllm.core cimport guard
from pyllm.core.model cimport Model
from pyllm.includes cimport chat as lib
from pyllm.includes cimport llama
from pyllm.includes._translate cimport translate

from pyllm.core import common as _  # no-cython-lint: it silences the log of llama-common
from pyllm.core.special_tokens import tokenize_marked_array
from pyllm.core.introspection import not_pickled, signature

cdef extern from "chat.hpp" namespace "pyllm" nogil:
    cdef enum:
        CHAT_OK
        CHAT_BAD_TEMPLATE
        CHAT_BAD_ARGUMENT
        CHAT_BAD_ANSWER

    cdef cppclass chat_status:
        int fault
        string text

    cdef cppclass chat_inputs:
        vector[string] messages
        vector[string] tools
        string tool_choice
        string json_schema
        string grammar
        string reasoning_format
        cpp_map[string, string] kwargs
        int continuation
        bool parallel_tool_calls
        bool add_generation_prompt
        bool enable_thinking
        bool force_pure_content
        bool has_now
        double now

    cdef cppclass chat_prompt:
        lib.common_chat_params params
        string marks
        bool open
        void parse(
            const string & text, bool partial, lib.common_chat_msg & msg, chat_status & status,
            void (*enter)() noexcept,
        ) except +translate

    cdef cppclass chat_templates:
        void init(
            const llama.llama_model * model, const string & source, const string & bos, const string & eos,
            chat_status & status, void (*enter)() noexcept,
        ) except +translate
        string source(const string & variant) except +translate
        bool is_explicit() except +translate
        cpp_map[string, bool] caps() except +translate
        void supports_thinking(bool & answer, chat_status & status, void (*enter)() noexcept) except +translate
        void apply(
            const chat_inputs & given, chat_prompt & prompt, chat_status & status, void (*enter)() noexcept
        ) except +translate

    void compute_diffs(
        const lib.common_chat_msg & before, const lib.common_chat_msg & after, vector[lib.common_chat_msg_diff] & diffs,
        chat_status & status,
    ) except +translate


_FORMATS = ("content-only", "peg-simple", "peg-native", "peg-gemma4", "peg-minimax-m3")
_TRIGGERS = ("token", "word", "pattern", "pattern_full")
_CONTINUATIONS = {False: 0, None: 0, True: 1, "reasoning": 2, "reasoning_content": 2, "content": 3}
_REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")
_TOOL_CHOICES = ("auto", "none", "required")
cdef size_t NO_INDEX = <size_t> -1


cdef class ChatTemplates:
    """The chat template of a model, or one of your own.

    Objects are immutable and may be used from several threads at once.

    Args:
        model: The model whose template is used, and whose BOS and EOS a template writes. May be None with `template`.
        template: The Jinja source of a template to use instead of the model's.
        bos: Text of the BOS token, where there is no model.
        eos: Text of the EOS token, where there is no model.

    Raises:
        ChatTemplateError: The template cannot be read; ``.line`` and ``.column`` say where.

    Example:
        >>> templates = ChatTemplates(model)
        >>> prompt = templates.apply([{"role": "user", "content": "Hi"}])
        >>> prompt.prompt
        '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'

    Wraps ``common_chat_templates_init``.
    """

    __reduce__ = not_pickled("its templates are compiled; make it again from the model, or from its source")
    __signature__ = signature

    cdef chat_templates c
    cdef readonly Model model          # may be None
    cdef object _caps
    cdef object _supports_thinking

    def __cinit__(self, Model model=None, *, template=None, bos="", eos=""):
        cdef chat_status status
        cdef const llama.llama_model * c_model = NULL
        cdef string c_source
        cdef string c_bos = c_text(bos, "bos")
        cdef string c_eos = c_text(eos, "eos")
        if model is None and template is None:
            raise errors.InvalidArgumentError("a chat template comes from a model or as a text, and there is neither")
        if template is not None:
            c_source = c_text(template, "the template")
            if c_source.empty():
                raise errors.InvalidArgumentError("the template is empty")
        self.model = model
        if model is None:
            with nogil:
                self.c.init(NULL, c_source, c_bos, c_eos, status, guard.enter)
        else:
            c_model = model.use()
            try:
                with nogil:
                    self.c.init(c_model, c_source, c_bos, c_eos, status, guard.enter)
            finally:
                model.done()
        if status.fault != CHAT_OK:
            _raise(&status, _text(c_source) or model.chat_template() or "")

    @property
    def source(self):
        """The Jinja source of the template (str). Wraps ``common_chat_templates_source``."""
        return self.source_for("")

    def source_for(self, variant):
        """The source of a variant of the template, or "" where the model has none.

        Args:
            variant: "tool_use", or "" for the default.

        Wraps ``common_chat_templates_source``.
        """
        if variant not in ("", "default", "tool_use"):
            raise errors.InvalidArgumentError(f'the variants of a template are "" and "tool_use", not {variant!r}')
        cdef string c_variant = b"tool_use" if variant == "tool_use" else b""
        return _text(self.c.source(c_variant))

    @property
    def is_explicit(self):
        """Whether the model has a template, or one was given; else ChatML is used.

        Wraps ``common_chat_templates_was_explicit``.
        """
        return self.c.is_explicit()

    @property
    def caps(self):
        """What the template can render, by name (dict[str, bool]), such as "supports_tools".

        Wraps ``common_chat_templates_get_caps``.
        """
        cdef cpp_map[string, bool] found
        if self._caps is None:
            found = self.c.caps()
            self._caps = {_text(item.first): item.second for item in found}
        return dict(self._caps)

    @property
    def supports_thinking(self):
        """Whether the template has a place for reasoning, which `enable_thinking` switches.

        Wraps ``common_chat_templates_support_enable_thinking``.
        """
        cdef chat_status status
        cdef bool answer = False
        if self._supports_thinking is None:
            with nogil:
                self.c.supports_thinking(answer, status, guard.enter)
            # A template that refuses a lone user message has no say in it.
            self._supports_thinking = status.fault == CHAT_OK and answer
        return self._supports_thinking

    def apply(
        self,
        messages,
        *,
        tools=None,
        tool_choice="auto",
        parallel_tool_calls=False,
        json_schema=None,
        grammar=None,
        add_generation_prompt=True,
        continue_final_message=False,
        enable_thinking=True,
        reasoning_format="auto",
        chat_template_kwargs=None,
        now=None,
        force_pure_content=False,
    ):
        """Write messages as a prompt.

        Args:
            messages: Messages in the shape of OpenAI's API: mappings with "role" and "content" (text, or parts
                ``{"type": "text", "text": ...}``), and where they have them "tool_calls", "tool_call_id", "name",
                "reasoning_content".
            tools: Function tools in the same shape.
            tool_choice: "auto", "none" or "required".
            parallel_tool_calls: Allow several calls in one answer.
            json_schema: JSON schema, as text, that the answer must follow.
            grammar: GBNF grammar that the answer must follow; not together with tools.
            add_generation_prompt: End with what starts the model's answer. Ignored where a message is continued.
            continue_final_message: The last message is the beginning of the answer. True, or "content" or "reasoning"
                to say what of it goes on.
            enable_thinking: Let the model reason, where its template has a switch for it.
            reasoning_format: "auto" takes reasoning out of the content, "none" leaves it there; see llama.cpp for
                "deepseek" and "deepseek-legacy".
            chat_template_kwargs: Variables of the template by name; values are anything JSON has.
            now: What the template believes the time to be, in seconds since 1970; None is the clock.
            force_pure_content: Do not look for tool calls and reasoning in the answer.

        Returns:
            ChatPrompt: The prompt, and how to read the answer.

        Raises:
            InvalidArgumentError: Messages or tools are not in the right shape; the index is in the message.
            ChatTemplateError: The template refuses them, in its own words.

        Wraps ``common_chat_templates_apply``.
        """
        cdef chat_inputs inputs
        cdef chat_status status
        cdef ChatPrompt prompt = ChatPrompt.__new__(ChatPrompt)
        cdef pair[string, string] item
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
            raise TypeError(f"messages must be a list of mappings, not {type(messages).__name__}")
        if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools or (), Sequence):
            raise TypeError(f"tools must be a list of mappings, not {type(tools).__name__}")
        if continue_final_message not in _CONTINUATIONS:
            raise errors.InvalidArgumentError(
                f'continue_final_message must be a bool, "content" or "reasoning", not {continue_final_message!r}'
            )
        inputs.continuation = _CONTINUATIONS[continue_final_message]
        _check_messages(messages, tools or (), inputs.continuation)
        for i, message in enumerate(messages):
            inputs.messages.push_back(_json(_without_nulls(message), f"messages[{i}]"))
        for i, tool in enumerate(tools or ()):
            inputs.tools.push_back(_json(tool, f"tools[{i}]"))
        inputs.tool_choice = _one_of(tool_choice, "tool_choice", _TOOL_CHOICES)
        inputs.reasoning_format = _one_of(reasoning_format, "reasoning_format", _REASONING_FORMATS)
        if json_schema is not None:
            inputs.json_schema = c_text(json_schema, "json_schema")
        if grammar is not None:
            inputs.grammar = c_text(grammar, "grammar")
        inputs.parallel_tool_calls = parallel_tool_calls
        inputs.add_generation_prompt = add_generation_prompt and not inputs.continuation
        inputs.enable_thinking = enable_thinking
        inputs.force_pure_content = force_pure_content
        for name, value in (chat_template_kwargs or {}).items():
            item.first = c_text(name, "the name of a template variable")
            item.second = _json(value, f"chat_template_kwargs[{name!r}]")
            inputs.kwargs.insert(item)
        if now is not None:
            if not math.isfinite(now) or not 0 <= now < 2**33:
                raise errors.InvalidArgumentError(f"now must be seconds since 1970, not {now!r}")
            inputs.has_now = True
            inputs.now = now
        with nogil:
            self.c.apply(inputs, prompt.c, status, guard.enter)
        _raise(&status, self.source if status.fault else None)
        return prompt


cdef class ChatPrompt:
    """A prompt, and how to read the answer to it. Made by :meth:`ChatTemplates.apply`."""

    __reduce__ = not_pickled("it belongs to compiled templates; pickle the messages, and apply the templates there")
    __signature__ = signature

    cdef chat_prompt c
    cdef list _ids

    def __init__(self):
        raise TypeError("a ChatPrompt comes from ChatTemplates.apply")

    def __cinit__(self):
        self._ids = []

    @property
    def prompt(self):
        """The text of the prompt (str)."""
        return _text(self.c.params.prompt)

    @property
    def parts(self):
        """The prompt in pieces (text, is_input), where is_input says that it came with the messages."""
        cdef const char * text = self.c.params.prompt.data()
        cdef const char * marks = self.c.marks.data()
        cdef size_t n = self.c.params.prompt.size()
        cdef size_t begin = 0, end = 0
        parts = []
        while begin < n:
            while end < n and marks[end] == marks[begin]:
                end += 1
            parts.append((text[begin:end].decode("utf-8", "replace"), marks[begin] != 0))
            begin = end
        return tuple(parts)

    @property
    def grammar(self):
        """A GBNF grammar for the answer (str); "" where nothing has to be forced."""
        return _text(self.c.params.grammar)

    @property
    def grammar_lazy(self):
        """Whether the grammar begins only at one of the triggers (bool)."""
        return self.c.params.grammar_lazy

    @property
    def grammar_triggers(self):
        """What starts a lazy grammar: a tuple of (kind, value, token).

        The kind is "token", "word", "pattern" or "pattern_full"; the token is -1 for all but the first.
        """
        return tuple([
            (_TRIGGERS[trigger.type], _text(trigger.value), trigger.token)
            for trigger in self.c.params.grammar_triggers
        ])

    @property
    def preserved_tokens(self):
        """Texts of control tokens that the parser of the answer must see (tuple of str)."""
        return _texts(self.c.params.preserved_tokens)

    @property
    def additional_stops(self):
        """Stop strings beside the end-of-generation tokens (tuple of str)."""
        return _texts(self.c.params.additional_stops)

    @property
    def format(self):
        """The kind of parser, e.g. "peg-native" (str). Wraps ``common_chat_format``."""
        return _FORMATS[self.c.params.format]

    @property
    def parser(self):
        """llama.cpp's parser of the answer, as JSON (str): from it the rules of :attr:`grammar` are made."""
        return _text(self.c.params.parser)

    @property
    def generation_prompt(self):
        """The end of the prompt that already belongs to the answer (str)."""
        return _text(self.c.params.generation_prompt)

    @property
    def supports_thinking(self):
        """Whether the template has a place for reasoning (bool)."""
        return self.c.params.supports_thinking

    @property
    def thinking_start_tag(self):
        """What begins reasoning in the answer, e.g. "<think>" (str); "" where there is none."""
        return _text(self.c.params.thinking_start_tag)

    @property
    def thinking_end_tags(self):
        """What ends reasoning (tuple of str)."""
        return _texts(self.c.params.thinking_end_tags)

    def tokenize(self, vocab):
        """The tokens of the prompt, in which nothing that came from a message becomes a control token.

        Args:
            vocab: The :class:`pyllm.core.vocab.Vocab` of the model.

        Returns:
            list[int]: Token ids.
        """
        return self.tokenize_array(vocab).tolist()

    def tokenize_array(self, vocab):
        """As :meth:`tokenize`, as an array.

        Returns:
            numpy.ndarray: int32, shape (n,).
        """
        cdef bytes text = self.c.params.prompt.data()[:self.c.params.prompt.size()]
        cdef bytes marks = self.c.marks.data()[:self.c.marks.size()]
        return tokenize_marked_array(vocab, text, marks, close=not self.c.open)

    def parse(self, text, *, partial=False, ids=None):
        """Read an answer.

        Args:
            text: What the model wrote after the prompt, control tokens of :attr:`preserved_tokens` included.
            partial: The answer is not complete yet.
            ids: A list in which ids of tool calls are kept, so that they stay the same over a stream. By default the
                prompt's own, which is right for one answer to a prompt.

        Returns:
            dict: A message in the shape of OpenAI's API: "role" and "content", and where the answer has them
            "reasoning_content" and "tool_calls".

        Raises:
            ChatParseError: A complete answer that is not what the prompt's format allows. Never with `partial`.

        Wraps ``common_chat_parse``.
        """
        cdef chat_status status
        cdef lib.common_chat_msg msg
        cdef string c_text_
        cdef bool c_partial = partial
        if not isinstance(text, (str, bytes)):
            raise TypeError(f"an answer must be text, not {type(text).__name__}")
        encoded = text.encode("utf-8", "replace") if isinstance(text, str) else text
        c_text_ = <bytes> encoded
        with nogil:
            self.c.parse(c_text_, c_partial, msg, status, guard.enter)
        if status.fault != CHAT_OK:
            if not partial:
                _raise(&status, None, encoded.decode("utf-8", "replace"))
            return {"role": "assistant", "content": ""}
        return _message(msg, self._ids if ids is None else ids)

    @staticmethod
    def diff(before, after):
        """What was added between two messages of a stream.

        Args:
            before: The message so far, or None.
            after: The message now.

        Returns:
            list[dict]: Deltas in the shape of OpenAI's API, in order.

        Raises:
            InvalidArgumentError: The second does not continue the first.

        Wraps ``common_chat_msg_diff::compute_diffs``.
        """
        cdef lib.common_chat_msg c_before, c_after
        cdef vector[lib.common_chat_msg_diff] diffs
        cdef chat_status status
        _from_message(before or {}, &c_before)
        _from_message(after, &c_after)
        with nogil:
            compute_diffs(c_before, c_after, diffs, status)
        _raise(&status)
        cdef size_t i
        result = []
        for i in range(diffs.size()):
            result.append(_delta(diffs[i]))
        return result


cdef str _text(const string & text):
    return text.data()[:text.size()].decode("utf-8", "replace")


cdef tuple _texts(const vector[string] & texts):
    cdef size_t i
    result = []
    for i in range(texts.size()):
        result.append(_text(texts[i]))
    return tuple(result)


cdef bytes _one_of(value, str name, tuple allowed):
    if value not in allowed:
        raise errors.InvalidArgumentError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value.encode()


def _without_nulls(message):
    """A message as OpenAI's clients write it: what it does not have may be there as None."""
    optional = ("tool_calls", "reasoning_content", "name", "tool_call_id")
    return {name: value for name, value in message.items() if value is not None or name not in optional}


def _plain(value):
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


cdef bytes _json(value, str what):
    """A Python value as JSON, or an error that says which value it was."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as cause:
        raise errors.InvalidArgumentError(f"{what} cannot be written as JSON: {cause}") from cause


cdef int _raise(const chat_status * status, str source=None, str answer=None) except -1:
    """Raise the exception for a status that is not CHAT_OK."""
    if status.fault == CHAT_OK:
        return 0
    text = _text(status.text)
    if text.startswith("GGML_ASSERT("):
        raise errors.BackendAssertError(f"an assertion in llama.cpp failed: {text}")
    if status.fault == CHAT_BAD_ARGUMENT:
        raise errors.InvalidArgumentError(text)
    if status.fault == CHAT_BAD_ANSWER:
        parse_error = errors.ChatParseError(text)
        parse_error.text = answer or ""
        raise parse_error
    # Where a parser is made for the template, everything is wrapped in the same words.
    text = text.partition("Automatic parser generation failed: ")[2] or text
    if "\nWhile executing " not in text and _ABOUT_ARGUMENTS.match(text):
        raise errors.InvalidArgumentError(text)
    raise _template_error(text, source or "")


_ABOUT_ARGUMENTS = re.compile(
    "JSON schema|Failed to parse|Cannot specify|Unrecognized schema|Error resolving|Invalid|Unsupported|failed to parse"
)
_EXECUTING = re.compile(r"While executing \w+ at line (\d+), column (\d+) in source:\n(.*)\nError: (.*)", re.DOTALL)


def _template_error(str text, str source):
    """A ChatTemplateError from what llama.cpp's lexer, parser or interpreter said."""
    line = column = None
    found = _EXECUTING.search(text)
    if found:
        line, column, text = int(found[1]), int(found[2]), found[4].strip()
    elif text.endswith("^") and text.count("\n") >= 2:
        # "lexer: what is wrong", a piece of the source on one line, and a caret below it.
        text, snippet, caret = text.rsplit("\n", 2)
        piece = snippet.removeprefix("...").removesuffix("...").replace("\u21b5", "\n").encode()
        encoded = source.encode()
        at = encoded.find(piece)
        if at >= 0:
            before = encoded[:at + len(caret) - 4].decode("utf-8", "replace")
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    own_words = text.removeprefix("Jinja Exception: ")
    if own_words != text:
        text = f"the chat template refuses this: {own_words}"
    where = f" (line {line}, column {column} of the template)" if line else ""
    template_error = errors.ChatTemplateError(text + where)
    template_error.line, template_error.column = line, column
    return template_error


def _check_messages(messages, tools, continuation):
    """What llama.cpp would answer with an error that does not say which message it was, or not at all."""
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise errors.InvalidArgumentError(f"messages[{i}] must be a mapping, not {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise errors.InvalidArgumentError(f'messages[{i}] needs a "role" that is text, not {role!r}')
        if role != "assistant" and "content" not in message:
            raise errors.InvalidArgumentError(f'messages[{i}] has the role {role!r} and needs a "content"')
        calls = message.get("tool_calls")
        if calls is not None and (isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence)):
            raise errors.InvalidArgumentError(f"messages[{i}]: tool_calls must be a list, not {type(calls).__name__}")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise errors.InvalidArgumentError(f"tools[{i}] must be a mapping, not {type(tool).__name__}")
    if continuation:
        last = messages[-1] if messages else {}
        if last.get("role") != "assistant":
            raise errors.InvalidArgumentError(
                f"only an answer can be continued, and the last message has the role {last.get('role')!r}"
            )
        if last.get("tool_calls"):
            raise errors.InvalidArgumentError("a message with tool calls cannot be continued")


cdef dict _message(const lib.common_chat_msg & msg, list ids):
    cdef size_t i
    calls = []
    for i in range(msg.tool_calls.size()):
        if i == <size_t> len(ids):
            ids.append(_text(msg.tool_calls[i].id) or f"call_{secrets.token_hex(12)}")
        function = {"name": _text(msg.tool_calls[i].name), "arguments": _text(msg.tool_calls[i].arguments)}
        calls.append({"id": ids[i], "type": "function", "function": function})
    content = _text(msg.content)
    result = {"role": _text(msg.role) or "assistant", "content": None if calls and not content else content}
    if msg.reasoning_content.size():
        result["reasoning_content"] = _text(msg.reasoning_content)
    if calls:
        result["tool_calls"] = calls
    return result


cdef int _from_message(message, lib.common_chat_msg * msg) except -1:
    cdef lib.common_chat_tool_call call
    try:
        msg.role = b"assistant"
        msg.content = (message.get("content") or "").encode("utf-8", "replace")
        msg.reasoning_content = (message.get("reasoning_content") or "").encode("utf-8", "replace")
        for item in message.get("tool_calls") or ():
            call.id = (item.get("id") or "").encode("utf-8", "replace")
            call.name = item["function"]["name"].encode("utf-8", "replace")
            call.arguments = item["function"]["arguments"].encode("utf-8", "replace")
            msg.tool_calls.push_back(call)
    except (AttributeError, LookupError, TypeError):
        raise errors.InvalidArgumentError(f"a message must be one that parse() gave, not {message!r}") from None
    return 0


cdef dict _delta(const lib.common_chat_msg_diff & diff):
    delta = {}
    if diff.reasoning_content_delta.size():
        delta["reasoning_content"] = _text(diff.reasoning_content_delta)
    if diff.content_delta.size():
        delta["content"] = _text(diff.content_delta)
    if diff.tool_call_index != NO_INDEX:
        function = {}
        if diff.tool_call_delta.name.size():
            function["name"] = _text(diff.tool_call_delta.name)
        if diff.tool_call_delta.arguments.size():
            function["arguments"] = _text(diff.tool_call_delta.arguments)
        call = {"index": diff.tool_call_index}
        if diff.tool_call_delta.id.size():
            call |= {"id": _text(diff.tool_call_delta.id), "type": "function"}
        if function:
            call["function"] = function
        delta["tool_calls"] = [call]
    return delta

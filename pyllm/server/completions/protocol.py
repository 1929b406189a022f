"""What a request for completions says."""

from __future__ import annotations

import json
from typing import Any

from pyllm.engine.engine import Prompt
from pyllm.server.errors import invalid
from pyllm.server.fields import Fields, is_ids
from pyllm.server.sampling import MOST_LOGPROBS, MOST_TEXTS, Sizes, sampling_arguments
from pyllm.server.settings import Settings

# Texts of one request, over all of its prompts.
_MOST_TEXTS_OF_ALL = 2048
# Of the tokens of a prompt, of which there are many.
_MOST_ECHOED_LOGPROBS = 20


class CompletionAsk:
    """A request, checked as far as it can be without the model.

    Args:
        body: The JSON object.
        settings: The server's.
        sizes: Those of the model.

    Attributes:
        prompts: The prompts, at least one.
        arguments: What the engine is asked with for each.
        n: Texts for each.
        stream: Whether the texts are sent as they come.
        include_usage: Whether the stream ends with the counts of tokens.
        timings_per_token: Whether every piece of a stream has the timings.
        return_progress: Whether a stream says how far the prompt has been read.
        verbose: Whether an answer that is no stream says all that is known of it.
        return_token_ids: Whether choices have the ids of their tokens too.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, body: dict[str, Any], settings: Settings, sizes: Sizes) -> None:
        fields = Fields(body)
        self.prompts = _prompts(fields)
        self.arguments = sampling_arguments(fields, settings, sizes)
        self.arguments |= form_arguments(fields)
        self.n: int = self.arguments.get("n", 1)
        self.stream, self.include_usage = stream_options(fields)
        self.timings_per_token = fields.flag("timings_per_token")
        self.return_progress = fields.flag("return_progress")
        self.verbose = fields.flag("verbose")
        self.return_token_ids = fields.flag("return_token_ids")
        echo = fields.flag("echo")
        logprobs = fields.get("logprobs")
        # Some clients send OpenAI's switch of chats: true asks for the tokens' own numbers.
        top = int(logprobs) if isinstance(logprobs, bool) else fields.integer("logprobs", 0, MOST_LOGPROBS)
        if top is not None and logprobs is not False:
            if echo and top > _MOST_ECHOED_LOGPROBS:
                message = f"logprobs must be from 0 to {_MOST_ECHOED_LOGPROBS} with echo, not {top}"
                raise invalid("logprobs", message)
            self.arguments["logprobs"] = top
        if echo:
            self.arguments["echo"] = True
        best_of = fields.integer("best_of", 1, MOST_TEXTS)
        if best_of is not None:
            if best_of < self.n:
                raise invalid("best_of", f"best_of={best_of} must be at least n={self.n}")
            if best_of > self.n and self.stream:
                raise invalid("best_of", "best_of chooses when all texts are complete: it cannot be streamed")
            self.arguments["best_of"] = best_of
        suffix = fields.text("suffix")
        if suffix:
            if any(not isinstance(prompt, str) for prompt in self.prompts):
                raise invalid("suffix", "suffix needs prompts that are texts")
            self.arguments["suffix"] = suffix
        texts = len(self.prompts) * max(self.n, best_of or 1)
        if texts > _MOST_TEXTS_OF_ALL:
            message = f"prompt asks for {texts} texts in all; one request may ask for {_MOST_TEXTS_OF_ALL}"
            raise invalid("prompt", message)


def stream_options(fields: Fields) -> tuple[bool, bool]:
    """Whether a request is streamed, and whether the stream ends with the counts of tokens."""
    stream = fields.flag("stream")
    options = fields.object("stream_options")
    if "stream_options" in fields and not stream:
        raise invalid("stream_options", "stream_options has no effect without stream: true")
    return stream, options.flag("include_usage")


# What vLLM's structured_outputs holds, by what it is here; the older fields are called guided_json and so on.
_GUIDED = {"json": "json_schema", "regex": "regex", "choice": "choices", "grammar": "grammar", "json_object": ""}
# What would change the text there and is not done here.
_NOT_GUIDED = ("structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties")

GUIDED_FIELDS = ("structured_outputs", *(f"guided_{name}" for name in (*_GUIDED, *_NOT_GUIDED)))


def form_arguments(fields: Fields) -> dict[str, Any]:
    """The form that a text must have: response_format, json_schema or grammar, or vLLM's fields for one."""
    found: list[tuple[str, str, Any]] = []  # the field, the argument of a completion, its value
    if "response_format" in fields:
        form = fields.object("response_format")
        form.need("type")
        if form.text("type") == "json_schema":
            # OpenAI puts the schema into an object with a name; llama-server takes it as it is, too.
            if "json_schema" not in form and "schema" in form:
                form = Fields({"type": "json_schema", "json_schema": {"schema": form.get("schema")}})
            form.need("json_schema")
            form.object("json_schema").need("schema")
        elif form.text("type") == "json_object" and form.values.get("schema"):
            form = Fields({"type": "json_schema", "json_schema": {"schema": form.get("schema")}})
        if form.text("type") != "text":
            found.append(("response_format", "response_format", form.values))
    if "json_schema" in fields:
        found.append(("json_schema", "json_schema", _schema(fields, "json_schema")))
    if fields.text("grammar"):
        found.append(("grammar", "grammar", fields.text("grammar")))
    inner = fields.object("structured_outputs")
    for prefix, source in (("guided_", fields), ("", inner)):
        for name in _NOT_GUIDED:
            if source.get(prefix + name):
                name = f"{source.where}{prefix}{name}"
                raise invalid(name, f"{name} cannot be used here: leave it out")
        for name, ours in _GUIDED.items():
            if prefix + name in source:
                found += _guided(source, prefix + name, ours)
    if len(found) > 1:
        (first, *_), (second, *_) = found[:2]
        raise invalid(second, f"a text can have one form: leave out {first} or {second}")
    return {name: value for _, name, value in found}


def _guided(fields: Fields, name: str, ours: str) -> list[tuple[str, str, Any]]:
    value = fields.get(name)
    if not ours:
        return [(fields.where + name, "response_format", {"type": "json_object"})] if fields.flag(name) else []
    if ours == "json_schema":
        value = _schema(fields, name)
    elif ours == "choices":
        if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
            raise fields.wrong(name, "a list of texts that is not empty")
    elif not fields.text(name):
        raise fields.wrong(name, "text that is not empty")
    return [(fields.where + name, ours, value)]


def _schema(fields: Fields, name: str) -> Any:
    """A JSON schema; vLLM's clients may send it as text."""
    value = fields.get(name)
    if isinstance(value, str) and name != "json_schema":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass
    if not isinstance(value, (dict, bool)):
        raise fields.wrong(name, "a JSON schema")
    return value


def _prompts(fields: Fields) -> list[Prompt]:
    value = fields.need("prompt")
    if isinstance(value, str) or is_ids(value):
        return [value]
    if not isinstance(value, list):
        raise fields.wrong("prompt", "a text, a list of token ids, or a list of these")
    if not value:
        raise invalid("prompt", "prompt is an empty list")
    for i, one in enumerate(value):
        if not (isinstance(one, str) or is_ids(one)):
            raise invalid(f"prompt[{i}]", f"prompt[{i}] must be a text or a list of token ids")
    return value

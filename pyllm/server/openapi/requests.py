"""Schemas of requests. What they cannot say, such as fields that exclude each other, is answered with status 400.

The numbers of sampling, their limits and the limits of lists are those that the endpoints check.
"""

from __future__ import annotations

from typing import Any

from pyllm.chat.messages import ROLES
from pyllm.params import number_range
from pyllm.server.openapi.kinds import (
    STRING,
    TOKEN,
    Schema,
    choice,
    flag,
    integer,
    items,
    maybe,
    number,
    record,
    refer,
    text,
    texts,
)
from pyllm.server.sampling import INTEGERS, LAST_N, MOST_LOGPROBS, MOST_STOPS, MOST_TEXTS, NUMBERS

_ANY: Schema = {}
_OBJECT: Schema = {"type": "object"}
_MODEL = {"model": text("The name of the model.")}
_SCHEMA: Schema = {
    "type": ["object", "boolean", "string", "null"],
    "description": "A JSON schema, or its JSON as text.",
}
_FILLED: Schema = {"type": ["string", "null"], "minLength": 1}
_CHOICES: Schema = {"type": ["array", "null"], "items": {"type": "string"}, "minItems": 1}


ADAPTERS: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"id": {"type": "integer", "minimum": 0}, "scale": {"type": "number"}},
        "required": ["id", "scale"],
    },
}
SLOT_FILE = record({"filename": text("The name of a file, without a path; needed to save and to restore.")})


def _sampling() -> dict[str, Schema]:
    result: dict[str, Schema] = {}
    for theirs, ours in NUMBERS.items():
        _, low, high = number_range(ours)
        result[theirs] = number("", low, high)
    for name in INTEGERS:
        _, low, high = number_range(name)
        result[name] = integer("", -1 if name in LAST_N else int(low), int(high))
    bias = {"anyOf": [{"type": "number"}, {"const": False}]}
    pairs = {"type": "array", "items": {"type": "array", "prefixItems": [_ANY, bias], "minItems": 2, "maxItems": 2}}
    stops: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "maxItems": MOST_STOPS}
    return result | {
        "seed": integer("The same seed gives the same text where nothing else runs.", -(2**63)),
        "logit_bias": {
            "anyOf": [{"type": "object", "additionalProperties": bias}, pairs, {"type": "null"}],
            "description": "Numbers that are added to logits, by token; false and -100 forbid one.",
        },
        "stop": {
            "anyOf": [{"type": "string"}, stops, {"type": "null"}],
            "description": "Texts before which the answer ends; empty ones are left aside.",
        },
        "samplers": texts("Names of samplers, in the order in which they are applied."),
        "dry_sequence_breakers": texts("Texts at which a repetition ends."),
        "n": integer("How many texts.", 1, MOST_TEXTS),
        "max_tokens": integer("Most tokens of a text; -1: as many as there is room for.", -1),
        "max_completion_tokens": integer("The same.", -1),
        "n_predict": integer("The same.", -1),
        "cache_prompt": flag("Whether what was computed for other prompts may be used."),
        "deterministic": flag("The same seed gives the same text whatever else runs."),
        "speculative": flag("False: tokens are not guessed ahead for this text."),
        "id_slot": integer("The slot that it is computed in, if that is free; -1: any.", -1),
        "lora": maybe(ADAPTERS, "The LoRA adapters of this request; those that are not named have the scale 0."),
    }


def _forms() -> dict[str, Schema]:
    return {
        "response_format": maybe(
            {
                "type": "object",
                "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}},
                "required": ["type"],
            },
            "The form of the text, as in OpenAI's API.",
        ),
        "json_schema": {"type": ["object", "boolean", "null"], "description": "A JSON schema that the text fits."},
        "grammar": text("A grammar in GBNF that the text follows."),
        "structured_outputs": maybe(
            record(
                {"json": _SCHEMA, "regex": _FILLED, "choice": _CHOICES, "grammar": _FILLED, "json_object": flag()},
                about="vLLM's object for the form.",
            )
        ),
        "guided_json": _SCHEMA,
        "guided_regex": _FILLED,
        "guided_choice": _CHOICES,
        "guided_grammar": _FILLED,
    }


def _streams() -> dict[str, Schema]:
    return {
        "stream": flag("Whether the answer comes in pieces, as server-sent events."),
        "stream_options": maybe({"type": "object", "properties": {"include_usage": flag()}}),
    }


_IDS: Schema = {"type": "array", "items": TOKEN, "minItems": 1}
_PROMPT: Schema = {
    "anyOf": [STRING, _IDS, {"type": "array", "items": {"anyOf": [STRING, _IDS]}, "minItems": 1}],
    "description": "A text, token ids, or a list of these.",
}

_TEXT_PART = record({"type": {"enum": ["text", "input_text", "output_text"]}, "text": STRING}, "type", "text")
_REFUSAL = record({"type": {"const": "refusal"}, "refusal": STRING}, "type", "refusal")
_PART: Schema = {"anyOf": [_TEXT_PART, _REFUSAL]}
_CALL = record({"type": {"const": "function"}, "function": record({"name": STRING}, "name")}, "function")
MESSAGE = record(
    {
        "role": {"enum": list(ROLES)},
        "content": {"anyOf": [STRING, {"type": "array", "items": _PART}, {"type": "null"}]},
        "reasoning_content": text(),
        "tool_calls": items(_CALL),
        "tool_call_id": text(),
        "name": text(),
        "refusal": text("What an assistant without content said."),
        "function_call": maybe(record({"name": STRING}, "name"), "A call in OpenAI's form before there were tools."),
    },
    "role",
)
_FUNCTION = record({"name": STRING, "description": text(), "parameters": _ANY}, "name")
TOOL = record({"type": {"const": "function"}, "function": _FUNCTION}, "type", "function")
_NAMED: Schema = {
    "anyOf": [
        record({"type": {"const": "function"}, "function": record({"name": STRING}, "name")}, "type", "function"),
        record({"type": {"const": "function"}, "name": STRING}, "type", "name"),
    ]
}
_ALLOWED: dict[str, Schema] = {
    "mode": {"enum": ["auto", "required"]},
    "tools": {"type": "array", "items": _NAMED, "minItems": 1},
}
_TOOL_CHOICE: Schema = {
    "anyOf": [
        {"enum": ["auto", "none", "required", None]},
        record({"type": {"enum": ["auto", "none", "required"]}}, "type"),
        *_NAMED["anyOf"],
        record(
            {"type": {"const": "allowed_tools"}, "allowed_tools": record(_ALLOWED, "mode", "tools")},
            "type",
            "allowed_tools",
        ),
        record({"type": {"const": "allowed_tools"}, **_ALLOWED}, "type", "mode", "tools"),
    ]
}

COMPLETION = record(
    {
        **_MODEL,
        "prompt": _PROMPT,
        **_sampling(),
        **_forms(),
        **_streams(),
        "suffix": text("What follows the text; for models that can fill in."),
        "echo": flag("Whether the prompt stands before the text."),
        "best_of": integer("How many texts are made, of which the likeliest are answered.", 1, MOST_TEXTS),
        "logprobs": {
            "type": ["integer", "boolean", "null"],
            "minimum": 0,
            "maximum": MOST_LOGPROBS,
            "description": "How many of the likeliest tokens to name at each place.",
        },
        "return_token_ids": flag("Whether choices have the ids of their tokens."),
    },
    "prompt",
)
CHAT = record(
    {
        **_MODEL,
        "messages": {"type": "array", "items": refer("Message"), "minItems": 1},
        **_sampling(),
        **_forms(),
        **_streams(),
        "tools": items(refer("Tool")),
        "tool_choice": _TOOL_CHOICE,
        "parallel_tool_calls": flag("Whether there may be more than one call."),
        "functions": items(_FUNCTION, "OpenAI's form before there were tools; answered with function_call."),
        "function_call": {"anyOf": [{"enum": ["auto", "none", None]}, record({"name": STRING}, "name")]},
        "logprobs": flag("Whether to tell how likely the tokens were."),
        "top_logprobs": integer("How many of the likeliest tokens to name at each place.", 0, MOST_LOGPROBS),
        "chat_template_kwargs": maybe(_OBJECT, "What the template is given besides."),
        "reasoning_effort": text(),
        "reasoning_format": text(),
        "reasoning_budget": integer("Most tokens of reasoning; -1: any number.", -1),
        "enable_thinking": flag(),
        "continue_final_message": {
            "enum": [True, False, "content", "reasoning", None],
            "description": "Whether the last message, the assistant's, goes on. By default it does.",
        },
        "add_generation_prompt": flag(),
    },
    "messages",
)

_RESPONSE_ITEM = record({"type": text(), "role": text(), "content": _ANY})
RESPONSE = record(
    {
        **_MODEL,
        "input": {"anyOf": [STRING, {"type": "array", "items": _RESPONSE_ITEM}]},
        "instructions": text("The system message."),
        "max_output_tokens": integer("Most tokens of the answer.", 1),
        **{name: _sampling()[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed")},
        "text": maybe(record({"format": maybe(_OBJECT)}), "The form of the answer."),
        "tools": items(_OBJECT, "Of these, functions are offered; others are left out."),
        "tool_choice": _TOOL_CHOICE,
        "parallel_tool_calls": flag(),
        "reasoning": maybe(record({"effort": text()})),
        "metadata": maybe(_OBJECT),
        "background": {"enum": [False, None]},
        "previous_response_id": {"type": "null", "description": "Nothing is stored: send the whole chat."},
        "stream": flag(),
    },
    "input",
)

_BLOCKS: Schema = {"anyOf": [STRING, {"type": "array", "items": record({"type": STRING}, "type")}]}
_ANTHROPIC_MESSAGE = record({"role": {"enum": ["user", "assistant", "system"]}, "content": _BLOCKS}, "role", "content")
_COUNTED: dict[str, Schema] = {
    **_MODEL,
    "messages": {"type": "array", "items": _ANTHROPIC_MESSAGE, "minItems": 1},
    "system": {"anyOf": [*_BLOCKS["anyOf"], {"type": "null"}]},
    "tools": items(_OBJECT, "Of these, functions are offered; others are left out."),
    "tool_choice": maybe(record({"type": {"enum": ["auto", "any", "none", "tool", None]}})),
    "thinking": maybe(record({"type": text()})),
}
COUNT = record(_COUNTED, "messages")
MESSAGES = record(
    {
        **_COUNTED,
        "max_tokens": {"type": "integer", "minimum": 1},
        "stop_sequences": _sampling()["stop"],
        **{name: _sampling()[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed")},
        "output_config": maybe(record({"format": maybe(_OBJECT)}), "The form of the answer."),
        "stream": flag(),
    },
    "messages",
    "max_tokens",
)

# Texts and token ids one after another, which llama-server's endpoints take.
_MIXED: Schema = {"anyOf": [STRING, {"type": "array", "items": {"anyOf": [STRING, TOKEN]}, "minItems": 1}]}
_HELD = record({"prompt_string": _MIXED}, "prompt_string")
_NATIVE_PROMPT: Schema = {
    "anyOf": [*_MIXED["anyOf"], _HELD, {"type": "array", "items": {"anyOf": [*_MIXED["anyOf"], _HELD]}, "minItems": 1}],
    "description": "A text, token ids and texts, an object with prompt_string, or a list of these.",
}
_NATIVE: dict[str, Schema] = {
    **_MODEL,
    **_sampling(),
    **_forms(),
    # Here a letter stands for each sampler, too.
    "samplers": texts("Names of samplers, or a letter for each."),
    "stop": {"anyOf": [{"type": "string"}, items(STRING)], "description": "Texts that end a text."},
    "stream": flag("Whether the answer comes in pieces, as server-sent events."),
    "n_cmpl": integer("How many texts.", 1, MOST_TEXTS),
    "n_probs": integer("How many of the likeliest tokens to name at each place.", 0, MOST_LOGPROBS),
    "post_sampling_probs": flag("Whether their probabilities are those that the samplers have left."),
    "return_tokens": flag("Whether to answer the ids of the tokens."),
    "response_fields": texts("The fields of the answer that are wanted."),
    "timings_per_token": flag("Whether every piece has the timings."),
    "t_max_predict_ms": integer("A text that takes longer ends at its next new line.", -1),
    "n_indent": integer("A text ends at a line that is indented less.", 0, 2**31 - 1),
    "ignore_eos": flag("Whether the model cannot end a text."),
    "id_slot": integer("", -1, 2**31 - 1),
}
NATIVE = record({**_NATIVE, "prompt": _NATIVE_PROMPT}, "prompt")
INFILL = record(
    {
        **_NATIVE,
        "input_prefix": _MIXED | {"description": "The text before the gap."},
        "input_suffix": _MIXED | {"description": "The text behind it."},
        "input_extra": items(record({"filename": text(), "text": STRING}, "text"), "Excerpts of other files."),
        "prompt": text("What the middle begins with."),
    },
    "input_prefix",
    "input_suffix",
)

_TRUNCATE = {
    "truncate": {
        "enum": [True, False, "END", "NONE", "end", "none", None],
        "description": "Whether the beginning of a text stands for all of it where that is too long.",
    }
}
_TRUNCATION = _TRUNCATE | {
    "truncate_prompt_tokens": integer("So many tokens of each text are read; -1: as many as the model can read.", -1)
}
_NORM = integer("In llama-server's shape: the norm by which vectors are divided; -1: none.", -1, 100)
_INPUT_OR_CONTENT: Schema = {"anyOf": [{"required": ["input"]}, {"required": ["content"]}]}
EMBEDDINGS = (
    record(
        {
            **_MODEL,
            "input": _NATIVE_PROMPT,
            "content": _NATIVE_PROMPT,
            **_TRUNCATION,
            "encoding_format": choice("float", "base64"),
            "dimensions": integer("So many numbers of each vector.", 1),
            "embd_normalize": _NORM,
        }
    )
    | _INPUT_OR_CONTENT
)
NATIVE_EMBEDDINGS = (
    record(
        {**_MODEL, "input": _NATIVE_PROMPT, "content": _NATIVE_PROMPT, **_TRUNCATION, "embd_normalize": _NORM},
    )
    | _INPUT_OR_CONTENT
)
_DOCUMENTS: Schema = {
    "type": "array",
    "items": {"anyOf": [STRING, record({"text": STRING}, "text")]},
    "minItems": 1,
    "description": "The texts to order.",
}
RERANK = record(
    {
        **_MODEL,
        "query": STRING,
        "documents": _DOCUMENTS,
        "texts": _DOCUMENTS,
        "top_n": integer("Answer so many.", 1),
        **_TRUNCATE,
        "return_documents": flag("Whether the texts are answered too."),
        "return_text": flag("The same where they are sent as texts, which is answered in the shape of TEI."),
    },
    "query",
) | {"anyOf": [{"required": ["documents"]}, {"required": ["texts"]}]}

TOKENIZE = record(
    {
        **_MODEL,
        "content": _MIXED,
        "prompt": _MIXED,
        "add_special_tokens": flag("The same as add_special."),
        "add_special": flag("Whether to add the token that begins a text."),
        "parse_special": flag("Whether names of control tokens are these tokens."),
        "with_pieces": flag("Whether to answer the texts of the tokens too."),
    }
) | {"anyOf": [{"required": ["content"]}, {"required": ["prompt"]}]}
MODEL = record({"model": {"type": "string"}}, "model")
PROPS: Schema = {"type": "object"}
DETOKENIZE = record({"tokens": {"type": "array", "items": TOKEN}}, "tokens")

SHARED: dict[str, Schema] = {"Message": MESSAGE, "Tool": TOOL}

"""Schemas of answers. They may have more fields than those that are named here."""

from __future__ import annotations

from pyllm.server.openapi.kinds import BOOLEAN, INTEGER, NUMBER, STRING, Schema, answer, maybe, refer

_NULL_STRING: Schema = {"type": ["string", "null"]}
_REASON: Schema = {"enum": ["stop", "length", "tool_calls", "function_call"]}

ERROR = answer({"error": answer({"message": STRING, "type": STRING, "param": _NULL_STRING, "code": _NULL_STRING})})
ANTHROPIC_ERROR = answer({"type": {"const": "error"}, "error": answer({"type": STRING, "message": STRING})})

USAGE = answer(
    {
        "prompt_tokens": INTEGER,
        "completion_tokens": INTEGER,
        "total_tokens": INTEGER,
        "prompt_tokens_details": answer({"cached_tokens": INTEGER}),
    }
)

_SLOT = answer(
    {
        "id": INTEGER,
        "n_ctx": INTEGER,
        "speculative": BOOLEAN,
        "is_processing": BOOLEAN,
        "id_task": INTEGER,
        "n_prompt_tokens": INTEGER,
        "n_prompt_tokens_processed": INTEGER,
        "n_prompt_tokens_cache": INTEGER,
        "params": {"type": "object"},
        "next_token": {"type": "array", "items": {"type": "object"}},
    },
    "id_task",
    "n_prompt_tokens",
    "n_prompt_tokens_processed",
    "n_prompt_tokens_cache",
    "params",
    "next_token",
)
SLOTS: Schema = {"type": "array", "items": _SLOT}
SLOT_ACTION = answer(
    {
        "id_slot": INTEGER,
        "filename": STRING,
        "n_saved": INTEGER,
        "n_written": INTEGER,
        "n_restored": INTEGER,
        "n_read": INTEGER,
        "n_erased": INTEGER,
        "timings": {"type": "object", "additionalProperties": NUMBER},
    },
    "filename",
    "n_saved",
    "n_written",
    "n_restored",
    "n_read",
    "n_erased",
    "timings",
)
_ADAPTER = answer({"id": INTEGER, "path": STRING, "scale": NUMBER, "task_name": STRING, "prompt_prefix": STRING})
ADAPTERS: Schema = {"anyOf": [{"type": "array", "items": _ADAPTER}, answer({"success": {"const": True}})]}

_LOGPROBS = answer(
    {
        "tokens": {"type": "array", "items": STRING},
        "text_offset": {"type": "array", "items": INTEGER},
        "token_logprobs": {"type": "array", "items": {"type": ["number", "null"]}},
        "top_logprobs": {"type": "array", "items": {"type": ["object", "null"], "additionalProperties": NUMBER}},
    }
)
COMPLETION = answer(
    {
        "id": STRING,
        "object": {"const": "text_completion"},
        "created": INTEGER,
        "model": STRING,
        "choices": {
            "type": "array",
            "items": answer({"text": STRING, "index": INTEGER, "logprobs": maybe(_LOGPROBS), "finish_reason": _REASON}),
        },
        "usage": refer("Usage"),
    }
)

_TOKEN = {"token": STRING, "logprob": NUMBER, "bytes": {"type": "array", "items": INTEGER}}
_CHAT_LOGPROBS = answer(
    {
        "content": {
            "type": "array",
            "items": answer({**_TOKEN, "top_logprobs": {"type": "array", "items": answer(_TOKEN)}}),
        }
    }
)
_CALL = answer({"id": STRING, "type": {"const": "function"}, "function": answer({"name": STRING, "arguments": STRING})})
_MESSAGE = answer(
    {
        "role": {"const": "assistant"},
        "content": _NULL_STRING,
        "reasoning_content": STRING,
        "tool_calls": {"type": "array", "items": _CALL},
    },
    "reasoning_content",
    "tool_calls",
)
CHAT = answer(
    {
        "id": STRING,
        "object": {"const": "chat.completion"},
        "created": INTEGER,
        "model": STRING,
        "choices": {
            "type": "array",
            "items": answer(
                {"index": INTEGER, "message": _MESSAGE, "logprobs": maybe(_CHAT_LOGPROBS), "finish_reason": _REASON}
            ),
        },
        "usage": refer("Usage"),
    }
)

RESPONSE = answer(
    {
        "id": STRING,
        "object": {"const": "response"},
        "created_at": INTEGER,
        "status": {"enum": ["completed", "incomplete"]},
        "error": {"type": "null"},
        "incomplete_details": maybe(answer({"reason": STRING})),
        "model": STRING,
        "output": {
            "type": "array",
            "items": answer({"id": STRING, "type": {"enum": ["message", "reasoning", "function_call"]}}),
        },
        "usage": answer({"input_tokens": INTEGER, "output_tokens": INTEGER, "total_tokens": INTEGER}),
    }
)

MESSAGE = answer(
    {
        "id": STRING,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": STRING,
        "content": {"type": "array", "items": answer({"type": {"enum": ["text", "thinking", "tool_use"]}})},
        "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
        "stop_sequence": _NULL_STRING,
        "usage": answer({"input_tokens": INTEGER, "output_tokens": INTEGER, "cache_read_input_tokens": INTEGER}),
    }
)
COUNT = answer({"input_tokens": INTEGER})

_OPENAI_EMBEDDINGS = answer(
    {
        "object": {"const": "list"},
        "model": STRING,
        "data": {
            "type": "array",
            "items": answer(
                {
                    "object": {"const": "embedding"},
                    "index": INTEGER,
                    "embedding": {"anyOf": [{"type": "array", "items": NUMBER}, STRING]},
                }
            ),
        },
        "usage": answer({"prompt_tokens": INTEGER, "total_tokens": INTEGER}),
    }
)
# llama-server's shape: with one vector for each text, or one for each of its tokens.
NATIVE_EMBEDDINGS: Schema = {
    "type": "array",
    "items": answer(
        {"index": INTEGER, "embedding": {"type": "array", "items": {"type": "array", "items": NUMBER}}},
    ),
}
EMBEDDINGS: Schema = {"anyOf": [_OPENAI_EMBEDDINGS, NATIVE_EMBEDDINGS]}
_JINA = answer(
    {
        "object": {"const": "list"},
        "model": STRING,
        "usage": answer({"prompt_tokens": INTEGER, "total_tokens": INTEGER}),
        "results": {"type": "array", "items": answer({"index": INTEGER, "relevance_score": NUMBER})},
    }
)
_TEI: Schema = {"type": "array", "items": answer({"index": INTEGER, "score": NUMBER})}
RERANK: Schema = {"anyOf": [_JINA, _TEI]}

NATIVE = answer(
    {
        "index": INTEGER,
        "content": STRING,
        "tokens": {"type": "array", "items": INTEGER},
        "stop": {"const": True},
        "stop_type": {"enum": ["eos", "word", "limit", "none"]},
        "stopping_word": STRING,
        "model": STRING,
        "prompt": STRING,
        "tokens_predicted": INTEGER,
        "tokens_evaluated": INTEGER,
        "truncated": BOOLEAN,
        "generation_settings": {"type": "object"},
        "timings": {"type": "object"},
    }
)
# With response_fields only those are there, and some have other names.
_SELECTED: Schema = {"type": "object", "properties": NATIVE["properties"]}
NATIVE_ANY: Schema = {"anyOf": [_SELECTED, {"type": "array", "items": _SELECTED}]}
SUCCESS = answer({"success": BOOLEAN})

MODEL = answer(
    {
        "id": STRING,
        "object": {"const": "model"},
        "created": INTEGER,
        "owned_by": STRING,
        "capabilities": {"type": "array", "items": {"enum": ["completion", "embedding"]}},
    }
)
MODELS = answer({"object": {"const": "list"}, "data": {"type": "array", "items": refer("Model")}})

_PIECE = answer({"id": INTEGER, "piece": {"anyOf": [STRING, {"type": "array", "items": INTEGER}]}})
TOKENIZE = answer({"tokens": {"type": "array", "items": {"anyOf": [INTEGER, _PIECE]}}})
DETOKENIZE = answer({"content": STRING, "prompt": STRING})
TOKENIZER = answer({"bos_token": _NULL_STRING, "eos_token": _NULL_STRING, "pad_token": _NULL_STRING})
TEMPLATE = answer({"prompt": STRING})

STATUS = answer({"status": STRING})
SUCCESS = answer({"success": {"const": True}})
PROPS = answer({"model_alias": STRING, "model_path": STRING, "build_info": STRING, "endpoint_metrics": BOOLEAN})
DOCUMENT = answer({"openapi": STRING, "paths": {"type": "object"}})

SHARED: dict[str, Schema] = {"Error": ERROR, "AnthropicError": ANTHROPIC_ERROR, "Usage": USAGE, "Model": MODEL}

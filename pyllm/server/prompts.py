"""Prompts and texts to embed: texts, token ids, both in one list, or objects with a text."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pyllm.core.vocab import Vocab
from pyllm.engine.engine import Prompt
from pyllm.server.errors import APIError, invalid
from pyllm.server.wire import TOKEN_MAX, Schema, about, expected_error, is_ids

_TEXT: Schema = {"type": "string"}
TOKEN: Schema = {"type": "integer", "minimum": 0, "maximum": TOKEN_MAX}
_IDS: Schema = {"type": "array", "items": TOKEN, "minItems": 1}
# A text, or texts and token ids one after another, which llama-server's endpoints take.
MIXED: list[Schema] = [_TEXT, {"type": "array", "items": {"anyOf": [_TEXT, TOKEN]}, "minItems": 1}]
_HELD: Schema = {"type": "object", "properties": {"prompt_string": {"anyOf": MIXED}}, "required": ["prompt_string"]}
_SEVERAL: Schema = {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}, "minItems": 1}
PROMPT = about("A text, token ids, or a list of these.", anyOf=[_TEXT, _IDS, _SEVERAL])
NATIVE_PROMPT = about(
    "A text, token ids and texts, an object with prompt_string, or a list of these.",
    anyOf=[*MIXED, _HELD, {"type": "array", "items": {"anyOf": [*MIXED, _HELD]}, "minItems": 1}],
)
_WHAT = "a text, a list of token ids and texts, an object with prompt_string, or a list of these"

# A list that was cut in the middle of words loses some of its ids at its ends when its text is tokenized again.
_LOST_AT_ENDS = 4
# A client's own tokenizer may differ from llama.cpp's in a few places.
_LOST = 0.05


def read_openai_prompts(value: Any) -> list[Prompt]:
    """The prompts of OpenAI's completions: a text, token ids, or a list of these.

    Raises:
        APIError: Something else is there.
    """
    if isinstance(value, str) or is_ids(value):
        return [value]
    if not isinstance(value, list):
        raise expected_error("prompt", "a text, a list of token ids, or a list of these", value)
    if not value:
        raise invalid("prompt", "prompt is an empty list")
    for i, one in enumerate(value):
        if not (isinstance(one, str) or is_ids(one)):
            raise invalid(f"prompt[{i}]", f"prompt[{i}] must be a text or a list of token ids")
    return value


def read_native_prompts(value: Any, name: str = "prompt") -> list[Any]:
    """The prompts of llama-server's completions, one or several.

    A list that has a number in it is one prompt; any other list has a prompt in each place.

    Args:
        value: What the request has.
        name: The name of the field.

    Returns:
        list: Texts, or lists of token ids and texts.

    Raises:
        APIError: Something else is there.
    """
    if not isinstance(value, list) or any(map(_is_number, value)):
        return [_one(value, name)]
    if not value:
        raise invalid(name, f"{name} is an empty list")
    return [_one(each, f"{name}[{i}]") for i, each in enumerate(value)]


def as_prompt(vocab: Vocab, value: Any) -> Prompt:
    """One of these prompts as the engine takes it.

    Args:
        vocab: The tokenizer of the model.
        value: A text, or a list of token ids and texts.
    """
    return value if isinstance(value, str) else mixed_ids(vocab, value, add_special=True, parse_special=True)


def mixed_ids(vocab: Vocab, value: str | list[Any], *, add_special: bool, parse_special: bool) -> list[int]:
    """The tokens of a text, or of token ids and texts one after another.

    Args:
        vocab: The tokenizer of the model.
        value: The text or the list.
        add_special: Whether a text at the beginning gets the tokens that begin a text.
        parse_special: Whether control tokens are read in texts.

    Raises:
        InvalidArgumentError: An id is none of the model.
    """
    parts = [value] if isinstance(value, str) else value
    ids: list[int] = []
    for i, part in enumerate(parts):
        if isinstance(part, str):
            first = add_special and i == 0
            ids += vocab.tokenize(part, add_special=first, parse_special=parse_special)
        else:
            ids += vocab.as_token_array([part]).tolist()
    return ids


def check_mixed(value: Any, name: str, what: str = _WHAT) -> Any:
    """The value, if it is a text or a list of token ids and texts.

    Raises:
        APIError: It is something else.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(part, str) or _is_id(part) for part in value):
        raise invalid(name, f"{name} must be {what}")
    return value


def _one(value: Any, name: str) -> Any:
    if isinstance(value, dict) and "prompt_string" in value:
        if value.get("multimodal_data"):
            raise APIError(501, f"{name}.multimodal_data: this server takes texts only", param=name, code="unsupported")
        return check_mixed(value["prompt_string"], f"{name}.prompt_string")
    found = check_mixed(value, name)
    if not found and isinstance(found, list):
        raise invalid(name, f"{name} is an empty list")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= TOKEN_MAX


def own_tokens(vocab: Vocab, value: str | list[Any], where: str, *, any_ids: bool = False) -> str | list[int]:
    """A text as it is, or the ids in a list of ids and texts.

    Args:
        vocab: The tokenizer of the model.
        value: The text or the list.
        where: What of the request it is.
        any_ids: Whether ids are taken that the tokenizer of the model would never give.

    Raises:
        APIError: The ids are those of another tokenizer.
    """
    if isinstance(value, str):
        return value
    ids = [one for one in value if not isinstance(one, str)]
    if ids and max(ids) >= len(vocab):
        raise _foreign(where, f"has the token id {max(ids)}, and those of this model go from 0 to {len(vocab) - 1}")
    if not any_ids and len(ids) == len(value) and is_foreign(vocab, ids):
        raise _foreign(where, "has token ids that no text has in this model, and /embeddings takes them all the same")
    return mixed_ids(vocab, value, add_special=True, parse_special=False)


def is_foreign(vocab: Vocab, ids: list[int]) -> bool:
    """Whether another tokenizer has made these ids: they are not those of the text that they stand for in this one.

    What the model's own tokenizer has made is the same again, but where it was cut to pieces. A few ids tell nothing.
    """
    if len(ids) <= _LOST_AT_ENDS:
        return False
    text = vocab.detokenize_bytes(ids)
    allowed = max(_LOST_AT_ENDS, _LOST * len(ids))
    counts = Counter(ids)
    # The names of control tokens may have been such tokens, or text.
    return all(
        (counts - Counter(vocab.tokenize(text, add_special=False, parse_special=special))).total() > allowed
        for special in (False, True)
    )


def _foreign(where: str, what: str) -> APIError:
    message = (
        f"{where} {what}: another tokenizer has made them. Send texts; LangChain's OpenAIEmbeddings does so with "
        "check_embedding_ctx_length=False"
    )
    return invalid(where, message, code="invalid_token_ids")

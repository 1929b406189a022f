"""Texts and token ids, and the prompts that chats become: llama-server's endpoints."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from pyllm.chat.request import ChatRequest
from pyllm.core.vocab import Vocab
from pyllm.errors import PyllmError
from pyllm.server.chat import TAKES_CHAT, ChatCompletionRequest
from pyllm.server.errors import as_api_error, invalid, json_response
from pyllm.server.limits import read_json
from pyllm.server.openapi import get, post
from pyllm.server.prompts import MIXED, TOKEN, check_mixed, mixed_ids
from pyllm.server.sampling import apart
from pyllm.server.state import state_of
from pyllm.server.wire import Wire, about, decode, expected_error, is_ids


class TokenizeRequest(Wire, kw_only=True):
    """A text to tokenize; vLLM's names are understood too."""

    model: Annotated[str | None, about("The name of the model.")] = None
    content: Annotated[Any, about("", anyOf=MIXED)] = None
    prompt: Annotated[Any, about("The same.", anyOf=MIXED)] = None
    add_special: Annotated[bool | None, about("Whether to add the token that begins a text.")] = None
    add_special_tokens: Annotated[bool | None, about("The same as add_special.")] = None
    parse_special: Annotated[bool | None, about("Whether names of control tokens are these tokens.")] = None
    with_pieces: Annotated[bool | None, about("Whether to answer the texts of the tokens too.")] = None


class TokenPiece(Wire):
    """A token and its text, or its bytes where that is no text by itself."""

    id: int
    piece: str | list[int]


class Tokens(Wire):
    """The tokens of a text."""

    tokens: list[int | TokenPiece]


class DetokenizeRequest(Wire, kw_only=True):
    """Tokens to make a text of."""

    tokens: Annotated[Any, about("", type="array", items=TOKEN)]


class Text(Wire):
    """The text of tokens."""

    content: str
    prompt: str


class TokenizerInfo(Wire):
    """The special tokens of the model."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None


class Prompt(Wire):
    """The prompt that messages become."""

    prompt: str


async def tokenize(request: Request) -> Response:
    """The tokens of a text."""
    state = state_of(request)
    asked = decode(TokenizeRequest, await read_json(request, state.settings))
    name = "prompt" if asked.content is None and asked.prompt is not None else "content"
    content = getattr(asked, name)
    if content is None:
        raise invalid(name, f"{name} is missing")
    content = check_mixed(content, name, "a text, or a list of token ids and texts")
    special = asked.add_special_tokens if asked.add_special is None else asked.add_special
    vocab = state.model.vocab

    def work() -> list[Any]:
        tokens = mixed_ids(vocab, content, add_special=bool(special), parse_special=asked.parse_special is not False)
        return [{"id": token, "piece": _piece(vocab, token)} for token in tokens] if asked.with_pieces else tokens

    try:
        return json_response({"tokens": await asyncio.to_thread(work)})
    except PyllmError as error:
        raise as_api_error(error, param=name) from error


async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    state = state_of(request)
    tokens = decode(DetokenizeRequest, await read_json(request, state.settings)).tokens
    if tokens and not is_ids(tokens):
        raise expected_error("tokens", "a list of token ids", tokens)

    def work() -> str:
        return state.model.vocab.detokenize(state.model.vocab.as_token_array(tokens)) if tokens else ""

    try:
        text = await asyncio.to_thread(work)
        return json_response({"content": text, "prompt": text})
    except PyllmError as error:
        raise as_api_error(error, param="tokens") from error


async def tokenizer_info(request: Request) -> Response:
    """The special tokens of the model, for clients that tokenize by asking here, such as lm-evaluation-harness."""
    model = state_of(request).model
    names = {"bos_token": model.vocab.bos, "eos_token": model.vocab.eos, "pad_token": model.vocab.pad}
    tokens = {name: None if token is None else model.vocab.text(token) for name, token in names.items()}
    return json_response({"tokenizer_class": "pyllm", **tokens, "chat_template": model.chat_template()})


async def apply_template(request: Request) -> Response:
    """The prompt that messages become."""
    state = state_of(request)
    engine = state.engine
    body, sizes = await read_json(request, state.settings), state.sizes
    asked = decode(ChatCompletionRequest, body)
    arguments = asked.arguments(state.settings, sizes)
    apart(arguments)

    def work() -> str:
        chat = ChatRequest(engine, asked.messages, arguments)
        return chat.prompt.prompt

    return json_response({"prompt": await asyncio.to_thread(work)})


def _piece(vocab: Vocab, token: int) -> str | list[int]:
    piece = vocab.token_to_piece(token)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


# One of the two is there, which a struct cannot say.
_CONTENT_OR_PROMPT = Meta(extra_json_schema={"anyOf": [{"required": ["content"]}, {"required": ["prompt"]}]})
ROUTES = [
    post("/tokenize", tokenize, tag="tokens", takes=Annotated[TokenizeRequest, _CONTENT_OR_PROMPT], gives=Tokens),
    post("/detokenize", detokenize, tag="tokens", takes=DetokenizeRequest, gives=Text),
    get("/tokenizer_info", tokenizer_info, tag="tokens", gives=TokenizerInfo),
    post("/apply-template", apply_template, tag="tokens", gives=Prompt, refuses=(501, 503), **TAKES_CHAT),
]

"""``/tokenize``, ``/detokenize``, ``/tokenizer_info`` and ``/apply-template``."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.chat.request import ChatRequest
from pyllm.core.vocab import Vocab
from pyllm.errors import PyllmError
from pyllm.server.chat.protocol import ChatAsk
from pyllm.server.errors import as_api_error, json_response
from pyllm.server.fields import Fields, is_ids
from pyllm.server.limits import read_json
from pyllm.server.native.prompts import check_mixed, mixed_ids
from pyllm.server.state import state_of


async def tokenize(request: Request) -> Response:
    """The tokens of a text."""
    state = state_of(request)
    fields = Fields(await read_json(request, state.settings))
    # vLLM's names are understood too.
    name = fields.first("content", "prompt")
    content = check_mixed(fields.need(name), name, "a text, or a list of token ids and texts")
    special = fields.flag(fields.first("add_special", "add_special_tokens"))
    parse = fields.flag("parse_special", True)
    pieces = fields.flag("with_pieces")
    vocab = state.model.vocab

    def work() -> list[Any]:
        tokens = mixed_ids(vocab, content, add_special=special, parse_special=parse)
        return [{"id": token, "piece": _piece(vocab, token)} for token in tokens] if pieces else tokens

    try:
        return json_response({"tokens": await asyncio.to_thread(work)})
    except PyllmError as error:
        raise as_api_error(error, param=name) from error


async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    state = state_of(request)
    fields = Fields(await read_json(request, state.settings))
    tokens = fields.need("tokens")
    if tokens and not is_ids(tokens):
        raise fields.wrong("tokens", "a list of token ids")

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
    ask = ChatAsk(await read_json(request, state.settings), state.settings, state.sizes)

    def work() -> str:
        chat = ChatRequest(engine, ask.messages, ask.arguments)
        return chat.prompt.prompt

    return json_response({"prompt": await asyncio.to_thread(work)})


def _piece(vocab: Vocab, token: int) -> str | list[int]:
    piece = vocab.token_to_piece(token)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


ROUTES = [
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokenizer_info),
    Route("/apply-template", apply_template, methods=["POST"]),
]

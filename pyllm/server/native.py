"""llama-server's own completions: ``/completion``, ``/completions`` and ``/infill``."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

from msgspec import UNSET, UnsetType, structs
from starlette.requests import Request
from starlette.responses import Response

from pyllm.completion.request import CompletionRequest as EngineCompletion
from pyllm.completion.request import argument_names
from pyllm.core.vocab import Vocab
from pyllm.engine.engine import Engine, Prompt
from pyllm.params import SAMPLER_LETTERS
from pyllm.sampling import new_seed
from pyllm.server.active_request import ActiveRequest, Progress
from pyllm.server.completions import check_number_of_texts
from pyllm.server.constraints import constraint_arguments
from pyllm.server.errors import APIError, as_api_error, invalid, json_response
from pyllm.server.infill import Excerpt, check_model, infill_ids
from pyllm.server.limits import read_json
from pyllm.server.log import note
from pyllm.server.native_answer import NativeAnswer, Shown, Watch
from pyllm.server.openapi import GENERATES, post
from pyllm.server.prompts import MIXED, NATIVE_PROMPT, as_prompt, read_native_prompts
from pyllm.server.sampling import (
    MOST_LOGPROBS,
    MOST_TEXTS,
    SamplingFields,
    Sizes,
    as_texts,
    bias_pairs,
    sampling_arguments,
    with_effect,
)
from pyllm.server.settings import Settings
from pyllm.server.sse import EventWriter, event, stream_response, until_gone
from pyllm.server.state import ServerState, state_of
from pyllm.server.wire import FINITE, Wire, about, at_least, decode, is_decimal, is_number, within
from pyllm.types import Chunk

_N_SEEDS = 2**32 - 1
_MOST = 2**31 - 1
# They need a grammar that waits for its trigger; chats have that here, by tools.
_UNSUPPORTED = ("grammar_lazy", "grammar_triggers")


class NativeFields(SamplingFields, kw_only=True):
    """All of a request for a completion but its prompts, by llama-server's names."""

    model: Annotated[str | None, about("The name of the model.")] = None
    samplers: Annotated[str | list[str] | None, about("Names of samplers, or a letter for each.")] = None
    stream: Annotated[bool | None, about("Whether the answer comes in pieces, as server-sent events.")] = None
    n_cmpl: Annotated[int, within(1, MOST_TEXTS, "How many texts.")] | None = None
    n_probs: (
        Annotated[int, within(0, MOST_LOGPROBS, "How many of the likeliest tokens to name at each place.")] | None
    ) = None
    logprobs: Annotated[int, within(0, MOST_LOGPROBS, "The same.")] | None = None
    post_sampling_probs: Annotated[
        bool | None, about("Whether their probabilities are those that the samplers have left.")
    ] = None
    return_tokens: Annotated[bool | None, about("Whether to answer the ids of the tokens.")] = None
    response_fields: Annotated[str | list[str] | None, about("The fields of the answer that are wanted.")] = None
    timings_per_token: Annotated[bool | None, about("Whether every piece has the timings.")] = None
    return_progress: Annotated[bool | None, about("Whether a stream says how far the prompt has been read.")] = None
    t_max_predict_ms: Annotated[int, at_least(-1, "A text that takes longer ends at its next new line.")] | None = None
    n_indent: Annotated[int, within(0, _MOST, "A text ends at a line that is indented less.")] | None = None
    n_keep: Annotated[int, within(-1, _MOST, "Repeated in the answer.")] | None = None
    n_discard: Annotated[int, within(0, _MOST, "Repeated in the answer.")] | None = None
    n_cache_reuse: Annotated[int, within(0, _MOST, "Has no effect.")] | None = None
    backend_sampling: Annotated[bool | None, about("Has no effect.")] = None
    sse_ping_interval: Annotated[
        Annotated[float, FINITE] | None,
        about("Seconds without an event after which a stream sends a comment; 0 or less: never."),
    ] = None
    grammar_lazy: Annotated[Any, about("Not supported.")] = None
    grammar_triggers: Annotated[Any, about("Not supported.")] = None

    def arguments(self, settings: Settings, sizes: Sizes, vocab: Vocab) -> dict[str, Any]:
        """Arguments of the engine for each prompt.

        Args:
            settings: The server's.
            sizes: Those of the model.
            vocab: The tokenizer of the model.

        Raises:
            APIError: Something is wrong; the error names the parameter.
        """
        for name in _UNSUPPORTED:
            if getattr(self, name):
                message = f"{name} cannot be used here: a grammar holds from the first token on"
                raise APIError(501, message, param=name, code="unsupported")
        # Texts of one prompt are requests of their own, with seeds of their own.
        plain = structs.replace(self, logit_bias=None, n=None)
        if isinstance(self.samplers, str):
            plain.samplers = _samplers(self.samplers)
        if self.json_schema == {}:
            plain.json_schema = {"type": "object"}
        arguments = with_effect(sampling_arguments(plain, settings, sizes)) | constraint_arguments(plain)
        biases = _biases(self.logit_bias, vocab) | arguments.get("logit_bias", {})
        if biases:
            arguments["logit_bias"] = biases
        return arguments


class NativeRequest(NativeFields, kw_only=True):
    """A request for a completion, by llama-server's names."""

    prompt: Annotated[Any, NATIVE_PROMPT]


class InfillRequest(NativeFields, kw_only=True):
    """A request for the middle of a text."""

    input_prefix: Annotated[Any, about("The text before the gap.", anyOf=MIXED)]
    input_suffix: Annotated[Any, about("The text behind it.", anyOf=MIXED)]
    input_extra: Annotated[
        list[Excerpt] | None,
        about("Excerpts of other files.", expected="a list of objects with text and filename"),
    ] = None
    prompt: Annotated[str | None, about("What the middle begins with.")] = None


class NativeCompletion(Wire):
    """A completion by llama-server's names. With response_fields only those are there, and some have other names."""

    index: int | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tokens: list[int] | UnsetType = UNSET
    stop: Annotated[bool, about("", const=True)] | UnsetType = UNSET
    stop_type: Annotated[str, about("", enum=["eos", "word", "limit", "none"])] | UnsetType = UNSET
    stopping_word: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    prompt: str | UnsetType = UNSET
    tokens_predicted: int | UnsetType = UNSET
    tokens_evaluated: int | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET
    generation_settings: dict[str, Any] | UnsetType = UNSET
    timings: dict[str, Any] | UnsetType = UNSET


async def completion(request: Request) -> Response:
    """Go on with texts."""
    state = state_of(request)
    body, sizes = await read_json(request, state.settings), state.sizes
    asked = decode(NativeRequest, body)
    prompts = read_native_prompts(asked.prompt)
    texts = _Texts(asked, asked.arguments(state.settings, sizes, state.model.vocab))
    return await until_gone(request, _answer(request, state, texts, prompts))


async def infill(request: Request) -> Response:
    """Write what belongs between two texts."""
    state = state_of(request)
    engine, body = state.engine, await read_json(request, state.settings)
    check_model(engine.vocab)
    sizes, asked = state.sizes, decode(InfillRequest, body)
    n_ctx = engine.context.n_ctx_seq
    ids = infill_ids(
        engine.vocab,
        asked.input_prefix,
        asked.input_suffix,
        asked.prompt or "",
        asked.input_extra or (),
        # Something has to be left for the middle.
        n_batch=min(engine.context.n_batch, 3 * n_ctx // 4),
        n_ctx=n_ctx,
        n_predict=state.settings.max_tokens or 0,
        suffix_first=state.settings.spm_infill,
    )
    texts = _Texts(asked, asked.arguments(state.settings, sizes, engine.vocab))
    return await until_gone(request, _answer(request, state, texts, [ids]))


class _Texts:
    """The texts that are asked for, of each prompt the same.

    Args:
        asked: The request.
        arguments: What the engine is asked with, as :meth:`NativeFields.arguments` gives it.

    Attributes:
        asked: The request.
        arguments: What the engine is asked with for each prompt, but for the seed.
        n: Texts for each prompt.
        shown: What of the request the answers depend on.
    """

    def __init__(self, asked: NativeFields, arguments: dict[str, Any]) -> None:
        self.asked, self.arguments = asked, arguments
        self.n = asked.n_cmpl or asked.n or 1
        seed: int | None = arguments.pop("seed", None)
        # Each further text of a prompt has the next one.
        self._seed = new_seed() if seed is None else seed
        limit: int | None = arguments["max_tokens"]
        n_probs = asked.logprobs if asked.n_probs is None else asked.n_probs
        if limit == 0:
            # A prompt is computed when a token is wanted after it.
            arguments["max_tokens"] = 1
        self.shown = Shown(
            max_tokens=arguments["max_tokens"],
            n_predict=-1 if limit is None else limit,
            stream=bool(asked.stream),
            n_probs=n_probs or 0,
            post_sampling=bool(asked.post_sampling_probs),
            return_tokens=bool(asked.return_tokens),
            response_fields=as_texts(asked.response_fields),
            timings_per_token=bool(asked.timings_per_token),
            ignore_eos=bool(asked.ignore_eos),
            lora=[{"id": one.id, "scale": one.scale} for one in asked.lora or ()],
            numbers=(asked.n_keep or 0, asked.n_discard or 0),
        )
        if self.shown.n_probs and not self.shown.post_sampling:
            arguments["logprobs"] = self.shown.n_probs

    def of(self, engine: Engine, prompts: list[Any]) -> list[tuple[Prompt, dict[str, Any], Watch | None]]:
        """For each text its prompt, its own arguments of the engine, and its watch."""
        found: list[tuple[Prompt, dict[str, Any], Watch | None]] = []
        for value in prompts:
            prompt = as_prompt(engine.vocab, value)
            for index in range(self.n):
                more: dict[str, Any] = {"seed": (self._seed + index) % _N_SEEDS}
                watch = self._watch(engine, prompt, more)
                if watch is not None:
                    more["stopping_criteria"] = [watch]
                found.append((prompt, more, watch))
        return found

    def _watch(self, engine: Engine, prompt: Prompt, more: dict[str, Any]) -> Watch | None:
        """The watch of a text, where a rule or probabilities need one."""
        shown, asked = self.shown, self.asked
        n_indent, most_ms = asked.n_indent or 0, max(0, asked.t_max_predict_ms or 0)
        probabilities = bool(shown.n_probs and shown.post_sampling)
        if not (probabilities or n_indent or most_ms):
            return None
        chain = None
        if probabilities:
            # With the same samplers, the same seed and the same logits it chooses as those of the text do.
            known = {*argument_names()}
            arguments = {name: value for name, value in (self.arguments | more).items() if name in known}
            chain = EngineCompletion(engine, prompt, arguments).chain(0)
        return Watch(engine.vocab, chain=chain, n_probs=shown.n_probs, most_ms=most_ms, n_indent=n_indent)


async def _answer(request: Request, state: ServerState, texts: _Texts, prompts: list[Any]) -> Response:
    check_number_of_texts(len(prompts) * texts.n)
    engine, active, shown = state.engine, ActiveRequest(state), texts.shown
    try:
        found = await asyncio.to_thread(texts.of, engine, prompts)
        answers = [NativeAnswer(i, state.alias, shown, watch) for i, (_, _, watch) in enumerate(found)]
        each = [more for _, more, _ in found]
        await active.start([prompt for prompt, _, _ in found], texts.arguments, stream=shown.stream, each=each)
    except Exception as error:
        raise as_api_error(error, param="prompt", retry_after=state.settings.retry_after) from error
    if shown.stream:
        settings, interval = state.settings, texts.asked.sse_ping_interval
        if interval is not None:
            settings = replace(settings, ping_interval=max(0.0, interval))
        writer = _NativeWriter(active, answers)
        return stream_response(request, active, writer, settings, progress=texts.asked.return_progress)
    completions = await active.finish()
    note(request, **active.report())
    whole = [
        answer.whole(job, completion) for answer, job, completion in zip(answers, active.jobs, completions, strict=True)
    ]
    return json_response(whole[0] if len(whole) == 1 else whole)


class _NativeWriter(EventWriter):
    """Writes the pieces of texts; the last event of each is its whole answer."""

    def __init__(self, active: ActiveRequest, answers: list[NativeAnswer]) -> None:
        self._active, self._answers = active, answers

    def progress(self, number: int, progress: Progress) -> Iterator[bytes]:
        """A piece without text."""
        yield event(self._answers[number].progress(self._active.jobs[number], progress))

    def chunk(self, number: int, chunk: Chunk) -> Iterator[bytes]:
        """The next piece of a text."""
        answer, job = self._answers[number], self._active.jobs[number]
        piece = answer.piece(job, chunk)
        if piece is not None:
            yield event(piece)
        if chunk.completion is not None:
            yield event(answer.whole(job, chunk.completion))


def _samplers(letters: str) -> list[str]:
    unknown = [letter for letter in letters if letter not in SAMPLER_LETTERS]
    if unknown:
        known = "".join(SAMPLER_LETTERS)
        raise invalid("samplers", f"samplers: there is no sampler {unknown[0]!r}; the letters are {known}")
    return [SAMPLER_LETTERS[letter] for letter in letters]


def _biases(value: Any, vocab: Vocab) -> dict[int | str, float]:
    """Pairs or an object; a text stands for all of its tokens, and false forbids them."""
    result: dict[int | str, float] = {}
    for token, bias in bias_pairs(value, "a list of pairs of a token and a number, or an object of these", len(vocab)):
        name = f"logit_bias[{token!r}]"
        if bias is not False and not is_number(bias):
            raise invalid("logit_bias", f"{name} must be a number, or false, not {bias!r}")
        for one in _tokens(token, name, vocab):
            result[one] = -math.inf if bias is False else float(bias)
    return result


def _tokens(token: Any, name: str, vocab: Vocab) -> list[int]:
    if isinstance(token, str) and not is_decimal(token):
        return vocab.tokenize(token, add_special=False, parse_special=False)
    if isinstance(token, str):
        token = int(token)
    if type(token) is not int:
        raise invalid("logit_bias", f"{name}: a token must be an id or a text")
    if not 0 <= token < len(vocab):
        raise invalid("logit_bias", f"{name}: ids of tokens are from 0 to {len(vocab) - 1}")
    return [token]


_NATIVE: dict[str, Any] = {
    "tag": "texts",
    "gives": NativeCompletion | list[NativeCompletion],
    "streams": True,
    "refuses": GENERATES,
}
ROUTES = [
    post("/completion", completion, takes=NativeRequest, **_NATIVE),
    post("/completions", completion, takes=NativeRequest, **_NATIVE),
    post("/infill", infill, takes=InfillRequest, **_NATIVE),
]

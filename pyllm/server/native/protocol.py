"""What a request for a completion says in llama-server's own words."""

from __future__ import annotations

import math
from typing import Any

from pyllm.core.vocab import Vocab
from pyllm.params import SAMPLER_LETTERS
from pyllm.sampling import new_seed
from pyllm.server.completions.protocol import form_arguments
from pyllm.server.errors import APIError, invalid
from pyllm.server.fields import Fields, is_decimal, is_number
from pyllm.server.sampling import MOST_LOGPROBS, MOST_TEXTS, Sizes, sampling_arguments, with_effect
from pyllm.server.settings import Settings

_N_SEEDS = 2**32 - 1
_MOST = 2**31 - 1
# One letter for each sampler, as in llama.cpp's --sampler-seq.
# What needs a grammar that waits for its trigger; chats have that here, by tools.
_NOT_HERE = ("grammar_lazy", "grammar_triggers")


class NativeAsk:
    """All of a request but its prompts.

    Args:
        body: The JSON object.
        settings: The server's.
        sizes: Those of the model.
        vocab: The tokenizer of the model.

    Attributes:
        arguments: What the engine is asked with for each prompt, but for the seed.
        seed: That of the first text; each further one has the next.
        n: Texts for each prompt.
        n_predict: Most tokens of a text; -1: no limit of its own. 0: the prompt is only computed.
        stream: Whether the texts are sent as they come.
        n_probs: How many tokens to name for each place.
        post_sampling: Whether their probabilities are those that the samplers have left.
        return_tokens: Whether the answer has the token ids.
        response_fields: The fields that are wanted; empty: all.
        timings_per_token: Whether every piece of a stream has the timings.
        return_progress: Whether a stream says how far the prompt has been read.
        most_ms: A text that takes longer ends at its next new line; 0: never.
        n_indent: A text ends at a line that is indented less.
        ignore_eos: Whether the model cannot end a text.
        lora: The adapters that were asked for, as the request says it.
        numbers: What has no effect here and is only repeated in the answer.
        ping_interval: As in the settings, for this request. None: as there.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, body: dict[str, Any], settings: Settings, sizes: Sizes, vocab: Vocab) -> None:
        fields = Fields(body)
        for name in _NOT_HERE:
            if body.get(name):
                message = f"{name} cannot be used here: a grammar holds from the first token on"
                raise APIError(501, message, param=name, code="unsupported")
        self.stream = fields.flag("stream")
        self.n_probs = fields.integer(fields.first("n_probs", "logprobs"), 0, MOST_LOGPROBS) or 0
        self.post_sampling = fields.flag("post_sampling_probs")
        self.return_tokens = fields.flag("return_tokens")
        self.timings_per_token = fields.flag("timings_per_token")
        self.return_progress = fields.flag("return_progress")
        self.response_fields = fields.texts("response_fields")
        self.n = fields.integer(fields.first("n_cmpl", "n"), 1, MOST_TEXTS) or 1
        self.most_ms = max(0, fields.integer("t_max_predict_ms", -1) or 0)
        self.n_indent = fields.integer("n_indent", 0, _MOST) or 0
        self.ignore_eos = fields.flag("ignore_eos")
        self.numbers = {
            "n_keep": fields.integer("n_keep", -1, _MOST) or 0,
            "n_discard": fields.integer("n_discard", 0, _MOST) or 0,
        }
        for name, low in (("id_slot", -1), ("n_cache_reuse", 0)):
            fields.integer(name, low, _MOST)
        fields.flag("backend_sampling")
        interval = fields.number("sse_ping_interval")
        self.ping_interval = None if interval is None else max(0.0, float(interval))
        self.arguments = _arguments(body, fields, settings, sizes, vocab)
        seed: int | None = self.arguments.pop("seed", None)
        self.seed = new_seed() if seed is None else seed
        self.lora = list(body.get("lora") or [])
        limit: int | None = self.arguments["max_tokens"]
        self.n_predict = -1 if limit is None else limit
        if self.n_predict == 0:
            # A prompt is computed when a token is wanted after it.
            self.arguments["max_tokens"] = 1
        if self.n_probs and not self.post_sampling:
            self.arguments["logprobs"] = self.n_probs

    def seed_of(self, index: int) -> int:
        """The seed of one of a prompt's texts."""
        return (self.seed + index) % _N_SEEDS

    @property
    def watched(self) -> bool:
        """Whether something has to look at each token."""
        return bool(self.most_ms or self.n_indent or (self.n_probs and self.post_sampling))


def _arguments(body: dict[str, Any], fields: Fields, settings: Settings, sizes: Sizes, vocab: Vocab) -> dict[str, Any]:
    own = {name: value for name, value in body.items() if name not in ("logit_bias", "n")}
    if isinstance(body.get("samplers"), str):
        own["samplers"] = _samplers(body["samplers"])
    if body.get("json_schema") == {}:
        own["json_schema"] = {"type": "object"}
    arguments = with_effect(sampling_arguments(Fields(own), settings, sizes))
    arguments |= form_arguments(Fields(own))
    biases = _biases(fields, vocab) | arguments.get("logit_bias", {})
    if biases:
        arguments["logit_bias"] = biases
    return arguments


def _samplers(letters: str) -> list[str]:
    unknown = [letter for letter in letters if letter not in SAMPLER_LETTERS]
    if unknown:
        known = "".join(SAMPLER_LETTERS)
        raise invalid("samplers", f"samplers: there is no sampler {unknown[0]!r}; the letters are {known}")
    return [SAMPLER_LETTERS[letter] for letter in letters]


def _biases(fields: Fields, vocab: Vocab) -> dict[int | str, float]:
    """Pairs or an object; a text stands for all of its tokens, and false forbids them."""
    value = fields.get("logit_bias")
    if value is None:
        return {}
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise fields.wrong("logit_bias", "a list of pairs of a token and a number, or an object of these")
    result: dict[int | str, float] = {}
    for token, bias in pairs:
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

"""What a completion is in llama-server's own words."""

from __future__ import annotations

import math
from typing import Any

from pyllm.engine import Request
from pyllm.params import SAMPLER_ORDER, SamplingParams
from pyllm.server.logprobs import token_entries
from pyllm.server.native.protocol import NativeAsk
from pyllm.server.native.watch import Watch
from pyllm.server.progress import Progress
from pyllm.server.timings import timings_of, timings_so_far
from pyllm.types import Choice, Chunk, Completion

# What llama-server shows for "any".
RANDOM_SEED = 2**32 - 1
_FIELDS = (
    "temperature",
    "dynatemp_range",
    "dynatemp_exponent",
    "top_k",
    "top_p",
    "min_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "typical_p",
    "repeat_last_n",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "adaptive_target",
    "adaptive_decay",
    "min_keep",
)


class NativeAnswer:
    """One text of a request.

    Args:
        index: Its number among the texts of the request.
        alias: The name of the model.
        ask: The request.
        watch: What looked at its tokens, if something did.
    """

    def __init__(self, index: int, alias: str, ask: NativeAsk, watch: Watch | None) -> None:
        self.index = index
        self.alias = alias
        self.ask = ask
        self.watch = watch
        self._n_tokens = 0
        self._n_characters = 0

    def piece(self, job: Request, chunk: Chunk) -> dict[str, Any] | None:
        """What a chunk of a stream says; None where that is nothing."""
        if self.ask.n_predict == 0 or not (chunk.tokens or chunk.text):
            return None
        first = self._n_tokens
        self._n_tokens += len(chunk.tokens)
        text = self._cut(chunk.text, self._n_characters)
        self._n_characters += len(chunk.text)
        answer = self._part(job, text, chunk.tokens)
        if self.ask.timings_per_token:
            answer["timings"] = timings_so_far(job, self._n_tokens)
        if self.ask.n_probs:
            if self.watch is not None and self.ask.post_sampling:
                entries = self.watch.entries[first : self._n_tokens]
            else:
                entries = [] if chunk.logprobs is None else token_entries(job.completion_request.vocab, chunk.logprobs)
            answer["completion_probabilities"] = entries
        return answer

    def progress(self, job: Request, progress: Progress) -> dict[str, Any]:
        """What a stream says while the prompt is read."""
        return self._part(job, "", ()) | progress.field()

    def _part(self, job: Request, text: str, tokens: tuple[int, ...]) -> dict[str, Any]:
        return {
            "index": self.index,
            "content": text,
            "tokens": list(tokens),
            "stop": False,
            "id_slot": slot_of(job),
            "tokens_predicted": self._n_tokens,
            "tokens_evaluated": len(job.completion_request.ids),
        }

    def whole(self, job: Request, completion: Completion) -> dict[str, Any]:
        """What the text is when it is complete; of a stream the last event."""
        (choice,) = completion.choices
        request, stream = job.completion_request, self.ask.stream
        text, tokens = self._cut(choice.text, 0), list(choice.tokens)
        probabilities = self._probabilities(job, choice)
        if self.ask.n_predict == 0:
            text, tokens, probabilities = "", [], []
        answer: dict[str, Any] = {
            "index": self.index,
            "content": "" if stream else text,
            "tokens": tokens if self.ask.return_tokens and not stream else [],
            "id_slot": slot_of(job),
            "stop": True,
            "model": self.alias,
            "tokens_predicted": len(tokens),
            "tokens_evaluated": len(request.ids),
            "generation_settings": self._settings(job),
            "prompt": request.vocab.detokenize(request.ids, unparse_special=True),
            "has_new_line": "\n" in text,
            "truncated": self._is_truncated(choice),
            "stop_type": self._stop_type(choice),
            "stopping_word": choice.stop or "",
            # The last token was chosen and never read.
            "tokens_cached": len(request.ids) + max(0, len(tokens) - 1),
            "timings": timings_of([completion], n_generated=len(tokens)),
        }
        if probabilities and not stream:
            answer["completion_probabilities"] = probabilities
        return selected(answer, self.ask.response_fields)

    def _cut(self, text: str, before: int) -> str:
        if self.watch is None or self.watch.cut is None:
            return text
        return text[: max(0, self.watch.cut - before)]

    def _probabilities(self, job: Request, choice: Choice) -> list[dict[str, Any]]:
        if not self.ask.n_probs:
            return []
        if not self.ask.post_sampling:
            return [] if choice.logprobs is None else token_entries(job.completion_request.vocab, choice.logprobs)
        assert self.watch is not None
        if choice.stop is None:
            return self.watch.entries
        # Those of the stop string are no part of the text.
        size, kept = len(choice.text.encode("utf-8", "replace")), []
        for entry in self.watch.entries:
            if size <= 0:
                break
            kept.append(entry)
            size -= len(entry["bytes"])
        return kept

    def _is_truncated(self, choice: Choice) -> bool:
        most = self.ask.arguments["max_tokens"]
        return choice.finish_reason == "length" and (most is None or len(choice.tokens) < most)

    def _stop_type(self, choice: Choice) -> str:
        if choice.finish_reason == "length" or (self.watch is not None and self.watch.limited):
            return "limit"
        if choice.stop is not None:
            return "word"
        return "eos" if choice.finish_reason == "stop" else "none"

    def _settings(self, job: Request) -> dict[str, Any]:
        request, ask = job.completion_request, self.ask
        params = request.params
        common = described(params, seed=request.seed, n_predict=ask.n_predict, **ask.numbers)
        biases = params.logit_bias or {}
        return common | {
            "dry_sequence_breakers": list(params.dry_sequence_breakers),
            "stop": list(request.stop),
            "ignore_eos": ask.ignore_eos,
            "stream": ask.stream,
            # JSON has no infinity: null is what llama-server writes for it.
            "logit_bias": [
                {"bias": None if math.isinf(bias) else bias, "token": token} for token, bias in biases.items()
            ],
            "n_probs": ask.n_probs,
            "grammar": _grammar(params),
            "grammar_lazy": False,
            "grammar_triggers": [],
            "preserved_tokens": [],
            "timings_per_token": ask.timings_per_token,
            "post_sampling_probs": ask.post_sampling,
            "lora": ask.lora,
        }


def described(
    params: SamplingParams, *, seed: int = RANDOM_SEED, n_predict: int = -1, n_keep: int = 0, n_discard: int = 0
) -> dict[str, Any]:
    """Parameters of sampling by llama-server's names, with all that it shows besides."""
    return {
        "seed": seed,
        **{name: getattr(params, name) for name in _FIELDS},
        "max_tokens": n_predict,
        "n_predict": n_predict,
        "n_keep": n_keep,
        "n_discard": n_discard,
        "ignore_eos": False,
        "stream": True,
        "n_probs": 0,
        "chat_format": "Content-only",
        "reasoning_format": "none",
        "reasoning_in_content": False,
        "generation_prompt": "",
        "samplers": list(SAMPLER_ORDER if params.samplers is None else params.samplers),
        "speculative.types": "none",
        "timings_per_token": False,
        "post_sampling_probs": False,
        "backend_sampling": False,
        "lora": [],
    }


def selected(answer: dict[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    """The fields that were asked for; a path with slashes reaches into objects. No paths: all."""
    if not paths:
        return answer
    result = {}
    for path in paths:
        value: Any = answer
        for key in path.split("/"):
            if not isinstance(value, dict) or key not in value:
                break
            value = value[key]
        else:
            result[path] = value
    return result


def slot_of(job: Request) -> int:
    """The slot where a text is computed; -1 where it has been in none."""
    return job.sequences[0].slot


def _grammar(params: SamplingParams) -> str:
    grammar = params.grammar
    if grammar is None or isinstance(grammar, str):
        return grammar or ""
    return str(getattr(grammar, "text", ""))

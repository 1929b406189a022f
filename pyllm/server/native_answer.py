"""Completions in llama-server's format: answers, settings, and probabilities after sampling."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.sampler import Chain
from pyllm.core.vocab import Vocab
from pyllm.engine import Request
from pyllm.params import SAMPLER_ORDER, SamplingParams, sampling_numbers
from pyllm.sampling import accept_prompt
from pyllm.server.active_request import Progress, timings_of, timings_so_far
from pyllm.server.state import ServerState
from pyllm.types import Choice, Chunk, Completion, Logprobs

# What llama-server shows for "any".
RANDOM_SEED = 2**32 - 1


@dataclass(kw_only=True)
class Shown:
    """Fields of a request that its answer depends on, or repeats.

    Attributes:
        max_tokens: Most tokens of a text. None: as many as there is room for.
        n_predict: The same as the answer says it; -1: no limit of its own. 0: the prompt is only computed.
        stream: Whether the texts are sent as they come.
        n_probs: How many tokens to name for each place.
        post_sampling: Whether their probabilities are those that the samplers have left.
        return_tokens: Whether the answer has the token ids.
        response_fields: The fields that are wanted; empty: all.
        timings_per_token: Whether every piece of a stream has the timings.
        ignore_eos: Whether the model cannot end a text.
        lora: The adapters that were asked for, as the request says it.
        numbers: What has no effect here and is only repeated in the answer.
    """

    max_tokens: int | None
    n_predict: int
    stream: bool = False
    n_probs: int = 0
    post_sampling: bool = False
    return_tokens: bool = False
    response_fields: Sequence[str] = ()
    timings_per_token: bool = False
    ignore_eos: bool = False
    lora: Sequence[Any] = ()
    numbers: tuple[int, int] = (0, 0)


class NativeAnswer:
    """One text of a request.

    Args:
        index: Its number among the texts of the request.
        alias: The name of the model.
        shown: What of the request the answer depends on.
        watch: What looked at its tokens, if something did.
    """

    def __init__(self, index: int, alias: str, shown: Shown, watch: Watch | None) -> None:
        self.index = index
        self.alias = alias
        self.shown = shown
        self.watch = watch
        self._n_tokens = 0
        self._n_characters = 0

    def piece(self, job: Request, chunk: Chunk) -> dict[str, Any] | None:
        """The event for a chunk; None where it has no text and no tokens."""
        if self.shown.n_predict == 0 or not (chunk.tokens or chunk.text):
            return None
        first = self._n_tokens
        self._n_tokens += len(chunk.tokens)
        text = self._cut(chunk.text, self._n_characters)
        self._n_characters += len(chunk.text)
        answer = self._part(job, text, chunk.tokens)
        if self.shown.timings_per_token:
            answer["timings"] = timings_so_far(job, self._n_tokens)
        if self.shown.n_probs:
            if self.watch is not None and self.shown.post_sampling:
                entries = self.watch.entries[first : self._n_tokens]
            else:
                entries = [] if chunk.logprobs is None else token_entries(job.completion_request.vocab, chunk.logprobs)
            answer["completion_probabilities"] = entries
        return answer

    def progress(self, job: Request, progress: Progress) -> dict[str, Any]:
        """The event for prefill progress."""
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
        """The whole answer; in a stream, its last event."""
        (choice,) = completion.choices
        request, stream = job.completion_request, self.shown.stream
        text, tokens = self._cut(choice.text, 0), list(choice.tokens)
        probabilities = self._probabilities(job, choice)
        if self.shown.n_predict == 0:
            text, tokens, probabilities = "", [], []
        answer: dict[str, Any] = {
            "index": self.index,
            "content": "" if stream else text,
            "tokens": tokens if self.shown.return_tokens and not stream else [],
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
        return selected(answer, self.shown.response_fields)

    def _cut(self, text: str, before: int) -> str:
        if self.watch is None or self.watch.cut is None:
            return text
        return text[: max(0, self.watch.cut - before)]

    def _probabilities(self, job: Request, choice: Choice) -> list[dict[str, Any]]:
        if not self.shown.n_probs:
            return []
        if not self.shown.post_sampling:
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
        most = self.shown.max_tokens
        return choice.finish_reason == "length" and (most is None or len(choice.tokens) < most)

    def _stop_type(self, choice: Choice) -> str:
        if choice.finish_reason == "length" or (self.watch is not None and self.watch.limited):
            return "limit"
        if choice.stop is not None:
            return "word"
        return "eos" if choice.finish_reason == "stop" else "none"

    def _settings(self, job: Request) -> dict[str, Any]:
        request, shown = job.completion_request, self.shown
        params = request.params
        common = described(
            params, seed=request.seed, n_predict=shown.n_predict, n_keep=shown.numbers[0], n_discard=shown.numbers[1]
        )
        biases = params.logit_bias or {}
        return common | {
            "dry_sequence_breakers": list(params.dry_sequence_breakers),
            "stop": list(request.stop),
            "ignore_eos": shown.ignore_eos,
            "stream": shown.stream,
            # JSON has no infinity: null is what llama-server writes for it.
            "logit_bias": [
                {"bias": None if math.isinf(bias) else bias, "token": token} for token, bias in biases.items()
            ],
            "n_probs": shown.n_probs,
            "grammar": _grammar(params),
            "grammar_lazy": False,
            "grammar_triggers": [],
            "preserved_tokens": [],
            "timings_per_token": shown.timings_per_token,
            "post_sampling_probs": shown.post_sampling,
            "lora": list(shown.lora),
        }


def described(
    params: SamplingParams, *, seed: int = RANDOM_SEED, n_predict: int = -1, n_keep: int = 0, n_discard: int = 0
) -> dict[str, Any]:
    """Parameters of sampling by llama-server's names, with all that it shows besides."""
    return {
        "seed": seed,
        **{name: getattr(params, name) for name in sampling_numbers()},
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


def selected(answer: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
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


def verbose(state: ServerState, job: Request, completion: Completion, *, wanted: bool) -> dict[str, Any]:
    """The field ``__verbose`` of an answer: prompt, text and settings as they were, of the first of its texts.

    Args:
        state: The server's.
        job: The request.
        completion: What came of it.
        wanted: Whether the request asks for it; where neither it nor the settings do, there is nothing.
    """
    if not (wanted or state.settings.verbose):
        return {}
    most = job.completion_request.max_tokens
    shown = Shown(max_tokens=most, n_predict=-1 if most is None else most, return_tokens=True)
    answer = NativeAnswer(0, state.alias, shown, None)
    return {"__verbose": answer.whole(job, replace(completion, choices=completion.choices[:1]))}


def token_entries(vocab: Vocab, logprobs: Logprobs) -> list[dict[str, Any]]:
    """One object for each token, with the likeliest tokens at its place.

    Args:
        vocab: The tokenizer of the model.
        logprobs: What was noted.

    Returns:
        list: Objects with ``id``, ``token``, ``bytes``, ``logprob`` and ``top_logprobs``, of which each has the first
        four too, the likeliest first. ``logprob`` is None for the first token of a prompt, which nothing predicts.
        ``token`` is the text; of bytes that are no text by themselves, what is left of it.
    """
    return [
        {
            **_entry(vocab, token, value),
            "top_logprobs": [_entry(vocab, other, its_value) for other, its_value in top],
        }
        for token, value, top in zip(logprobs.ids, logprobs.token_logprobs, logprobs.top_ids, strict=True)
    ]


def _entry(vocab: Vocab, token: int, logprob: float | None) -> dict[str, Any]:
    piece = vocab.token_to_piece(token)
    return {"id": token, "token": piece.decode("utf-8", "ignore"), "bytes": list(piece), "logprob": logprob}


class Watch:
    """A stopping criterion for one text.

    Args:
        vocab: The tokenizer of the model.
        chain: Samplers as those of the text, to ask them for probabilities; no text may have them. None: nothing is
            asked.
        n_probs: How many tokens to name for each place.
        most_ms: A text that takes longer ends at its next new line; 0: never.
        n_indent: A text ends at a line that is indented less; its indentation is the last of it.

    Attributes:
        entries: For each token an object as llama-server makes them.
        limited: Whether a rule of this has ended the text.
        cut: How many characters of the text stay, where the rule of indentation has ended it.
    """

    def __init__(
        self, vocab: Vocab, *, chain: Chain | None = None, n_probs: int = 0, most_ms: int = 0, n_indent: int = 0
    ) -> None:
        self.vocab = vocab
        self.chain = chain
        self.n_probs = n_probs
        self.most_ms = most_ms
        self.n_indent = n_indent
        self.entries: list[dict[str, Any]] = []
        self.limited = False
        self.cut: int | None = None
        self._started: float | None = None
        # Blanks at the beginning of the line so far; None behind them.
        self._indent: int | None = None
        self._text = b""

    def __call__(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> bool:
        token, now = int(ids[-1]), time.perf_counter()
        if self._started is None:
            self._started = now
            if self.chain is not None:
                accept_prompt(self.chain, ids[:-1])
        if self.chain is not None:
            self.entries.append(self._entry(self.chain, token, logits))
            self.chain.accept(token)
        piece = self.vocab.token_to_piece(token, special=False)
        late = bool(self.most_ms) and b"\n" in piece and 1000 * (now - self._started) > self.most_ms
        self.limited = (bool(self.n_indent) and self._is_out(piece)) or late
        return self.limited

    def _is_out(self, piece: bytes) -> bool:
        """Whether a line begins too far to the left; an empty one does."""
        for i, byte in enumerate(piece):
            if self._indent is not None:
                if byte in b" \t":
                    self._indent += 1
                elif self._indent < self.n_indent:
                    self.cut = len((self._text + piece[:i]).decode("utf-8", "replace"))
                    return True
                else:
                    self._indent = None
            if byte == ord("\n"):
                self._indent = 0
        self._text += piece
        return False

    def _entry(self, chain: Chain, token: int, logits: NDArray[np.float32]) -> dict[str, Any]:
        ids, _, probabilities, selected = chain.apply(logits)
        if len(ids) > 1 and not probabilities.any():
            # The likeliest was taken without asking how likely it is.
            probabilities = (ids == selected).astype(np.float32)
        best = np.argsort(-probabilities, kind="stable")[: self.n_probs]
        named = zip(ids[best].tolist(), probabilities[best].tolist(), strict=True)
        own = probabilities[ids == token]
        return {
            **self._named(token, float(own[0]) if len(own) else 0.0),
            "top_probs": [self._named(one, prob) for one, prob in named if prob > 0],
        }

    def _named(self, token: int, prob: float) -> dict[str, Any]:
        piece = self.vocab.token_to_piece(token)
        return {"id": token, "token": piece.decode("utf-8", "ignore"), "bytes": list(piece), "prob": prob}

"""A sequence of a batch: its sampler state, its tokens and its text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.logprobs import LogprobsCollector
from pyllm.completion.pieces import Finished, TextDelta, finished, noted
from pyllm.completion.request import CompletionRequest
from pyllm.core.rows import Row
from pyllm.sampling import accept_prompt
from pyllm.types import FinishReason


class SampledSequence:
    """A sequence whose tokens :func:`pyllm.core.rows.sample_rows` samples.

    Args:
        request: What was asked for.
        index: Its number in the request.
    """

    def __init__(self, request: CompletionRequest, index: int) -> None:
        chain = request.first_chain if index == 0 else request.chain(index)
        sampler = request.sampler if chain is None else chain
        assert sampler is not None
        if chain is not None:
            accept_prompt(chain, request.ids)
        self.request = request
        self.index = index
        self.row = Row(sampler, stop=request.stop, special=request.special)
        self.collector = (
            None if request.records is None else LogprobsCollector(request.vocab, request.records, request.special)
        )
        self.parts = [request.prompt_text]
        self.tokens: list[int] = []
        self.n_taken = 0
        self.reason: FinishReason | None = None
        self.limit = request.limit

    def sampled(self, token: int | None, logits: NDArray[np.float32] | None) -> None:
        """Note a sampled token.

        Args:
            token: Its id; None where the model has ended the sequence.
            logits: The logits of the model, where log-probabilities are collected.
        """
        if token is not None:
            self.tokens.append(token)
            if self.collector is not None:
                self.collector.add(token, logits)
        if self.row.finish_reason is not None:
            self.reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.reason = "length"

    def delta(self, *, ended: bool = True) -> TextDelta | None:
        """The text that has become final since the last call; the prompt comes first where it is echoed.

        Args:
            ended: Whether this may be the last delta. False: another one follows, even where the sequence has ended.
        """
        # The engine may go on meanwhile in another thread: it writes tokens before text, and the reason last.
        reason = self.reason if ended else None
        first = self.parts[0] if len(self.parts) == 1 else ""
        text = self.row.stream.take(all=reason is not None)
        if reason is None and not first and not text:
            return None
        self.parts.append(text)
        if self.collector is not None and self.row.stream.stopped is not None:
            self.collector.cut(sum(map(len, self.parts)))
        fresh = self.row.tokens_from(self.n_taken)
        self.n_taken += len(fresh)
        return TextDelta(self.index, first + text, fresh, reason, noted(self.request, self.collector))

    def finished(self) -> Finished:
        """The sequence, when it is complete and all of its text has been taken."""
        assert self.reason is not None
        stopped = self.row.stream.stopped
        return finished(
            self.request,
            self.index,
            "".join(self.parts),
            tuple(self.tokens),
            self.reason,
            stopped,
            self.collector,
            complete=self.reason == "stop" and self.row.finish_reason == "stop" and stopped is None,
        )

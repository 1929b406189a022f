"""A text that is one of many in a batch: what selects its tokens, and what has come of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.logprobs import Recorder
from pyllm.completion.pieces import Finished, Piece, finished, noted
from pyllm.completion.request import CompletionRequest
from pyllm.core.rows import Row
from pyllm.sampling import accept_prompt
from pyllm.types import FinishReason


class RowText:
    """A text in the making, chosen by :func:`pyllm.core.rows.sample_rows`.

    Args:
        request: What was asked for.
        index: Which of its texts.
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
        self.recorder = None if request.records is None else Recorder(request.vocab, request.records, request.special)
        self.text = [request.prompt_text]
        self.tokens: list[int] = []
        self.since = 0
        self.reason: FinishReason | None = None
        self.limit = request.limit

    def chose(self, token: int | None, logits: NDArray[np.float32] | None) -> None:
        """Note what was chosen.

        Args:
            token: Its id; None where the model has ended the text.
            logits: What the model said, where it is recorded.
        """
        if token is not None:
            self.tokens.append(token)
            if self.recorder is not None:
                self.recorder.add(token, logits)
        if self.row.finish_reason is not None:
            self.reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.reason = "length"

    def piece(self, *, ended: bool = True) -> Piece | None:
        """What has become final since the last time; the prompt comes first where it is echoed.

        Args:
            ended: Whether it may be the last one. Otherwise there is another one, even where the text has ended.
        """
        # An engine may go on meanwhile, in another thread: tokens come before their text, and the reason at last.
        reason = self.reason if ended else None
        first = self.text[0] if len(self.text) == 1 else ""
        text = self.row.stream.take(all=reason is not None)
        if reason is None and not first and not text:
            return None
        self.text.append(text)
        if self.recorder is not None and self.row.stream.stopped is not None:
            self.recorder.cut(sum(map(len, self.text)))
        fresh = self.row.tokens_from(self.since)
        self.since += len(fresh)
        return Piece(self.index, first + text, fresh, reason, noted(self.request, self.recorder))

    def finished(self) -> Finished:
        """The text, when it is complete and all of it has been taken."""
        assert self.reason is not None
        stopped = self.row.stream.stopped
        return finished(
            self.request,
            self.index,
            "".join(self.text),
            tuple(self.tokens),
            self.reason,
            stopped,
            self.recorder,
            complete=self.reason == "stop" and self.row.finish_reason == "stop" and stopped is None,
        )

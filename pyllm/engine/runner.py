"""Carries out what the scheduler decided: the only part of the engine that touches the context."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.rows import sample_rows
from pyllm.engine.prompt_record import mark_scored, note_scored
from pyllm.engine.texts import Text

if TYPE_CHECKING:
    from pyllm.engine.adapters import AdapterSet
    from pyllm.engine.drafting import Draft


class Runner:
    """Decodes and samples many texts at once.

    Args:
        context: The context; nobody else uses it.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._places = np.empty(0, np.intp)  # of the last batch: which row of logits a token has
        self._adapters: object = ()

    def decode(self, rows: list[tuple[Text, int]], drafts: dict[Text, Draft] | None = None) -> list[tuple[Text, int]]:
        """Compute tokens of texts.

        Args:
            rows: Texts, and how many of their tokens. They have the same set of adapters.
            drafts: What is computed behind the newest tokens of some of them, with the logits of every token.

        Returns:
            list: The texts of which all tokens are computed now, and where their logits are in the batch.

        Raises:
            NoKVSlotError: There is no room; nothing was computed.
        """
        parts: list[NDArray[np.int32]] = []
        positions: list[NDArray[np.int32]] = []
        ready: list[tuple[Text, int]] = []
        filled = 0
        # Where each sequence has a cache of its own, llama.cpp computes neighbours at once.
        rows = sorted(rows, key=lambda row: row[0].task.seq or 0)
        for text, n in rows:
            start = text.task.n_computed
            parts.append(text.task.ids[start : start + n])
            positions.append(np.arange(start, start + n, dtype=np.int32))
            filled += n
            if n == text.task.n_left:
                ready.append((text, filled - 1))
        owners = list(rows)
        for text, draft in (drafts or {}).items():
            start, n = len(text.task.ids), len(draft.tokens)
            parts.append(draft.tokens)
            positions.append(np.arange(start, start + n, dtype=np.int32))
            owners.append((text, n))
            draft.index = filled
            filled += n
        outputs = np.zeros(filled, bool)
        outputs[[index for _, index in ready]] = True
        outputs[filled - sum(n for _, n in owners[len(rows) :]) :] = True
        mark_scored(rows, outputs)
        self._use(rows[0][0])
        self.context.decode(
            Batch.from_arrays(
                np.concatenate(parts),
                pos=np.concatenate(positions),
                seq_ids=np.repeat([text.task.seq for text, _ in owners], [n for _, n in owners]),
                outputs=outputs,
            )
        )
        self._places = np.cumsum(outputs) - 1
        note_scored(rows, outputs, self.context)
        return ready

    def _use(self, text: Text) -> None:
        """Compute with the adapters of a text. llama.cpp makes its graphs anew, so not without need."""
        if text.task.adapters != self._adapters:
            self.context.set_adapters(cast("AdapterSet", text.task.adapters))
            self._adapters = text.task.adapters

    def sample(self, ready: list[tuple[Text, int]]) -> None:
        """Choose a token for each text; what fails is noted in its ``error``."""
        raws: dict[Text, NDArray[np.float32]] = {}
        seen: dict[Text, NDArray[np.float32]] = {}
        chosen: list[tuple[Text, int]] = []
        for text, index in ready:
            if text.request.limit == 0:
                text.reason = "length"
                continue
            if text.watched:
                try:
                    seen[text] = self.context.logits[self._places[index]]
                    raws[text] = text.edit(seen[text])
                except Exception as error:
                    text.error = error
                    continue
            chosen.append((text, index))
        try:
            tokens = sample_rows(self.context, [text.row for text, _ in chosen], [index for _, index in chosen])
        except Exception:
            # A sampler of the caller's was closed, say: nothing was chosen. Who is to blame is found one by one.
            tokens = [self._token(text, index) for text, index in chosen]
        for (text, _), token in zip(chosen, tokens, strict=True):
            if text.error is not None:
                continue
            if text.row.error is not None:
                text.error = text.row.error
            elif token is None:
                text.ended(raws.get(text))
            else:
                try:
                    text.took(token, raws.get(text), seen.get(text))
                except Exception as error:
                    text.error = error

    def _token(self, text: Text, index: int) -> int | None:
        try:
            return sample_rows(self.context, [text.row], [index])[0]
        except Exception as error:
            text.error = error
            return None

"""Carries out what the scheduler decided: the only part of the engine that touches the context."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.rows import sample_rows
from pyllm.engine.texts import Text


class Runner:
    """Decodes and samples many texts at once.

    Args:
        context: The context; nobody else uses it.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    def decode(self, rows: list[tuple[Text, int]]) -> list[tuple[Text, int]]:
        """Compute tokens of texts.

        Args:
            rows: Texts, and how many of their tokens.

        Returns:
            list: The texts of which all tokens are computed now, and where their logits are in the batch.

        Raises:
            NoKVSlotError: There is no room; nothing was computed.
        """
        parts: list[NDArray[np.int32]] = []
        positions: list[NDArray[np.int32]] = []
        ready: list[tuple[Text, int]] = []
        filled = 0
        for text, n in rows:
            start = text.task.n_computed
            parts.append(text.task.ids[start : start + n])
            positions.append(np.arange(start, start + n, dtype=np.int32))
            filled += n
            if n == text.task.n_left:
                ready.append((text, filled - 1))
        outputs = np.zeros(filled, bool)
        outputs[[index for _, index in ready]] = True
        self.context.decode(
            Batch.from_arrays(
                np.concatenate(parts),
                pos=np.concatenate(positions),
                seq_ids=np.repeat([text.task.seq for text, _ in rows], [n for _, n in rows]),
                outputs=outputs,
            )
        )
        return ready

    def sample(self, ready: list[tuple[Text, int]]) -> None:
        """Choose a token for each text; what fails is noted in its ``error``."""
        raws: dict[Text, NDArray[np.float32]] = {}
        seen: dict[Text, NDArray[np.float32]] = {}
        chosen: list[tuple[Text, int]] = []
        for place, (text, index) in enumerate(ready):
            if text.watched:
                try:
                    seen[text] = self.context.logits[place]
                    raws[text] = text.edit(seen[text])
                except Exception as error:
                    text.error = error
                    continue
            chosen.append((text, index))
        tokens = sample_rows(self.context, [text.row for text, _ in chosen], [index for _, index in chosen])
        for (text, _), token in zip(chosen, tokens, strict=True):
            if text.row.error is not None:
                text.error = text.row.error
            elif token is None:
                text.reason = "stop"
            else:
                try:
                    text.took(token, raws.get(text), seen.get(text))
                except Exception as error:
                    text.error = error

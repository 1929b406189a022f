"""Carries out what the scheduler decided: the only part of the engine that touches the context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.rows import decode_rows, sample_rows
from pyllm.engine.texts import Text

if TYPE_CHECKING:
    from pyllm.engine.adapters import AdapterSet
    from pyllm.engine.drafting import Draft


@dataclass(slots=True)
class Ready:
    """Texts of which all tokens are computed, so that the next one of each can be chosen.

    Attributes:
        texts: The texts.
        indices: For each the index in the batch of the token whose logits it goes on from.
        places: For each the row of ``context.logits`` that has these.
        tokens: What was chosen for each, None for one that has ended or failed; or None: nothing was chosen so far.
    """

    texts: list[Text] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    tokens: list[int | None] | None = None

    def add(self, text: Text, index: int, place: int) -> None:
        """One more."""
        self.texts.append(text)
        self.indices.append(index)
        self.places.append(place)


class Runner:
    """Decodes and samples many texts at once.

    Args:
        context: The context; nobody else uses it.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._batch = Batch(context.n_batch)
        self._adapters: object = ()

    def decode(self, rows: list[tuple[Text, int]], drafts: dict[Text, Draft] | None = None) -> Ready:
        """Compute tokens of texts, and choose the next ones where Python has no part in that.

        Args:
            rows: Texts, and how many of their tokens. They have the same set of adapters.
            drafts: What is computed behind the newest tokens of some of them, with the logits of every token.

        Returns:
            Ready: The texts of which all tokens are computed now; they have not been told yet.

        Raises:
            NoKVSlotError: There is no room; nothing was computed.
        """
        # Where each sequence has a cache of its own, llama.cpp computes neighbours at once.
        if len(rows) > 1:
            rows = sorted(rows, key=lambda row: row[0].seq)
        batch, ready = self._batch.clear(), Ready()
        scored: list[tuple[Text, int, int]] = []
        for text, n in rows:
            task = text.task
            start, is_ready = task.n_computed, n == task.n_left
            if text.record is not None and task.scores:
                wanted = text.record.wanted(start, n)
                scored.append((text, n, batch.n_outputs))
                flags = np.zeros(n, bool)
                flags[wanted] = True
                flags[-1] |= is_ready
                batch.add_sequence(task.ids[start : start + n], start, text.seq, outputs=flags)
            elif n == 1:
                batch.add(task.ids[start], start, text.seq, output=is_ready)
            else:
                outputs: Literal["last", "none"] = "last" if is_ready else "none"
                batch.add_sequence(task.ids[start : start + n], start, text.seq, outputs=outputs)
            if is_ready:
                ready.add(text, len(batch) - 1, batch.n_outputs - 1)
        for text, draft in (drafts or {}).items():
            draft.index, draft.place = len(batch), batch.n_outputs
            batch.add_sequence(draft.tokens, len(text.task.ids), text.seq, outputs="all")
        self._use(rows[0][0])
        self._compute(batch, ready)
        for text, n, place in scored:
            assert text.record is not None
            text.record.note(text.task.n_computed, n, self.context, place)
        return ready

    def _compute(self, batch: Batch, ready: Ready) -> None:
        """Compute a batch, and choose in the same call unless Python looks at logits, or something is wrong there."""
        if not ready.texts or any(text.watched or text.limit == 0 for text in ready.texts):
            self.context.decode(batch)
            return
        before = self.context.decode_id
        try:
            ready.tokens = decode_rows(self.context, batch, [text.row for text in ready.texts], ready.indices)
        except Exception:
            if self.context.decode_id != before:
                raise
            # A sampler of the caller's was closed, say. Nothing was computed; the others shall not know.
            self.context.decode(batch)

    def _use(self, text: Text) -> None:
        """Compute with the adapters of a text. llama.cpp makes its graphs anew, so not without need."""
        if text.task.adapters != self._adapters:
            self.context.set_adapters(cast("AdapterSet", text.task.adapters))
            self._adapters = text.task.adapters

    def sample(self, ready: Ready) -> None:
        """Choose a token for each text, where that has not been done; what fails is noted in its ``error``."""
        if ready.tokens is not None:
            for text, token in zip(ready.texts, ready.tokens, strict=True):
                self._tell(text, token, None, None)
            return
        raws: dict[Text, NDArray[np.float32]] = {}
        seen: dict[Text, NDArray[np.float32]] = {}
        chosen: list[tuple[Text, int]] = []
        for text, index, place in zip(ready.texts, ready.indices, ready.places, strict=True):
            if text.limit == 0:
                text.reason = "length"
                continue
            if text.watched:
                try:
                    seen[text] = self.context.logits[place]
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
            self._tell(text, token, raws.get(text), seen.get(text))
        # The frame of an error knows the one that called it, and views would keep the context from being closed.
        raws.clear()
        seen.clear()

    @staticmethod
    def _tell(text: Text, token: int | None, raw: NDArray[np.float32] | None, row: NDArray[np.float32] | None) -> None:
        """Tell a text what was chosen for it."""
        if text.error is not None:
            return
        if text.row.error is not None:
            text.error = text.row.error
        elif token is None:
            text.ended(raw)
        else:
            try:
                text.took(token, raw, row)
            except Exception as error:
                text.error = error

    def _token(self, text: Text, index: int) -> int | None:
        try:
            return sample_rows(self.context, [text.row], [index])[0]
        except Exception as error:
            text.error = error
            return None

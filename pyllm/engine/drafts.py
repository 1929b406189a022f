"""Makes the drafts of an engine: for which texts, how long, by whom.

Texts that are computed together fill a batch already, and a guess would take time from all of them. So drafts are made
only while few texts run: the rest of the processor would be idle then.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.core.speculative import DRAFT_TYPES, NGRAM_TYPES, Drafter
from pyllm.engine.drafting import Draft, Features, Seat
from pyllm.engine.runner import Ready, Runner
from pyllm.errors import InvalidArgumentError, NoKVSlotError
from pyllm.speculation.params import SpeculationParams, as_params
from pyllm.speculation.speculator import MTP, Speculator
from pyllm.types import Speculation

if TYPE_CHECKING:
    from pyllm.engine.cache import SequenceCache
    from pyllm.engine.texts import Text

_log = logging.getLogger("pyllm.engine")

# A draft model reads a prompt in portions of so many tokens, so that whoever comes meanwhile need not wait for it.
PORTION = 128


class Drafts:
    """Makes the drafts for the texts of an engine, in its thread.

    Args:
        context: The context that writes the texts.
        draft: The draft model, as a Llama takes it, or None.
        default: How to draft for requests that do not say it: True, False, a name, or SpeculationParams. None: with
            the draft model where there is one.
        up_to: While so many texts run, each has drafts; while more do, none has.
        n_gpu_layers: Of the draft model, where it is loaded here.

    Attributes:
        total: How drafts went, of all texts together.

    Raises:
        VocabularyMismatchError: The draft model has other tokens than the model.
        InvalidArgumentError: There is no such way to draft, or the model cannot check drafts.
    """

    def __init__(
        self,
        context: Context,
        draft: str | os.PathLike[str] | Model | None = None,
        default: Any = None,
        up_to: int = 1,
        *,
        n_gpu_layers: int | None = None,
    ) -> None:
        if isinstance(up_to, bool) or not isinstance(up_to, int) or up_to < 1:
            raise InvalidArgumentError(
                f"speculate_up_to must be an integer, at least 1, not {up_to!r}", param="speculate_up_to"
            )
        if draft is context.model:
            raise InvalidArgumentError("a model cannot draft for itself: it would only compute everything twice")
        self.context = context
        self.up_to = up_to
        self.total = Speculation(0, 0, 0)
        # Texts that have caches of their own are computed in several micro-batches, and in another order.
        self._apart = context.n_ctx_seq < context.n_ctx
        self.default: SpeculationParams | None = None
        self._options: dict[str, Any] = {"n_gpu_layers": n_gpu_layers}
        self._seats: list[Seat] = []
        self._features: Features | None = None
        self._checked: set[SpeculationParams] = set()
        self._checking = threading.Lock()
        self._model: Model | None = None
        if draft is None and default in (None, False):
            return
        self._refuse_memory()
        first = Speculator(context, draft, False, **self._options)
        self._seats.append(Seat(first))
        try:
            self._model = first.model
            self.default = first.params(self._model is not None if default is None else default)
            if self.default is not None:
                if first.reads_features(self.default):
                    self._features = Features(self._seats.pop())
                self._check(self.default)
                first.drafter_for(self.default)  # its errors are raised now
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free everything that was made here."""
        # The first one owns the draft model.
        for seat in reversed(self._seats):
            seat.speculator.close()
        self._seats.clear()
        if self._features is not None:
            self._features.seat.speculator.close()

    # ---- for any thread

    def params(self, value: Any) -> SpeculationParams | None:
        """What `speculative=` of a request says.

        Raises:
            InvalidArgumentError: It says nothing of the kind, or what cannot be done here.
        """
        if value is None:
            return self.default
        params = as_params(value, has_draft=self._model is not None)
        if params is not None:
            self._check(params)
        return params

    def _check(self, params: SpeculationParams) -> None:
        try:
            hash(params)
        except TypeError as cause:
            raise InvalidArgumentError(
                f"speculative: numbers and names are needed, not {params!r}", param="speculative"
            ) from cause
        with self._checking:
            if params in self._checked:
                return
            self._refuse_memory()
            types = params.types or ()
            if MTP in types and self._features is None:
                raise InvalidArgumentError(
                    f"{MTP!r} sees what is computed of all texts, which has to be known before there are any: make "
                    "the engine with speculative='mtp'"
                )
            ngrams = [name for name in types if name not in DRAFT_TYPES]
            # Without a draft model it touches no memory, and its errors are those of names and numbers.
            options = params.options() | {"types": ngrams or NGRAM_TYPES[0]}
            Drafter(self.context, **options)
            if len(self._checked) < 1000:
                self._checked.add(params)

    def _refuse_memory(self) -> None:
        model = self.context.model
        if model.is_recurrent or model.is_hybrid:
            raise InvalidArgumentError(
                "the memory of this model cannot forget its last tokens, which rejected drafts need; in a Llama "
                "copies of it are made for that, and an engine makes none: leave out speculative and draft"
            )

    # ---- for the thread of the engine

    def want(self, texts: Iterable[Text]) -> None:
        """Note in the task of each text how many drafted tokens it would have computed in the next step."""
        running = [text for text in texts if text.task.seq is not None]
        # All are computed in one micro-batch: between two of them a sliding window forgets.
        few = len(running) <= (1 if self._apart and self.context.model.n_swa else self.up_to)
        room = self.context.n_ubatch - len(running)
        for text in running:
            text.task.n_drafted = min(self._wanted(text, len(running)), room) if few else 0
            room -= text.task.n_drafted

    def _wanted(self, text: Text, n_texts: int) -> int:
        drafting, task = text.drafting, text.task
        if drafting is None or drafting.off or task.n_left != 1:
            return 0
        drafting.waits = False
        room = min(text.limit - len(text.tokens), self.context.n_ctx_seq - task.n_computed) - 1
        if room < 1:
            return 0
        try:
            drafter = self._drafter_for(text)
        except Exception as error:
            self._give_up(text, error)
            return 0
        if self._uses_features(text):
            # It sees the first text of a batch, and that has to be the only one where there is a draft.
            assert self._features is not None
            if n_texts > 1 or not self._features.has_seen(task.ids[:-1]):
                return 0
        n_max = min(drafting.params.n_max or drafter.n_max, drafter.n_max)
        return min(drafting.pace(n_texts, n_max).next_length(), n_max, room)

    def _uses_features(self, text: Text) -> bool:
        return text.drafting is not None and MTP in (text.drafting.params.types or ())

    def _drafter_for(self, text: Text) -> Drafter:
        assert text.drafting is not None
        params = text.drafting.params
        if self._uses_features(text):
            # There is one, which has seen what it has seen; a request has a say in the length of drafts only.
            assert self.default is not None
            params = self.default
        return self._seat_for(text).speculator.drafter_for(params)

    def make(self, granted: list[tuple[Text, int]]) -> dict[Text, Draft]:
        """Drafts for texts; there is none where nothing comes to mind.

        Args:
            granted: Texts, and how many tokens at most.
        """
        drafts: dict[Text, Draft] = {}
        for text, most in granted:
            try:
                tokens = self._draft(text, most)
            except Exception as error:
                self._give_up(text, error)
                continue
            if tokens:
                drafts[text] = Draft(np.array(tokens, np.int32))
        return drafts

    def _draft(self, text: Text, most: int) -> list[int]:
        assert text.drafting is not None
        seat, drafter, ids = self._seat_for(text), self._drafter_for(text), text.task.ids
        reads = drafter.context is not None and not self._uses_features(text)
        text.drafting.waits = not seat.follow(text, drafter, PORTION if reads else len(ids))
        if not text.drafting.waits:
            return drafter.draft(int(ids[-1]), most)
        # With this it computes what it was shown. What it says to that is of no use.
        drafter.draft(int(ids[len(seat.known)]), 1)
        return []

    @staticmethod
    def decode(runner: Runner, rows: list[tuple[Text, int]], drafts: dict[Text, Draft]) -> Ready:
        """Compute tokens of texts and drafts; see :meth:`pyllm.engine.runner.Runner.decode`.

        Where there is no room in the KV cache there are no drafts: none is left in `drafts` then.
        """
        if drafts:
            try:
                return runner.decode(rows, drafts)
            except NoKVSlotError:
                drafts.clear()
        return runner.decode(rows)

    def computed(self, rows: list[tuple[Text, int]], drafts: dict[Text, Draft]) -> None:
        """A batch was computed; the texts have not been told yet."""
        if self._features is None:
            return
        text, n = rows[0]
        start = text.task.n_computed
        if len(rows) > 1 and self._apart:
            return
        if not self._uses_features(text) or not self._features.has_seen(text.task.ids[:start]):
            return
        tokens = text.task.ids[start : start + n]
        if len(rows) == 1 and text in drafts:
            tokens = np.concatenate([tokens, drafts[text].tokens])
        try:
            self._features.see(self._drafter_for(text), start, tokens)
        except Exception as error:
            self._give_up(text, error)

    def verify(self, runner: Runner, cache: SequenceCache, drafts: dict[Text, Draft]) -> None:
        """Choose further tokens from the rows of drafts, as long as the drafts had these tokens.

        Each is chosen as any other token is, by all that the text has for this. Before, the first token was chosen,
        behind what is computed of the text. What was not chosen is removed from the KV cache.
        """
        for text, draft in drafts.items():
            task, n = text.task, text.task.n_computed
            cache.drafted(task, len(draft.tokens))
            for i, token in enumerate(draft.tokens.tolist()):
                if len(task.ids) <= n + i or task.ids[n + i] != token:
                    break
                draft.n_accepted += 1
                if text.reason is not None or text.error is not None:
                    break
                runner.sample(Ready([text], [draft.index + i], [draft.place + i]))
            cache.settle(task, draft.n_accepted)
            self._judged(text, int(task.ids[n - 1]), draft)

    def _judged(self, text: Text, last: int, draft: Draft) -> None:
        assert text.drafting is not None
        made = Speculation(1, len(draft.tokens), draft.n_accepted)
        text.drafting.total += made
        self.total += made
        seat = next((one for one in self._all_seats() if one.followed is text), None)
        if seat is None or seat.drafter is None:
            return
        accepted = draft.tokens[: draft.n_accepted]
        try:
            seat.drafter.accept(last, accepted)
        except Exception as error:
            self._give_up(text, error)
            return
        seat.known = np.concatenate([seat.known, np.array([last], np.int32), accepted])

    def took(self, rows: list[tuple[Text, int]], drafts: dict[Text, Draft], seconds: float) -> None:
        """A step was made; where it was one of a few newest tokens and drafts, this says what these take."""
        if len(rows) > self.up_to or any(n > 1 for _, n in rows):
            return
        us = int(1e6 * seconds)
        for text, _ in rows:
            drafting = text.drafting
            pace = None if drafting is None or drafting.waits else drafting.paces.get(len(rows))
            if pace is None:
                continue
            if text in drafts:
                pace.add_round(len(drafts[text].tokens), drafts[text].n_accepted, us)
            else:
                # In a step with drafts of others this says nothing about a step without.
                pace.add_plain(us if not drafts else int(pace.plain_us) or us)

    def forget(self, text: Text) -> None:
        """A text has ended."""
        for seat in self._all_seats():
            if seat.text is text:
                seat.text = seat.followed = None

    def problems(self, texts: Collection[Text]) -> list[str]:
        """Contradictions between the drafters and the texts that wait or run, as sentences."""
        taken = [seat.text for seat in self._all_seats() if seat.text is not None]
        found = [] if len(set(taken)) == len(taken) else ["a text has two drafters"]
        return found + [f"a drafter belongs to text {t.task.id}, which has ended" for t in taken if t not in texts]

    def _all_seats(self) -> list[Seat]:
        return self._seats if self._features is None else [*self._seats, self._features.seat]

    def _seat_for(self, text: Text) -> Seat:
        """The seat of a text; it gets a free one when it has none."""
        if self._features is not None and self._uses_features(text):
            self._features.seat.text = text
            return self._features.seat
        seat = next((one for one in self._seats if one.text is text), None)
        if seat is None:
            seat = next((one for one in self._seats if one.text is None or one.text.task.seq is None), None)
        if seat is None:
            # Not more than there are texts that may have drafts: others have lost theirs by now.
            assert len(self._seats) < self.up_to
            seat = Seat(Speculator(self.context, self._model, False, **self._options))
            self._seats.append(seat)
        seat.text = text
        return seat

    def _give_up(self, text: Text, error: Exception) -> None:
        """A text goes on without drafts: it must not end because a guess could not be made."""
        _log.warning("no more drafts for %s: %s: %s", text.request.id, type(error).__name__, error)
        assert text.drafting is not None
        text.drafting.off = True
        text.drafting.waits = False
        for seat in self._all_seats():
            if seat.text is text:
                seat.forget()


__all__ = ["PORTION", "Drafts"]

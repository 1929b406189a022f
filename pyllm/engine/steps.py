"""The steps of an engine: what its thread computes, and what becomes of the texts then."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pyllm.core.context import Context
from pyllm.core.round import Flag
from pyllm.engine.beams import BeamLane, BeamText
from pyllm.engine.cache import SequenceCache
from pyllm.engine.drafting import Draft
from pyllm.engine.drafts import Drafts
from pyllm.engine.job import Job
from pyllm.engine.lane import Lane
from pyllm.engine.metrics import Counters
from pyllm.engine.pace import Pace
from pyllm.engine.prompt_record import rows_per_step
from pyllm.engine.rounds import Rounds
from pyllm.engine.runner import Ready, Runner
from pyllm.engine.running_decode import RunningDecode
from pyllm.engine.scheduler import Limits, Plan, Task, plan
from pyllm.engine.slots import Slots
from pyllm.engine.texts import Text
from pyllm.engine.turns import Turns
from pyllm.engine.vectors import VectorQueue
from pyllm.errors import DecodeAborted, NoKVSlotError


class Steps:
    """Computes the requests of an engine, step by step. Only the engine's thread calls it.

    Args:
        context: Where texts are computed.
        cache: Its sequences.
        slots: The places of texts.
        drafts: What guesses ahead.
        vectors: What makes vectors, or None.
        lane: Where deterministic texts are computed.
        beams: Where beam searches are carried out.
        pace: How many tokens of prompts a step takes.
        counters: What is counted.
        decoding: Aborts the decode of a prompt when all requests that share it are cancelled.
        called: Set when somebody wants something: then the steps that need no Python end.
        n_parallel: Texts that are computed at once.
        whole: The memory of the model cannot be cut.

    Attributes:
        texts: Those that wait or run, by the numbers of their tasks.
        jobs: The requests that they belong to.
    """

    def __init__(
        self,
        context: Context,
        cache: SequenceCache,
        slots: Slots,
        drafts: Drafts,
        vectors: VectorQueue | None,
        lane: Lane,
        beams: BeamLane,
        pace: Pace,
        counters: Counters,
        decoding: RunningDecode,
        *,
        called: Flag,
        n_parallel: int,
        whole: bool,
    ) -> None:
        self.context, self.cache, self.counters = context, cache, counters
        self.n_parallel, self.whole = n_parallel, whole
        self.texts: dict[int, Text] = {}
        self.jobs: dict[Text, Job] = {}
        self.runner = Runner(context)
        self._slots, self._drafts, self._vectors, self._lane, self._pace = slots, drafts, vectors, lane, pace
        self._beams = beams
        self._decoding = decoding
        self._turns = Turns()
        # What the next step computes if nobody comes or goes: the newest token of each of these texts, and no more.
        self._steady: list[tuple[Text, int]] = []
        self._rounds = Rounds(context, called)
        self._limits = Limits(
            n_sequences=context.n_seq_max,
            n_running=n_parallel,
            n_batch=pace.n_batch,
            n_prompt=pace.n_prompt,
            n_shared=pace.n_shared,
            n_scored=rows_per_step(context.n_vocab),
            whole=whole,
            host_whole=cache.host is not None and cache.host.whole,
            n_drafting=drafts.up_to,
        )

    def take_in(self, jobs: Iterable[Job]) -> None:
        """Requests have come."""
        self.unsettle()
        for job in jobs:
            for text in job.texts:
                self.texts[text.task.id] = text
                self.jobs[text] = job

    def cancel(self, jobs: Iterable[Job]) -> None:
        """The callers of requests want no more of them."""
        for job in jobs:
            if not job.ended:
                self.counters.cancelled += 1
                self.end([text for text in job.texts if text.reason is None], "abort")

    def problems(self) -> list[str]:
        """Contradictions in what is known of texts, slots and the KV cache, as sentences."""
        running = [text for text in self.texts.values() if text.task.seq is not None and not text.alone]
        computed = {text.seq: text.task.n_computed for text in running}
        found = [] if len(computed) == len(running) else ["two running texts have the same sequence"]
        found += self.cache.problems(computed) + self._slots.problems(running)
        found += self._drafts.problems(self.texts.values())
        return found + ([] if self._vectors is None else self._vectors.problems())

    def unsettle(self) -> None:
        """The next step is not like the last one."""
        self._steady = []
        self._rounds.end()

    def end_empty(self) -> None:
        """End those that shall have no tokens."""
        for text in list(self.texts.values()):
            if text.limit == 0 and (text.record is None or text.record.complete):
                self.end([text], "length")

    def clear(self) -> list[Job]:
        """Forget everything; the requests that have not ended."""
        jobs = [*{*self.jobs.values()}]
        self.unsettle()
        self.texts.clear()
        self.jobs.clear()
        return jobs

    def step(self) -> None:
        """Compute a step of everything there is."""
        if self._steady and not self._vectors and (room := self._room(self._steady)):
            self._go_on(self._steady, room)
            return
        started = time.perf_counter()
        self.end_empty()
        tasks = [text.task for text in self.texts.values() if not text.alone and not text.held]
        turn = self._vectors is not None and self._vectors.plan(tasks)
        searches = [text for text in self.texts.values() if isinstance(text, BeamText)]
        alone = [text for text in self.texts.values() if text.alone and not isinstance(text, BeamText)]
        if searches:
            self._step_search(searches)
        if alone:
            self._step_alone(alone)
        if tasks:
            self._step_together(tasks)
        if turn and self._vectors is not None:
            self.counters.failed += self._vectors.step(1000 * (time.perf_counter() - started))

    def _step_alone(self, texts: list[Text]) -> None:
        text = self._lane.choose(texts)
        job = self.jobs[text]
        job.started = job.started or time.perf_counter()
        try:
            with self._decoding([job], self._lane.abort, self._lane.clear_abort):
                n, chosen = self._lane.step()
        except DecodeAborted as error:
            if not job.cancelled:
                self._fail(job, error)
            return
        except Exception as error:
            # Its context could not be made, say, which is no concern of the others.
            self._fail(job, error)
            return
        if text.task.n_computed <= text.n_prompt:
            self.counters.prompt_tokens += n
        if chosen:
            self._deliver([text], time.perf_counter())

    def _step_search(self, texts: list[BeamText]) -> None:
        text = self._beams.choose(texts)
        job = self.jobs[text]
        mine = [text for text in texts if self.jobs[text] is job]
        job.started = job.started or time.perf_counter()
        try:
            self.counters.prompt_tokens += self._beams.step(mine)
        except Exception as error:
            # Of its context as well, which may need more memory than there is.
            self._fail(job, error)
            return
        if self._beams.n_chosen:
            job.first_token = job.first_token or time.perf_counter()
        if text.is_found:
            for each in mine:
                self.counters.generated_tokens += len(each.tokens)
                self.end([each], each.outcome)

    def _step_together(self, tasks: list[Task]) -> None:
        cache, counters = self.cache, self.counters
        n_prompt = 0 if self._vectors is not None and self._vectors.turn else self._pace.n_prompt
        n_shared = self._pace.n_shared
        if (n_prompt, n_shared) != (self._limits.n_prompt, self._limits.n_shared):
            self._limits = replace(self._limits, n_prompt=n_prompt, n_shared=n_shared)
        self._drafts.want(text for text in self.texts.values() if not text.alone)
        decision = plan(
            [task for task in tasks if task.seq is None],
            [task for task in tasks if task.seq is not None],
            list(cache.idle),
            cache.ledger,
            cache.tree,
            self._limits,
            self._turns.order(tasks),
            None if cache.host is None else cache.host.tree,
        )
        cache.expect(decision.admit)
        for number in decision.preempt:
            self._slots.end(self.texts[number])
            cache.drop(self.texts[number].task)
            counters.preempted += 1
        self.end([self.texts[number] for number in decision.full], "length")
        for seq in decision.evict:
            cache.evict(seq)
        for admission in decision.admit:
            text = self.texts[admission.id]
            cache.start(text.task, admission)
            self._slots.begin(text)
            job = self.jobs[text]
            if text.row.n_generated == 0:
                counters.cached_tokens += text.task.n_computed
                text.cached = text.task.n_computed
            job.started = job.started or time.perf_counter()
        rows = [(self.texts[number], n) for number, n in decision.rows]
        if rows:
            self._turns.served(decision.adapters)
            self._steady = rows if self._will_repeat(decision, rows) else []
            self._compute(rows, [(self.texts[number], n) for number, n in decision.drafts])

    def _will_repeat(self, decision: Plan, rows: list[tuple[Text, int]]) -> bool:
        """Whether the next steps will be like this one until a text ends or somebody comes.

        Who waits while nobody was let in waits on: there is not more room before one of the texts has ended.
        """
        if decision.admit or decision.preempt or decision.drafts or self._vectors:
            return False
        texts = self.texts.values()
        n_running = sum(text.task.seq is not None for text in texts)
        if n_running != len(rows) or any(text.alone or text.held for text in texts):
            return False
        return all(text.is_plain and text.task.n_left == 1 for text, _ in rows)

    def _room(self, rows: list[tuple[Text, int]]) -> int:
        """How many more tokens each of these texts can have in the KV cache."""
        ledger = self.cache.ledger
        return min(ledger.free // len(rows), *(ledger.room(text.seq) for text, _ in rows))

    def _go_on(self, rows: list[tuple[Text, int]], room: int) -> None:
        """The same texts as before, with a token each; up to `room` times, if Python has no part in it."""
        texts = [text for text, _ in rows]
        if not self._rounds.begin(texts, self.jobs):
            self._compute(rows, [])
            return
        started = time.perf_counter()
        is_full = False
        try:
            self._rounds.run(room)
        except NoKVSlotError:
            is_full = True
        except Exception:
            if self._rounds.n_steps:
                raise
            # A sampler of the caller's was closed, say. Nothing was computed, and who is to blame is found there.
            self._rounds.refuse()
            self._compute(rows, [])
            return
        n = self._rounds.n_steps
        for text in texts:
            self.cache.computed(text.task, n)
            text.took_all()
            text.error = text.row.error
        now = time.perf_counter()
        if n:
            self.counters.steps += n
            self.counters.step_texts += n * len(rows)
            self._pace.measured(len(rows), 0, 1000 * (now - started) / n)
            self._deliver(texts, now)
        if is_full:
            self._make_way()

    def _compute(self, rows: list[tuple[Text, int]], granted: list[tuple[Text, int]]) -> None:
        cache, counters = self.cache, self.counters
        started = time.perf_counter()
        drafts = self._drafts.make(granted)
        try:
            ready = self._decode(rows, drafts)
        except NoKVSlotError:
            self._make_way()
            return
        if ready is None:
            return
        self._drafts.computed(rows, drafts)
        for text, n in rows:
            reading = text.task.n_computed < text.n_prompt
            cache.computed(text.task, n)
            if reading:
                counters.prompt_tokens += n
        self.runner.sample(ready)
        self._drafts.verify(self.runner, cache, drafts)
        now = time.perf_counter()
        self._drafts.took(rows, drafts, now - started)
        if not granted:
            n_texts = sum(n == 1 for _, n in rows)
            self._pace.measured(n_texts, sum(n for _, n in rows if n > 1), 1000 * (now - started))
        counters.steps += 1
        counters.step_texts += len(rows)
        self._deliver(ready.texts, now)

    def _decode(self, rows: list[tuple[Text, int]], drafts: dict[Text, Draft]) -> Ready | None:
        """Compute a batch. None: it was aborted, as the requests of all its texts are cancelled.

        A step without prompt tokens is short; only the others can be aborted.
        """
        if all(n == 1 for _, n in rows):
            return self._drafts.decode(self.runner, rows, drafts)
        jobs = {self.jobs[text] for text, _ in rows}
        try:
            with self._decoding(jobs, self.context.abort, self.context.clear_abort):
                return self._drafts.decode(self.runner, rows, drafts)
        except DecodeAborted:
            if not all(job.cancelled for job in jobs):
                raise
        for text, _ in rows:
            # The micro-batches that were done are in the memory, and no output of theirs is known.
            if self.whole or not self.cache.cut(text.task):
                self._slots.end(text)
                self.cache.forget(text.task)
        self.unsettle()
        return None

    def _deliver(self, texts: list[Text], now: float) -> None:
        """Hand on what these texts have got."""
        for text in texts:
            job = self.jobs.get(text)
            if job is None:
                continue  # another text of the request has just failed
            job.first_token = job.first_token or now
            self.counters.generated_tokens += text.row.n_generated - text.n_counted
            text.n_counted = text.row.n_generated
            if text.error is not None:
                self._fail(job, text.error)
            elif text.reason is not None:
                self.end([text], text.reason)
            else:
                job.emit(text)

    def _make_way(self) -> None:
        """llama.cpp has no room although cells are free: it keeps more than was counted. The last one waits."""
        self.unsettle()
        texts = [text for text in self.texts.values() if text.task.seq is not None and not text.alone]
        last = max(texts, key=lambda text: text.task.rank)
        if len(texts) > 1:
            self._slots.end(last)
            self.cache.drop(last.task)
            self.counters.preempted += 1
        elif self.cache.idle:
            self.cache.clear()
        else:
            self.end([last], "length")

    def end(self, texts: list[Text], reason: Any) -> None:
        """Texts have ended, for this reason."""
        self.unsettle()
        for text in texts:
            text.reason = reason
            if self.texts.pop(text.task.id, None) is not None:
                self._leave(text)
                self.jobs.pop(text).emit(text)

    def _leave(self, text: Text) -> None:
        self.counters.tokens_max = max(self.counters.tokens_max, text.task.n_computed)
        self._drafts.forget(text)
        if isinstance(text, BeamText):
            self._beams.forget(text)
        elif text.alone:
            self._lane.forget(text)
        elif text.task.seq is not None:
            self._slots.end(text)
            self.cache.keep(text.task)

    def _fail(self, job: Job, error: BaseException) -> None:
        """An error ends its request, and no other."""
        self.unsettle()
        for each in (error, *(text.error for text in job.texts)):
            _clear_frames(each)
        self.counters.failed += 1
        for text in job.texts:
            if self.texts.pop(text.task.id, None) is not None:
                self._leave(text)
                self.jobs.pop(text, None)
        job.fail(error)


def _clear_frames(error: BaseException | None) -> None:
    """The frames of a traceback hold views of logits, which would keep the context from being closed.

    So do those of the errors that it came from.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


__all__ = ["Steps"]

"""The core of an engine: it schedules, computes and samples requests, step by step, in the thread of its caller."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pyllm.core.context import Context
from pyllm.core.round import Flag
from pyllm.engine.beam_search import BeamSearchRunner, BeamSequence
from pyllm.engine.deterministic import DeterministicRunner
from pyllm.engine.draft_state import Draft
from pyllm.engine.drafter_pool import DrafterPool
from pyllm.engine.embedding_scheduler import EmbeddingScheduler
from pyllm.engine.host_kv_cache import HostKVCache
from pyllm.engine.kv_cache import KVCacheManager
from pyllm.engine.metrics import Counters
from pyllm.engine.model_runner import ModelRunner, Ready
from pyllm.engine.multi_step import MultiStep
from pyllm.engine.prefill_budget import PrefillBudget
from pyllm.engine.request import Request
from pyllm.engine.scheduler import AdapterRotation, Limits, SchedulerOutput, schedule
from pyllm.engine.sequence import Sequence, rows_per_step
from pyllm.engine.signals import AbortableDecode
from pyllm.engine.slots import Slots
from pyllm.errors import DecodeAborted, NoKVSlotError

_log = logging.getLogger("pyllm.engine")


class EngineCore:
    """Computes requests step by step: :meth:`add_request`, then :meth:`step` while :attr:`has_work`.

    It has no thread and no lock. An :class:`pyllm.engine.Engine` calls it from a thread of its own, a
    :class:`pyllm.Llama` from the thread of its caller.

    Args:
        context: Where sequences are computed; nothing else computes there between two steps.
        budget: How many prefill tokens a step has.
        decoding: Aborts a prefill when all requests that share it are cancelled.
        n_running: Sequences that run at once.
        unified: Whether sequences share the cells of the KV cache.
        host_bytes: Bytes of the host's memory for sequences that leave the KV cache.
        drafters: What makes drafts. None: nothing does.
        embeddings: What computes embeddings beside the sequences, or None.
        deterministic: What computes deterministic requests, or None.
        beams: What carries out beam searches, or None.
        work_available: When it is set, steps that need no Python end.
        make_context: Makes the context anew after a decode that failed for good. None: such an error is raised.

    Attributes:
        sequences: The sequences that have not ended, by their numbers.
        requests: The requests that they belong to.
        cache: The KV cache.
        slots: The slots of running sequences.
        counters: What was counted.
        drafters: What makes drafts.
        embeddings: What computes embeddings, or None.
    """

    def __init__(
        self,
        context: Context,
        budget: PrefillBudget,
        decoding: AbortableDecode,
        *,
        n_running: int,
        unified: bool,
        host_bytes: int = 0,
        drafters: DrafterPool | None = None,
        embeddings: EmbeddingScheduler | None = None,
        deterministic: DeterministicRunner | None = None,
        beams: BeamSearchRunner | None = None,
        work_available: Flag | None = None,
        make_context: Callable[[], Context] | None = None,
    ) -> None:
        model = context.model
        self.context, self.counters = context, Counters()
        self.sequences: dict[int, Sequence] = {}
        self.requests: dict[Sequence, Request] = {}
        # A recurrent memory cannot be cut: what it holds is taken over as a whole. The saved state of a sliding window
        # has what the end of the sequence sees, and no more.
        self.whole = model.is_recurrent or model.is_hybrid
        self.host = HostKVCache(context.state, host_bytes, whole=self.whole or model.n_swa > 0)
        self.slots = Slots(n_running)
        self._work_available = Flag() if work_available is None else work_available
        self.drafters = DrafterPool(context) if drafters is None else drafters
        self.embeddings, self._deterministic, self._beams = embeddings, deterministic, beams
        self._budget, self._decoding, self._make_context = budget, decoding, make_context
        self._rotation = AdapterRotation()
        self._unified = unified
        self._use(context)
        self._limits = Limits(
            n_sequences=context.n_seq_max,
            n_running=n_running,
            n_batch=budget.n_batch,
            n_prompt=budget.n_prompt,
            n_shared=budget.n_shared,
            n_scored=rows_per_step(context.n_vocab),
            whole=self.whole,
            host_whole=self.host.whole,
            n_drafting=self.drafters.up_to,
            checkpoints=self.whole and host_bytes > 0,
        )

    def _use(self, context: Context) -> None:
        """Compute in a context, which is empty."""
        self.context, self._n_ctx_seq = context, context.n_ctx_seq
        self.cache = KVCacheManager(
            context.memory,
            context.n_ctx,
            self.host,
            n_sequences=context.n_seq_max,
            n_each=None if self._unified else context.n_ctx_seq,
            window=context.model.n_swa,
            context=context if self.whole else None,
        )
        self.runner = ModelRunner(context)
        # What the next step computes if nothing comes or ends: one token of each of these sequences.
        self._steady: list[tuple[Sequence, int]] = []
        self._multi_step = MultiStep(context, self._work_available)

    # ---- requests

    @property
    def has_work(self) -> bool:
        """Whether :meth:`step` has something to compute."""
        return bool(self.sequences) or bool(self.embeddings)

    def add_request(self, request: Request, n_resident: int | None = None) -> None:
        """Add a request; its sequences wait for the next step.

        Args:
            request: The request.
            n_resident: The first sequence runs in seq_id 0 of the context, which holds so many of its tokens and which
                nothing else uses. None: it waits.
        """
        self.unsettle()
        for sequence in request.sequences:
            self.sequences[sequence.id] = sequence
            self.requests[sequence] = request
        if n_resident is not None:
            first = request.sequences[0]
            self.cache.begin(first, 0, n_resident)
            self.slots.begin(first)
            first.n_cached = n_resident
            request.started = time.perf_counter()

    def abort(self, request: Request) -> None:
        """End a request now. It keeps what it has, with finish_reason "abort"."""
        if not request.ended:
            self.counters.cancelled += 1
            self.end([sequence for sequence in request.sequences if sequence.reason is None], "abort")

    def clear(self) -> list[Request]:
        """Forget everything.

        Returns:
            list[Request]: The requests that have not ended.
        """
        requests = [*{*self.requests.values()}]
        self.unsettle()
        self.sequences.clear()
        self.requests.clear()
        return requests

    def problems(self) -> list[str]:
        """Contradictions between the sequences, the slots and the KV cache, as sentences."""
        running = [
            sequence for sequence in self.sequences.values() if sequence.seq_id is not None and not sequence.alone
        ]
        computed = {sequence.kv_seq_id: sequence.n_computed for sequence in running}
        found = [] if len(computed) == len(running) else ["two running sequences have the same seq_id"]
        found += self.cache.problems(computed) + self.slots.problems(running)
        found += self.drafters.problems(self.sequences.values())
        return found + ([] if self.embeddings is None else self.embeddings.problems())

    def unsettle(self) -> None:
        """The next step differs from the last one."""
        self._steady = []
        self._multi_step.end()

    # ---- steps

    def step(self) -> None:
        """Compute one step: schedule, decode, sample, and hand on what became final.

        Raises:
            PyllmError: A decode failed for good, and no new context could be made.
        """
        if self._steady and not self.embeddings and (room := self._room(self._steady)):
            self._repeat(self._steady, room)
            return
        started = time.perf_counter()
        self._end_empty()
        together: list[Sequence] = []
        alone: list[Sequence] = []
        searches: list[BeamSequence] = []
        for sequence in self.sequences.values():
            if isinstance(sequence, BeamSequence):
                searches.append(sequence)
            elif sequence.alone:
                alone.append(sequence)
            elif not sequence.held:
                together.append(sequence)
        turn = self.embeddings is not None and self.embeddings.schedule(together)
        if searches:
            self._step_search(searches)
        if alone:
            self._step_alone(alone)
        if together:
            self._step_together(together)
        if turn and self.embeddings is not None:
            self.counters.failed += self.embeddings.step(1000 * (time.perf_counter() - started))

    def _end_empty(self) -> None:
        """End sequences that get no tokens."""
        for sequence in list(self.sequences.values()):
            if sequence.limit == 0 and (sequence.prompt_logprobs is None or sequence.prompt_logprobs.complete):
                self.end([sequence], "length")

    def _step_alone(self, sequences: list[Sequence]) -> None:
        runner = self._deterministic
        assert runner is not None
        sequence = runner.choose(sequences)
        request = self.requests[sequence]
        request.started = request.started or time.perf_counter()
        try:
            with self._decoding([request], runner.abort, runner.clear_abort):
                n, chosen = runner.step()
        except DecodeAborted as error:
            if not request.cancelled:
                self._fail(request, error)
            return
        except Exception as error:
            # Its context may be of no use any more, or could not be made. That is no concern of the others.
            self._fail(request, error)
            runner.discard_context()
            return
        if sequence.n_computed <= sequence.n_prompt:
            self.counters.prompt_tokens += n
        if chosen:
            self._deliver([sequence], time.perf_counter())

    def _step_search(self, sequences: list[BeamSequence]) -> None:
        beams = self._beams
        assert beams is not None
        sequence = beams.choose(sequences)
        request = self.requests[sequence]
        mine = [sequence for sequence in sequences if self.requests[sequence] is request]
        request.started = request.started or time.perf_counter()
        try:
            self.counters.prompt_tokens += beams.step(mine)
        except Exception as error:
            # Its context may be of no use any more, or need more memory than there is.
            self._fail(request, error)
            beams.discard_context()
            return
        if beams.n_chosen:
            request.first_token = request.first_token or time.perf_counter()
        if sequence.is_found:
            for each in mine:
                self.counters.generated_tokens += len(each.tokens)
                self.end([each], each.outcome)

    def _step_together(self, sequences: list[Sequence]) -> None:
        cache, counters = self.cache, self.counters
        n_prompt = 0 if self.embeddings is not None and self.embeddings.turn else self._budget.n_prompt
        n_shared = self._budget.n_shared
        if (n_prompt, n_shared) != (self._limits.n_prompt, self._limits.n_shared):
            self._limits = replace(self._limits, n_prompt=n_prompt, n_shared=n_shared)
        full = [sequence for sequence in sequences if len(sequence.ids) > self._n_ctx_seq]
        for sequence in full:
            if sequence.request.overflow.rule == "shift":
                self._shift(sequence)
        if full:
            sequences = [sequence for sequence in sequences if sequence.reason is None]
        self.drafters.want(sequence for sequence in self.sequences.values() if not sequence.alone)
        output = schedule(
            [sequence for sequence in sequences if sequence.seq_id is None],
            [sequence for sequence in sequences if sequence.seq_id is not None],
            list(cache.idle),
            cache.cells,
            cache.tree,
            self._limits,
            self._rotation.order(sequences),
            self.host.tree,
        )
        cache.expect(output.admit)
        for number in output.preempt:
            self._preempt(self.sequences[number])
        self.end([self.sequences[number] for number in output.full], "length")
        for seq_id in output.evict:
            cache.evict(seq_id)
        for admission in output.admit:
            sequence = self.sequences[admission.id]
            cache.start(sequence, admission)
            self.slots.begin(sequence)
            request = self.requests[sequence]
            if sequence.row.n_generated == 0:
                counters.cached_tokens += sequence.n_computed
                sequence.n_cached = sequence.n_computed
            request.started = request.started or time.perf_counter()
        rows = [(self.sequences[number], n) for number, n in output.rows]
        if rows:
            self._rotation.served(output.adapters)
            self._steady = rows if self._will_repeat(output, rows) else []
            self._compute(rows, [(self.sequences[number], n) for number, n in output.drafts])

    def _will_repeat(self, output: SchedulerOutput, rows: list[tuple[Sequence, int]]) -> bool:
        """Whether the next steps are like this one until a sequence ends or something comes.

        Waiting requests stay waiting: no slot becomes free before a sequence finishes.
        """
        if output.admit or output.preempt or output.drafts or self.embeddings:
            return False
        sequences = self.sequences.values()
        n_running = sum(sequence.seq_id is not None for sequence in sequences)
        if n_running != len(rows) or any(sequence.alone or sequence.held for sequence in sequences):
            return False
        return all(sequence.is_plain and sequence.n_left == 1 for sequence, _ in rows)

    def _room(self, rows: list[tuple[Sequence, int]]) -> int:
        """Tokens that each of these sequences can still have in the KV cache."""
        cells = self.cache.cells
        return min(cells.free // len(rows), *(cells.room(sequence.kv_seq_id) for sequence, _ in rows))

    def _repeat(self, rows: list[tuple[Sequence, int]], room: int) -> None:
        """Compute one token of each of the same sequences; up to `room` of them where no sequence needs Python."""
        sequences = [sequence for sequence, _ in rows]
        if not self._multi_step.begin(sequences, self.requests):
            self._compute(rows, [])
            return
        started = time.perf_counter()
        is_full = False
        failure: Exception | None = None
        try:
            self._multi_step.run(room)
        except NoKVSlotError:
            is_full = True
        except Exception as error:
            if not self._multi_step.n_steps:
                # A sampler of the caller's was closed, say. Nothing was computed; the single step finds which one.
                self._multi_step.refuse()
                self._compute(rows, [])
                return
            failure = error
        n = self._multi_step.n_steps
        for sequence in sequences:
            self.cache.computed(sequence, n)
            sequence.append_new()
            sequence.error = sequence.row.error
        now = time.perf_counter()
        if n:
            self.counters.steps += n
            self.counters.step_sequences += n * len(rows)
            self._budget.measured(len(rows), 0, 1000 * (now - started) / n)
            self._deliver(sequences, now)
        if failure is not None:
            self._recover([row for row in rows if row[0].id in self.sequences], failure)
        elif is_full:
            self._make_way()

    def _compute(self, rows: list[tuple[Sequence, int]], granted: list[tuple[Sequence, int]]) -> None:
        cache, counters = self.cache, self.counters
        started = time.perf_counter()
        drafts = self.drafters.make(granted)
        try:
            forks = self._forks(rows)
            ready = self._decode(rows, drafts, forks)
        except NoKVSlotError:
            self._make_way()
            return
        except Exception as error:
            self._recover(rows, error)
            return
        if ready is None:
            return
        self.drafters.computed(rows, drafts)
        for sequence, n in rows:
            in_prefill = sequence.n_computed < sequence.n_prompt and not sequence.shifted
            cache.computed(sequence, n)
            cache.checkpoint(sequence)
            if in_prefill:
                counters.prompt_tokens += n
        for sequence, others in forks.items():
            for other in others:
                cache.fork(sequence, other, [one.seq_id for one in self.sequences.values() if not one.alone])
                self.slots.begin(other)
                other.n_cached = other.n_computed
                counters.cached_tokens += other.n_cached
        self.runner.sample(ready)
        self.drafters.verify(self.runner, cache, drafts)
        now = time.perf_counter()
        self.drafters.took(rows, drafts, now - started)
        if not granted:
            n_sequences = sum(n == 1 for _, n in rows)
            self._budget.measured(n_sequences, sum(n for _, n in rows if n > 1), 1000 * (now - started))
        counters.steps += 1
        counters.step_sequences += len(rows)
        self._deliver(ready.sequences, now)

    def _forks(self, rows: list[tuple[Sequence, int]]) -> dict[Sequence, list[Sequence]]:
        """The sequences that fork from others at the end of their prompts, which this step computes."""
        forks: dict[Sequence, list[Sequence]] = {}
        for sequence, n in rows:
            # Processors write into the row of logits: each sequence needs one of its own.
            if n == sequence.n_left and sequence.row.n_generated == 0 and not sequence.processors:
                others = [other for other in self.requests[sequence].sequences if other.held]
                if others:
                    forks[sequence] = others
        if not forks:
            return forks
        running = [each for each in self.sequences.values() if each.seq_id is not None and not each.alone]
        room = min(len(self.slots), self._limits.n_sequences, self._limits.n_batch) - len(running)
        if self._unified:
            # Each of them needs a cell in the next step.
            room = min(room, self.cache.cells.free - sum(n for _, n in rows) - len(running))
        for sequence, others in forks.items():
            forks[sequence] = others[: max(room, 0)]
            room -= len(forks[sequence])
        return forks

    def _decode(
        self,
        rows: list[tuple[Sequence, int]],
        drafts: dict[Sequence, Draft],
        forks: dict[Sequence, list[Sequence]],
    ) -> Ready | None:
        """Compute a batch. None: it was aborted, as the requests of all its sequences are cancelled.

        A step without prompt tokens is short; only the others can be aborted.
        """
        if all(n == 1 for _, n in rows):
            return self.drafters.decode(self.runner, rows, drafts, forks)
        requests = {self.requests[sequence] for sequence, _ in rows}
        try:
            with self._decoding(requests, self.context.abort, self.context.clear_abort):
                return self.drafters.decode(self.runner, rows, drafts, forks)
        except DecodeAborted:
            if not all(request.cancelled for request in requests):
                raise
        for sequence, _ in rows:
            # The micro-batches that were done are in the memory, and no output of theirs is known.
            if self.whole or not self.cache.cut(sequence):
                self.slots.end(sequence)
                self.cache.forget(sequence)
        self.unsettle()
        return None

    def _deliver(self, sequences: list[Sequence], now: float) -> None:
        """Hand on what has become final of these sequences."""
        for sequence in sequences:
            request = self.requests.get(sequence)
            if request is None:
                continue  # another sequence of the request has just failed
            request.first_token = request.first_token or now
            self.counters.generated_tokens += sequence.row.n_generated - sequence.n_counted
            sequence.n_counted = sequence.row.n_generated
            if sequence.error is not None:
                self._fail(request, sequence.error)
            elif sequence.reason is not None:
                self.end([sequence], sequence.reason)
            else:
                request.emit(sequence)

    def _make_way(self) -> None:
        """llama.cpp has no room although cells are free: it keeps more than was counted. Preempt the last sequence."""
        self.unsettle()
        sequences = [
            sequence for sequence in self.sequences.values() if sequence.seq_id is not None and not sequence.alone
        ]
        last = max(sequences, key=lambda sequence: sequence.rank)
        if len(sequences) > 1:
            self._preempt(last)
        elif self.cache.idle:
            self.cache.clear()
        else:
            self.end([last], "length")

    def _preempt(self, sequence: Sequence) -> None:
        """A running sequence leaves the KV cache and waits again."""
        self.slots.end(sequence)
        self.cache.drop(sequence)
        self.counters.preempted += 1

    def _shift(self, sequence: Sequence) -> None:
        """Make room for a sequence that fills its context: half of its tokens behind the first ones go."""
        self.unsettle()
        overflow = sequence.request.overflow
        keep = overflow.keep(sequence.request.ids)
        n = overflow.n_discarded(len(sequence.ids) - 1, keep)
        if n < 1:
            self.end([sequence], "length")
            return
        self.drafters.forget(sequence)
        if sequence.seq_id is not None and not self.cache.shift(sequence, keep, n):
            # It is computed again without them, after the others.
            self.slots.end(sequence)
            self.cache.forget(sequence)
        sequence.discard(keep, n)

    def _recover(self, rows: list[tuple[Sequence, int]], error: Exception) -> None:
        """A decode failed for good: its requests end, and all others go on in a new context.

        Raises:
            Exception: `error`, where there is no new context.
        """
        if self._make_context is None:
            raise error
        _log.error("a decode failed; a new context is made: %s: %s", type(error).__name__, error)
        self.unsettle()
        for each in self.sequences.values():
            self.drafters.forget(each)
            if not each.alone and each.seq_id is not None:
                self.slots.end(each)
                each.seq_id, each.n_computed = None, 0
        failed = {self.requests[sequence] for sequence, _ in rows}
        try:
            context = self._make_context()
        except Exception as cause:
            _log.error("no new context could be made: %s: %s", type(cause).__name__, cause)
            raise error from cause
        self.counters.recovered += 1
        self.host.use(context.state)
        self.drafters.use(context)
        self._use(context)
        # After that: their callers may have other requests.
        for request in failed:
            self._fail(request, error)

    def end(self, sequences: list[Sequence], reason: Any) -> None:
        """End sequences, for this reason."""
        self.unsettle()
        for sequence in sequences:
            sequence.reason = reason
            if self.sequences.pop(sequence.id, None) is not None:
                self._leave(sequence)
                self.requests.pop(sequence).emit(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self.counters.tokens_max = max(self.counters.tokens_max, sequence.n_computed)
        self.drafters.forget(sequence)
        if isinstance(sequence, BeamSequence):
            assert self._beams is not None
            self._beams.forget(sequence)
        elif sequence.alone:
            assert self._deterministic is not None
            self._deterministic.forget(sequence)
        elif sequence.seq_id is not None:
            self.slots.end(sequence)
            self.cache.keep(sequence)

    def _fail(self, request: Request, error: BaseException) -> None:
        """An error ends its request, and no other."""
        self.unsettle()
        for each in (error, *(sequence.error for sequence in request.sequences)):
            _clear_frames(each)
        self.counters.failed += 1
        for sequence in request.sequences:
            if self.sequences.pop(sequence.id, None) is not None:
                self._leave(sequence)
                self.requests.pop(sequence, None)
        request.fail(error)


def _clear_frames(error: BaseException | None) -> None:
    """The frames of a traceback hold views of logits, which would keep the context from being closed.

    So do those of the errors that it came from.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


__all__ = ["EngineCore"]

"""Many steps without the GIL: the texts are those of single steps, whatever ends them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.batches import PROMPTS, go_on, started

from pyllm import Batch, Chain, Context, Model, errors
from pyllm.core.python_sampler import PythonSampler
from pyllm.core.round import Flag, Round
from pyllm.core.rows import Row, sample_rows
from pyllm.core.sampler import Sampler
from pyllm.core.samplers import Dist, Greedy, LogitBias, Penalties, Temp, TopK, TopP

INF = float("inf")
MANY = 10**6


class Each:
    """Does something at each token, and leaves the choice to others."""

    def __init__(self, do: Callable[[int], Any]) -> None:
        self.n = 0
        self.do = do

    def apply(self, candidates: Any) -> None:
        self.n += 1
        token = self.do(self.n)
        if token is not None:
            candidates["logit"] = np.where(candidates["id"] == token, 0, -INF)


class Texts:
    """Four texts of which each has a token that is not computed yet."""

    def __init__(self, context: Context, rows: list[Row]) -> None:
        self.context, self.rows = context, rows
        indices = started(context)
        sample_rows(context, rows, indices[: len(rows)])
        self.past = [len(ids) for ids in PROMPTS[: len(rows)]]

    def round(self, limit: int = MANY, **options: Any) -> Round:
        n = len(self.rows)
        return Round(self.context, self.rows, range(n), self.past, [limit] * n, **options)

    def single_steps(self, n_steps: int, limit: int = MANY) -> int:
        """What a round does, in Python."""
        n = len(self.rows)
        for done in range(n_steps):
            go_on(self.context, [row.tokens[-1] for row in self.rows], self.past)
            self.past = [past + 1 for past in self.past]
            sample_rows(self.context, self.rows, list(range(n)))
            if any(row.finish_reason or row.error or row.n_generated >= limit for row in self.rows):
                return done + 1
        return n_steps

    @property
    def texts(self) -> list[tuple[list[int], bytes, str | None]]:
        return [(row.tokens, row.stream.text, row.finish_reason) for row in self.rows]


@pytest.fixture(params=[True, False], ids=["unified", "apart"])
def contexts(request: pytest.FixtureRequest, make_context: Callable[..., Context]) -> Callable[..., Context]:
    """`contexts()`: one more context for four texts; with one cache for all, and with one for each."""
    return lambda **options: make_context(**({"n_ctx": 256, "n_seq_max": 4, "kv_unified": request.param} | options))


@pytest.fixture
def ends(tiny_model: Model) -> dict[int, float]:
    return dict.fromkeys(tiny_model.vocab.eog_tokens, -INF)


@pytest.fixture
def rows(tiny_model: Model, ends: dict[int, float]) -> Callable[..., list[Row]]:
    """`rows(n=4, first=[...], stop=())`: rows that do not end by themselves; `first` goes into the chain of row 1."""

    def make(n: int = 4, first: Callable[[], list[Sampler]] = list, stop: tuple[bytes, ...] = ()) -> list[Row]:
        def bias() -> LogitBias:
            return LogitBias(tiny_model.n_vocab, ends)

        made = [
            Row(Chain(bias(), Greedy())),
            Row(Chain(bias(), *first(), TopK(40), TopP(0.95), Temp(0.8), Dist(1)), stop=stop),
            Row(Chain(bias(), Penalties(16, freq=0.1), Temp(0.9), Dist(2)), special=True),
            Row(Chain(bias(), TopK(3), Dist(3))),
        ]
        return made[:n]

    return make


@pytest.fixture
def alone(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> Texts:
    """Texts to try things with."""
    return Texts(contexts(), rows())


# ---- the same texts


@pytest.mark.parametrize("n_rows", [1, 2, 4])
def test_the_texts_are_those_of_single_steps(
    contexts: Callable[..., Context], rows: Callable[..., list[Row]], n_rows: int
) -> None:
    by_round, by_steps = Texts(contexts(), rows(n_rows)), Texts(contexts(), rows(n_rows))
    round = by_round.round()
    before = by_round.context.decode_id
    for n in (1, 0, 7, 22):
        assert round.run(n) == round.n_steps == n
        assert by_steps.single_steps(n) == n
        assert by_round.texts == by_steps.texts
    assert [row.n_generated for row in by_round.rows] == [31] * n_rows
    assert by_round.context.decode_id != before
    # The outputs of the last step are there, and the memory holds what was computed.
    assert by_round.context.n_outputs == n_rows
    assert np.array_equal(by_round.context.logits, by_steps.context.logits)
    for seq, past in enumerate(by_steps.past):
        assert by_round.context.memory.pos_max(seq) == past - 1
    # They go on in single steps.
    by_round.past = by_steps.past
    by_round.single_steps(5), by_steps.single_steps(5)
    assert by_round.texts == by_steps.texts


def test_sequences_in_another_order(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    plain, turned = Texts(contexts(), rows()), Texts(contexts(), rows())
    order = [2, 0, 3, 1]
    seq_ids: Any = np.array(order)
    round = Round(
        turned.context, [turned.rows[i] for i in order], seq_ids, tuple(turned.past[i] for i in order), [99] * 4
    )
    assert round.run(20) == plain.round().run(20) == 20
    assert turned.texts == plain.texts
    assert round.rows == [turned.rows[i] for i in order] and round.context is turned.context


def test_other_threads_do_not_matter(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    quiet, busy = Texts(contexts(), rows()), Texts(contexts(), rows())
    quiet.round().run(40)
    over = threading.Event()
    reads = []

    def spin() -> None:
        n = 0
        while not over.is_set():
            n += 1
            reads.append([row.tokens_from(n % 40) for row in busy.rows])
            del reads[:-1]

    threads = [threading.Thread(target=spin) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        for thread in threads:
            thread.start()
        assert busy.round().run(40, INF) == 40
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert busy.texts == quiet.texts


def test_two_threads_take_turns(alone: Texts, contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    one = Texts(contexts(), rows())
    one.round().run(40)
    round = alone.round()
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(round.run(10, INF))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [10] * 4 and alone.texts == one.texts


# ---- what ends it


def same_end(
    contexts: Callable[..., Context], rows: Callable[..., list[Row]], limit: int = MANY, **options: Any
) -> tuple[Round, Texts]:
    """Ends a round and single steps in the same way; checks that they agree."""
    by_round, by_steps = Texts(contexts(), rows(**options)), Texts(contexts(), rows(**options))
    round = by_round.round(limit)
    n = round.run(40)
    assert n == round.n_steps == by_steps.single_steps(40, limit) and 0 < n < 40
    assert by_round.texts == by_steps.texts
    for seq in range(4):
        assert by_round.context.memory.pos_max(seq) == by_round.past[seq] + n - 1
    return round, by_round


def test_the_end_of_a_text(
    contexts: Callable[..., Context], rows: Callable[..., list[Row]], ends: dict[int, float]
) -> None:
    eog = next(iter(ends))

    def nothing(n: int) -> None:
        pass

    class Ends(Each):
        def apply(self, candidates: Any) -> None:
            self.n += 1
            if self.n == 9:
                candidates["logit"] = np.where(candidates["id"] == eog, 0, -INF)

    round, texts = same_end(contexts, rows, first=lambda: [PythonSampler(Ends(nothing))])
    assert round.n_steps == 8
    assert [row.finish_reason for row in texts.rows] == [None, "stop", None, None]
    assert [row.n_generated for row in texts.rows] == [9, 8, 9, 9]
    check_that_it_is_over(round, texts)


def check_that_it_is_over(round: Round, texts: Texts) -> None:
    before = texts.texts, texts.context.decode_id
    for _ in range(2):
        assert round.run(10) == round.n_steps == 0
    assert (texts.texts, texts.context.decode_id) == before
    # The others go on without it.
    left = [seq for seq, row in enumerate(texts.rows) if row.finish_reason is None]
    past = [texts.context.memory.pos_max(seq) + 1 for seq in left]
    go_on_with = Round(texts.context, [texts.rows[seq] for seq in left], left, past, [MANY] * len(left))
    counts = [texts.rows[seq].n_generated for seq in left]
    assert go_on_with.run(5) == 5
    assert [texts.rows[seq].n_generated for seq in left] == [n + 5 for n in counts]


def test_a_stop_string(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    first = Texts(contexts(), rows())
    first.round().run(20)
    text = first.rows[1].stream.text
    stop = text[len(text) // 2 :][:3]
    round, texts = same_end(contexts, rows, stop=(stop,))
    assert texts.rows[1].finish_reason == "stop" and texts.rows[1].stream.text == text[: text.index(stop)]
    assert [row.n_generated for row in texts.rows] == [round.n_steps + 1] * 4
    check_that_it_is_over(round, texts)


def test_the_limit_of_a_text(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    round, texts = same_end(contexts, rows, limit=12)
    assert [row.n_generated for row in texts.rows] == [12] * 4
    assert round.run(10) == 0 and [row.n_generated for row in texts.rows] == [12] * 4
    longer = Round(texts.context, texts.rows, range(4), [past + 11 for past in texts.past], [MANY, 15, 14, MANY])
    assert longer.run(10) == 2 and [row.n_generated for row in texts.rows] == [14] * 4
    assert longer.run(10) == 0


def test_a_sampler_that_fails(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    def fail(n: int) -> None:
        if n == 6:
            raise ZeroDivisionError("mine")

    round, texts = same_end(contexts, rows, first=lambda: [PythonSampler(Each(fail))])
    row = texts.rows[1]
    assert isinstance(row.error, ZeroDivisionError) and row.finish_reason is None
    assert [row.error for row in texts.rows if row.error is not None] == [row.error]
    assert (round.n_steps, [row.n_generated for row in texts.rows]) == (5, [6, 5, 6, 6])
    # Its newest token is computed: it has to choose another one first.
    before = texts.texts, texts.context.decode_id
    with pytest.raises(errors.InvalidArgumentError, match=r"row 1 .* sample_rows"):
        round.run(1)
    assert (texts.texts, texts.context.decode_id, round.n_steps) == (*before, 0)
    assert sample_rows(texts.context, [row], [1]) != [None]
    assert round.run(3) == 3
    # The same text as if nothing had happened.
    other = Texts(contexts(), rows())
    other.round().run(8)
    assert texts.texts == other.texts


def test_a_chain_that_never_selects(alone: Texts) -> None:
    alone.rows[2].sampler.remove(-1)  # type: ignore[attr-defined]
    assert alone.round().run(5) == 1
    assert isinstance(alone.rows[2].error, errors.SamplerError) and "never selects" in str(alone.rows[2].error)
    assert [row.n_generated for row in alone.rows] == [2, 2, 1, 2]


def test_all_samplers_fail(contexts: Callable[..., Context]) -> None:
    def fail(n: int) -> None:
        if n == 2:
            raise ValueError(n)

    texts = Texts(contexts(), [Row(Chain(PythonSampler(Each(fail)), Greedy())) for _ in range(4)])
    assert texts.round().run(5) == 1
    assert [type(row.error) for row in texts.rows] == [ValueError] * 4


def test_a_flag_from_another_thread(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    flag, ask, done = Flag(), threading.Event(), threading.Event()

    def pause(n: int) -> None:
        if n == 6:
            ask.set()
            assert done.wait(300)

    def other() -> None:
        assert ask.wait(300)
        flag.set()
        done.set()

    texts = Texts(contexts(), rows(first=lambda: [PythonSampler(Each(pause))]))
    round = texts.round(stop=flag)
    thread = threading.Thread(target=other)
    thread.start()
    assert round.run(40, INF) == 5  # the first token was chosen before
    thread.join()
    assert round.stop is flag and bool(flag)
    assert [row.n_generated for row in texts.rows] == [6] * 4  # the step was carried through
    assert round.run(40) == round.n_steps == 0
    flag.clear()
    assert not flag and round.run(4) == 4


def test_a_round_has_a_flag_of_its_own(alone: Texts) -> None:
    round = alone.round()
    assert isinstance(round.stop, Flag) and not round.stop
    round.stop.set()
    assert round.run(3) == 0
    round.stop.clear()
    assert round.run(3) == 3


def test_ms(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    def wait(n: int) -> None:
        time.sleep(0.005)

    texts = Texts(contexts(), rows(first=lambda: [PythonSampler(Each(wait))]))
    round = texts.round()
    assert round.run(40, 0) == round.run(40, ms=0.0) == 0
    assert 1 <= round.run(40, 20) <= 8
    assert round.run(1, 1e300) == round.run(1, ms=INF) == 1
    for ms, message in ((float("nan"), "ms must be"), (-1, "ms must be a number from 0")):
        with pytest.raises(errors.InvalidArgumentError, match=message):
            round.run(1, ms)
    with pytest.raises(TypeError):
        round.run(1, "1")  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [0, -3])
def test_no_steps(alone: Texts, n: int) -> None:
    before = alone.texts
    assert alone.round().run(n) == 0 and alone.texts == before


# ---- what fails


def fill(context: Context, seq: int, n: int) -> None:
    first = context.memory.pos_max(seq) + 1
    context.decode(Batch.from_arrays(np.full(n, 7), pos=np.arange(first, first + n), seq_ids=seq, outputs="none"))


def test_no_room_in_the_middle(make_context: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    def full() -> Texts:
        texts = Texts(make_context(n_ctx=256, n_seq_max=5, kv_unified=True), rows())
        fill(texts.context, 4, 256 - 10 - 4 * 6 - 2)  # room for the prompts, six steps, and not quite a seventh
        return texts

    texts, by_steps = full(), full()
    round = texts.round()
    with pytest.raises(errors.NoKVSlotError):
        round.run(40)
    assert round.n_steps == 6
    assert by_steps.single_steps(6) == 6
    assert texts.texts == by_steps.texts
    assert all(row.error is None for row in texts.rows)
    assert [texts.context.memory.pos_max(seq) for seq in range(4)] == [past + 5 for past in texts.past]
    for _ in range(2):
        with pytest.raises(errors.NoKVSlotError):
            round.run(40)
        assert round.n_steps == 0 and texts.texts == by_steps.texts
    with pytest.raises(errors.NoKVSlotError):
        by_steps.single_steps(1)
    for each in (texts, by_steps):
        each.context.memory.rm(4, 100)
    assert round.run(12) == by_steps.single_steps(12) == 12
    assert texts.texts == by_steps.texts


def test_one_sequence_has_no_room(make_context: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    texts = Texts(make_context(n_ctx=4 * 256, n_seq_max=4, kv_unified=False), rows())
    fill(texts.context, 2, 256 - texts.past[2] - 3)
    texts.past[2] = 253
    round = texts.round()
    with pytest.raises(errors.NoKVSlotError):
        round.run(40)
    assert round.n_steps == 3 and [row.n_generated for row in texts.rows] == [4] * 4
    assert [texts.context.memory.pos_max(seq) for seq in (0, 2)] == [texts.past[0] + 2, 255]


def test_an_abort(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    texts, other = Texts(contexts(), rows()), Texts(contexts(), rows())
    round = texts.round()
    round.run(5)
    texts.context.abort()
    with pytest.raises(errors.DecodeAborted):
        round.run(5)
    assert round.n_steps == 0 and [row.n_generated for row in texts.rows] == [6] * 4
    assert round.run(5) == 5
    other.round().run(10)
    assert texts.texts == other.texts


def test_an_abort_callback_that_raises(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    def fail() -> bool:
        raise ZeroDivisionError("mine")

    texts, other = Texts(contexts(), rows()), Texts(contexts(), rows())
    round = texts.round()
    texts.context.set_abort_callback(fail)
    time.sleep(0.03)  # it is asked every 20 ms
    with pytest.raises(ZeroDivisionError, match="mine"):
        for _ in range(40):
            round.run(1)
            time.sleep(0.01)
    assert round.n_steps == 0 and all(row.error is None for row in texts.rows)
    n = texts.rows[0].n_generated
    texts.context.set_abort_callback(None)
    # It was told once; what comes next is not aborted.
    assert round.run(5) == 5
    other.round().run(n + 4)
    assert texts.texts == other.texts


def test_ctrl_c_while_a_token_is_chosen(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    def interrupt(n: int) -> None:
        if n == 4:
            signal.raise_signal(signal.SIGINT)

    texts, other = Texts(contexts(), rows(first=lambda: [PythonSampler(Each(interrupt))])), Texts(contexts(), rows())
    round = texts.round()
    with pytest.raises(KeyboardInterrupt):
        round.run(10)
    # The step was computed, and two of them have no token of it.
    assert (round.n_steps, [row.n_generated for row in texts.rows]) == (3, [4, 3, 3, 3])
    with pytest.raises(errors.InvalidArgumentError, match="row 1"):
        round.run(10)
    sample_rows(texts.context, texts.rows[1:], [1, 2, 3])
    assert round.run(6) == 6
    other.round().run(9)
    assert texts.texts == other.texts


def test_a_sampler_must_not_use_what_uses_it(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    found: list[Exception] = []
    later: list[Any] = []

    def misuse(n: int) -> None:
        if n == 3:
            for use in later:
                with pytest.raises(errors.ReentrantError) as caught:
                    use()
                found.append(caught.value)

    texts = Texts(contexts(), rows(first=lambda: [PythonSampler(Each(misuse))]))
    round = texts.round()
    later += [lambda: round.run(1), lambda: texts.context.logits, texts.context.close, texts.rows[1].sampler.close]
    assert round.run(5) == round.n_steps == 5
    assert len(found) == 4 and [row.n_generated for row in texts.rows] == [6] * 4


def test_what_is_closed(contexts: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    texts = Texts(contexts(), rows())
    round = texts.round()
    texts.rows[3].sampler.close()
    before = texts.context.decode_id
    for _ in range(2):
        with pytest.raises(errors.ClosedError, match="Chain has been closed"):
            round.run(5)
    assert (texts.context.decode_id, round.n_steps) == (before, 0)
    # The samplers of the others were let go.
    thread = threading.Thread(target=lambda: [row.sampler.clone() for row in texts.rows[:3]])
    thread.start()
    thread.join(300)
    assert not thread.is_alive()
    texts = Texts(contexts(), rows())
    round = texts.round()
    texts.context.close()
    with pytest.raises(errors.ClosedError, match="context has been closed"):
        round.run(5)


def test_samplers_of_the_context(alone: Texts) -> None:
    round = alone.round()
    alone.context.set_sampler(0, Chain(Greedy()))
    with pytest.raises(errors.InvalidArgumentError, match="those of the context"):
        round.run(5)
    alone.context.set_sampler(0, None)
    assert round.run(5) == 5


def test_wrong_positions(alone: Texts) -> None:
    alone.past = [past + 7 for past in alone.past]
    round = alone.round()
    with pytest.raises(errors.InvalidBatchError):
        round.run(5)
    assert round.n_steps == 0 and [row.n_generated for row in alone.rows] == [1] * 4


# ---- bells


@pytest.fixture
def pipes() -> Iterator[Callable[[], tuple[int, int]]]:
    """`pipes()`: the two ends of a pipe that never blocks."""
    if sys.platform == "win32":
        pytest.skip("pipes block there")
    made: list[int] = []

    def make() -> tuple[int, int]:
        ends = os.pipe()
        for end in ends:
            os.set_blocking(end, False)
        made.extend(ends)
        return ends

    yield make
    for end in made:
        os.close(end)


def waiting(end: int) -> int:
    """How many bytes there are in a pipe."""
    try:
        return len(os.read(end, 1 << 20))
    except BlockingIOError:
        return 0


def test_pipes_wake_the_reader(alone: Texts, pipes: Callable[[], tuple[int, int]]) -> None:
    ends = [pipes() for _ in range(40)]
    round = alone.round(20, bells=[write for _, write in ends])
    assert round.run(7) == 7
    assert [waiting(read) for read, _ in ends] == [7] * 40
    # Of the step that ends it the caller tells.
    assert round.run(40) == 12
    assert [waiting(read) for read, _ in ends] == [11] * 40
    assert round.run(40) == 0 and not any(waiting(read) for read, _ in ends)


def test_the_pipe_is_written_while_steps_run(
    contexts: Callable[..., Context], rows: Callable[..., list[Row]], pipes: Callable[[], tuple[int, int]]
) -> None:
    read, write = pipes()
    heard = []
    texts = Texts(contexts(), rows())
    texts.rows[1] = Row(Chain(PythonSampler(Each(lambda n: heard.append(waiting(read)))), Greedy()))
    texts = Texts(contexts(), texts.rows)
    heard.clear()
    assert texts.round(bells=[write]).run(5) == 5
    assert heard == [0, 1, 1, 1, 1] and waiting(read) == 1


def test_a_full_pipe(alone: Texts, pipes: Callable[[], tuple[int, int]]) -> None:
    (full, write), (read, other) = pipes(), pipes()
    n = 0
    while True:
        try:
            n += os.write(write, bytes(4096))
        except BlockingIOError:
            break
    assert alone.round(bells=[write, other]).run(6) == 6
    assert waiting(read) == 6 and waiting(full) == n


@pytest.mark.skipif(sys.platform == "win32", reason="pipes block there")
def test_a_pipe_without_a_reader(alone: Texts) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.close(read)
    round = alone.round(bells=[write])
    assert round.run(3) == 3
    os.close(write)
    assert round.run(3) == 3


def test_a_pipe_that_blocks(alone: Texts, pipes: Callable[[], tuple[int, int]]) -> None:
    _, write = pipes()
    os.set_blocking(write, True)
    with pytest.raises(errors.InvalidArgumentError, match=f"descriptor {write} could block"):
        alone.round(bells=[write])


# ---- wrong arguments


def test_wrong_arguments(alone: Texts, rows: Callable[..., list[Row]]) -> None:
    context, texts, past = alone.context, alone.rows, alone.past

    def refused(
        message: str, *arguments: Any, error: type[Exception] = errors.InvalidArgumentError, **more: Any
    ) -> None:
        given: list[Any] = [context, texts, range(4), past, [9] * 4]
        given[: len(arguments)] = arguments
        with pytest.raises(error, match=message):
            Round(*given, **more)

    refused("4 rows go with as many seq_ids, not with 3", context, texts, [0, 1, 2])
    refused("4 rows go with as many positions, not with 5", context, texts, range(4), [1] * 5)
    refused("4 rows go with as many limits, not with 0", context, texts, range(4), past, [])
    refused("from 1 to n_batch=.* rows, not 0", context, [], [], [], [])
    refused("a sequence of its own", context, texts, [0, 1, 1, 2])
    refused("sequence id 4 is out of range: .* n_seq_max=4", context, texts, [0, 1, 2, 4])
    refused("sequence id -1 is out of range", context, texts, [0, 1, 2, -1])
    refused("positions start at 0, not -1", context, texts, range(4), [1, 2, 3, -1])
    refused("a position must be from", context, texts, range(4), [1, 2, 3, 2**31])
    refused("a limit must be from", context, texts, range(4), past, [2**40] * 4)
    refused("each row needs a token that is computed first", context, [*texts[:3], Row(Chain(Greedy()))])
    refused("something is there twice", context, [*texts[:3], texts[0]])
    refused("something is there twice", context, [*texts[:3], Row(texts[0].sampler)])
    refused("rows must be Row objects, not NoneType", context, [*texts[:3], None], error=TypeError)
    refused("NoneType", None, error=TypeError)
    refused("None", context, None, error=TypeError)
    refused("list", context, tuple(texts), error=TypeError)
    refused("float", context, texts, range(4), [1.5, 2, 3, 4], error=TypeError)
    refused("float", context, texts, [0, 1, 2, 3.0], error=TypeError)
    refused("str", context, texts, range(4), past, ["1"] * 4, error=TypeError)
    refused("Flag", error=TypeError, stop=1)
    refused("float", error=TypeError, bells=[1.5])
    refused("a descriptor must be from", bells=[2**40])
    round = alone.round()
    with pytest.raises(TypeError):
        round.run(1.5)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgumentError, match="n_steps must be from"):
        round.run(2**31)
    assert [row.n_generated for row in texts] == [1] * 4
    assert round.run(2) == 2


def test_more_rows_than_a_batch(make_context: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    texts = Texts(make_context(n_seq_max=4, kv_unified=True), rows())
    small = make_context(n_seq_max=2, n_batch=2, kv_unified=True)
    with pytest.raises(errors.InvalidArgumentError, match=r"from 1 to n_batch=2 rows, not 4"):
        Round(small, texts.rows, range(4), texts.past, [9] * 4)


def test_several_micro_batches(make_context: Callable[..., Context], rows: Callable[..., list[Row]]) -> None:
    small, large = (
        Texts(make_context(n_seq_max=4, n_batch=16, n_ubatch=n_ubatch, kv_unified=True), rows()) for n_ubatch in (2, 16)
    )
    assert small.round().run(20) == 20 and large.single_steps(20) == 20
    assert small.texts == large.texts


def test_it_is_made_once_and_whole(alone: Texts) -> None:
    with pytest.raises(TypeError):
        Round.__new__(Round)  # type: ignore[call-arg]
    round = alone.round()
    round.rows.append(alone.rows[0])  # a list of the caller's own
    round.rows.clear()
    assert round.rows == alone.rows and round.run(3) == 3


def test_tokens_from(alone: Texts) -> None:
    alone.round().run(9)
    row = alone.rows[0]
    assert len(row.tokens) == 10
    for start in range(10):
        assert row.tokens_from(start) == tuple(row.tokens[start:])
    assert row.tokens_from(10) == row.tokens_from(11) == row.tokens_from(2**31 - 1) == ()
    assert row.tokens_from(-3) == row.tokens_from(-(2**31)) == tuple(row.tokens)
    with pytest.raises(TypeError):
        row.tokens_from(1.0)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgumentError, match="start must be from"):
        row.tokens_from(2**31)

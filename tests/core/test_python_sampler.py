"""Samplers written in Python, alone, in chains and in generations."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.python_sampler import CANDIDATE, Bitmask, PythonSampler
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Dist, Greedy, Penalties, Temp, TopK

LOGITS = np.array([1, 5, 3, 4, 2], np.float32)


class Recorder:
    """Does nothing and writes down what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def apply(self, candidates: Any) -> None:
        self.calls.append(("apply", len(candidates)))

    def accept(self, token: int) -> None:
        self.calls.append(("accept", token))

    def reset(self) -> None:
        self.calls.append("reset")

    def clone(self) -> Recorder:
        copy = Recorder()
        copy.calls = [*self.calls, "clone"]
        return copy


class Source:
    """Allows the given tokens."""

    def __init__(self, allowed: list[int], n_vocab: int = 5) -> None:
        self.allowed, self.n_vocab, self.accepted = allowed, n_vocab, []

    def fill(self, mask: np.ndarray) -> None:
        mask[:] = 0
        for token in self.allowed:
            mask[token // 32] |= np.array(1 << token % 32, np.uint32).view(np.int32)

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def clone(self) -> Source:
        return Source(list(self.allowed), self.n_vocab)


def test_every_method_is_called() -> None:
    recorder = Recorder()
    sampler = PythonSampler(recorder)
    assert sampler.name == "python"
    assert sampler.implementation is recorder
    assert "Recorder" in repr(sampler)
    sampler.apply(LOGITS)
    sampler.accept(3)
    sampler.reset()
    assert recorder.calls == [("apply", 5), ("accept", 3), "reset"]
    copy = sampler.clone()
    assert copy.implementation is not recorder
    copy.accept(1)
    assert recorder.calls[-1] == "reset"
    assert copy.implementation.calls[-2:] == ["clone", ("accept", 1)]


def test_candidates_are_a_structured_array() -> None:
    seen: dict[str, Any] = {}

    def look(candidates: Any) -> None:
        array = candidates.array
        seen.update(dtype=array.dtype, writable=array.flags.writeable, copy=array.copy(), text=repr(candidates))
        seen["state"] = (candidates.size, len(candidates), candidates.selected, candidates.sorted)
        assert np.asarray(candidates).tolist() == array.tolist()

    PythonSampler(look).apply(LOGITS)
    assert seen["dtype"] == CANDIDATE
    assert CANDIDATE.itemsize == 12
    assert seen["writable"]
    assert seen["copy"]["id"].tolist() == [0, 1, 2, 3, 4]
    assert seen["copy"]["logit"].tolist() == LOGITS.tolist()
    assert seen["state"] == (5, 5, None, False)
    assert "5" in seen["text"]


def test_what_is_written_counts() -> None:
    def double(candidates: Any) -> None:
        candidates["logit"] *= 2
        candidates.array["p"][1] = 0.25

    ids, logits, probs, selected = PythonSampler(double).apply(LOGITS)
    assert ids.tolist() == [0, 1, 2, 3, 4]
    assert logits.tolist() == (2 * LOGITS).tolist()
    assert probs[1] == 0.25
    assert selected is None


def test_size_and_selected_can_be_set() -> None:
    def two_of_them(candidates: Any) -> None:
        candidates.keep([3, 1])
        candidates.selected = 1

    ids, logits, _, selected = PythonSampler(two_of_them).apply(LOGITS)
    assert (ids.tolist(), logits.tolist(), selected) == ([3, 1], [4, 5], 1)

    def shorter(candidates: Any) -> None:
        candidates.size = 2

    assert PythonSampler(shorter).apply(LOGITS)[0].tolist() == [0, 1]

    def mask(candidates: Any) -> None:
        candidates.keep(candidates["logit"] > 2)

    assert PythonSampler(mask).apply(LOGITS)[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: setattr(c, "size", 6), errors.InvalidArgumentError, "from 1 to 5, not 6"),
        (lambda c: setattr(c, "size", 0), errors.InvalidArgumentError, "from 1 to 5, not 0"),
        (lambda c: setattr(c, "size", 2.5), errors.InvalidArgumentError, "not 2.5"),
        (lambda c: setattr(c, "selected", 5), errors.InvalidArgumentError, "from 0 to 4"),
        (lambda c: setattr(c, "selected", -1), errors.InvalidArgumentError, "from 0 to 4"),
        (lambda c: c.keep([]), errors.InvalidArgumentError, "not 0"),
        (lambda c: c.keep(np.zeros(5, bool)), errors.InvalidArgumentError, "not 0"),
        (lambda c: c["id"].__setitem__(2, 5), errors.SamplerError, "token 5 at index 2"),
        (lambda c: c["id"].__setitem__(2, -1), errors.SamplerError, "token -1 at index 2"),
        (lambda c: c["nothing"], (ValueError, KeyError), "nothing"),
        (lambda c: (setattr(c, "selected", 4), setattr(c, "size", 2)), errors.SamplerError, "selected index 4"),
    ],
)
def test_what_cannot_be_is_an_error(change: Callable[[Any], Any], error: Any, message: str) -> None:
    def apply(candidates: Any) -> None:
        change(candidates)

    with pytest.raises(error, match=message):
        PythonSampler(apply).apply(LOGITS)


def test_candidates_die_with_the_call() -> None:
    kept: list[Any] = []

    def keep(candidates: Any) -> None:
        kept.extend([candidates, candidates.array])

    sampler = PythonSampler(keep)
    sampler.apply(LOGITS)
    candidates, array = kept
    for use in (
        lambda: candidates.array,
        lambda: candidates["logit"],
        lambda: len(candidates),
        lambda: candidates.selected,
        lambda: setattr(candidates, "size", 1),
        lambda: np.asarray(candidates),
    ):
        with pytest.raises(errors.SamplerError, match="over"):
            use()
    assert "over" in repr(candidates)
    # The array is memory of NumPy's: safe, even when everything else is gone.
    sampler.close()
    del sampler
    gc.collect()
    array["logit"] += 1
    assert array["id"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(TypeError):
        type(kept[0])()


def test_a_wrong_sorted_does_no_harm() -> None:
    def lie(candidates: Any) -> None:
        candidates.sorted = True

    ids, _, _, selected = Chain(PythonSampler(lie), TopK(2), Dist(1)).apply(LOGITS)
    assert sorted(ids.tolist()) == [1, 3]
    assert selected in (1, 3)


def test_order_in_a_chain() -> None:
    recorder, seen = Recorder(), []
    chain = Chain(
        TopK(3),
        PythonSampler(recorder),
        Bitmask(Source([1, 2])),
        PythonSampler(lambda candidates: seen.append(candidates["id"].tolist())),
        Temp(0.5),
        Greedy(),
    )
    ids, logits, _, selected = chain.apply(LOGITS)
    assert recorder.calls == [("apply", 3)]
    assert seen == [[1, 2]]
    assert (ids.tolist(), logits.tolist(), selected) == ([1, 2], [10, 6], 1)
    assert [type(member).__name__ for member in chain][1:3] == ["PythonSampler", "Bitmask"]


def test_clones_of_chains_are_independent() -> None:
    source, recorder = Source([2]), Recorder()
    chain = Chain(Bitmask(source), PythonSampler(recorder), Greedy())
    copy = chain.clone()
    assert isinstance(copy[0], Bitmask)
    assert isinstance(copy[1], PythonSampler)
    assert copy[0].source is not source
    copy[0].source.allowed = [4]
    copy.accept(4)
    assert (source.accepted, recorder.calls) == ([], [])
    assert chain.apply(LOGITS)[3] == 2
    assert copy.apply(LOGITS)[3] == 4


def test_what_cannot_be_cloned_says_so() -> None:
    chain = Chain(PythonSampler(lambda candidates: None), Greedy())
    with pytest.raises(errors.SamplerError, match="clone"):
        chain.clone()
    assert chain.apply(LOGITS)[3] == 1

    class Lazy(Recorder):
        def clone(self) -> Any:
            return self

    with pytest.raises(errors.SamplerError, match="independent"):
        PythonSampler(Lazy()).clone()


def test_implementations_are_freed_with_their_sampler() -> None:
    recorder = Recorder()
    weak = weakref.ref(recorder)
    chain = Chain(PythonSampler(recorder), Greedy())
    copy = chain.clone()
    copied = weakref.ref(copy[0].implementation)
    del recorder
    chain.close()
    gc.collect()
    assert weak() is None
    assert copied() is not None
    del copy
    gc.collect()
    assert copied() is None


@pytest.mark.parametrize("bad", [None, 3, object(), type("Bad", (), {"apply": 3})()])
def test_what_has_no_apply_is_refused(bad: Any) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="apply"):
        PythonSampler(bad)


@pytest.mark.parametrize("bad", [None, object(), type("Bad", (), {"fill": lambda self, mask: None})()])
def test_what_is_no_source_is_refused(bad: Any) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="fill"):
        Bitmask(bad)


def test_bitmask_drops_what_is_forbidden() -> None:
    source = Source([0, 3])
    sampler = Bitmask(source)
    assert sampler.name == "bitmask"
    ids, logits, _, _ = sampler.apply(LOGITS)
    assert (ids.tolist(), logits.tolist()) == ([0, 3], [1, 4])
    # Past the mask nothing is allowed.
    assert sampler.apply(np.zeros(100, np.float32))[0].tolist() == [0, 3]
    source.allowed = []
    with pytest.raises(errors.SamplerError, match="forbids all 5"):
        sampler.apply(LOGITS)
    source.allowed = [0]
    with pytest.raises(errors.SamplerError, match="TopK"):
        Chain(TopK(1), Bitmask(source.clone()), Greedy()).apply(LOGITS)


def test_a_source_can_allow_everything() -> None:
    source = Source([0])
    source.fill = lambda mask: False  # type: ignore[assignment, method-assign, return-value]
    assert len(Bitmask(source).apply(LOGITS)[0]) == 5


# ---- in generations


class Boom(Exception):
    pass


class Failing:
    """Raises at its n-th call of a method."""

    def __init__(self, method: str, n: int) -> None:
        self.method, self.n = method, n

    def count(self, method: str) -> None:
        if method == self.method:
            self.n -= 1
            if self.n == 0:
                raise Boom(method)

    def apply(self, candidates: Any) -> None:
        self.count("apply")

    def accept(self, token: int) -> None:
        self.count("accept")


def generate(context: Context, ids: np.ndarray, chain: Chain, n: int = 8) -> list[int]:
    context.memory.clear()
    generation = Generation(context, chain)
    generation.prefill(ids)
    generation.run(n)
    return generation.tokens


def test_generation_is_that_of_the_native_sampler(context: Context, ids: np.ndarray) -> None:
    def greedy(candidates: Any) -> None:
        candidates.selected = int(np.argmax(candidates["logit"]))

    native = generate(context, ids, Chain(Greedy()))
    assert generate(context, ids, Chain(PythonSampler(greedy))) == native
    recorder = Recorder()
    assert generate(context, ids, Chain(PythonSampler(recorder), Greedy())) == native
    accepted = [call[1] for call in recorder.calls if call[0] == "accept"]
    assert accepted[: len(native)] == native


@pytest.mark.parametrize("method", ["apply", "accept"])
def test_an_exception_fails_its_own_text_only(
    make_context: Callable[..., Context], ids: np.ndarray, method: str
) -> None:
    context = make_context(n_seq_max=2, n_ctx=512)
    expected = generate(make_context(n_seq_max=2, n_ctx=512), ids, Chain(Greedy()), 6)
    good = Generation(context, Chain(Greedy()), seq_id=0)
    bad = Generation(context, Chain(PythonSampler(Failing(method, 3)), Greedy()), seq_id=1)
    good.prefill(ids)
    bad.prefill(ids)
    with pytest.raises(Boom, match=method):
        for _ in range(6):
            good.step()
            bad.step()
    assert bad.tokens == expected[:2]
    while good.n_generated < len(expected):
        good.step()
    assert good.tokens == expected
    # The context is as usable as before, and no lock is held.
    thread = threading.Thread(target=lambda: context.decode(Batch.from_arrays(ids[:2], seq_ids=[1, 1], pos=[99, 100])))
    context.memory.rm(1)
    thread.start()
    thread.join(300)
    assert not thread.is_alive()


def test_a_step_that_failed_can_be_taken_again(context: Context, ids: np.ndarray) -> None:
    native = generate(context, ids, Chain(Greedy()), 6)
    context.memory.clear()
    generation = Generation(context, Chain(PythonSampler(Failing("apply", 3)), Greedy()))
    generation.prefill(ids)
    with pytest.raises(Boom):
        generation.run(6)
    assert generation.tokens == native[:2]
    generation.run(4)
    assert generation.tokens == native


def test_an_exception_comes_out_of_sample(decoded: Context) -> None:
    chain = Chain(PythonSampler(Failing("apply", 1)), Greedy())
    with pytest.raises(Boom):
        chain.sample(decoded)
    assert chain.sample(decoded) == int(decoded.logits[-1].argmax())
    for sampler, call in [
        (PythonSampler(Failing("accept", 1)), lambda s: s.accept(1)),
        (PythonSampler(Failing("apply", 1)), lambda s: s.apply(LOGITS)),
    ]:
        with pytest.raises(Boom):
            call(sampler)
        call(sampler)


def test_keyboard_interrupt_comes_through(decoded: Context) -> None:
    def interrupt(candidates: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Chain(PythonSampler(interrupt), Greedy()).sample(decoded)


def test_native_samplers_after_it_see_its_tokens(context: Context, ids: np.ndarray, tiny_model: Any) -> None:
    forced = 17

    def force(candidates: Any) -> None:
        candidates.keep(candidates["id"] == forced)

    chain = Chain(PythonSampler(force), Penalties(len(tiny_model.vocab), 64, 1.5), TopK(40), Temp(0.7), Dist(3))
    assert generate(context, ids, chain, 5) == [forced] * 5


def test_the_context_and_the_chain_are_out_of_reach(context: Context, ids: np.ndarray) -> None:
    tried: list[type] = []

    def reach(candidates: Any) -> None:
        for use in (
            lambda: context.decode(Batch.from_arrays(ids[:1])),
            context.close,
            lambda: context.logits,
            chain.close,
            chain.reset,
            lambda: generation.run(1),
        ):
            with pytest.raises(errors.ReentrantError):
                use()
            tried.append(errors.ReentrantError)
        # Other objects are free to use.
        assert Chain(Greedy()).apply(LOGITS)[3] == 1

    chain = Chain(PythonSampler(reach), Greedy())
    generation = Generation(context, chain)
    generation.prefill(ids)
    generation.run(2)
    assert len(tried) == 12
    chain.sample(context, -1)
    assert len(tried) == 18
    assert context.logits.shape[0] == 1


def test_other_threads_run_between_two_calls(make_context: Callable[..., Context], ids: np.ndarray) -> None:
    """Two generations with Python samplers in two threads: neither waits for the other for good."""
    texts: dict[int, list[int]] = {}

    def work(i: int) -> None:
        recorder = Recorder()
        texts[i] = generate(make_context(), ids, Chain(PythonSampler(recorder), Greedy()), 20)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    assert texts[0] == texts[1]

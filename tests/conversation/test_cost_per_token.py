"""A long stream costs as much per token at its end as at its start: work is counted, not time."""

from __future__ import annotations

import gc
import sys
import tracemalloc

import pytest

from pyllm import Llama

N = 1000


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llama(tiny_model, n_ctx=2048, n_threads=1) as llm:
        yield llm


def streams(llm):
    arguments = {
        "max_tokens": N,
        "temperature": 0,
        "stop": ["never to be found", "nor this"],
        "logit_bias": dict.fromkeys(llm.vocab.eog_tokens, float("-inf")),
    }
    talk = llm.conversation("anna", **arguments)
    return {
        "stream": llm.stream("the people look", **arguments),
        "logprobs": llm.stream("the people look", logprobs=2, **arguments),
        "generate": llm.generate("the people look", **arguments),
        "shift": llm.stream(list(range(261, 300)) * 26, overflow="shift", **arguments),
        "conversation": talk.stream("the people look"),
    }


def counted(stream):
    """Calls that each piece took, Python's and C's."""
    counts, calls = [], 0

    def note(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        while next(stream, None) is not None:
            counts.append(calls)
            calls = 0
    finally:
        sys.setprofile(before)
    return counts


def allocated(stream):
    """Bytes that were allocated at once while each piece was made."""
    sizes = []
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        while True:
            tracemalloc.reset_peak()
            start = tracemalloc.get_traced_memory()[0]
            if next(stream, None) is None:
                return sizes
            sizes.append(tracemalloc.get_traced_memory()[1] - start)
    finally:
        tracemalloc.stop()
        gc.enable()


@pytest.mark.parametrize("kind", ["stream", "logprobs", "generate", "shift", "conversation"])
def test_calls(llm, kind):
    counts = counted(streams(llm)[kind])
    llm.conversation("anna").close()
    assert len(counts) > 0.7 * N
    first, last = counts[20:220], counts[-220:-20]
    assert sum(last) < 1.2 * sum(first)


@pytest.mark.parametrize("kind", ["stream", "logprobs", "generate", "shift", "conversation"])
def test_memory(llm, kind):
    sizes = allocated(streams(llm)[kind])
    llm.conversation("anna").close()
    assert len(sizes) > 0.7 * N
    first, last = sorted(sizes[20:220])[100], sorted(sizes[-220:-20])[100]
    # Not a copy of all tokens or rows: 800 more would be thousands of bytes. A chat's parser reads the text again.
    assert last < first + (20_000 if kind == "conversation" else 600)

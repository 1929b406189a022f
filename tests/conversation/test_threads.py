"""Conversations that are used from several threads: they wait for each other, and nothing is mixed up."""

from __future__ import annotations

import threading
import time

import pytest
from support.waiting import LIMIT, in_threads

from pyllm import Llama, errors


@pytest.fixture(params=[{}, {"n_seq_max": 3, "kv_unified": True}], ids=["host", "sequences"])
def llm(request, tiny_model):
    with Llama(tiny_model, n_ctx=2048, n_threads=1, **request.param) as llm:
        yield llm


def test_two_conversations(llm):
    questions = [f"the people {i}" for i in range(5)]
    talks = {name: llm.conversation(name, system=name * 3, max_tokens=8, temperature=0) for name in ("anna", "ben")}

    def talk(name):
        for i, question in enumerate(questions):
            if i % 2:
                talks[name].say(question)
            else:
                for _ in talks[name].stream(question):
                    time.sleep(0.001)

    in_threads(lambda: talk("anna"), lambda: talk("ben"), lambda: llm("the water", max_tokens=9))
    for name, found in talks.items():
        alone = llm.conversation(f"{name} alone", system=name * 3, max_tokens=8, temperature=0)
        for question in questions:
            alone.say(question)
        assert alone.messages == found.messages


def test_one_conversation(llm):
    talk = llm.conversation("anna", max_tokens=5, temperature=0)
    in_threads(*[lambda: talk.say("the people")] * 4)
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 4


def test_the_same_conversation_for_all(llm):
    for i in range(20):
        found = []
        ready = threading.Barrier(4)

        def ask(name=str(i), found=found, ready=ready):
            ready.wait(LIMIT)
            found.append(llm.conversation(name))

        in_threads(*[ask] * 4)
        assert len(found) == 4 and len(set(map(id, found))) == 1
        in_threads(*[found[0].close] * 4)
        assert found[0].closed and llm.conversations == {}


def test_abort(llm):
    bias = dict.fromkeys(llm.vocab.eog_tokens, float("-inf"))
    talk = llm.conversation("anna", temperature=0, logit_bias=bias)
    other = llm.conversation("ben", temperature=0, max_tokens=4)
    other.say("the people look at the number")
    results = []
    thread = threading.Thread(target=lambda: results.append(talk.say("the people")))
    thread.start()
    while thread.is_alive():
        # The one that is not running is not aborted, and neither is anybody else.
        other.abort()
        talk.abort()
        thread.join(0.005)
    answer = results[0]
    assert answer.finish_reason == "abort" and talk.messages[-1] == {"role": "assistant", "content": answer.text}
    assert other.say("the time").usage.cached_tokens > 15
    assert talk.say("the time", max_tokens=3).finish_reason == "length"


def test_an_abort_between_two_decodes_ends_no_other_call(llm):
    talk, other = (llm.conversation(name, temperature=0, max_tokens=20) for name in ("anna", "ben"))
    other.say("the people look at the number")
    for _ in talk.stream("the people"):
        llm.abort()
    assert talk.messages[-1]["content"]
    assert other.say("the time").usage.cached_tokens > 15
    assert talk.say("the water").usage.cached_tokens > 5


def test_closing_from_another_thread(llm):
    talk = llm.conversation("anna", temperature=0, max_tokens=30)
    stream = talk.stream("the people")
    next(stream)
    closer = threading.Thread(target=talk.close)
    closer.start()
    closer.join(0.05)
    # It waits for the stream.
    assert closer.is_alive()
    list(stream)
    closer.join(LIMIT)
    assert talk.closed
    with pytest.raises(errors.ClosedError):
        talk.say("the people")

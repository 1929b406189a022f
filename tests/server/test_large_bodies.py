"""Bodies of many megabytes, and what is said about those that cannot be read."""

from __future__ import annotations

import gc
import json
import random
import threading
import time
from typing import Any

import httpx
import pytest
from support.servers import PYTHON
from support.waiting import wait_for

from pyllm.server import limits


def test_the_parser_of_large_bodies_reads_what_the_other_one_reads() -> None:
    value = {"a": [[1, 2.5, -3e10], "ü\n😀", {"b": [None, True, False, {}]}] * 20_000, "c": "x" * 100_000}
    body = json.dumps(value).encode()
    assert len(body) > limits._SMALL
    assert limits._parsed(body)[0] == value


# Bodies of a few megabytes that are the most work for a parser.
LARGE = {
    "ids": {"prompt": [random.randrange(50_000) for _ in range(500_000)]},
    "pairs": {"logit_bias": [[i, 0.5] for i in range(300_000)]},
    "messages": {"messages": [{"role": "user", "content": "hello"}] * 60_000},
}


@pytest.mark.parametrize("kind", LARGE)
def test_large_bodies_do_not_hold_the_interpreter_for_long(kind: str) -> None:
    """Streams wait while a parser holds the GIL, and a parser in Python makes the client wait for a minute."""
    body = json.dumps(LARGE[kind]).encode()
    times: dict[Any, float] = {}
    for parse in (limits._parsed, json.loads):
        begun = time.thread_time()
        parse(body)
        times[parse] = time.thread_time() - begun
    # Many small objects are as much work for either; their depth is measured in Python, which gives way.
    assert times[limits._parsed] < times[json.loads] * (4 if kind == "messages" else 1)
    assert gc.isenabled()


def test_streams_go_on_while_large_bodies_arrive(server, engine) -> None:
    """Tokens come before, between and after the answers to the large bodies."""
    bodies = [json.dumps({"max_tokens": 1, "prompt": "x", **large}).encode() for large in LARGE.values()]
    n_seen, ended = [0], threading.Event()

    def read() -> None:
        asked = {"prompt": "x", "n_predict": -1, "ignore_eos": True, "stream": True, "cache_prompt": False}
        while not ended.is_set():
            with httpx.stream("POST", f"{server.url}/completion", json=asked, timeout=60) as stream:
                for line in stream.iter_lines():
                    n_seen[0] += bool(line)
                    if ended.is_set():
                        break

    thread = threading.Thread(target=read)
    thread.start()
    try:
        wait_for(lambda: n_seen[0] > 0)
        for body in bodies:
            before = n_seen[0]
            headers = {"Content-Type": "application/json"}
            answer = httpx.post(f"{server.url}/v1/completions", content=body, headers=headers, timeout=60)
            assert answer.status_code in (200, 400)
            assert n_seen[0] > before
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is not JSON"),
        (b"[1, 2", "the body is not JSON: "),
        (b'{"a": NaN}', "the body is not JSON: NaN is no number of JSON"),
        (b"\xff\xfe\xfa", "the body is not "),
        (b'{"a": "\xff"}', "the body is not UTF-8: byte 0xff at offset 7"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the body is not JSON: a number in it has too many digits"),
        (b"[1, 2]", "the body must be a JSON object, not an array"),
        (b"null", "the body must be a JSON object, not null"),
        (b'"x"', "the body must be a JSON object, not a text"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "too many levels"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "too many levels"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too many levels"),
    ],
)
def test_what_cannot_be_read_is_said_in_words(server, body: bytes, words: str) -> None:
    answer = httpx.post(server.url + "/v1/completions", content=body, timeout=60)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert words in message
    assert not PYTHON.search(message)


def test_a_large_body_is_answered(server) -> None:
    ids = [5] * 300_000
    answer = server.post("/v1/completions", {"prompt": ids})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")

"""Bodies of many megabytes, and what is said about those that cannot be read."""

from __future__ import annotations

import json
import random
import threading
from typing import Any

import httpx
import pytest
from support.servers import PYTHON

from pyllm.server import limits


def test_the_parser_of_large_bodies_reads_what_the_other_one_reads() -> None:
    value = {"a": [[1, 2.5, -3e10], "ü\n😀", {"b": [None, True, False, {}]}] * 20_000, "c": "x" * 100_000}
    body = json.dumps(value).encode()
    assert len(body) > limits._SMALL
    assert limits._parsed(body)[0] == value


def test_other_threads_run_while_a_large_body_is_parsed(monkeypatch) -> None:
    """The parser in C would hold the GIL from beginning to end: a thread that counts would count nothing meanwhile."""
    body = json.dumps({"prompt": [random.randrange(50_000) for _ in range(400_000)]}).encode()
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1

    decoders = []
    patient = limits._patient_decoder

    def made() -> Any:
        decoders.append(counted[0])
        return patient()

    monkeypatch.setattr(limits, "_patient_decoder", made)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        limits._parsed(body)
        during = counted[0] - decoders[0]
    finally:
        stop.set()
        thread.join()
    # At a switch every 5 ms it counts for half of the time.
    assert during > 1000


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

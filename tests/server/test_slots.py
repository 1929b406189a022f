"""Slots: what is computed where, and files of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engines import Prompted, wait_until_idle
from support.servers import Served
from support.waiting import LIMIT, wait_for

from pyllm import Model
from pyllm.server import Settings

PROMPT = "the quick brown fox jumps over the lazy dog and runs away from the other dogs"


@pytest.fixture
def server(start: Callable[..., Served], engine: Prompted, tmp_path: Path) -> Iterator[Served]:
    server = start(engine, alias="tiny", slot_save_path=str(tmp_path))
    yield server
    engine.processor = None
    wait_until_idle(engine)
    server.stop()


def complete(server: Served, prompt: str = PROMPT, **more: Any) -> dict[str, Any]:
    response = server.post("/completion", {"prompt": prompt, "n_predict": 4, "temperature": 0, **more})
    assert response.status_code == 200, response.text
    return response.json()


def act(server: Served, slot: Any, action: str, **body: Any) -> Any:
    return server.post(f"/slots/{slot}?action={action}", body)


def param_of(response: Any, status: int = 400) -> str | None:
    assert response.status_code == status, response.text
    return response.json()["error"]["param"]


# ---- what is in them


def test_what_runs_is_seen_and_no_text(server: Served, engine: Prompted) -> None:
    assert [slot["id"] for slot in server.get("/slots").json()] == [0, 1, 2, 3]
    engine.slowly(0.02)
    job = engine.submit(PROMPT, max_tokens=60, temperature=0.5, top_k=7, slot=2, seed=3)
    wait_for(lambda: job.first_token is not None)
    found = server.get("/slots").json()
    assert [slot["is_processing"] for slot in found] == [False, False, True, False]
    busy = found[2]
    n_prompt = len(engine.vocab.tokenize(PROMPT))
    assert busy["n_ctx"] == engine.context.n_ctx_seq
    assert busy["n_prompt_tokens_processed"] + busy["n_prompt_tokens_cache"] == n_prompt
    assert busy["n_prompt_tokens"] >= n_prompt
    assert {"temperature": 0.5, "top_k": 7, "seed": 3, "n_predict": 60, "lora": []}.items() <= busy["params"].items()
    (token,) = busy["next_token"]
    assert token["has_next_token"] is True
    assert token["n_decoded"] + token["n_remain"] == 60
    assert "prompt" not in busy and "generated" not in busy and "fox" not in server.get("/slots").text
    job.cancel()
    job.result(LIMIT)
    wait_until_idle(engine)
    after = server.get("/slots").json()[2]
    assert after["is_processing"] is False and after["id_task"] == busy["id_task"]
    assert after["next_token"][0]["has_next_token"] is False


def test_texts_are_told_where_that_is_allowed(start: Callable[..., Served], engine: Prompted) -> None:
    server = start(engine, slot_prompts=True)
    answer = complete(server, id_slot=1, n_predict=5)
    slot = server.get("/slots").json()[1]
    assert "fox" in slot["prompt"]
    # The last token was chosen and never read.
    assert answer["content"].strip().startswith(slot["generated"].strip())
    closed = start(engine, slots=False)
    assert closed.get("/slots").status_code == 501
    assert closed.get("/props").json()["endpoint_slots"] is False
    assert server.get("/props").json()["endpoint_slots"] is True


def test_no_slot_is_free(server: Served, engine: Prompted) -> None:
    assert server.get("/slots?fail_on_no_slot=1").status_code == 200
    engine.slowly(0.02)
    jobs = [engine.submit([5, 6 + i], max_tokens=100) for i in range(4)]
    wait_for(lambda: engine.metrics().n_running == 4)
    assert all(slot["is_processing"] for slot in server.get("/slots").json())
    full = server.get("/slots?fail_on_no_slot=1")
    assert full.status_code == 503 and full.headers["retry-after"]
    for job in jobs:
        job.cancel()


def test_a_request_gets_the_slot_it_names(server: Served) -> None:
    for number in (3, 1, 3):
        assert complete(server, id_slot=number)["id_slot"] == number
    assert complete(server, id_slot=-1)["id_slot"] in range(4)
    for wrong in (4, -2, "x", 1.5):
        assert param_of(server.post("/completion", {"prompt": "x", "id_slot": wrong})) == "id_slot"


def test_a_prompt_goes_to_the_slot_that_it_goes_on_with(server: Served) -> None:
    prompt = "never before was there such a prompt as this one about rivers"
    complete(server, prompt, id_slot=2)
    complete(server, "one two three four five six seven eight", id_slot=0)
    assert complete(server, prompt + " and seas")["id_slot"] == 2


# ---- files


def test_saved_erased_and_restored(server: Served, engine: Prompted, tmp_path: Path) -> None:
    first = complete(server, id_slot=1)
    n_held = first["tokens_evaluated"] + 3
    saved = act(server, 1, "save", filename="fox.bin").json()
    assert (saved["id_slot"], saved["filename"], saved["n_saved"]) == (1, "fox.bin", n_held)
    assert saved["n_written"] == (tmp_path / "fox.bin").stat().st_size and saved["timings"]["save_ms"] > 0
    engine.reset_prefix_cache()
    assert act(server, 1, "erase").json() == {"id_slot": 1, "n_erased": n_held}
    assert act(server, 1, "erase").json() == {"id_slot": 1, "n_erased": 0}
    assert complete(server, "something else")["timings"]["prompt_n"] > 0
    restored = act(server, 0, "restore", filename="fox.bin").json()
    assert (restored["id_slot"], restored["n_restored"], restored["n_read"]) == (0, n_held, saved["n_written"])
    again = complete(server)
    assert again["content"] == first["content"]
    assert again["timings"]["cache_n"] == first["tokens_evaluated"] - 1
    assert again["id_slot"] == 0


def test_erased_is_gone(server: Served, engine: Prompted) -> None:
    engine.reset_prefix_cache()
    complete(server, id_slot=3)
    assert act(server, 3, "erase").json()["n_erased"] > 0
    assert complete(server)["timings"]["cache_n"] == 0


def test_a_busy_slot_is_waited_for(server: Served, engine: Prompted) -> None:
    engine.slowly(0.02)
    job = engine.submit(PROMPT, max_tokens=15, slot=0)
    wait_for(lambda: job.first_token is not None)
    answers: list[Any] = []
    saving = threading.Thread(target=lambda: answers.append(act(server, 0, "save", filename="busy.bin")))
    saving.start()
    completion = job.result(LIMIT)
    saving.join(LIMIT)
    assert answers[0].json()["n_saved"] == completion.usage.prompt_tokens + 14


def test_what_cannot_be_saved(server: Served, engine: Prompted) -> None:
    complete(server, id_slot=0)
    act(server, 0, "erase")
    assert param_of(act(server, 0, "save", filename="a")) == "filename"
    for name in (
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "a\\b",
        "/etc/passwd",
        ".a",
        "a.",
        "a b ",
        "nul.bin",
        "a\0b",
        "a\n",
        "x" * 256,
        5,
    ):
        for action in ("save", "restore"):
            assert param_of(act(server, 0, action, filename=name)) == "filename"
    assert param_of(act(server, 0, "save")) == "filename"
    for slot in (4, -1, "x", "1e3", "9" * 99):
        assert param_of(act(server, slot, "erase")) == "id_slot"
    for action in ("", "delete"):
        assert param_of(act(server, 0, action, filename="a")) == "action"
    assert param_of(server.post("/slots/0", {"filename": "a"})) == "action"


def test_broken_and_foreign_files_are_refused(
    server: Served, engine: Prompted, start: Callable[..., Served], load: Callable[..., Model], tmp_path: Path
) -> None:
    complete(server, id_slot=1)
    assert act(server, 1, "save", filename="good").status_code == 200
    good = (tmp_path / "good").read_bytes()
    rng = __import__("random").Random(1)
    broken = [b"", b"x", good[:20], good[:-1], good + b"x", os.urandom(len(good))]
    for _ in range(20):
        place = rng.randrange(len(good))
        broken.append(good[:place] + bytes([good[place] ^ (1 << rng.randrange(8))]) + good[place + 1 :])
    for data in broken:
        (tmp_path / "bad").write_bytes(data)
        response = act(server, 0, "restore", filename="bad")
        assert param_of(response) == "filename"
        assert str(tmp_path) not in response.text
    assert param_of(act(server, 0, "restore", filename="none")) == "filename"
    (tmp_path / "folder").mkdir()
    assert param_of(act(server, 0, "restore", filename="folder")) == "filename"
    with Prompted(load("gemma3"), n_ctx=256, n_parallel=1, n_threads=1) as other:
        foreign = start(other, slot_save_path=str(tmp_path))
        refused = act(foreign, 0, "restore", filename="good")
        assert param_of(refused) == "filename" and "another model" in refused.json()["error"]["message"]
        foreign.stop()
    assert act(server, 0, "restore", filename="good").status_code == 200


def test_there_is_no_room(start: Callable[..., Served], tiny_model: Model, tmp_path: Path) -> None:
    with Prompted(tiny_model, n_ctx=512, n_parallel=4, n_threads=1, kv_unified=True) as large:
        server = start(large, slot_save_path=str(tmp_path))
        complete(server, " ".join([PROMPT] * 3), id_slot=1)
        assert 150 < act(server, 1, "save", filename="long").json()["n_saved"] < 250
        server.stop()
    with Prompted(tiny_model, n_ctx=256, n_parallel=2, n_threads=1, kv_unified=True) as small:
        other = start(small, slot_save_path=str(tmp_path))
        small.slowly(0.02)
        job = small.submit([5] * 150, max_tokens=60, slot=0)
        wait_for(lambda: job.first_token is not None)
        refused = act(other, 1, "restore", filename="long")
        assert param_of(refused) == "filename" and "no room" in refused.json()["error"]["message"]
        job.cancel()
        other.stop()


def test_without_a_folder_nothing_is_saved(shared_server: Served, tmp_path: Path) -> None:
    for action in ("save", "restore", "erase"):
        assert act(shared_server, 0, action, filename="a").status_code == 501
    with pytest.raises(ValueError, match="slot_save_path"):
        Settings(slot_save_path=str(tmp_path / "none"))

"""Speculation on the server: its flags, what answers and metrics say of it, and requests that do without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from support import programs
from support.servers import Process, Served

from pyllm import Model
from pyllm.cli.speculation import SpeculationOptions
from pyllm.engine import Engine
from pyllm.speculation import SpeculationParams

BODY = {"prompt": [5, 6, 7, 8, 9, 5, 6, 7, 8], "max_tokens": 100, "temperature": 0, "logit_bias": {"2": -100}}


def complete(url: str, **fields: Any) -> dict[str, Any]:
    response = httpx.post(f"{url}/v1/completions", json=BODY | fields, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def metrics(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


@pytest.fixture(scope="module")
def speculating(start: Callable[..., Served], tiny_model: Model) -> Any:
    params = SpeculationParams(types="ngram-simple", ngram_size=2, n_max=8, adaptive=False)
    with Engine(tiny_model, n_ctx=512, n_parallel=2, n_threads=1, speculative=params) as engine:
        yield start(engine, metrics=True)


def test_answers_and_metrics_say_what_was_guessed(speculating: Served) -> None:
    answer = complete(speculating.url)
    timings = answer["timings"]
    assert 0 < timings["draft_n_accepted"] <= timings["draft_n"]
    counted = metrics(speculating.url)
    assert counted["llamacpp:spec_decode_num_draft_tokens_total"] == timings["draft_n"]
    assert counted["llamacpp:spec_decode_num_accepted_tokens_total"] == timings["draft_n_accepted"]
    assert 0 < counted["llamacpp:spec_decode_num_drafts_total"] < timings["draft_n"]
    without = complete(speculating.url, speculative=False)
    assert "draft_n" not in without["timings"]
    assert without["choices"][0]["text"] == answer["choices"][0]["text"]
    assert complete(speculating.url, speculative=True)["timings"]["draft_n"] > 0
    counted = metrics(speculating.url)["llamacpp:spec_decode_num_drafts_total"]
    chat = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 60, "temperature": 0}
    assert speculating.post("/v1/chat/completions", chat | {"speculative": False}).status_code == 200
    assert metrics(speculating.url)["llamacpp:spec_decode_num_drafts_total"] == counted


def test_streams_with_timings(speculating: Served) -> None:
    client = speculating.client()
    with client:
        stream = client.completions.create(
            model="m", **BODY, stream=True, extra_body={"timings_per_token": True}, logprobs=1
        )
        chunks = list(stream)
    assert max(chunk.timings["draft_n"] for chunk in chunks if "draft_n" in (chunk.timings or {})) > 0
    logprobs = [number for chunk in chunks if chunk.choices and chunk.choices[0].logprobs
                for number in chunk.choices[0].logprobs.token_logprobs]  # fmt: skip
    assert len(logprobs) == BODY["max_tokens"]


def test_a_request_cannot_say_how(speculating: Served) -> None:
    for value in ("ngram", 3, {}):
        response = speculating.post("/v1/completions", BODY | {"speculative": value})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "speculative")


def test_the_program(serve: Callable[..., Process], tiny_models: Mapping[str, Path]) -> None:
    model = tiny_models["llama"]
    flags = ("-c", "512", "-np", "2", "-t", "1", "--metrics", "--spec-draft-n-max", "4")
    process = serve(model, *flags, LLAMA_ARG_SPEC_DRAFT_MODEL=str(model))
    timings = complete(process.url)["timings"]
    assert timings["draft_n"] > 4
    assert metrics(process.url)["llamacpp:spec_decode_num_draft_tokens_total"] == timings["draft_n"]


def test_flags() -> None:
    def found(has_draft: bool = False, **values: Any) -> dict[str, Any]:
        return SpeculationOptions(**values).arguments(has_draft=has_draft)

    assert found() == found(spec_type="none") == {}
    assert found(speculate_up_to=3) == {"speculate_up_to": 3}
    assert found(spec_type="ngram-simple") == {"speculative": SpeculationParams(types="ngram-simple")}
    for way in ("simple", "map-k", "map-k4v"):
        name = way.replace("-", "_")
        values: dict[str, Any] = {f"spec_ngram_{name}_size_n": 3, f"spec_ngram_{name}_size_m": 16}
        assert found(spec_type=f"ngram-{way}", **values) == {
            "speculative": SpeculationParams(types=f"ngram-{way}", ngram_size=3, n_max=16)
        }
    assert found(spec_type="ngram-mod", spec_ngram_mod_n_match=9, spec_ngram_mod_n_min=2, spec_ngram_mod_n_max=8) == {
        "speculative": SpeculationParams(types="ngram-mod", ngram_size=9, n_min=2, n_max=8)
    }
    assert found(True) == {"speculative": SpeculationParams(types="draft-simple")}
    assert found(True, spec_draft_n_max=5, spec_draft_n_min=1, spec_draft_p_min=0.4) == {
        "speculative": SpeculationParams(types="draft-simple", n_max=5, n_min=1, p_min=0.4)
    }
    assert found(True, spec_type="ngram-mod, draft-simple", spec_draft_n_max=5) == {
        "speculative": SpeculationParams(types=("ngram-mod", "draft-simple"), n_max=5)
    }
    assert found(True, spec_type="none") == found(True, spec_draft_n_max=0) == {"speculative": False}
    for wrong in (
        {"spec_type": "magic"},
        {"spec_type": "draft-simple"},
        {"spec_type": "ngram-simple,ngram-mod", "spec_ngram_simple_size_n": 2, "spec_ngram_mod_n_match": 3},
    ):
        with pytest.raises(typer.BadParameter):
            found(**wrong)


def test_wrong_flags(tiny_models: Mapping[str, Path]) -> None:
    for flags in (["--spec-type", "magic"], ["--spec-draft-p-min", "2"], ["--spec-ngram-simple-size-n", "0"]):
        assert programs.invoke("serve", tiny_models["llama"], *flags).returncode == 2

"""``pyllm run`` with the real default model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support import programs

pytestmark = pytest.mark.model
posix = pytest.mark.skipif(os.name == "nt", reason="uses POSIX signals and pipes")

PROMPT = "The capital of France is"
GREEDY = ["--temp", "0", "-n", "12", "-t", "1"]


@pytest.fixture(scope="module")
def greedy(smollm2) -> dict:
    """The greedy continuation, as JSON."""
    result = programs.start("run", "smollm2", PROMPT, *GREEDY, "--json")
    assert (result.stderr, result.returncode) == ("", 0)
    return json.loads(result.stdout)


def test_json_tells_everything(greedy, smollm2):
    assert set(greedy) == {"text", "tokens", "finish_reason", "usage", "timings", "model", "seed"}
    assert greedy["finish_reason"] == "length"
    assert len(greedy["tokens"]) == 12
    assert "Paris" in greedy["text"]
    usage = greedy["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    assert greedy["model"] == str(smollm2)


def test_stream_is_the_text_and_nothing_else(program, greedy):
    result = program("run", "smollm2", PROMPT, *GREEDY)
    assert (result.stdout, result.stderr, result.returncode) == (greedy["text"], "", 0)


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        ([PROMPT], ""),
        (["smollm2", "-"], PROMPT),
        (["-"], PROMPT),
        (["smollm2"], PROMPT + "\n"),
        ([], PROMPT + "\r\n"),
    ],
)
def test_every_way_to_give_a_prompt(pyllm, greedy, arguments, stdin):
    assert pyllm("run", *arguments, *GREEDY, input=stdin).stdout == greedy["text"]


def test_path_as_only_argument_is_the_model(pyllm, greedy, smollm2):
    assert pyllm("run", smollm2, *GREEDY, input=PROMPT).stdout == greedy["text"]


def test_reported_seed_gives_the_same_text_again(pyllm, smollm2):
    options = ["--temp", "1.5", "-n", "16", "--json", "-t", "1"]
    first = json.loads(pyllm("run", PROMPT, *options).stdout)
    again = json.loads(pyllm("run", PROMPT, *options, "--seed", str(first["seed"])).stdout)
    other = json.loads(pyllm("run", PROMPT, *options, "--seed", str(first["seed"] // 2 + 1)).stdout)
    assert again["text"] == first["text"]
    assert other["text"] != first["text"]


def test_stop_string_does_not_appear(pyllm, greedy):
    word = greedy["text"].split()[2]
    result = json.loads(pyllm("run", PROMPT, *GREEDY, "--stop", "no such text", "--stop", word, "--json").stdout)
    assert result["text"] == greedy["text"][: greedy["text"].index(word)]
    assert result["finish_reason"] == "stop"


def test_top_k_of_one_is_greedy(pyllm, greedy):
    result = pyllm("run", PROMPT, "-n", "12", "-t", "1", "--temp", "2", "--top-k", "1", "--top-p", "1", "--min-p", "0")
    assert result.stdout == greedy["text"]


def test_verbose_shows_the_log_on_stderr_only(pyllm, greedy):
    result = pyllm("run", PROMPT, *GREEDY, "--verbose")
    assert result.stdout == greedy["text"]
    assert "llama" in result.stderr


def test_file_that_is_not_gguf_is_one_clean_error(pyllm, tmp_path):
    path = tmp_path / "not.gguf"
    path.write_bytes(b"This is not a model." * 100)
    result = pyllm("run", path, PROMPT)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "not.gguf" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_prompt_that_is_not_utf8(pyllm, smollm2, arguments):
    result = pyllm("run", *arguments, input=b"\xff\xfe")
    assert result.returncode == 2
    assert "UTF-8" in result.stderr
    assert result.stdout == ""


@posix
def test_interrupt_ends_it_quietly(smollm2: Path):
    command = [*programs.PROGRAM, "run", "--temp", "0", "-n", "4000", "-t", "1", "Once upon a time"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=550)
    assert first
    assert process.returncode == 130
    assert err == b"\n"


@posix
def test_broken_pipe_is_quiet(smollm2: Path):
    command = [*programs.PROGRAM, "run", "--temp", "0", "-n", "500", "-t", "1", "Once upon a time"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(300) == 141
    assert first
    assert err == b""

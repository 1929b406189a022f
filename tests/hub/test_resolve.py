"""A path works everywhere an alias does, and a mistake is met with help."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllm import hub
from pyllm.errors import InvalidArgumentError, ModelLoadError, ModelNotFoundError, UnknownModelError


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    for name in ("llama-1b.gguf", "llama-3b.gguf", "notes.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_existing_path_as_str_and_pathlike(models):
    assert hub.resolve(str(models / "llama-1b.gguf")) == models / "llama-1b.gguf"
    assert hub.resolve(models / "notes.txt") == models / "notes.txt"
    assert hub.resolve("llama-1b.gguf") == Path("llama-1b.gguf")


def test_home_is_expanded(models, monkeypatch):
    monkeypatch.setenv("HOME", str(models))
    monkeypatch.setenv("USERPROFILE", str(models))
    assert hub.resolve("~/llama-1b.gguf") == models / "llama-1b.gguf"


def test_existing_file_wins_over_an_alias(plain, index, models):
    (models / "plain").touch()
    assert hub.resolve("plain") == Path("plain")
    assert index.downloads.total() == 0


def test_folder_with_the_name_of_an_alias_does_not_win(plain, cache, models):
    (models / "plain").mkdir()
    with pytest.raises(ModelNotFoundError, match="plain is not in the cache"):
        hub.resolve("plain", download=False)


def test_pathlike_is_never_an_alias(plain, models):
    with pytest.raises(ModelNotFoundError):
        hub.resolve(Path("plain"))


def test_alias_is_pulled_when_allowed(plain, cache):
    with pytest.raises(ModelNotFoundError, match="pyllm pull plain"):
        hub.resolve("plain", download=False)
    asked = []
    with pytest.raises(ModelNotFoundError):
        hub.resolve("plain", download=lambda model: asked.append(model.alias))
    assert asked == ["plain"]

    def listed():
        return {model.alias: model for model in hub.list_models()}

    assert not listed()["plain"].cached
    path = hub.resolve("plain", download=lambda model: model is plain)
    assert path == cache / "plain" / "plain.gguf"
    assert hub.resolve("plain", download=False) == path
    assert listed()["plain"].cached
    assert listed()["plain"].path == path
    assert not listed()["smollm2"].cached


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("llama-1c.gguf", r"near it in \.: llama-1b\.gguf"),
        ("./llama-7b.gguf", r"near it"),
        ("./zzz", r"there are: llama-1b\.gguf, llama-3b\.gguf"),
        ("nowhere/llama.gguf", "there is no folder nowhere"),
    ],
)
def test_missing_file_names_what_is_there(models, given, said):
    with pytest.raises(ModelNotFoundError, match=said) as caught:
        hub.resolve(given)
    assert isinstance(caught.value, FileNotFoundError)


def test_folder_is_refused(models):
    with pytest.raises(ModelLoadError, match=r"is a folder.*llama-1b\.gguf"):
        hub.resolve(models)


@pytest.mark.parametrize("given", ["smollm", "gpt-oss", ""])
def test_unknown_name_lists_the_aliases(models, given):
    with pytest.raises(UnknownModelError, match="smollm2, gemma3-270m, minilm") as caught:
        hub.resolve(given)
    assert ("did you mean 'smollm2'" in str(caught.value)) == (given == "smollm")


@pytest.mark.parametrize(
    "given",
    [
        "x" * 5000,
        "a/b/" + "x" * 5000,
        "x" * 5000 + "/y/z.gguf",
        "a\0b.gguf",
        "a\0b",
        "~nobody-of-this-name/x.gguf",
        "a b " * 9999,
        "https://a\udc80/x.gguf",
        "hf:a/b\udc80",
    ],
)
def test_names_that_cannot_be_paths(models, given):
    with pytest.raises((ModelNotFoundError, UnknownModelError)) as caught:
        hub.resolve(given)
    assert len(str(caught.value)) < 1000
    assert not hub.is_reference(given)


def test_bytes_are_no_name(models):
    with pytest.raises(InvalidArgumentError, match="named by a str"):
        hub.resolve(b"llama-1b.gguf")


def test_what_may_not_be_looked_at(models, monkeypatch):
    def forbidden(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", forbidden)  # root may look everywhere
    with pytest.raises(ModelLoadError, match="cannot be read: Permission denied") as caught:
        hub.resolve("llama-1b.gguf")
    assert caught.value.errno == 13
    assert caught.value.message == "llama-1b.gguf cannot be read: Permission denied"


def test_cache_folder_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("PYLLM_CACHE", str(tmp_path))
    assert hub.cache_dir() == tmp_path
    monkeypatch.delenv("PYLLM_CACHE")
    assert hub.cache_dir().parts[-2:] == ("pyllm", "models")

"""Fixtures for all tests: tiny random models, the real default model, and things that are closed afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import models

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.model import Model

# Started in the background, a process ignores SIGINT and hands that on to its children: Ctrl-C is tested in both.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest looks which marks are wanted
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests whose fixtures need the real model have its mark."""
    for item in items:
        if "smollm2_path" in getattr(item, "fixturenames", ()):
            item.add_marker("model")


@pytest.fixture(autouse=True)
def no_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tests that start processes are left out, a test that starts one lacks its mark."""
    if "not process" in request.config.option.markexpr:

        def refuse(*arguments: Any, **options: Any) -> Any:
            pytest.fail("this test starts a process: mark it with @pytest.mark.process")

        monkeypatch.setattr(subprocess, "Popen", refuse)
        monkeypatch.setattr(os, "fork", refuse, raising=False)


class TinyModels(Mapping[str, Path]):
    """Paths of tiny random models by architecture; each file is written when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, arch: str) -> Path:
        if arch not in models.ARCHITECTURES:
            raise KeyError(arch)
        return self.make(arch)

    def make(self, arch: str, **options: Any) -> Path:
        """The path of a model with other options of `models.write`."""
        key = repr(sorted(options.items()))
        path = self.folder / (f"{arch}.gguf" if not options else f"{arch}-{zlib.crc32(key.encode()):08x}.gguf")
        return path if path.exists() else models.write(path, arch, **options)

    def __iter__(self) -> Iterator[str]:
        return iter(models.ARCHITECTURES)

    def __len__(self) -> int:
        return len(models.ARCHITECTURES)


@pytest.fixture(scope="session", name="tiny_models")
def tiny_models_fixture(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Paths of tiny models by architecture; `tiny_models.make(arch, **options)` for others."""
    return TinyModels(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real default model, pulled on first use."""
    hub = pytest.importorskip("pyllm.hub")
    return Path(hub.pull("smollm2"))


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Iterator[Model]:
    with Model(smollm2_path) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_model(tiny_models: TinyModels) -> Iterator[Model]:
    """A dense model with an SPM vocabulary, shared by all tests: do not close it."""
    with Model(tiny_models["llama"]) as model:
        yield model


@pytest.fixture(scope="session")
def load(tiny_models: TinyModels) -> Iterator[Callable[..., Model]]:
    """`load(arch, **options)`: a shared tiny model, loaded once. Do not close it."""
    loaded: dict[Path, Model] = {}

    def load(arch: str, **options: Any) -> Model:
        path = tiny_models.make(arch, **options)
        if path not in loaded:
            loaded[path] = Model(path)
        return loaded[path]

    yield load
    for model in loaded.values():
        model.close()


@pytest.fixture
def make_model() -> Iterator[Callable[..., Model]]:
    """`make_model(path, **arguments)`: a Model of the test's own, closed after it."""
    made: list[Model] = []

    def make(path: Path, **arguments: Any) -> Model:
        made.append(Model(path, **arguments))
        return made[-1]

    yield make
    close(made)


@pytest.fixture
def make_context(tiny_model: Model) -> Iterator[Callable[..., Context]]:
    """`make_context(model=tiny_model, **arguments)`: a Context with few threads, closed after the test."""
    made: list[Context] = []

    def make(model: Model | None = None, **arguments: Any) -> Context:
        arguments = {"n_ctx": 256, "n_threads": 1} | arguments
        made.append(Context(model or tiny_model, **arguments))
        return made[-1]

    yield make
    close(made)


def close(things: list[Any]) -> None:
    while things:
        things.pop().close()


@pytest.fixture
def context(make_context: Callable[..., Context]) -> Context:
    return make_context()


@pytest.fixture
def ids(tiny_model: Model) -> np.ndarray:
    """Some forty tokens of text for the tiny model."""
    return tiny_model.vocab.tokenize_array("the more people look at the number, the more they find out about the time")


@pytest.fixture
def decoded(context: Context, ids: np.ndarray) -> Context:
    """A context that has decoded `ids` with outputs for all."""
    context.decode(Batch.from_arrays(ids, outputs="all"))
    return context

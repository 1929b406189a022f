"""What Python's own tools see of compiled classes: signatures, help, pickle, copy, and imports from `pyllm.core`."""

from __future__ import annotations

import ast
import copy
import enum
import importlib
import inspect
import os
import pickle
import pkgutil
import pydoc
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm.core
from pyllm import errors
from pyllm.core.adapter import LoraAdapter
from pyllm.core.batch import Batch
from pyllm.core.batch_ext import BatchExt
from pyllm.core.capture import Capture
from pyllm.core.chat import ChatTemplates
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.gguf import GGUFReader, GGUFWriter
from pyllm.core.memory import Memory
from pyllm.core.model import Model
from pyllm.core.sampler import Chain, Sampler
from pyllm.core.samplers import Dist, Greedy, TopK
from pyllm.core.speculative import Drafter
from pyllm.core.state import State
from pyllm.core.text_stream import TextStream
from pyllm.core.threadpool import ThreadPool
from pyllm.core.training import Trainer
from pyllm.core.vocab import Vocab

STUBS = Path(pyllm.core.__file__).parent


def compiled_classes() -> dict[type, ast.ClassDef]:
    """Every class of a compiled module that its stub has, and what the stub says about it."""
    found = {}
    for module in pkgutil.iter_modules(pyllm.core.__path__, "pyllm.core."):
        stub = STUBS / f"{module.name.rpartition('.')[2]}.pyi"
        if not stub.exists():
            continue
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            cls = getattr(importlib.import_module(module.name), getattr(node, "name", ""), None)
            if isinstance(node, ast.ClassDef) and isinstance(cls, type) and cls.__module__ == module.name:
                found[cls] = node
    return found


CLASSES = compiled_classes()


def constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    """The constructor that is declared; None where it takes nothing, as of classes that are made by others only."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name in ("__new__", "__init__"):
            arguments = item.args
            takes = len(arguments.args) > 1 or arguments.kwonlyargs or (arguments.vararg and not arguments.kwarg)
            return item if takes else None
    return None


# ---- signatures and help


@pytest.mark.parametrize(
    "cls", [cls for cls, node in CLASSES.items() if constructor(node)], ids=lambda cls: cls.__name__
)
def test_constructors_have_the_signature_of_their_stub(cls: type) -> None:
    declared = constructor(CLASSES[cls])
    assert declared is not None
    names = [argument.arg for argument in [*declared.args.args[1:], *declared.args.kwonlyargs]]
    found = inspect.signature(cls).parameters
    assert [name for name, one in found.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)] == names


def test_defaults_and_kinds_are_told() -> None:
    found = inspect.signature(Batch).parameters
    assert (found["n_tokens"].default, found["n_tokens"].kind) == (512, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert (found["n_seq_max"].default, found["n_seq_max"].kind) == (1, inspect.Parameter.KEYWORD_ONLY)
    assert str(inspect.signature(Chain)).startswith("(*samplers")
    assert inspect.signature(Context).parameters["model"].default is inspect.Parameter.empty


def test_what_the_signature_promises_is_what_is_taken(tiny_models: dict[str, Path]) -> None:
    """Each argument by its name, with its default: the constructor behind it knows all of them."""
    defaults = {n: p.default for n, p in inspect.signature(Model).parameters.items() if p.default is not p.empty}
    with Model(tiny_models["llama"], **defaults) as model:
        defaults = {n: p.default for n, p in inspect.signature(Context).parameters.items() if p.default is not p.empty}
        Context(model, **{**defaults, "n_ctx": 64}).close()


def test_subclasses_have_their_own_signature() -> None:
    class Named(Batch):
        def __new__(cls, name: str) -> Named:
            return Batch.__new__(cls)

    class Plain(Batch):
        pass

    assert list(inspect.signature(Named).parameters) == ["name"]
    assert inspect.signature(Plain) == inspect.signature(Batch)
    assert list(inspect.signature(Greedy).parameters) == [] and list(inspect.signature(TopK).parameters) == ["k"]


def test_methods_have_signatures() -> None:
    assert str(inspect.signature(Batch.add_sequence)) == "(self, tokens, pos=0, seq_id=0, *, outputs='last')"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_help_shows_nothing_of_cython(cls: type) -> None:
    text = pydoc.plain(pydoc.render_doc(cls))
    # Classes with methods in C have a table of them, which other packages look up under this name.
    names = set(re.findall(r"\b\w*(?:pyx|cython)\w*\b", text)) - {"__pyx_vtable__"}
    assert not names
    if constructor(CLASSES[cls]):
        assert f"class {cls.__name__}(" in text


# ---- pickle: what can be made again


def again(thing: Any) -> Any:
    found = [pickle.loads(pickle.dumps(thing, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for one in found[1:]:
        if isinstance(one, Model):
            one.close()
    return found[0]


def test_a_model_is_pickled_by_path_and_arguments(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    progress: list[float] = []
    with Model(tiny_models["llama"], use_extra_bufts=False, progress_callback=progress.append) as model:
        ids = model.vocab.tokenize("the more people")
        with again(model) as other:
            assert other.path == model.path and other.vocab.tokenize("the more people") == ids
            other.save(tmp_path / "saved.gguf")  # needs use_extra_bufts=False
            logits = []
            for one in (model, other):
                with Context(one, n_ctx=64, n_threads=1) as context:
                    context.decode(Batch.from_arrays(ids))
                    logits.append(np.array(context.logits))
            assert np.array_equal(*logits)
    with Model(tiny_models["llama"], vocab_only=True) as model, again(model) as other:
        assert other.vocab_only


def test_a_relative_path_is_right_in_another_folder(tiny_models, tmp_path, monkeypatch) -> None:
    path = Path(tiny_models["llama"])
    monkeypatch.chdir(path.parent)
    with Model(path.name, vocab_only=True) as model:
        assert model.path == path.name
        monkeypatch.chdir(tmp_path)
        again(model).close()


def test_a_subclass_of_model_comes_back_with_its_attributes(tiny_models) -> None:
    with OwnModel(tiny_models["llama"], vocab_only=True) as model:
        model.note = "mine"
        with again(model) as other:
            assert type(other) is OwnModel and other.note == "mine"


class OwnModel(Model):
    note = ""


def test_models_without_a_path_say_what_to_do(tiny_models) -> None:
    with open(tiny_models["llama"], "rb") as file:
        model = Model.from_file(file)
    with model, pytest.raises(TypeError, match=r"cannot be pickled.*Model\.save\(\)"):
        pickle.dumps(model)
    with Model.from_splits([tiny_models["llama"]]) as splits:
        again(splits).close()


def test_what_is_gone_is_told(tiny_models, tmp_path) -> None:
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(Path(tiny_models["llama"]).read_bytes())
    model = Model(moved, vocab_only=True)
    data = pickle.dumps(model)
    model.close()
    with pytest.raises(errors.ClosedError):
        pickle.dumps(model)
    moved.unlink()
    with pytest.raises(errors.ModelNotFoundError, match=r"moved\.gguf"):
        pickle.loads(data)


def test_a_vocabulary(tiny_model: Model) -> None:
    vocab = tiny_model.vocab
    other = again(vocab)
    assert isinstance(other, Vocab) and other.tokenize("the people") == vocab.tokenize("the people")
    assert copy.copy(vocab) is vocab and copy.deepcopy(vocab) is vocab


def batches() -> dict[str, Batch]:
    filled = Batch(20, n_seq_max=3)
    filled.add(5, 0, (0, 2), output=True)
    filled.add_sequence([6, 7, 8], pos=1, seq_id=1)
    embeddings = np.arange(24, dtype=np.float32).reshape(3, 8)
    cleared = Batch.from_arrays([1, 2, 3])
    cleared.clear()
    return {
        "filled": filled,
        "empty": Batch(4),
        "arrays": Batch.from_arrays([1, 2, 3], outputs="all"),
        "positions": Batch.from_arrays([1, 2], pos=[4, 5], seq_ids=[[0, 1], [2, -1]], outputs="none"),
        "embeddings": Batch.from_arrays(embeddings=embeddings, pos=np.arange(12).reshape(4, 3)),
        "cleared": cleared,
    }


def content(batch: Batch) -> list[Any]:
    tokens = None if batch.tokens is None else batch.tokens.tolist()
    pos = None if batch.pos is None else batch.pos.tolist()
    sizes = [batch.capacity, batch.n_seq_max, batch.n_embd, batch.n_outputs, len(batch)]
    return [tokens, pos, batch.seq_ids, batch.outputs.tolist(), *sizes]


@pytest.mark.parametrize("kind", batches())
@pytest.mark.parametrize("make", [again, copy.copy, copy.deepcopy])
def test_batches(kind: str, make: Callable[[Batch], Batch]) -> None:
    batch = batches()[kind]
    other = make(batch)
    assert other is not batch and content(other) == content(batch)
    if kind in ("filled", "empty"):
        other.add(9, 9, output=True)
        assert len(other) == len(batch) + 1 and other.n_outputs == batch.n_outputs + 1
    else:
        with pytest.raises(errors.InvalidBatchError):
            other.add(9, 9)


def test_a_pickled_batch_computes_the_same(make_context, ids) -> None:
    rows = []
    for batch in (Batch.from_arrays(ids), again(Batch.from_arrays(ids))):
        context = make_context()
        context.decode(batch)
        rows.append(np.array(context.logits))
    assert np.array_equal(*rows)
    context.memory.clear()
    vectors = np.random.default_rng(0).normal(size=(3, context.model.n_embd)).astype(np.float32)
    context.decode(again(Batch.from_arrays(embeddings=vectors, pos=[0, 1, 2])))
    expected = np.array(context.logits)
    context.memory.clear()
    context.decode(Batch.from_arrays(embeddings=vectors, pos=[0, 1, 2]))
    assert np.array_equal(context.logits, expected)


# ---- and what cannot


def owners(model: Model, make_context: Callable[..., Context], path: Path) -> dict[str, Any]:
    context = make_context(capture=True)
    return {
        "Context": context,
        "Memory": Memory(context),
        "State": State(context),
        "Capture": Capture(context),
        "BatchExt": BatchExt(context),
        "Generation": Generation(context, Chain(Greedy())),
        "Drafter": Drafter(context, types=["ngram-simple"]),
        "Chain": Chain(TopK(4), Greedy()),
        "Greedy": Greedy(),
        "GGUFReader": GGUFReader(path),
        "GGUFWriter": GGUFWriter(),
        "ChatTemplates": ChatTemplates(template="{{ messages[0].content }}"),
        "ChatPrompt": ChatTemplates(template="x").apply([{"role": "user", "content": "x"}]),
        "TextStream": TextStream(),
        "ThreadPool": ThreadPool(1),
    }


def test_the_rest_says_why_not_and_what_to_do(tiny_model, make_context, tiny_models) -> None:
    for name, thing in owners(tiny_model, make_context, tiny_models["llama"]).items():
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match=rf"^a {name} cannot be pickled or copied: it") as caught:
                pickle.dumps(thing, protocol)
            assert "; " in str(caught.value)
        if not isinstance(thing, Sampler):
            for function in (copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match=f"^a {name} cannot be pickled or copied"):
                    function(thing)


def test_no_class_is_forgotten() -> None:
    """Every class with memory of C is pickled rightly or says why not; Cython's own refusal tells nothing."""
    silent = {
        cls.__name__
        for cls, node in CLASSES.items()
        if cls.__reduce__ is object.__reduce__
        # Dataclasses, enums and what is written for type checkers are Python's.
        and not hasattr(cls, "__dataclass_fields__") and not issubclass(cls, (enum.Enum, dict))
        and not node.name.startswith("_")
    }  # fmt: skip
    assert not silent


def test_models_are_shared_and_not_copied(tiny_model: Model) -> None:
    for function in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"a Model is not copied: .*Model\(model\.path\)"):
            function(tiny_model)


def test_a_copied_sampler_is_independent_and_has_the_same_state() -> None:
    logits = np.zeros(50, np.float32)
    for function in (copy.copy, copy.deepcopy):
        chain = Chain(Dist(seed=7))
        chain.apply(logits)
        other = function(chain)
        drawn = [[one.apply(logits)[3] for _ in range(20)] for one in (chain, other)]
        assert drawn[0] == drawn[1]
        chain.close()
        assert other.apply(logits)[3] is not None


@pytest.mark.process
def test_errors_while_unpickling_leave_the_others_alone(tiny_models, tmp_path) -> None:
    """In a process of its own, as `multiprocessing` does it."""
    path = tmp_path / "model.pickle"
    with Model(tiny_models["llama"], vocab_only=True) as model:
        path.write_bytes(pickle.dumps((model.vocab, Batch.from_arrays([1, 2]))))
    code = (
        "import pickle, sys; v, b = pickle.load(open(sys.argv[1], 'rb')); print(v.tokenize('the'), b.tokens.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, os.fspath(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[1, 2]\n")


# ---- imports


def test_classes_can_be_imported_from_the_package() -> None:
    for name in pyllm.core.__all__:
        assert getattr(pyllm.core, name).__name__ == name
        assert name in dir(pyllm.core)
    assert pyllm.core.Batch is Batch and pyllm.core.Trainer is Trainer and pyllm.core.LoraAdapter is LoraAdapter
    with pytest.raises(ImportError, match="Cotext"):
        exec("from pyllm.core import Cotext")


@pytest.mark.process
def test_an_import_loads_only_what_is_asked_for() -> None:
    code = """
import sys
import pyllm.core
loaded = {name for name in sys.modules if name.startswith("pyllm.core.")}
assert not loaded, loaded
assert "numpy" not in sys.modules and "inspect" not in sys.modules
from pyllm.core import Batch
assert "pyllm.core.batch" in sys.modules and "pyllm.core.training" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

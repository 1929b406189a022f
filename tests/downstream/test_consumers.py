"""Other packages on top of pyllm: Cython, C++ with CMake, C with pkg-config, C and Rust through the capsule, ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
import pickle
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from downstream.conftest import SOURCES, need, run

import pyllm
from pyllm import Batch, Chain, Context, Model, errors
from pyllm.core.c_api import function_address
from pyllm.core.samplers import Greedy

PROMPT = "the and of to in"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the consumers are built with gcc or clang")


@pytest.fixture
def context(make_context) -> Context:
    return make_context(n_ctx=64)


def tokens_of(model: Model) -> list[int]:
    return [int(token) for token in model.vocab.tokenize(PROMPT)]


def greedy(context: Context, n: int) -> list[int]:
    """What pyllm itself generates."""
    tokens = tokens_of(context.model)
    context.memory.clear()
    for _ in range(n):
        begin = context.memory.pos_max(0) + 1
        context.decode(Batch.from_arrays(tokens[begin:], pos=np.arange(begin, len(tokens))))
        tokens.append(int(np.argmax(np.asarray(context.logits)[-1])))
    context.memory.clear()
    return tokens[-n:]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- Cython


@pytest.fixture(scope="module")
def every_other(copy) -> ModuleType:
    """The package of docs/howto/extend.md, with one more module, `every_other.checks`."""
    folder = copy("cython_package")
    shutil.copy(SOURCES / "cython_checks/checks.pyx", folder / "every_other")
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=folder)
    modules = {
        name: load(f"every_other.{name}", folder / f"every_other/{name}{SUFFIX}") for name in ("sampler", "checks")
    }
    package = load("every_other", folder / "every_other/__init__.py")
    vars(package).update(modules)
    return package


@pytest.mark.parametrize("parity", [0, 1])
def test_a_sampler_of_another_package(every_other, context, parity):
    context.decode(Batch.from_arrays(tokens_of(context.model)))
    row = np.asarray(context.logits)[-1].copy()
    chain = Chain(every_other.EveryOther(parity), Greedy())
    wanted = max(range(parity, len(row), 2), key=lambda token: row[token])
    assert chain.sample(context) == wanted
    assert chain.clone().sample(context) == wanted
    assert repr(chain) == f"Chain(EveryOther(parity={parity}), Greedy())"


def test_functions_of_llama_h_on_objects_of_pyllm(every_other, context):
    vocab = context.model.vocab
    assert every_other.checks.count_special(context.model) == sum(
        vocab.is_control(token) for token in range(vocab.n_tokens)
    )
    with pytest.raises(TypeError):
        every_other.checks.count_special("no model")


def test_a_raw_decode_makes_older_outputs_stale(every_other, context):
    expected = greedy(context, 5)
    context.decode(Batch.from_arrays(tokens_of(context.model)))
    before, array = context.logits, np.asarray(context.logits)
    values = array.copy()
    context.memory.clear()
    assert every_other.greedy(context, tokens_of(context.model), 5) == expected
    assert np.array_equal(array, values), "an array that is alive has memory of its own"
    with pytest.raises(errors.StaleLogitsError):
        before[0]
    assert int(np.argmax(np.asarray(context.logits)[-1])) == expected[-1]


def test_methods_for_other_packages(every_other, context):
    model, chain = context.model, Chain(Greedy())
    vocab = model.vocab.address
    model_, vocab_, context_, _, sampler, *used = every_other.checks.addresses(model, context, chain)
    assert (model_, vocab_, context_, sampler) == (model.address, vocab, context.address, chain.address)
    assert used == [model.address, vocab]


def test_the_package_needs_exactly_this_version():
    for name in ("cython_package", "c_package"):
        text = (SOURCES / name / "pyproject.toml").read_text(encoding="utf-8")
        assert f'"pyllm=={pyllm.__version__}"' in text


def test_exceptions_of_llama_cpp_reach_the_package(every_other, context):
    with pytest.raises(errors.InvalidArgumentError, match="out_of_range"):
        every_other.checks.assertion(context)


def test_closed_objects_are_refused(every_other, tiny_models):
    model = Model(tiny_models["llama"])
    model.close()
    with pytest.raises(errors.ClosedError):
        every_other.checks.count_special(model)


# ---- programs without Python


def test_a_cmake_program(copy, context, tiny_models, flags):
    need("cmake", "c++")
    folder = copy("cmake_program")
    run("cmake", "-S", ".", "-B", "build", f"-Dpyllm_DIR={flags('--cmake-dir')[0]}", cwd=folder)
    run("cmake", "--build", "build", cwd=folder)
    output = run(folder / "build/count_tokens", tiny_models["llama"], PROMPT, cwd=folder)
    assert output.split("\n")[-2] == f"{len(tokens_of(context.model))} {greedy(context, 1)[0]}"


def test_a_program_with_pkg_config(copy, context, tiny_models, flags):
    need("pkg-config", "c++")
    folder = copy("cmake_program")
    environment = {"PKG_CONFIG_PATH": flags("--pkgconfig-dir")[0]}
    options = run("pkg-config", "--cflags", "--libs", "pyllm", cwd=folder, **environment).split()
    backends = run("pkg-config", "--variable=backenddir", "pyllm", cwd=folder, **environment).strip()
    define = f'-DPYLLM_BACKEND_DIR="{backends}"'
    run("c++", "-std=c++17", define, "main.cpp", "-o", "count_tokens", *options, cwd=folder)
    output = run(folder / "count_tokens", tiny_models["llama"], PROMPT, cwd=folder)
    assert output.split("\n")[-2] == f"{len(tokens_of(context.model))} {greedy(context, 1)[0]}"
    version = run("pkg-config", "--modversion", "pyllm", cwd=folder, **environment).strip()
    assert version == pyllm.__version__


# ---- the capsule


@pytest.fixture(scope="module")
def consumer(copy, flags) -> ModuleType:
    need("cc")
    folder = copy("c_extension")
    options = [*flags("--cflags"), f"-I{sysconfig.get_paths()['include']}", "-shared", "-fPIC", "-Wall", "-Werror"]
    target = folder / f"consumer{SUFFIX}"
    run("cc", *options, "consumer.c", "-o", target, cwd=folder)
    return load("consumer", target)


def test_the_capsule_in_c(consumer, context):
    major, minor, version, commit, size, same = consumer.about()
    assert (major, minor, version, same) == (1, 1, pyllm.__version__, "same")
    assert commit and commit == pyllm.build_info()["llama_cpp_commit"]
    # Two counters, a size, three strings, nine functions of ours and eighteen of llama.h.
    assert size == 8 + 8 + 3 * 8 + 9 * 8 + 18 * 8
    assert consumer.has("llama_encode") and not consumer.has("llama_no_such_function")
    expected = greedy(context, 5)
    assert consumer.greedy(context, tokens_of(context.model), 5) == expected
    assert int(np.argmax(np.asarray(context.logits)[-1])) == greedy(context, 5)[-1]


def test_wrong_objects_are_type_errors_in_c(consumer, tiny_model):
    class Impostor:
        model = tiny_model

    with pytest.raises(TypeError, match="Context"):
        consumer.greedy(Impostor(), [1], 1)
    with pytest.raises(TypeError, match="Vocab"):
        consumer.greedy(type("Other", (), {"model": 3})(), [1], 1)


def test_the_capsule_in_rust(copy, tiny_model):
    need("rustc")
    folder = copy("rust_extension")
    run("rustc", "--crate-type", "cdylib", "-O", "lib.rs", "-o", "libconsumer.so", cwd=folder)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = pointer(pyllm._C_API, b"pyllm._C_API")
    count = ctypes.CDLL(str(folder / "libconsumer.so")).count_control
    count.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    vocab = tiny_model.vocab
    assert count(table, vocab.address) == sum(vocab.is_control(token) for token in range(vocab.n_tokens)) > 0


# ---- ctypes


def test_addresses_with_ctypes(context):
    signature = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)
    n_tokens = signature(function_address("llama_vocab_n_tokens"))
    assert n_tokens(context.model.vocab.address) == context.n_vocab
    n_ctx = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)(function_address("llama_n_ctx"))
    assert n_ctx(context.address) == context.n_ctx
    for name in ("llama_decode", "ggml_init", "gguf_free"):
        assert function_address(name)


@pytest.mark.parametrize("name", ["printf", "_Znwm", "", "llama_decode; x", "llama_é"])
def test_functions_that_do_not_exist(name):
    with pytest.raises(errors.InvalidArgumentError, match="has no function"):
        function_address(name)


def test_the_nearest_functions_are_named():
    with pytest.raises(errors.InvalidArgumentError, match="the nearest: llama_tokenize"):
        function_address("llama_tokenise")


# ---- objects made in C


def test_a_borrowed_model_is_not_freed(tiny_models):
    owner = Model(tiny_models["llama"])
    borrowed = Model.from_address(owner.address)
    assert borrowed.n_layer == owner.n_layer and borrowed.address == owner.address
    with Context(borrowed, n_ctx=64, n_threads=1) as context:
        context.decode(Batch.from_arrays(tokens_of(borrowed)))
        expected = np.asarray(context.logits).copy()
    borrowed.close()
    with pytest.raises(errors.ClosedError):
        borrowed.n_layer  # noqa: B018
    with Context(owner, n_ctx=64, n_threads=1) as context:
        context.decode(Batch.from_arrays(tokens_of(owner)))
        assert np.allclose(np.asarray(context.logits), expected, atol=1e-4)
    del borrowed
    owner.close()


def test_a_borrowed_context_is_not_freed(tiny_model, context):
    borrowed = Context.from_address(tiny_model, context.address)
    assert (borrowed.n_ctx, borrowed.n_seq_max) == (context.n_ctx, context.n_seq_max)
    borrowed.decode(Batch.from_arrays(tokens_of(tiny_model)))
    token = int(np.argmax(np.asarray(borrowed.logits)[-1]))
    borrowed.close()
    context.outputs_changed()
    assert int(np.argmax(np.asarray(context.logits)[-1])) == token == greedy(context, 1)[0]


def test_an_abort_of_a_borrowed_context(tiny_model, context):
    borrowed = Context.from_address(tiny_model, context.address)
    borrowed.abort()
    with pytest.raises(errors.DecodeAborted):
        borrowed.decode(Batch.from_arrays(tokens_of(tiny_model)))
    borrowed.close()
    # Its callback is gone with it.
    context.memory.clear()
    assert greedy(context, 2) == greedy(context, 2)


def test_the_owner_lives_as_long_as_what_is_borrowed(tiny_models):
    owner = Model(tiny_models["llama"])
    borrowed = Model.from_address(owner.address, owner=owner)
    del owner
    assert borrowed.n_layer > 0
    borrowed.close()


@pytest.mark.parametrize("address", [0, 8, 4097, -4096, 1 << 64])
def test_addresses_that_cannot_be(tiny_model, address):
    with pytest.raises(errors.InvalidArgumentError, match="cannot be the address of a llama_model"):
        Model.from_address(address)
    with pytest.raises(errors.InvalidArgumentError, match="cannot be the address of a llama_context"):
        Context.from_address(tiny_model, address)


def test_a_context_of_another_model(tiny_model, load):
    other = load("gemma3")
    with Context(other, n_ctx=32, n_threads=1) as context, pytest.raises(errors.InvalidArgumentError, match="another"):
        Context.from_address(tiny_model, context.address)


def test_a_borrowed_model_is_not_pickled(tiny_model):
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Model.from_address(tiny_model.address))

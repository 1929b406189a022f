"""llama.cpp's log: silent unless somebody listens, with the right levels when somebody does."""

import logging
import subprocess
import sys

import pytest

from pyllm import errors
from pyllm.core import log
from pyllm.core.batch import Batch
from pyllm.core.model import Model

WORK = """
import sys
import numpy as np
from pyllm import PyllmError
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.model import Model
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Greedy

def work(path):
    with Model(path) as model, Context(model, n_ctx=100, n_seq_max=3, embeddings=True) as context:
        generation = Generation(context, Chain(Greedy()))
        generation.prefill(model.vocab.tokenize("the people"))
        generation.run(5)
        for wrong in (
            lambda: context.decode(Batch.from_arrays(np.arange(300))),
            lambda: context.decode(Batch.from_arrays([1], pos=[50000])),
            lambda: context.memory.cp(0, 1, 2, 3),
            lambda: Model(path + ".none"),
            lambda: context.logits_ith(99),
        ):
            try:
                wrong()
            except PyllmError:
                pass
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=550
    )


@pytest.mark.process
def test_silent_by_default(tiny_models):
    done = python(WORK + "\nwork(sys.argv[1])", tiny_models["llama"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.process
def test_a_grammar_that_is_none_is_silent(tiny_models):
    code = """
import sys
from pyllm import PyllmError
from pyllm.core.model import Model
from pyllm.core.samplers import Grammar
try:
    Grammar(Model(sys.argv[1], vocab_only=True).vocab, "root ::= missing")
except PyllmError:
    pass
"""
    done = python(code, tiny_models["llama"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.process
def test_a_real_model_is_silent_too(smollm2_path):
    done = python(WORK + "\nwork(sys.argv[1])", smollm2_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.process
def test_with_logging_configured_lines_go_there(tiny_models):
    code = WORK + "\nimport logging; logging.basicConfig(level='DEBUG', format='%(levelname)s %(name)s %(message)s')"
    done = python(code + "\nwork(sys.argv[1])", tiny_models["llama"])
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and done.stdout == ""
    assert len(lines) > 50 and all(" pyllm.llama " in line for line in lines)
    assert {line.split()[0] for line in lines} >= {"DEBUG", "INFO", "WARNING", "ERROR"}


def loaded(path) -> None:
    Model(path).close()


def test_levels(tiny_models, caplog):
    with caplog.at_level(logging.DEBUG, logger="pyllm.llama"):
        loaded(tiny_models["llama"])
        records = caplog.records
        by_level = {level: [r.getMessage() for r in records if r.levelno == level] for level in (10, 20, 30, 40)}
    assert any("general.architecture" in line for line in by_level[logging.INFO])
    assert not by_level[logging.ERROR]
    assert all("\n" not in r.getMessage() and r.getMessage().strip(" .") for r in records)
    assert {r.name for r in records} == {"pyllm.llama"}


def test_errors_have_the_level_of_errors(tmp_path, tiny_models, caplog):
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_models["llama"].read_bytes()[:5000])
    with caplog.at_level(logging.ERROR, logger="pyllm.llama"), pytest.raises(errors.ModelLoadError) as caught:
        Model(path)
    lines = [r.getMessage() for r in caplog.records]
    assert lines and {r.levelno for r in caplog.records} == {logging.ERROR}
    assert set(lines) <= set(caught.value.log)


def test_only_what_is_wanted(tiny_models, caplog):
    with caplog.at_level(logging.ERROR, logger="pyllm.llama"):
        loaded(tiny_models["llama"])
    assert caplog.records == []


def test_the_level_is_read_again(context, ids, caplog):
    """A change of level while nothing is loaded or made takes effect after refresh_level()."""
    with caplog.at_level(logging.CRITICAL, logger="pyllm.llama"):
        log.refresh_level()
        with pytest.raises(errors.InvalidBatchError):
            context.decode(Batch.from_arrays([1, 2], pos=[5, 9]))
        assert caplog.records == []
    with caplog.at_level(logging.DEBUG, logger="pyllm.llama"):
        log.refresh_level()
        with pytest.raises(errors.InvalidBatchError):
            context.decode(Batch.from_arrays([1, 2], pos=[5, 9]))
        assert any("position" in r.getMessage() for r in caplog.records)
    log.refresh_level()


def test_a_handler_that_raises_loses_nothing(tiny_models, monkeypatch):
    """The load goes on; the exceptions go where Python puts those that nobody can catch."""

    class Broken(logging.Handler):
        def emit(self, record):
            raise ZeroDivisionError("from the handler")

    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    handler, level = Broken(), log.logger.level
    log.logger.addHandler(handler)
    log.logger.setLevel(logging.DEBUG)
    try:
        loaded(tiny_models["llama"])
    finally:
        log.logger.removeHandler(handler)
        log.logger.setLevel(level)
    assert len(ignored) > 10 and {entry.exc_type for entry in ignored} == {ZeroDivisionError}


def test_errors_carry_the_lines_of_their_own_call(make_context):
    context = make_context()
    with pytest.raises(errors.InvalidBatchError) as first:
        context.decode(Batch.from_arrays([1, 2], pos=[5, 9]))
    with pytest.raises(errors.NoKVSlotError) as second:
        for _ in range(3):
            context.decode(Batch.from_arrays([1] * 200))
    assert any("position" in line for line in first.value.log)
    assert second.value.log and not any("position" in line for line in second.value.log)


def test_the_logger_of_the_package_has_a_null_handler():
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("pyllm").handlers)
    assert log.logger.name == "pyllm.llama"

"""Failed assertions inside llama.cpp: an exception where the stack can unwind, a last message where it cannot."""

from __future__ import annotations

import signal
import sys
import threading

import numpy as np
import pytest
from support import isolation

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.context import Context


def test_an_assertion_inside_llama_decode_is_an_exception(load, make_context):
    """llama.cpp asserts that an encoder-decoder model encodes before it decodes; nothing of ours checks that."""
    model = load("t5")
    tokens, start = [3, 4, 5], [model.decoder_start_token]
    fresh = make_context(model)
    fresh.encode(Batch.from_arrays(tokens))
    fresh.decode(Batch.from_arrays(start))
    expected = fresh.logits.copy()

    context = make_context(model, n_threads=2)
    for _ in range(3):
        with pytest.raises(errors.BackendAssertError, match=r"GGML_ASSERT.*llama_encode must be called first") as info:
            context.decode(Batch.from_arrays(start))
        assert isinstance(info.value, RuntimeError)
        with pytest.raises(errors.NoOutputError):
            context.logits  # noqa: B018
    context.memory.clear()
    context.encode(Batch.from_arrays(tokens))
    context.decode(Batch.from_arrays(start))
    np.testing.assert_allclose(np.asarray(context.logits), expected, atol=1e-4)


def test_an_assertion_leaves_other_contexts_alone(load, make_context):
    model = load("t5")
    good, bad = make_context(model), make_context(model)
    good.encode(Batch.from_arrays([3, 4]))
    for position in range(5):
        with pytest.raises(errors.BackendAssertError):
            bad.decode(Batch.from_arrays([0]))
        good.decode(Batch.from_arrays([position]))
    assert good.memory.pos_max(0) == 4


def test_the_log_of_an_error_is_of_its_own_call(load, make_context, tiny_model):
    context = make_context(load("t5"))
    with pytest.raises(errors.PyllmError) as first:
        make_context(tiny_model, ctx_type="mtp")
    assert any("MTP" in line for line in first.value.log)
    with pytest.raises(errors.BackendAssertError) as second:
        context.decode(Batch.from_arrays([0]))
    assert not any("MTP" in line for line in second.value.log)


def test_an_assertion_while_a_callback_waits(load, make_context):
    """What a callback raised goes before what llama.cpp says about it."""
    context = make_context(load("t5"), abort_callback=lambda: False)
    with pytest.raises(errors.BackendAssertError):
        context.decode(Batch.from_arrays([0]))
    context.encode(Batch.from_arrays([3]))
    context.decode(Batch.from_arrays([0]))


def test_in_many_threads_each_gets_its_own(load):
    model = load("t5")
    results = []

    def work():
        for _ in range(10):
            with Context(model, n_ctx=64, n_threads=1) as context:
                with pytest.raises(errors.BackendAssertError):
                    context.decode(Batch.from_arrays([0]))
                context.encode(Batch.from_arrays([3]))
                context.decode(Batch.from_arrays([0]))
        results.append(True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4


FOREIGN = """
import ctypes
from pathlib import Path
import pyllm

folder = Path(pyllm.__file__).parent / "lib"
name = next(path for path in folder.iterdir() if path.name.startswith("libpyllm-ggml-base"))
ggml = ctypes.CDLL(str(name))

def assertion_in_a_thread_of_its_own():
    ggml.ggml_abort(b"somewhere.c", 42, b"it is %d o'clock", 13)
"""

FATAL = {
    "a thread that never called pyllm": """
import pyllm.core.model
thread = threading.Thread(target=assertion_in_a_thread_of_its_own)
thread.start()
thread.join()
""",
    "while the main thread decodes": """
model, context = make()
thread = threading.Timer(0.2, assertion_in_a_thread_of_its_own)
thread.start()
while True:
    context.memory.clear()
    context.decode(Batch.from_arrays(np.ones(200, int)))
""",
    "a thread that has called pyllm before": """
make()
assertion_in_a_thread_of_its_own()
""",
    "a callback, with frames of Python above llama.cpp's": """
Model(PATH, progress_callback=lambda progress: assertion_in_a_thread_of_its_own())
""",
    "with the collector at work and many threads": """
model, context = make()
threads = [threading.Thread(target=time.sleep, args=(30,), daemon=True) for _ in range(5)]
for thread in threads:
    thread.start()
threading.Thread(target=assertion_in_a_thread_of_its_own).start()
time.sleep(30)
""",
}


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGABRT")
@pytest.mark.parametrize("script", FATAL.values(), ids=FATAL)
def test_where_nothing_can_unwind_it_says_why(script, tiny_models):
    # Without Python's own fault handler, which would write a traceback too.
    result = isolation.run(FOREIGN + script, tiny_models["llama"], env={"PYTHONFAULTHANDLER": ""}, timeout=550)
    assert result.returncode == -signal.SIGABRT, (result.returncode, result.stderr)
    assert "somewhere.c:42: it is 13 o'clock" in result.stderr
    assert "most recent call first" in result.stderr and "assertion_in_a_thread_of_its_own" in result.stderr
    assert "terminate called" not in result.stderr


@pytest.mark.process
def test_an_assertion_in_a_worker_thread_says_why(tiny_models):
    """Every thread computes its share of a node; the assertion fails in the workers too."""
    result = isolation.run(
        """
try:
    model = Model(PATH, kv_overrides={"llama.attention.layer_norm_rms_epsilon": float("nan")})
    context = Context(model, n_ctx=64, n_threads=4)
    context.decode(Batch.from_arrays(np.ones(32, int)))
except errors.PyllmError as exception:
    print(type(exception).__name__)
""",
        tiny_models["llama"],
        env={"PYTHONFAULTHANDLER": ""},
        timeout=550,
    )
    if result.returncode == 0:
        assert result.stdout.strip() in ("ModelLoadError", "InvalidArgumentError", "ContextError")
    else:
        assert result.returncode == -signal.SIGABRT
        assert "GGML_ASSERT" in result.stderr and "most recent call first" in result.stderr

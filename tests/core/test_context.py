"""Making contexts, decoding and encoding, aborting, threads and settings."""

import threading
import time

import numpy as np
import pytest

from pyllm import enums, errors
from pyllm.core.batch import Batch
from pyllm.core.batch_ext import BatchExt
from pyllm.core.context import Context
from pyllm.core.threadpool import ThreadPool

# Making one


def test_defaults_are_llama_cpps(tiny_model):
    with Context(tiny_model) as context:
        assert context.n_ctx == tiny_model.n_ctx_train == context.n_ctx_seq
        assert (context.n_batch, context.n_ubatch, context.n_seq_max) == (512, 512, 1)
        assert context.causal_attn and context.has_memory and context.n_outputs == 0
        assert context.pooling_type == enums.PoolingType.NONE
        assert context.n_vocab == tiny_model.n_vocab and context.model is tiny_model
        assert context.n_threads >= 1 and context.n_threads_batch == context.n_threads
        assert context.n_rs_seq == 0 and context.address != 0
        assert "n_ctx=512" in repr(context)


def test_sizes(make_context):
    context = make_context(n_ctx=300, n_batch=100, n_ubatch=30, n_seq_max=3, kv_unified=True, n_threads_batch=2)
    assert context.n_ctx >= 300 and context.n_ctx_seq == context.n_ctx
    assert (context.n_batch, context.n_ubatch, context.n_seq_max) == (100, 30, 3)
    assert (context.n_threads, context.n_threads_batch) == (1, 2)
    parts = make_context(n_ctx=768, n_seq_max=3)
    assert parts.n_ctx == 768 and parts.n_ctx_seq == 256


@pytest.mark.parametrize("value", [enums.PoolingType.MEAN, 1, "mean", "MEAN"])
def test_enums_by_member_number_or_name(make_context, value):
    assert make_context(embeddings=True, pooling_type=value).pooling_type == enums.PoolingType.MEAN


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_ctx": -1}, "n_ctx must be from 0"),
        ({"n_ctx": 2**40}, "n_ctx must be from 0"),
        ({"n_batch": 0}, "n_batch must be from 1"),
        ({"n_ubatch": 0}, "n_ubatch"),
        ({"n_seq_max": 0}, "n_seq_max"),
        ({"n_seq_max": 100_000}, "n_seq_max must be at most"),
        ({"n_threads": 0}, "n_threads"),
        ({"n_threads": 100_000}, "n_threads must be at most"),
        ({"n_threads_batch": 100_000}, "n_threads_batch must be at most"),
        ({"pooling_type": "median"}, "pooling_type.*'mean'"),
        ({"rope_scaling_type": "cubic"}, "rope_scaling_type.*'yarn'"),
        ({"flash_attn_type": 9}, "flash_attn_type"),
        ({"attention_type": "none"}, "attention_type"),
        ({"ctx_type": "x"}, "ctx_type"),
        ({"type_k": "f17"}, "type_k.*f16.*q8_0"),
        ({"type_v": -3}, "type_v"),
    ],
)
def test_arguments_out_of_range(tiny_model, arguments, message):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        Context(tiny_model, **arguments)


@pytest.mark.parametrize(
    "arguments", [{"n_ctx": "big"}, {"n_ctxx": 1}, {"abort_callback": 3}, {"rope_freq_base": "x"}, {"n_ctx": 1.5}]
)
def test_arguments_of_a_wrong_type_or_name(tiny_model, arguments):
    with pytest.raises(TypeError):
        Context(tiny_model, **arguments)


@pytest.mark.parametrize("wrong", [None, "model.gguf"])
def test_a_context_needs_a_model(wrong):
    with pytest.raises(TypeError):
        Context(wrong)


def test_failures_come_with_llama_cpps_own_words(tiny_model):
    # A quantized V cache needs flash attention.
    with pytest.raises(errors.ContextError) as caught:
        Context(tiny_model, n_ctx=256, type_v="q8_0", flash_attn_type="disabled")
    assert caught.value.function == "llama_init_from_model"
    assert any("quantized V cache requires flash_attn" in line for line in caught.value.log)
    assert "llama.cpp said" in str(caught.value)


@pytest.mark.parametrize("type_k, type_v", [("f32", "f32"), ("bf16", "f16"), ("q8_0", "q8_0"), ("Q4_0", "q4_0")])
def test_types_of_the_cache(load, make_context, ids, type_k, type_v):
    model = load("llama", n_embd=128)  # quantized caches need heads of 32 or more
    exact = make_context(model, type_k="f32", type_v="f32")
    other = make_context(model, type_k=type_k, type_v=type_v, flash_attn_type="enabled")
    for context in (exact, other):
        context.decode(Batch.from_arrays(ids))
    correlation = np.corrcoef(exact.logits[0], other.logits[0])[0, 1]
    assert correlation > (0.99 if "4" in type_k else 0.9999)


# Decoding


def test_one_batch_computes_what_single_tokens_do(make_context, ids):
    whole, steps = make_context(), make_context()
    whole.decode(Batch.from_arrays(ids, outputs="all"))
    for i, token in enumerate(ids):
        steps.decode(Batch.from_arrays([token]))
        np.testing.assert_allclose(steps.logits[0], whole.logits[i], atol=2e-2)


def test_the_same_input_gives_the_same_bits(make_context, ids):
    rows = []
    for _ in range(3):
        context = make_context()
        context.decode(Batch.from_arrays(ids, outputs="all"))
        rows.append(context.logits.copy())
    assert np.array_equal(rows[0], rows[1]) and np.array_equal(rows[1], rows[2])


def test_threads_do_not_change_the_result(make_context, ids):
    one, two = make_context(), make_context(n_threads=2)
    for context in (one, two):
        context.decode(Batch.from_arrays(ids, outputs="all"))
    np.testing.assert_allclose(two.logits.copy(), one.logits.copy(), atol=1e-4)


def test_the_numbers_of_the_network(make_context, tiny_models):
    """One token through the network in NumPy: with one position, attention is the identity on the values."""
    from pyllm.core.gguf import GGUFReader

    with GGUFReader(tiny_models["llama"]) as file:
        w = {info.name: np.array(file.tensor(info.name), np.float64) for info in file.tensors}
    token = 300

    def norm(x, name):
        return x / np.sqrt((x**2).mean() + 1e-5) * w[f"{name}.weight"]

    x = w["token_embd.weight"][token]
    for i in range(2):
        block = f"blk.{i}"
        v = w[f"{block}.attn_v.weight"] @ norm(x, f"{block}.attn_norm")
        # Two heads for values, each used by two heads for queries.
        x = x + w[f"{block}.attn_output.weight"] @ v.reshape(2, 16)[[0, 0, 1, 1]].reshape(-1)
        h = norm(x, f"{block}.ffn_norm")
        gate = w[f"{block}.ffn_gate.weight"] @ h
        x = x + w[f"{block}.ffn_down.weight"] @ (gate / (1 + np.exp(-gate)) * (w[f"{block}.ffn_up.weight"] @ h))
    expected = norm(x, "output_norm")
    context = make_context(embeddings=True, pooling_type="none")
    context.decode(Batch.from_arrays([token]))
    np.testing.assert_allclose(context.embeddings[0], expected, atol=2e-2)
    np.testing.assert_allclose(context.logits[0], w["output.weight"] @ expected, atol=5e-2)


def test_a_full_cache(make_context):
    context = make_context(n_ctx=256, n_batch=256)
    context.decode(Batch.from_arrays(np.arange(250)))
    with pytest.raises(errors.NoKVSlotError, match="n_ctx=256") as caught:
        context.decode(Batch.from_arrays(np.arange(10)))
    assert (caught.value.code, caught.value.function) == (1, "llama_decode")
    assert context.memory.pos_max(0) == 249, "the memory is as before"
    context.decode(Batch.from_arrays(np.arange(6)))
    assert context.memory.pos_max(0) == 255


def test_encoder_only(load, make_context):
    context = make_context(load("bert"), embeddings=True)
    assert not context.has_memory
    with pytest.raises(errors.ContextError, match="no KV cache"):
        context.memory.clear()
    context.encode(Batch.from_arrays([5, 6, 7]))
    encoded = context.embeddings_seq()
    context.decode(Batch.from_arrays([5, 6, 7]))
    assert np.array_equal(encoded, context.embeddings_seq())


def test_what_must_be_computed_at_once(load, make_context):
    context = make_context(load("bert"), embeddings=True, n_batch=64, n_ubatch=32)
    context.encode(Batch.from_arrays(np.arange(5, 37)))
    with pytest.raises(errors.InvalidBatchError, match="n_ubatch=32"):
        context.encode(Batch.from_arrays(np.arange(5, 38)))
    decoder = make_context(n_batch=64, n_ubatch=32)
    decoder.set_causal_attn(False)
    with pytest.raises(errors.InvalidBatchError, match="n_ubatch=32"):
        decoder.decode(Batch.from_arrays(np.arange(33)))
    decoder.set_causal_attn(True)
    decoder.decode(Batch.from_arrays(np.arange(33)))


def test_encoder_decoder(load, make_context):
    context = make_context(load("t5"))
    start = context.model.decoder_start_token
    rows = []
    for source in ([5, 6, 7, 1], [9, 8, 1]):
        context.memory.clear()
        context.encode(Batch.from_arrays(source))
        context.decode(Batch.from_arrays([start]))
        rows.append(context.logits.copy())
    assert np.isfinite(rows).all() and not np.allclose(*rows), "the answer depends on what was encoded"


def test_decoding_before_encoding_is_an_error(load, make_context):
    context = make_context(load("t5"))
    with pytest.raises(errors.PyllmError, match="llama_encode"):
        context.decode(Batch.from_arrays([0]))
    context.encode(Batch.from_arrays([5, 6, 1]))
    context.decode(Batch.from_arrays([0]))


def test_causal_attention_can_be_switched(make_context, ids):
    context = make_context()
    context.decode(Batch.from_arrays(ids, outputs="all"))
    causal = context.logits.copy()
    context.memory.clear()
    context.set_causal_attn(False)
    assert not context.causal_attn
    context.decode(Batch.from_arrays(ids, outputs="all"))
    assert not np.allclose(context.logits[0], causal[0], atol=0.1), "the first token sees the others now"


def test_embeddings_can_be_switched(make_context, ids):
    context = make_context(pooling_type="none")
    context.set_embeddings(True)
    context.decode(Batch.from_arrays(ids))
    assert context.n_outputs == 1 and context.embeddings.shape == (1, 64)
    context.set_embeddings(False)
    context.decode(Batch.from_arrays(ids))
    assert context.n_outputs == 1


# Aborting


@pytest.fixture
def slow(load, make_context):
    """A context whose next decode takes a good while, and its batch."""
    model = load("llama", n_layer=8, n_embd=512, n_ff=2048, n_ctx_train=4096)
    return make_context(model, n_ctx=4096, n_batch=4096, n_ubatch=64), Batch.from_arrays(np.arange(4096) % 400)


def test_abort_from_another_thread(slow):
    context, batch = slow
    threading.Timer(0.05, context.abort).start()
    with pytest.raises(errors.DecodeAborted) as caught:
        context.decode(batch)
    assert caught.value.code == 2
    done = context.memory.pos_max(0) + 1
    assert 0 <= done < 4096 and done % 64 == 0, "micro-batches that were done stay, whole"
    context.decode(Batch.from_arrays([1, 2, 3]))
    assert context.memory.pos_max(0) == done + 2


def test_abort_before_a_decode(context, ids):
    context.abort()
    with pytest.raises(errors.DecodeAborted):
        context.decode(Batch.from_arrays(ids))
    context.decode(Batch.from_arrays(ids))
    assert context.n_outputs == 1


def test_the_abort_callback(slow):
    context, batch = slow
    calls = []
    context.set_abort_callback(lambda: calls.append(time.perf_counter()) or len(calls) == 3)
    before = time.perf_counter()
    with pytest.raises(errors.DecodeAborted):
        context.decode(batch)
    # Every 20 ms at most: between the beginning and the third call there are two whole intervals.
    assert len(calls) == 3 and calls[-1] - before >= 0.035
    context.set_abort_callback(None)
    context.decode(Batch.from_arrays([1]))
    assert len(calls) == 3


def test_what_the_abort_callback_raises_is_raised(slow):
    context, batch = slow
    error = ZeroDivisionError("from the callback")

    def callback():
        raise error

    context.set_abort_callback(callback)
    with pytest.raises(ZeroDivisionError) as caught:
        context.decode(batch)
    assert caught.value is error
    context.set_abort_callback(None)
    context.decode(Batch.from_arrays([1]))
    with pytest.raises(TypeError):
        context.set_abort_callback(3)


# Threads


def test_two_threads_on_one_context_wait_for_each_other(make_context, ids):
    context = make_context(n_ctx=1024, n_seq_max=4)
    wrong = []

    def work(seq):
        try:
            for i in range(50):
                context.decode(Batch.from_arrays([ids[i % len(ids)]], pos=[i], seq_ids=seq))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seq,)) for seq in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and [context.memory.pos_max(seq) for seq in range(4)] == [49] * 4


def test_contexts_of_one_model_run_side_by_side(make_context, ids):
    contexts = [make_context() for _ in range(4)]
    rows = {}

    def work(n):
        for token in ids:
            contexts[n].decode(Batch.from_arrays([token]))
        rows[n] = contexts[n].logits.copy()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(rows[0], rows[n]) for n in range(4))


def test_the_gil_is_free_during_a_decode(slow):
    context, batch = slow
    ticks = []
    stop = threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            if len(ticks) == 20:
                context.abort()  # which ends the decode only if it has not kept this thread from running
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    with pytest.raises(errors.DecodeAborted):
        context.decode(batch)
    stop.set()
    thread.join()


def test_numbers_of_threads(context, ids):
    context.set_n_threads(2)
    assert (context.n_threads, context.n_threads_batch) == (2, 2)
    context.decode(Batch.from_arrays(ids))
    context.set_n_threads(1, 3)
    assert (context.n_threads, context.n_threads_batch) == (1, 3)
    context.decode(Batch.from_arrays(ids[:4]))
    for wrong in ((0,), (-1,), (1, 0), (100_000,), (1, 100_000)):
        with pytest.raises(errors.InvalidArgumentError):
            context.set_n_threads(*wrong)
    context.decode(Batch.from_arrays(ids))


# Settings and measuring


def test_performance_counters(make_context, ids):
    context = make_context(no_perf=False)
    for batch in (Batch.from_arrays(ids), Batch.from_arrays(ids[:1])):
        context.decode(batch)
        context.synchronize()
    perf = context.perf()
    assert perf["n_p_eval"] == len(ids) and perf["n_eval"] == 1
    assert perf["t_p_eval_ms"] > 0 and perf["t_eval_ms"] > 0
    context.perf_reset()
    assert context.perf()["t_eval_ms"] == 0


# Closing


def test_close_and_everything_after_it(make_context, ids):
    context = make_context()
    context.decode(Batch.from_arrays(ids))
    extended = BatchExt(context).add(ids[:1])
    context.close()
    context.close()
    assert context.closed and repr(context) == "<Context (closed)>"
    after = {"close", "closed", "model", "n_outputs", "n_vocab", "memory", "abort", "set_abort_callback", "capture"}
    after |= {"state", "adapters", "control_vector", "clear_abort", "decode_id", "from_address"}
    arguments = {
        "set_adapters": ({},),
        "set_control_vector": (None,),
        "set_sampler": (0, None),
        "process": (extended,),
        "decode": (Batch.from_arrays(ids),),
        "encode": (Batch.from_arrays(ids),),
        "logits_ith": (0,),
        "embeddings_ith": (0,),
        "attach_threadpool": (ThreadPool(2),),
        "set_n_threads": (1,),
        "set_embeddings": (True,),
        "set_causal_attn": (True,),
    }
    names = [name for name in dir(context) if not name.startswith("_") and name not in after]
    assert len(names) > 20
    for name in names:
        with pytest.raises(errors.ClosedError, match="closed"):
            value = getattr(context, name)
            value(*arguments.get(name, ()))
    context.abort()
    with pytest.raises(errors.ClosedError):
        context.memory.pos_max(0)
    with pytest.raises(errors.ClosedError), context:
        context.decode(Batch.from_arrays(ids))


def test_close_waits_for_a_decode_that_is_running(slow):
    context, batch = slow
    ended = []

    def work():
        try:
            context.decode(batch)
        except errors.DecodeAborted:
            ended.append("aborted")

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.05)
    context.abort()
    context.close()
    thread.join()
    assert ended == ["aborted"] and context.closed


def test_worker_threads_can_be_let_go(make_context, ids):
    context = make_context(n_threads=2)
    batch = Batch.from_arrays(ids, outputs="all")
    context.decode(batch)
    expected = context.logits.copy()
    context.detach_threadpool()
    context.detach_threadpool()
    for n_threads in (2, 3):
        context.memory.clear()
        context.decode(batch)
        assert np.array_equal(context.logits, expected)
        context.set_n_threads(n_threads + 1)

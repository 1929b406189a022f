"""A program of a user that must pass `mypy --strict`; it is checked and never run."""

from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from pyllm.core.backend import Device, backends, devices
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.model import Model
from pyllm.core.outputs import Outputs
from pyllm.core.sampler import Chain, Sampler
from pyllm.core.samplers import Dist, Grammar, Greedy, LogitBias, TopK, TopP
from pyllm.core.vocab import Vocab
from pyllm.enums import PoolingType, VocabType
from pyllm.errors import NoKVSlotError, PyllmError


def progress(fraction: float) -> bool:
    return fraction < 2.0


def load(path: Path) -> Model:
    with Model(path, n_gpu_layers=-1, progress_callback=progress, kv_overrides={"general.name": "x", "n": 1}) as model:
        assert_type(model, Model)
        assert_type(model.vocab, Vocab)
        assert_type(model.metadata, dict[str, str])
        assert_type(model.meta("general.name"), str | None)
        assert_type(model.vocab.type, VocabType)
    return model


def logits(model: Model, text: str) -> NDArray[np.float32]:
    ids = model.vocab.tokenize(text)
    assert_type(ids, list[int])
    assert_type(model.vocab.tokenize_array(text), NDArray[np.int32])
    assert_type(model.vocab.bos, int | None)
    context = Context(model, n_ctx=512, pooling_type="none", embeddings=True, type_k="q8_0")
    assert_type(context.pooling_type, PoolingType)
    try:
        context.decode(Batch.from_arrays(ids, outputs="all", seq_ids=0))
    except NoKVSlotError as error:
        assert_type(error.code, int | None)
        raise
    except PyllmError as error:
        assert_type(error.log, tuple[str, ...])
        raise
    assert_type(context.logits, Outputs)
    assert_type(context.logits[0], NDArray[np.float32])
    assert_type(context.logits[0, 1], np.float32)
    assert_type(context.logits_ith(-1), NDArray[np.float32])
    assert_type(context.embeddings_seq(0), NDArray[np.float32])
    context.logits[-1, 0] = -np.inf
    array: NDArray[np.float32] = np.asarray(context.logits)
    assert memoryview(context.logits).nbytes
    assert_type(context.memory.rm(0, p0=3), bool)
    return array


def generate(context: Context) -> str:
    vocab = context.model.vocab
    chain = Chain(LogitBias(len(vocab), {0: -1.0}), TopK(40), TopP(0.9), Dist(seed=1))
    assert_type(chain.clone(), Chain)
    assert_type(TopK(3).clone(), TopK)
    assert_type(chain[0], Sampler)
    chain.add(Grammar(vocab, 'root ::= "a"')).add(Greedy())
    generation = Generation(context, chain, stop=["\n"])
    generation.prefill([1, 2, 3])
    assert_type(generation.step(), int | None)
    assert_type(generation.run(3), int)
    return generation.stream.take(all=True)


def machine() -> list[str]:
    assert_type(devices(), list[Device])
    return [backend.reason for backend in backends()]

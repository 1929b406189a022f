"""lm-evaluation-harness against the server, as it asks every server that knows OpenAI's completions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.servers import Served

from pyllm import Model
from pyllm.engine import Engine
from pyllm.eval import logprobs, score

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the harness's own imports warn of
    pytest.importorskip("lm_eval")
    pytest.importorskip("tenacity")  # of lm-eval[api]
    pytest.importorskip("aiohttp")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

pytestmark = pytest.mark.slow

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " Rome, as everybody knows"),
    ("Once upon a time, there was a", " little girl"),
    ("The opposite of hot is", " cold"),
    ("<|im_start|>user\nHello<|im_end|>", "<|im_end|>"),
]


@pytest.fixture(scope="module")
def server(start: Callable[..., Served], smollm2: Model) -> Iterator[Served]:
    with Engine(smollm2, n_ctx=2048, n_parallel=4, n_threads=2) as engine:
        server = start(engine)
        yield server
        server.stop()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("batch_size", "concurrent"), [(4, 1), (2, 3)])
def test_the_harness_gets_the_numbers(server: Served, smollm2: Model, batch_size: int, concurrent: int) -> None:
    lm = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="m",
        batch_size=batch_size,
        num_concurrent=concurrent,
        max_length=512,
    )
    assert lm.tokenizer_backend == "remote"
    requests: list[Any] = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)]
    found = lm.loglikelihood(requests, disable_tqdm=True)
    contexts, continuations = [lm.tok_encode(one) for one, _ in PAIRS], [lm.tok_encode(one) for _, one in PAIRS]
    wholes = [lm.tok_encode(one + other) for one, other in PAIRS]
    ends = [whole[len(context) :] for whole, context in zip(wholes, contexts, strict=True)]
    assert ends == continuations
    expected = score(smollm2, contexts, ends, n_threads=2)
    for (logprob, greedy), wanted in zip(found, expected, strict=True):
        assert logprob == pytest.approx(wanted.logprob, abs=0.05)
        assert greedy == wanted.is_greedy
    rolling = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("The cat sat on the mat.",), 0)])
    ids = [lm.prefix_token_id, *lm.tok_encode("The cat sat on the mat.")]
    assert rolling[0] == pytest.approx(logprobs(smollm2, ids, n_threads=2).total, abs=0.05)

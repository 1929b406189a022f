"""Many prompts continued at once: the same texts as one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from support.numerics import EXACT

from pyllm import Chain, Context, Llama, Model
from pyllm.core.samplers import Greedy
from pyllm.errors import InvalidArgumentError
from pyllm.eval.generate import Prompt, generate


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba"])
@pytest.mark.parametrize(
    "arguments", [{"n_seq_max": 3, "n_ctx": 768}, {"n_seq_max": 3, "kv_unified": True, "n_ctx": 256}]
)
def test_texts_are_those_of_a_llama(load, arch, arguments):
    model = load(arch)
    random = np.random.default_rng(1)
    prompts = [random.integers(20, 200, int(random.integers(1, 60))).astype(np.int32) for _ in range(7)]
    limits = [int(random.integers(0, 20)) for _ in prompts]
    with Context(model, **EXACT, **arguments) as context:
        texts = generate(
            context, [Prompt(tokens, Chain(Greedy()), n) for tokens, n in zip(prompts, limits, strict=True)]
        )
    with Llama(model, n_ctx=256, **EXACT) as llm:
        expected = [llm(tokens, max_tokens=n, temperature=0).text for tokens, n in zip(prompts, limits, strict=True)]
    assert texts == expected


def test_stop_strings_end_a_text(tiny_model: Model, make_context):
    tokens = tiny_model.vocab.tokenize_array("the people look at")
    with Llama(tiny_model, n_ctx=256, n_threads=1) as llm:
        whole = llm(tokens, max_tokens=20, temperature=0).text
    stop = whole[6:9]
    stopped = generate(make_context(), [Prompt(tokens, Chain(Greedy()), 20, (stop,))])[0]
    assert stopped == whole[: whole.index(stop)]


def test_what_does_not_fit(make_context):
    context = make_context(n_ctx=256)
    for n, limit in ((250, 10), (300, 0), (0, 5)):
        with pytest.raises(InvalidArgumentError, match=f"{n} tokens and max_tokens={limit}, and the context holds 256"):
            generate(context, [Prompt(np.full(n, 20, np.int32), Chain(Greedy()), limit)])

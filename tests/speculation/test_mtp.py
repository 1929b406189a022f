"""Drafts by a model's own layers for multi-token prediction."""

from __future__ import annotations

import pytest
from support.drafting import PROMPT, write_mtp
from support.numerics import EXACT

from pyllm import Llama, errors
from pyllm.core.model import Model
from pyllm.speculation import SpeculationParams

MTP = SpeculationParams(types="draft-mtp", n_max=3, adaptive=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_mtp(tmp_path_factory.mktemp("mtp") / "mtp.gguf")


def test_the_same_text(path):
    options = {"n_ctx": 256, "n_batch": 32, **EXACT}
    with Llama(path, **options) as plain, Llama(path, **options, speculative=MTP) as llm:
        assert plain.model.n_layer_nextn == 1
        for prompt in (PROMPT, [*PROMPT, *PROMPT[::-1]], PROMPT[:7]):
            for arguments in ({"temperature": 0}, {"seed": 3, "temperature": 0.7}, {"temperature": 0, "logprobs": 1}):
                want = plain(prompt, max_tokens=60, **arguments)
                for cache_prompt in (False, True):
                    got = llm(prompt, max_tokens=60, cache_prompt=cache_prompt, **arguments)
                    assert got.tokens == want.tokens
                    assert got.speculation.drafted > 100
        assert llm(PROMPT, max_tokens=40, temperature=0, speculative="mtp").tokens


def test_the_layers_must_be_loaded(path):
    with Model(path) as model, pytest.raises(errors.InvalidArgumentError, match="load_mtp=True"):
        Llama(model, n_ctx=256, n_threads=1, speculative="mtp")
    with Model(path, load_mtp=True) as model, Llama(model, n_ctx=256, n_threads=1, speculative="mtp") as llm:
        assert len(llm(PROMPT, max_tokens=20, temperature=0).tokens) == 20

"""Beam search beside that of Hugging Face transformers, on the same float32 weights: the same texts, the same scores.

Needs torch, transformers, accelerate and gguf, which the tests do not install by themselves.
"""

from __future__ import annotations

import numpy as np
import pytest

from pyllm import Llama
from pyllm.engine import Engine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),  # two libraries compute, and the machine may have other work
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled", "n_threads": 2}


def expected(model, ids, eog, **arguments):
    """Texts of transformers without what ends and fills them, and their scores."""
    import torch

    eos = [int(token) for token in eog]
    with torch.no_grad():
        found = model.generate(
            torch.tensor(np.asarray(ids, np.int64))[None],
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False, eos_token_id=eos, pad_token_id=eos[0], output_scores=True, return_dict_in_generate=True,
            **arguments,
        )  # fmt: skip
    texts = []
    for sequence in found.sequences[:, len(ids) :].tolist():
        ends = [place for place, token in enumerate(sequence) if token in eos]
        texts.append(tuple(sequence[: ends[0]] if ends else sequence))
    return texts, found.sequences_scores.tolist()


def assert_same(choices, texts, scores):
    assert [choice.tokens for choice in choices] == texts
    assert np.allclose([choice.score for choice in choices], scores, atol=1e-3)


PROMPTS = ["The capital of France is", "Q: What is water made of?\nA:"]
SEARCHES = [
    {"num_beams": 4, "num_return_sequences": 4},
    {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True},
    {"num_beams": 5, "num_return_sequences": 5, "length_penalty": 2.0},
    {"num_beams": 5, "num_return_sequences": 3, "length_penalty": 0.0, "early_stopping": "never"},
    {"num_beams": 4, "num_return_sequences": 4, "length_penalty": -1.5},
    {"num_beams": 8, "num_return_sequences": 8, "length_penalty": 1.2, "early_stopping": "never"},
]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: "-".join(map(str, search.values())))
def test_smollm2(smollm2_f32, smollm2_hf, search):
    with Llama(smollm2_f32, n_ctx=2048, n_seq_max=8, kv_unified=True, **EXACT) as llm:
        for prompt in PROMPTS:
            ids = llm.tokenize(prompt)
            texts, scores = expected(smollm2_hf, ids, llm.vocab.eog_tokens, max_new_tokens=16, **search)
            assert_same(llm(ids, max_tokens=16, **search).choices, texts, scores)


def test_smollm2_in_an_engine(smollm2_f32, smollm2_hf):
    with Engine(smollm2_f32, n_ctx=1024, n_parallel=2, **EXACT) as engine:
        others = [engine.submit("Once upon a time", max_tokens=64, seed=i, stream=False) for i in range(2)]
        for prompt in PROMPTS:
            ids = [int(token) for token in engine.vocab.tokenize(prompt)]
            texts, scores = expected(smollm2_hf, ids, engine.vocab.eog_tokens, max_new_tokens=16, **SEARCHES[0])
            assert_same(engine.complete(ids, max_tokens=16, **SEARCHES[0]).choices, texts, scores)
        assert all(job.result().text for job in others)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: "-".join(map(str, search.values())))
def test_a_tiny_random_model(tiny_models, search):
    """Tokens that are likely everywhere end its texts, so that finished and running beams compete all the time."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    transformers.utils.logging.disable_progress_bar()
    path = tiny_models["llama"]
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ends: set[int] = set()

    class Ends(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.isin(input_ids[:, -1], torch.tensor(list(ends)))

    n_ended = 0
    with Llama(path, n_ctx=1024, n_seq_max=8, kv_unified=True, **EXACT) as llm:
        for seed in range(6):
            ids = [1, *(int(token) for token in np.random.default_rng(seed).integers(259, 400, 6))]
            ends.clear()
            ends.update(llm(ids, max_tokens=20, num_beams=3).tokens[5:12:3])
            with torch.no_grad():
                found = reference.generate(
                    torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
                    max_new_tokens=20, eos_token_id=llm.vocab.eog_tokens, pad_token_id=0,
                    stopping_criteria=transformers.StoppingCriteriaList([Ends()]),
                    output_scores=True, return_dict_in_generate=True, **search,
                )  # fmt: skip
            texts = []
            for sequence in found.sequences[:, len(ids) :].tolist():
                places = [place + 1 for place, token in enumerate(sequence) if token in ends]
                texts.append(tuple(sequence[: places[0]] if places else sequence))
            result = llm(ids, max_tokens=20, stopping_criteria=lambda ids, row: ids[-1] in ends, **search)
            assert_same(result.choices, texts, found.sequences_scores.tolist())
            n_ended += sum(choice.finish_reason == "stop" for choice in result.choices)
    assert n_ended > 0


def test_processors_are_applied_as_transformers_does(smollm2_f32, smollm2_hf):
    transformers = pytest.importorskip("transformers")
    import torch

    forbidden = set()

    class Forbid(transformers.LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores = scores.clone()
            scores[:, list(forbidden)] = -torch.inf
            scores[:, 5:50] += 0.5 * input_ids.shape[1] / 100  # no longer probabilities: they are not made so again
            return scores

    def forbid(ids, row):
        row[list(forbidden)] = -np.inf
        row[5:50] += 0.5 * len(ids) / 100

    with Llama(smollm2_f32, n_ctx=1024, n_seq_max=4, kv_unified=True, **EXACT) as llm:
        ids = llm.tokenize(PROMPTS[0])
        forbidden.update(llm(ids, num_beams=4, max_tokens=12).tokens[:2])
        processors = transformers.LogitsProcessorList([Forbid()])
        texts, scores = expected(
            smollm2_hf, ids, llm.vocab.eog_tokens, max_new_tokens=12, num_beams=4, num_return_sequences=4,
            logits_processor=processors,
        )  # fmt: skip
        assert_same(llm(ids, num_beams=4, n=4, max_tokens=12, logits_processor=forbid).choices, texts, scores)

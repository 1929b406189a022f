"""Which words of a text surprise the model? Logits for every token, read without a copy.

python examples/surprise.py [TEXT]
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from pyllm import Batch, Context, Model, hub

TEXT = "The quick brown fox jumps over the lazy accountant. The capital of France is cheese."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default=TEXT)
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of a known model")
    options = parser.parse_args()

    with Model(hub.resolve(options.model)) as model:
        ids = model.vocab.tokenize(options.text)
        with Context(model, n_ctx=len(ids), n_batch=len(ids)) as ctx:
            ctx.decode(Batch.from_arrays(ids, outputs="all"))
            bits = surprise(np.asarray(ctx.logits), ids)
        for token, value in zip(ids[1:], bits, strict=True):
            piece = model.vocab.token_to_piece(token).decode("utf-8", "replace")
            print(f"{value:5.1f}  {piece!r:16} {'#' * round(value)}")
        print(f"\nperplexity {2 ** bits.mean():.1f}")


def surprise(logits: NDArray[np.float32], ids: list[int]) -> NDArray[np.float32]:
    """Bits of surprise at each token but the first: row i is a forecast of token i + 1."""
    top = logits.max(axis=1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    bits: NDArray[np.float32] = (log_sum[:-1] - logits[np.arange(len(ids) - 1), ids[1:]]) / np.float32(np.log(2))
    return bits


if __name__ == "__main__":
    main()

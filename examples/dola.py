"""DoLa: decode by contrasting layers. What the last layer knows better than an early one is said, the rest is not.

The early layer is the candidate whose forecast differs most from the last one's, chosen anew for each token. Its
logits come from the residual stream, through the model's own final norm and output matrix.

python examples/dola.py [PROMPT]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice

import numpy as np
from contrastive_decoding import contrast

from pyllm import Batch, Context, Model, hub
from pyllm.core.capture import Capture
from pyllm.core.gguf import GGUFReader
from pyllm.core.kernels import log_softmax
from pyllm.core.samplers import Greedy

CANDIDATES = range(16, 30, 2)  # in the upper half of 30 layers; layer i takes in what layer i - 1 gave


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of log-probabilities, row by row, in nats."""
    m = np.logaddexp(p, q) - np.log(2)
    return ((np.exp(p) * (p - m)).sum(-1) + (np.exp(q) * (q - m)).sum(-1)) / 2


def write(ctx: Context, ids: list[int], norm: np.ndarray, head: np.ndarray, beta: float) -> Iterator[tuple[int, int]]:
    """Continue ids to the end of the text: tokens, and the layer that each was contrasted with."""
    capture, sampler, batch, n_past = Capture(ctx), Greedy(), Batch.from_arrays(ids), len(ids)
    while True:
        inputs = capture.layer_inputs(batch, CANDIDATES)
        stream = np.stack([inputs[layer][-1] for layer in CANDIDATES])
        early = log_softmax(stream / np.sqrt((stream**2).mean(axis=1, keepdims=True) + 1e-5) * norm @ head.T)
        chosen = int(divergence(early, log_softmax(ctx.logits)).argmax())
        contrast(ctx.logits[-1], early[chosen], alpha=0.1, beta=beta)
        token = sampler.sample(ctx)
        if ctx.model.vocab.is_eog(token):
            return
        yield token, CANDIDATES[chosen]
        batch, n_past = Batch.from_arrays([token], pos=[n_past]), n_past + 1


def main() -> None:
    path = hub.resolve("smollm2")
    with GGUFReader(path) as file:
        norm, head = (file.tensor(f"{name}.weight", dequantize=True) for name in ("output_norm", "token_embd"))
    prompt = sys.argv[1] if len(sys.argv) > 1 else "Penguins are birds that"
    with Model(path) as model, Context(model, n_ctx=512, capture=True) as ctx:
        tokens = write(ctx, model.vocab.tokenize(prompt), norm, head, beta=1.0)
        print(prompt + "".join(f"{model.vocab.detokenize([t])}({layer})" for t, layer in islice(tokens, 24)))


if __name__ == "__main__":
    main()

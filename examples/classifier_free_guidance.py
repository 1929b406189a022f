"""Classifier-free guidance: follow an instruction more than the model would by itself.

Two sequences grow in one batch, one with the instruction and one without. Their difference is what the instruction
changes; `scale` times as much of it is taken. The rows are combined in llama.cpp's own memory.

python examples/classifier_free_guidance.py [--scale 1.5]
"""

from __future__ import annotations

import argparse

import numpy as np

from pyllm import Batch, Context, Model, hub
from pyllm.core.kernels import log_softmax
from pyllm.core.sampler import Sampler
from pyllm.core.samplers import Greedy

CHAT = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SYSTEM = ("Answer with a poem.", "You are a helpful assistant.")


def guided(ctx: Context, prompts: list[str], scale: float, sampler: Sampler, n: int) -> str:
    """Continue prompts[0], away from prompts[1], by at most n tokens."""
    vocab = ctx.model.vocab
    ids = [vocab.tokenize(prompt, parse_special=True) for prompt in prompts]
    ctx.memory.clear()
    batch = Batch(sum(map(len, ids)))
    for seq_id in (0, 1):
        batch.add_sequence(ids[seq_id], seq_id=seq_id)
    text: list[int] = []
    for step in range(n):
        ctx.decode(batch)
        rows = np.asarray(ctx.logits)  # (2, n_vocab), no copy
        log_softmax(rows, out=rows)
        rows[0] += (scale - 1) * (rows[0] - rows[1])
        token = sampler.sample(ctx, -2)  # the first of the two rows
        if vocab.is_eog(token):
            break
        text.append(token)
        batch = Batch.from_arrays([token] * 2, pos=[len(i) + step for i in ids], seq_ids=[0, 1], outputs="all")
    return vocab.detokenize(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default="What is the sea like?")
    parser.add_argument("--scale", type=float, default=1.5, help="1 is the model itself")
    options = parser.parse_args()

    prompts = [CHAT.format(system, options.question) for system in SYSTEM]
    with Model(hub.resolve("smollm2")) as model, Context(model, n_ctx=1024, n_seq_max=2) as ctx:
        for scale in (1.0, options.scale):
            text = guided(ctx, prompts, scale, Greedy(), n=32)
            print(f"scale {scale}: {text}\n")


if __name__ == "__main__":
    main()

"""One prompt, many continuations: the prompt is decoded once, and all texts grow in one batch.

python examples/branches.py [PROMPT] [-n TEXTS]
"""

from __future__ import annotations

import argparse

import numpy as np

from pyllm import Batch, Chain, Context, Model, hub
from pyllm.core.samplers import Dist, MinP, Temp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="The best thing about rain is")
    parser.add_argument("-n", type=int, default=4, help="how many texts")
    parser.add_argument("--tokens", type=int, default=24, help="how long each of them is")
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of a known model")
    options = parser.parse_args()

    with Model(hub.resolve(options.model)) as model:
        vocab = model.vocab
        prompt = vocab.tokenize(options.prompt)
        n_ctx = len(prompt) + options.n * options.tokens
        # A unified cache lets all sequences share the cells of the prompt.
        with Context(model, n_ctx=n_ctx, n_seq_max=options.n, kv_unified=True) as ctx:
            ctx.decode(Batch.from_arrays(prompt))
            for seq_id in range(1, options.n):
                ctx.memory.cp(0, seq_id)
            samplers = [Chain(MinP(0.05), Temp(0.9), Dist(seed=seed)) for seed in range(options.n)]
            texts = [[sampler.sample(ctx)] for sampler in samplers]
            going = list(range(options.n))
            for pos in range(len(prompt), len(prompt) + options.tokens - 1):
                going = [i for i in going if not vocab.is_eog(texts[i][-1])]
                if not going:
                    break
                newest = [texts[i][-1] for i in going]
                ctx.decode(
                    Batch.from_arrays(newest, pos=np.full(len(going), pos), seq_ids=np.array(going), outputs="all")
                )
                for row, i in enumerate(going):
                    texts[i].append(samplers[i].sample(ctx, row))
        for text in texts:
            print(repr(options.prompt + vocab.detokenize(text, unparse_special=False)))


if __name__ == "__main__":
    main()

"""Cut layers out of a model: a GGUF file is read, changed and written again. The result is a weaker, faster model.

python examples/shallow.py [--drop 12:18]
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from pyllm import Batch, Context, Model, hub
from pyllm.core.gguf import GGUFReader, GGUFWriter
from pyllm.core.kernels import token_logprobs

DROPPED = range(12, 18)
TEXT = "The sun rises in the east and sets in the west. In winter the days are short, and in summer they are long."


def drop_layers(source: Path, target: Path, dropped: range) -> Path:
    """Write `source` without some of its layers; those after them move up. The vocabulary stays the same."""
    with GGUFReader(source) as file:
        architecture = file.metadata["general.architecture"]
        kept = [i for i in range(file.metadata[f"{architecture}.block_count"]) if i not in dropped]
        writer = GGUFWriter()
        for key, value in file.metadata.items():
            writer.add(key, len(kept) if key == f"{architecture}.block_count" else value)
        for tensor in file.tensors:
            block = re.match(r"blk\.(\d+)\.(.*)", tensor.name)
            if block is None:
                writer.add_tensor(tensor.name, file.tensor(tensor.name), tensor.type)
            elif int(block[1]) in kept:
                writer.add_tensor(f"blk.{kept.index(int(block[1]))}.{block[2]}", file.tensor(tensor.name), tensor.type)
        writer.write(target)
    return target


@contextmanager
def strong_and_weak(name: str, dropped: range = DROPPED, n_ctx: int = 512) -> Iterator[tuple[Context, Context]]:
    """A context of a model, and one of the same model without some of its layers."""
    source = Path(hub.resolve(name))
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        target = drop_layers(source, Path(folder, "shallow.gguf"), dropped)
        models = [stack.enter_context(Model(path)) for path in (source, target)]
        strong, weak = (stack.enter_context(Context(model, n_ctx=n_ctx)) for model in models)
        yield strong, weak


def bits_per_token(ctx: Context, text: str) -> float:
    """How much the text surprises the model."""
    ids = ctx.model.vocab.tokenize(text)
    ctx.decode(Batch.from_arrays(ids, outputs="all"))
    return float(-token_logprobs(np.asarray(ctx.logits)[:-1], ids[1:]).mean() / np.log(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drop", default="12:18", help="first layer to drop, and the first one after them")
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of a known model")
    options = parser.parse_args()

    with strong_and_weak(options.model, range(*map(int, options.drop.split(":")))) as contexts:
        for ctx in contexts:
            bits = bits_per_token(ctx, TEXT)
            print(f"{ctx.model.n_layer} layers, {ctx.model.size / 1e6:5.1f} MB: {bits:.2f} bits per token")


if __name__ == "__main__":
    main()

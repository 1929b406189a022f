"""Mistakes that `mypy --strict` must find: each line with `# E: code` has that error, and no other line has one."""

import numpy as np

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.model import Model
from pyllm.core.sampler import Chain
from pyllm.core.samplers import Dist, Greedy, TopK

model = Model("a.gguf")
Model("a.gguf", n_layers=3)  # E: call-arg
Model("a.gguf", 3)  # E: call-arg
Model(3)  # E: arg-type
model.n_embd = 3  # E: misc
model.vocab.tokenise("text")  # E: attr-defined
model.vocab.tokenize(["text"])  # E: arg-type
bos: int = model.vocab.bos  # E: assignment

context = Context(model, n_ctx="512")  # E: arg-type
Context("a.gguf")  # E: arg-type
context.decode([1, 2, 3])  # E: arg-type
Batch.from_arrays("text")  # E: arg-type
row: list[float] = context.logits[0]  # E: assignment
context.logits[0].tokens()  # E: attr-defined
context.memory.rm("a")  # E: arg-type

chain = Chain(TopK("40"), Dist(1))  # E: arg-type
Chain([Greedy()])  # E: arg-type
token: str = chain.sample(context)  # E: assignment
ids, logits, probabilities = chain.apply(np.zeros(3))  # E: misc
generation = Generation(context, chain, stops=["\n"])  # E: call-arg
generation.step() + 1  # E: operator

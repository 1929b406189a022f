"""Rows of embeddings in the place of tokens, and who scales them."""

import numpy as np
import pytest

from pyllm.core.batch import Batch
from pyllm.core.gguf import GGUFReader


@pytest.mark.parametrize(("arch", "scaled"), [("llama", False), ("gemma3", True)])
def test_rows_of_the_table_are_the_tokens(load, make_context, ids, arch, scaled):
    """Gemma 3 multiplies what it looks up by the square root of n_embd, and not what it is given."""
    model = load(arch)
    with GGUFReader(model.path) as file:
        rows = np.array(file.tensor("token_embd.weight", dequantize=True)[ids[:12]], np.float32)
    logits = []
    for batch in (
        Batch.from_arrays(ids[:12]),
        Batch.from_arrays(embeddings=rows * (np.sqrt(model.n_embd) if scaled else 1)),
        Batch.from_arrays(embeddings=rows * (1 if scaled else 8)),
    ):
        context = make_context(model, type_k="f32", type_v="f32")
        context.decode(batch)
        logits.append(np.asarray(context.logits)[-1].copy())
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-2)
    assert np.abs(logits[2] - logits[0]).max() > 0.1

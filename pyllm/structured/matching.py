"""Whether a text follows a grammar, decided by llama.cpp's own engine."""

from __future__ import annotations

import tempfile
import threading
from functools import lru_cache
from pathlib import Path

import numpy as np

from pyllm.core.gguf import GGUFWriter
from pyllm.core.model import Model
from pyllm.core.samplers import Grammar as GrammarSampler
from pyllm.errors import BackendError
from pyllm.structured.grammar import Grammar

# The engine knows texts by their tokens only. Here each byte is one: token 3 + byte; token 2 ends the text.
_END, _FIRST = 2, 3
_NORMAL, _CONTROL, _BYTE = 1, 3, 6
_lock = threading.Lock()


def matches(grammar: Grammar, text: str | bytes) -> bool:
    """See :meth:`pyllm.structured.Grammar.matches`."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
    grammar.check()
    with _lock:
        model = _byte_model()
    sampler = GrammarSampler(model.vocab, grammar.text, grammar.root)
    for byte in data:
        # The engine takes NUL for the end of a token.
        if byte == 0:
            return False
        try:
            sampler.accept(_FIRST + byte)
        except BackendError:
            return False  # it says that nothing is left of the grammar
    _, logits, _, _ = sampler.apply(np.zeros(_END + 1, np.float32))
    return bool(logits[_END] > -np.inf)


@lru_cache(maxsize=1)
def _byte_model() -> Model:
    """A vocabulary of all bytes, and nothing else."""
    writer = GGUFWriter()
    writer.add("general.architecture", "llama")
    writer.add("tokenizer.ggml.model", "llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add("tokenizer.ggml.tokens", tokens)
    writer.add("tokenizer.ggml.scores", [0.0] * len(tokens), "float32")
    writer.add("tokenizer.ggml.token_type", [2, _CONTROL, _CONTROL, *[_BYTE] * 256], "int32")
    writer.add("tokenizer.ggml.bos_token_id", 1, "uint32")
    writer.add("tokenizer.ggml.eos_token_id", _END, "uint32")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "bytes.gguf")
        writer.write(path)
        return Model(path, vocab_only=True)

"""The windows in which llama-perplexity reads a text, and their computation.

The text is cut into chunks of n_ctx tokens, the rest is dropped. In each, the first token is replaced by BOS if the
model begins texts with one, and tokens after the middle are predicted: n_ctx - 1 - n_ctx // 2 of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """A text, cut into chunks.

    Attributes:
        tokens: int32, shape (n_chunks, n_ctx), as they stand in the text.
    """

    tokens: NDArray[np.int32]

    @classmethod
    def of(cls, tokens: NDArray[np.int32], n_ctx: int, n_chunks: int | None = None) -> Windows:
        """Cut a text.

        Args:
            tokens: int32, shape (n,).
            n_ctx: Tokens of a chunk, at least 4.
            n_chunks: Take no more than so many.

        Raises:
            InvalidArgumentError: The text does not fill one chunk, or a number is out of range.
        """
        if n_ctx < 4:
            raise InvalidArgumentError(f"n_ctx must be at least 4, not {n_ctx}")
        if n_chunks is not None and n_chunks < 1:
            raise InvalidArgumentError(f"n_chunks must be at least 1, or None for all, not {n_chunks}")
        found = len(tokens) // n_ctx
        if found == 0:
            raise InvalidArgumentError(
                f"the text has {len(tokens)} tokens and a window n_ctx={n_ctx}; take a longer text, a smaller n_ctx, "
                "or logprobs(), which scores any length"
            )
        n = found if n_chunks is None else min(found, n_chunks)
        return cls(np.ascontiguousarray(tokens[: n * n_ctx], np.int32).reshape(n, n_ctx))

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return len(self.tokens)

    @property
    def n_ctx(self) -> int:
        """Tokens of a chunk."""
        return int(self.tokens.shape[1])

    @property
    def first(self) -> int:
        """Position from which on logits are used."""
        return self.n_ctx // 2

    @property
    def per_chunk(self) -> int:
        """Predicted tokens of a chunk."""
        return self.n_ctx - 1 - self.first

    @property
    def n_predicted(self) -> int:
        """Predicted tokens in all."""
        return self.n_chunks * self.per_chunk

    @property
    def predicted(self) -> NDArray[np.int32]:
        """The predicted tokens, in order: int32, shape (n_predicted,)."""
        return self.tokens[:, self.first + 1 :].reshape(-1)

    def decode(self, context: Context, n_batch: int) -> Iterator[tuple[int, int]]:
        """Decode chunk after chunk, as many at once as `n_batch` allows.

        Yields:
            tuple[int, int]: Now ``context.logits`` has the rows that foretell ``predicted[start:end]``. No array made
            from it may be kept when the next step is asked for.
        """
        size = min(n_batch, context.n_batch)
        n_seq = max(1, min(size // self.n_ctx, context.n_seq_max))
        inputs = self.tokens.copy()
        vocab: Vocab = context.model.vocab
        if vocab.add_bos and vocab.bos is not None:
            inputs[:, 0] = vocab.bos
        done = 0
        for chunk in range(0, self.n_chunks, n_seq):
            context.memory.clear(data=False)
            together = inputs[chunk : chunk + n_seq]
            # Several chunks are whole; a chunk that is larger than a batch comes in pieces.
            step = self.n_ctx if n_seq > 1 else size
            for a in range(0, self.n_ctx, step):
                part = together[:, a : a + step]
                n, width = part.shape
                pos = np.arange(a, a + width, dtype=np.int32)
                # The last row of a chunk would foretell what comes after it.
                outputs = (pos >= self.first) & (pos < self.n_ctx - 1)
                context.decode(
                    Batch.from_arrays(
                        part.reshape(-1),
                        pos=np.tile(pos, n),
                        seq_ids=np.repeat(np.arange(n, dtype=np.int32), width),
                        outputs=np.tile(outputs, n),
                    )
                )
                rows = n * int(outputs.sum())
                if rows:
                    yield done, done + rows
                    done += rows


def context_for(n_ctx: int, n_batch: int) -> tuple[int, dict[str, int]]:
    """Size and arguments of a context such as llama-perplexity makes.

    Raises:
        InvalidArgumentError: A number is out of range.
    """
    for name, value in (("n_ctx", n_ctx), ("n_batch", n_batch)):
        if value < 1:
            raise InvalidArgumentError(f"{name} must be at least 1, not {value}")
    n_seq = min(256, max(1, n_batch // n_ctx))
    return n_seq * padded(n_ctx), {"n_batch": min(n_batch, n_seq * n_ctx), "n_seq_max": n_seq}


def padded(n_ctx: int) -> int:
    """The multiple of 256 to which llama.cpp rounds the part of a sequence; it warns where it has to."""
    return -(-n_ctx // 256) * 256


def check_context(context: Context, windows: Windows) -> None:
    """Refuse a context that cannot hold a chunk.

    Raises:
        InvalidArgumentError: It is too small.
    """
    if windows.n_ctx > context.n_ctx_seq:
        raise InvalidArgumentError(
            f"a window has n_ctx={windows.n_ctx} tokens, and the context holds {context.n_ctx_seq} of a sequence"
        )

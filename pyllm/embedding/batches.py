"""Which texts are computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def packs(lengths: Sequence[int], *, n_tokens: int, n_seq: int) -> Iterator[range]:
    """Cut a row of texts into packs.

    Args:
        lengths: Tokens of each text.
        n_tokens: Most tokens of a pack. A text that is longer is a pack of its own.
        n_seq: Most texts of a pack.

    Yields:
        range: The indices of the texts of a pack; each text is in one, in order.
    """
    first = total = 0
    for i, length in enumerate(lengths):
        if i > first and (total + length > n_tokens or i - first >= n_seq):
            yield range(first, i)
            first, total = i, 0
        total += length
    if first < len(lengths):
        yield range(first, len(lengths))

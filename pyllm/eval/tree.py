"""Which tokens of many sequences are computed, when the beginnings they share are computed once.

Everything here is arithmetic on token ids: no model is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Line:
    """One text to score.

    Attributes:
        index: Its number among all.
        tokens: All its tokens, the last of which is only predicted: int32, shape (n,).
        first: Index of the first token whose probability is wanted, at least 1.
    """

    index: int
    tokens: Tokens
    first: int

    @property
    def inputs(self) -> Tokens:
        """The tokens that go through the model."""
        return self.tokens[:-1]


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that are computed together; neighbours share their beginnings.

    Attributes:
        members: The sequences, sorted by their tokens. Member j is sequence j of the context.
        kept: Tokens at their beginning that the memory holds already.
        tokens: The tokens to compute, shape (m,).
        pos: Their positions, shape (m,).
        seq_ids: To which sequences each belongs, shape (m, k), -1 where there are fewer than k.
        outputs: For which of them logits are needed, bool, shape (m,).
        nodes: For each wanted probability the token (index into `tokens`) whose logits tell it.
        owners: … the member it belongs to.
        targets: … the index of the predicted token among the tokens of that member.
    """

    members: Sequence[Line]
    kept: int
    tokens: Tokens
    pos: Tokens
    seq_ids: NDArray[np.int32]
    outputs: NDArray[np.bool_]
    nodes: NDArray[np.int64]
    owners: NDArray[np.int64]
    targets: NDArray[np.int64]


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of tokens with which both begin."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def ordered(sequences: Sequence[Line]) -> list[Line]:
    """Sorted by tokens, so that those with the same beginning stand next to each other."""
    # Big-endian ids compare as bytes do.
    return sorted(sequences, key=lambda sequence: sequence.tokens.astype(">i4").tobytes())


def groups(sequences: Sequence[Line], *, n_seq: int, n_cells: int, n_batch: int, share: bool = True) -> Iterator[Group]:
    """Divide sequences into groups that fit.

    Args:
        sequences: Sorted with :func:`ordered`. The inputs of each fit in `n_cells`.
        n_seq: Most sequences of a group.
        n_cells: Most tokens in the memory at once.
        n_batch: Where a group of more than one sequence ends: computing more at once would gain nothing.
        share: Whether a token may belong to several sequences.
    """
    start, previous = 0, None
    while start < len(sequences):
        first = sequences[start]
        in_memory = len(first.inputs)
        new = in_memory - (common_prefix(first.inputs, previous) if share and previous is not None else 0)
        prefixes, end = [0], start + 1
        while end < len(sequences) and end - start < n_seq:
            inputs = sequences[end].inputs
            prefix = common_prefix(inputs, sequences[end - 1].inputs) if share else 0
            more = len(inputs) - prefix
            if in_memory + more > n_cells or new + more > n_batch:
                break
            prefixes.append(prefix)
            in_memory, new, end = in_memory + more, new + more, end + 1
        members = sequences[start:end]
        kept = 0
        if share and previous is not None:
            # What is kept gives no logits: it must end before the first token that has to tell a probability.
            kept = min(
                common_prefix(first.inputs, previous),
                min(prefixes[1:], default=in_memory),
                min(member.first - 1 for member in members),
            )
        yield _build(members, prefixes, kept)
        start, previous = end, members[-1].inputs


def rebuilt(group: Group, share: bool) -> Group:
    """The same group with nothing kept: for a memory that could not keep it."""
    inputs = [member.inputs for member in group.members]
    prefixes = [0, *(common_prefix(a, b) if share else 0 for a, b in zip(inputs[1:], inputs, strict=False))]
    return _build(group.members, prefixes, 0)


def _build(members: Sequence[Line], prefixes: list[int], kept: int) -> Group:
    # Sorted sequences are a tree in depth-first order: each adds what comes after its common prefix with the last.
    starts = [kept, *prefixes[1:]]
    sizes = [len(member.inputs) - start for member, start in zip(members, starts, strict=True)]
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    n, m = int(offsets[-1]), len(members)
    tokens, pos = np.empty(n, np.int32), np.empty(n, np.int32)
    seq_ids = np.full((n, m), -1, np.int32)
    outputs = np.zeros(n, np.bool_)
    nodes, owners, targets = [], [], []
    where = np.empty(0, np.int64)  # position -> node, of the member before
    for j, (member, start) in enumerate(zip(members, starts, strict=True)):
        inputs, a, b = member.inputs, int(offsets[j]), int(offsets[j + 1])
        tokens[a:b] = inputs[start:]
        pos[a:b] = np.arange(start, len(inputs))
        seq_ids[a:b, 0] = j
        shared = len(inputs)
        for other in range(j + 1, m):
            shared = min(shared, starts[other])
            if shared <= start:
                break
            seq_ids[a : a + shared - start, other - j] = other
        before = where[:start] if j else np.full(kept, -1, np.int64)
        where = np.concatenate((before, np.arange(a, b)))
        wanted = where[member.first - 1 :]
        outputs[wanted] = True
        nodes.append(wanted)
        owners.append(np.full(len(wanted), j, np.int64))
        targets.append(np.arange(member.first, len(member.tokens)))
    width = int((seq_ids >= 0).sum(axis=1).max(initial=1))
    return Group(
        members, kept, tokens, pos, np.ascontiguousarray(seq_ids[:, :width]), outputs,
        np.concatenate(nodes), np.concatenate(owners), np.concatenate(targets),
    )  # fmt: skip

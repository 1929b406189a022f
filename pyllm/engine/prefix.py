"""A radix tree of token ids: which sequences begin as a prompt does, and how far."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


class _Node:
    """The tokens of one edge, and what goes on behind them."""

    __slots__ = ("children", "edge", "seqs")

    def __init__(self, edge: Ids) -> None:
        self.edge = edge
        self.children: dict[int, _Node] = {}
        self.seqs: set[int] = set()  # those whose tokens reach the end of the edge, or go beyond


class PrefixTree:
    """The tokens of sequences, as far as they are known, whether they are computed or not."""

    def __init__(self) -> None:
        self._root = _Node(np.empty(0, np.int32))
        self._ids: dict[int, Ids] = {}

    def __contains__(self, seq: int) -> bool:
        return seq in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def insert(self, seq: int, ids: Ids) -> None:
        """Note the tokens of a sequence, instead of those it had."""
        self.remove(seq)
        if len(ids) == 0:
            return
        self._ids[seq] = ids
        node, rest = self._root, ids
        while len(rest):
            child = node.children.get(int(rest[0]))
            if child is None:
                child = node.children[int(rest[0])] = _Node(rest)
            common = common_length(child.edge, rest)
            if common < len(child.edge):
                child = self._split(node, child, common)
            child.seqs.add(seq)
            node, rest = child, rest[common:]

    def remove(self, seq: int) -> None:
        """Forget a sequence; nothing happens when it is not known."""
        rest = self._ids.pop(seq, None)
        node = self._root
        while rest is not None and len(rest):
            child = node.children[int(rest[0])]
            child.seqs.discard(seq)
            if not child.seqs:
                del node.children[int(rest[0])]
                return
            node, rest = child, rest[len(child.edge) :]

    def matches(self, ids: Ids) -> Iterator[tuple[int, int]]:
        """Sequences that begin as these ids do.

        Yields:
            tuple[int, int]: How many tokens are common, and a sequence; the longest first.
        """
        path: list[tuple[int, _Node]] = []
        node, depth = self._root, 0
        while depth < len(ids):
            child = node.children.get(int(ids[depth]))
            if child is None:
                break
            common = common_length(child.edge, ids[depth:])
            depth += common
            path.append((depth, child))
            if common < len(child.edge):
                break
            node = child
        seen: set[int] = set()
        for length, node in reversed(path):
            for seq in sorted(node.seqs - seen):
                yield length, seq
            seen |= node.seqs

    def best(self, ids: Ids, n_computed: Callable[[int], int]) -> tuple[int, int | None, int]:
        """Where the beginning of a prompt can be taken from.

        Args:
            ids: The prompt.
            n_computed: How many tokens of a sequence are in the KV cache.

        Returns:
            tuple: How many tokens can be taken now, the sequence that has them or None, and how many could be taken
            if every sequence were computed as far as it is known.
        """
        found, source, promised = 0, None, 0
        for length, seq in self.matches(ids):
            promised = max(promised, length)
            if length <= found:
                break
            usable = min(length, n_computed(seq))
            if usable > found:
                found, source = usable, seq
        return found, source, promised

    @staticmethod
    def _split(parent: _Node, node: _Node, n: int) -> _Node:
        """Cut an edge after n tokens; the new node that ends there."""
        front = _Node(node.edge[:n])
        front.seqs = set(node.seqs)
        node.edge = node.edge[n:]
        front.children[int(node.edge[0])] = node
        parent.children[int(front.edge[0])] = front
        return front


def common_length(a: Ids, b: Ids) -> int:
    """How many tokens two texts have in common at their beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n

"""A radix tree of token ids: which sequences begin as a prompt does, and how far."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

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


class RadixTree:
    """The tokens of sequences, as far as they are known, whether they are computed or not.

    Sequences that were computed with other weights have nothing in common, whatever their tokens are: each of them has
    a key, and is found by that key only.
    """

    def __init__(self) -> None:
        self._roots: dict[Hashable, _Node] = {}
        self._ids: dict[int, tuple[Hashable, Ids]] = {}

    def __contains__(self, seq: int) -> bool:
        return seq in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, seq: int) -> tuple[Hashable, Ids]:
        """The key of a sequence that is known, and its tokens."""
        return self._ids[seq]

    def insert(self, seq: int, ids: Ids, key: Hashable = ()) -> None:
        """Note the tokens of a sequence, instead of those it had."""
        self.remove(seq)
        if len(ids) == 0:
            return
        self._ids[seq] = key, ids
        node, rest = self._roots.setdefault(key, _Node(np.empty(0, np.int32))), ids
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
        if seq not in self._ids:
            return
        key, rest = self._ids.pop(seq)
        root = node = self._roots[key]
        while len(rest):
            child = node.children[int(rest[0])]
            child.seqs.discard(seq)
            if not child.seqs:
                del node.children[int(rest[0])]
                break
            node, rest = child, rest[len(child.edge) :]
        if not root.children:
            del self._roots[key]

    def matches(self, ids: Ids, key: Hashable = ()) -> Iterator[tuple[int, int]]:
        """Sequences of a key that begin as these ids do.

        Yields:
            tuple[int, int]: How many tokens are common, and a sequence; the longest first.
        """
        path: list[tuple[int, _Node]] = []
        node, depth = self._roots.get(key), 0
        while node is not None and depth < len(ids):
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
        for length, found in reversed(path):
            for seq in sorted(found.seqs - seen):
                yield length, seq
            seen |= found.seqs

    def best(
        self,
        ids: Ids,
        n_computed: Callable[[int], int],
        key: Hashable = (),
        *,
        n_whole: Callable[[int], int] | None = None,
        whole: bool = False,
        checkpoint: Callable[[int, int], int] | None = None,
    ) -> tuple[int, int | None, int]:
        """Where the beginning of a prompt can be taken from.

        Args:
            ids: The prompt.
            n_computed: How many tokens of a sequence are in the KV cache.
            key: That of the prompt.
            n_whole: How many tokens of a sequence can be taken together only. None: any number can be taken.
            whole: Sequences can be taken as a whole only, with all that is computed of them, or up to a checkpoint.
            checkpoint: The tokens of a sequence up to its last checkpoint within so many; 0: there is none.

        Returns:
            tuple: How many tokens can be taken now, the sequence that has them or None, and how many could be taken
            if every sequence were computed as far as it is known.
        """
        found, source, promised = 0, None, 0
        for length, seq in self.matches(ids, key):
            if length <= found:
                break
            computed = n_computed(seq)
            if computed > length if whole else n_whole is not None and n_whole(seq) > length:
                computed = 0 if checkpoint is None else min(computed, checkpoint(seq, length))
                if not computed:
                    continue
            promised = max(promised, 0 if whole else length)
            usable = min(length, computed)
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

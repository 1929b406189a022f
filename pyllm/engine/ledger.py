"""Which cells of the KV cache belong to which sequences, counted without asking llama.cpp.

In a unified KV cache a copied sequence takes no cells: both own the same ones. A cell is free again when the last of
its owners is gone. Otherwise each sequence has cells of its own. What a step needs and what an eviction would free has
to be known before anything is changed, and so it is counted here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Segment:
    """Cells that follow one another and have the same owners."""

    length: int
    owners: int = 1


class Ledger:
    """The cells of all sequences.

    Args:
        n_cells: Cells of the KV cache.
        n_each: Cells that each sequence has for itself. None: they share all, in a unified cache.
    """

    def __init__(self, n_cells: int, n_each: int | None = None) -> None:
        self.n_cells = n_cells
        self.n_each = n_each
        self._segments: dict[int, list[_Segment]] = {}
        self._lengths: dict[int, int] = {}
        self._whole: dict[int, int] = {}
        self.used = 0

    @property
    def free(self) -> int:
        """Cells that no sequence has."""
        return self.n_cells - self.used

    @property
    def sequences(self) -> list[int]:
        """The sequences that own cells."""
        return list(self._segments)

    def length(self, seq: int) -> int:
        """Tokens of a sequence."""
        return self._lengths.get(seq, 0)

    def whole(self, seq: int) -> int:
        """So many tokens of a sequence can be taken over together only: the memory lacks what a part of them needs."""
        return self._whole.get(seq, 0)

    def bind(self, seq: int, n: int) -> None:
        """The first n tokens of a sequence can be taken over together only."""
        self._whole[seq] = n

    @property
    def shares(self) -> bool:
        """Whether sequences share cells."""
        return self.n_each is None

    def room(self, seq: int) -> int:
        """Cells that a sequence could still take."""
        return self.free if self.n_each is None else min(self.free, self.n_each - self.length(seq))

    def private(self, seq: int) -> int:
        """Cells that only this sequence has: so many are free again when it is removed."""
        return sum(segment.length for segment in self._segments.get(seq, ()) if segment.owners == 1)

    def append(self, seq: int, n: int) -> None:
        """A sequence gets longer by n tokens.

        Raises:
            ValueError: There are not so many free cells.
        """
        if n > self.room(seq):
            raise ValueError(f"{n} cells are needed and {self.room(seq)} are free")
        if n <= 0:
            return
        segments = self._segments.setdefault(seq, [])
        if segments and segments[-1].owners == 1:
            segments[-1].length += n
        else:
            segments.append(_Segment(n))
        self._lengths[seq] = self._lengths.get(seq, 0) + n
        self.used += n

    def copy(self, source: int, target: int, n: int) -> None:
        """The first n tokens of a sequence belong to another one too, which is empty so far.

        Raises:
            ValueError: The source is shorter, or the target has tokens.
        """
        if target in self._segments or n > self.length(source):
            raise ValueError(f"{n} of {self.length(source)} tokens cannot be copied to sequence {target}")
        if n <= 0:
            return
        if not self.shares:
            self.append(target, n)
            return
        shared = self._segments[source][: self._cut(source, n)]
        for segment in shared:
            segment.owners += 1
        self._segments[target] = list(shared)
        self._lengths[target] = n
        if source in self._whole:
            self._whole[target] = self._whole[source]

    def truncate(self, seq: int, n: int) -> int:
        """Keep the first n tokens of a sequence.

        Returns:
            int: Cells that are free again.
        """
        if n >= self.length(seq):
            return 0
        index = self._cut(seq, n) if n > 0 else 0
        segments = self._segments[seq]
        freed = 0
        for segment in segments[index:]:
            segment.owners -= 1
            if segment.owners == 0:
                freed += segment.length
        del segments[index:]
        if segments:
            self._lengths[seq] = n
        else:
            del self._segments[seq], self._lengths[seq]
            self._whole.pop(seq, None)
        self.used -= freed
        return freed

    def remove(self, seq: int) -> int:
        """A sequence ends.

        Returns:
            int: Cells that are free again.
        """
        return self.truncate(seq, 0)

    def fork(self) -> Ledger:
        """A copy to try things on."""
        other = Ledger(self.n_cells, self.n_each)
        copies: dict[int, _Segment] = {}
        for seq, segments in self._segments.items():
            other._segments[seq] = [
                copies.setdefault(id(segment), _Segment(segment.length, segment.owners)) for segment in segments
            ]
        other._lengths = dict(self._lengths)
        other._whole = dict(self._whole)
        other.used = self.used
        return other

    def problems(self) -> list[str]:
        """Contradictions in the counts, as sentences; an empty list where there is none."""
        owners: dict[int, int] = {}
        cells: dict[int, _Segment] = {}
        found = []
        for seq, segments in self._segments.items():
            total = sum(segment.length for segment in segments)
            if total != self.length(seq) or total == 0:
                found.append(f"sequence {seq} has {self.length(seq)} tokens in segments of {total} cells")
            if self.n_each is not None and total > self.n_each:
                found.append(f"sequence {seq} has {total} cells of its own {self.n_each}")
            for segment in segments:
                cells[id(segment)] = segment
                owners[id(segment)] = owners.get(id(segment), 0) + 1
        for key, segment in cells.items():
            if segment.owners != owners[key] or segment.length <= 0:
                found.append(f"{segment.length} cells count {segment.owners} owners, and have {owners[key]}")
        if self.used != sum(segment.length for segment in cells.values()):
            found.append(f"{self.used} cells count as used, and segments have {sum(s.length for s in cells.values())}")
        for seq in (self._lengths.keys() | self._whole.keys()) - self._segments.keys():
            found.append(f"sequence {seq} has counts and no cells")
        return found

    def _cut(self, seq: int, n: int) -> int:
        """Make a segment begin at token n; its index."""
        position = 0
        for index, segment in enumerate(self._segments[seq]):
            if position == n:
                return index
            if position + segment.length > n:
                self._split(segment, n - position)
                return index + 1
            position += segment.length
        return len(self._segments[seq])

    def _split(self, segment: _Segment, n: int) -> None:
        rest = _Segment(segment.length - n, segment.owners)
        segment.length = n
        for segments in self._segments.values():
            for index, one in enumerate(segments):
                if one is segment:
                    segments.insert(index + 1, rest)
                    break

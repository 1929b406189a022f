"""Packing of sequences: which tokens are computed, and that each is computed once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.eval.tree import Line, common_prefix, groups, ordered, rebuilt

# Few different tokens, so that beginnings are shared.
SEQUENCES = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=2, max_size=9), st.integers(1, 8)), min_size=1, max_size=12
)


def lines(data):
    return [Line(i, np.array(tokens, np.int32), min(first, len(tokens) - 1)) for i, (tokens, first) in enumerate(data)]


def simulate(group, memory):
    """What each member has seen at each node, by following the sequence ids as a KV cache would."""
    seen = [list(memory[: group.kept]) for _ in group.members]
    before = []
    for token, pos, seqs in zip(group.tokens, group.pos, group.seq_ids, strict=True):
        ids = [j for j in seqs if j >= 0]
        assert ids
        for j in ids:
            assert pos == len(seen[j]), "positions go up by one"
            seen[j].append(int(token))
        # All sequences of a node have the same past: that is what makes sharing right.
        assert len({tuple(seen[j]) for j in ids}) == 1
        before.append(tuple(seen[ids[0]]))
    return before


@given(SEQUENCES, st.integers(1, 4), st.integers(1, 20), st.booleans())
def test_every_wanted_token_is_foretold_by_what_comes_before_it(data, n_seq, n_batch, share):
    n_cells, done, memory = 24, [], []
    for group in groups(ordered(lines(data)), n_seq=n_seq, n_cells=n_cells, n_batch=n_batch, share=share):
        assert len(group.members) <= n_seq
        assert group.kept + len(group.tokens) <= n_cells
        nodes = simulate(group, memory)
        wanted = set()
        for node, owner, target in zip(group.nodes, group.owners, group.targets, strict=True):
            line = group.members[owner]
            assert nodes[node] == tuple(line.tokens[:target])
            assert group.outputs[node]
            wanted.add(int(node))
            done.append((line.index, int(target)))
        assert int(group.outputs.sum()) == len(wanted), "no logits that nobody wants"
        if share:
            assert len(set(nodes)) == len(nodes), "nothing is computed twice in a group"
        memory = list(group.members[-1].inputs)
    expected = [(line.index, t) for line in lines(data) for t in range(line.first, len(line.tokens))]
    assert sorted(done) == sorted(expected)


@given(SEQUENCES)
def test_a_group_can_be_built_again_with_nothing_kept(data):
    for group in groups(ordered(lines(data)), n_seq=3, n_cells=40, n_batch=12):
        again = rebuilt(group, True)
        assert again.kept == 0
        simulate(again, [])
        assert sorted(zip(again.owners, again.targets, strict=True)) == sorted(
            zip(group.owners, group.targets, strict=True)
        )


def test_a_shared_prompt_is_computed_once():
    prompt = list(range(100))
    data = [([*prompt, 200 + i, 300], 100) for i in range(8)]
    parts = list(groups(ordered(lines(data)), n_seq=4, n_cells=200, n_batch=512))
    assert [len(part.members) for part in parts] == [4, 4]
    assert len(parts[0].tokens) == 100 + 4
    # Of the second group only the last token of the prompt again, because it tells what comes after it.
    assert (parts[1].kept, len(parts[1].tokens)) == (99, 1 + 4)


@pytest.mark.parametrize(("a", "b", "n"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1), ([5], [5], 1)])
def test_common_prefix(a, b, n):
    assert common_prefix(np.array(a, np.int32), np.array(b, np.int32)) == n

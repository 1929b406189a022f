"""A number that tells whether somebody has computed in a context, and aborts that are taken back."""

from __future__ import annotations

import pytest

from pyllm import Batch, errors


def test_it_changes_with_whatever_makes_outputs_stale(decoded, ids):
    seen = [decoded.decode_id]

    def changed():
        seen.append(decoded.decode_id)
        return seen[-1] != seen[-2]

    assert not changed()
    # What only looks or changes the memory leaves outputs as they are.
    saved = decoded.state.save(0)
    decoded.memory.rm(0, len(ids) - 1)
    assert not changed() and len(decoded.logits) == len(ids)
    decoded.decode(Batch.from_arrays(ids[-1:], pos=[len(ids) - 1]))
    assert changed()
    decoded.state.load(saved, 0)
    assert changed()
    assert len(set(seen)) == 3


def test_an_abort_is_taken_back(context, ids):
    context.abort()
    context.clear_abort()
    context.decode(Batch.from_arrays(ids))
    context.abort()
    with pytest.raises(errors.DecodeAborted):
        context.decode(Batch.from_arrays(ids[:1], pos=[len(ids)]))

"""How long drafts are, and when there are none."""

from __future__ import annotations

import pytest

from pyllm import errors
from pyllm.core.speculative_pace import Pace


def warm(pace: Pace, us: int = 100) -> Pace:
    pace.add_plain(us)
    pace.add_plain(us)
    return pace


def test_two_steps_are_measured_first():
    pace = Pace(16)
    assert pace.next_length() == 0
    pace.add_plain(100)
    assert pace.next_length() == 0
    pace.add_plain(100)
    assert pace.next_length() == 8
    assert pace.plain_us == 100


def test_length_follows_what_is_accepted():
    pace = warm(Pace(32))
    pace.add_round(8, 8, 110)
    assert pace.next_length() == 16
    pace.add_round(16, 16, 120)
    assert pace.next_length() == 32
    pace.add_round(32, 32, 120)
    assert pace.next_length() == 32
    pace.add_round(32, 15, 120)
    assert pace.next_length() == 16
    pace.add_round(16, 8, 120)
    assert pace.next_length() == 16
    for _ in range(10):
        pace.add_round(16, 0, 10)
    assert pace.next_length() == 1


def test_drafts_that_lose_are_paused_ever_longer():
    pace = warm(Pace(8))
    pauses = []
    for _ in range(8):
        while pace.next_length():
            pace.add_round(4, 0, 300)
        assert pace.gain < 1
        pauses.append(pace.pause)
        for _ in range(pace.pause):
            assert pace.next_length() == 0
            pace.add_plain(100)
    assert pauses == [16, 32, 64, 128, 256, 512, 512, 512]
    assert pace.paused == sum(pauses)


def test_drafts_that_win_go_on():
    pace = warm(Pace(8))
    for _ in range(30):
        assert pace.next_length() > 0
        pace.add_round(4, 3, 200)
    assert pace.gain == pytest.approx(2, rel=0.01)
    assert pace.pause == 0


def test_a_plain_step_is_measured_again():
    pace = warm(Pace(8))
    for _ in range(64):
        pace.add_round(4, 4, 200)
    assert pace.next_length() == 0
    pace.add_plain(200)
    assert pace.next_length() == 8
    assert pace.plain_us == pytest.approx(125)


def test_not_adaptive():
    pace = Pace(5, adaptive=False)
    for _ in range(20):
        assert pace.next_length() == 5
        pace.add_round(5, 0, 10**6)


def test_bad_numbers():
    with pytest.raises(errors.InvalidArgumentError, match="n_max must be at least 1, not 0"):
        Pace(0)
    with pytest.raises(errors.InvalidArgumentError, match="of 3 tokens 4"):
        Pace(8).add_round(3, 4, 10)

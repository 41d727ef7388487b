"""Intervals of means over seeds, against figures from tables of Student's t."""

from __future__ import annotations

import pytest

from spikeprop.evaluate.intervals import in_words, mean_interval, paired_difference


def test_an_interval_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["mean"] == 3
    assert found["interval"] == pytest.approx([3 - 2.776 * (2.5 / 5) ** 0.5, 3 + 2.776 * (2.5 / 5) ** 0.5], abs=1e-3)
    assert mean_interval([7.0]) == {"mean": 7.0, "interval": None, "n": 1}
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_pairs_are_held_together() -> None:
    found = paired_difference([10.0, 20.0, 30.0], [9.0, 19.0, 29.0])
    assert found["interval"] == [1.0, 1.0]
    assert in_words(found, sign=True) == "+1.00 (+1.00 to +1.00)"
    with pytest.raises(ValueError):
        paired_difference([1.0], [1.0, 2.0])

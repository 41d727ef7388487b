"""Simulated schedules compared with hand-computed times."""

from __future__ import annotations

import pytest
import torch

from spikeprop.plugins.interlocking.schedule import SegmentTimes, Simulated, measure_times, simulate
from spikeprop.plugins.interlocking.work import Place
from tests.plugins.test_interlocking import prepared, resnet


def even(reach: int, microbatches: int, batches: int, segments: int = 4, **settings: bool) -> Simulated:
    """One second for a forward pass, two for the products of each loss."""
    places = [Place(i, segments, reach, "furthest") for i in range(segments)]
    times = [SegmentTimes(1.0, dict.fromkeys([*p.others(), *([p.segment] if p.has_loss else [])], 2.0)) for p in places]
    return simulate(times, places, microbatches, batches, **settings)


def test_gpipe_time_equals_its_formula() -> None:
    """(M + K - 1) (f + b) a batch, of which (K - 1)/(M + K - 1) is idle."""
    for m in (1, 4, 16):
        found = even(4, m, 1, all_forward_first=True)
        assert found.seconds == pytest.approx((m + 3) * 3)
        assert found.idle == pytest.approx([3 / (m + 3)] * 4)
        assert even(4, m, 1).seconds == pytest.approx((m + 3) * 3)  # 1F1B: the same time with less memory


def test_local_learning_fills_the_pipeline_once() -> None:
    found = even(1, 1, 100)
    assert found.seconds == pytest.approx(100 * 3 + 3 * 1)
    assert even(4, 1, 100).seconds == pytest.approx(100 * 4 * 3)  # global, one batch at a time: one segment works


def test_pairwise_waits_for_one_segment_above_only() -> None:
    """A period is the forward pass, two products, and the visible part of the next segment: far below the global K (f + b)."""
    for segments in (4, 8):
        period = even(2, 1, 100, segments).seconds / 100
        assert 5 <= period <= 8.1
        assert even(segments, 1, 100, segments).seconds / 100 == pytest.approx(3 * segments)


def test_times_are_measured_and_leave_no_gradient() -> None:
    model = resnet().double()
    rule = prepared(model, reach=2)
    times = measure_times(rule, model, torch.rand(4, 1, 8, 8).double(), torch.arange(4))
    assert len(times) == 4
    assert all(t.forward > 0 and min(t.backward.values()) > 0 for t in times)
    assert all(p.grad is None for p in (*model.parameters(), *rule.parameters()))

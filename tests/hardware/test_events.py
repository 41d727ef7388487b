"""Events in bins of time: counted by hand, what lies outside, what no sensor sends."""

from __future__ import annotations

import numpy as np
import pytest
from spikeprop_hardware import HardwareError, binned

CAMERA = np.array([(0, 1, 0, 10), (1, 0, 1, 12), (1, 0, 1, 12), (3, 1, 0, 19), (2, 1, 1, 20)], dtype="i2,i2,u1,i8")
CAMERA.dtype.names = ("x", "y", "p", "t")


def test_each_event_is_counted_in_its_bin() -> None:
    frames = binned(CAMERA, (2, 2, 4), steps=2, dt=5)
    assert frames.shape == (2, 2, 2, 4)
    assert (frames.sum(), frames[0, 0, 1, 0], frames[0, 1, 0, 1], frames[1, 0, 1, 3]) == (
        4,
        1,
        2,
        1,
    )  # the last one is after the end
    assert binned(CAMERA, (2, 2, 4), steps=2).sum() == 5  # in equal parts, with the last one
    assert [frame.sum() for frame in binned(CAMERA, (2, 2, 4), steps=2, dt=7, start=12)] == [2, 2]  # without the first
    cochlea = np.zeros(3, dtype=[("t", "f8"), ("x", "u2")])
    cochlea["x"], cochlea["t"] = [4, 4, 0], [0.0, 0.25, 0.5]
    np.testing.assert_array_equal(binned(cochlea, (5,), steps=2, dt=0.5), [[0, 0, 0, 0, 2], [1, 0, 0, 0, 0]])
    assert binned(cochlea, (1, 5), steps=2, dt=0.5).shape == (2, 1, 5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda events: events[:0], "the recording holds no events"),
        (lambda events: events[::-1], "event 1 is at t = 19, after one at t = 20; sort the events by time"),
        (lambda events: events[["x", "y", "t"]],
         r"events have fields \('x', 'y', 't'\); for a sensor of shape \(2, 2, 3\) they need t, p, y, x"),
        (lambda events: events, r"event 3 has x = 3, and the sensor of shape \(2, 2, 3\) has 0 to 2"),
    ],
)  # fmt: skip
def test_what_no_sensor_sends_is_refused(change: object, says: str) -> None:
    with pytest.raises(HardwareError, match=says):
        binned(change(CAMERA), (2, 2, 3), steps=4)  # type: ignore[operator]
    with pytest.raises(HardwareError, match="events in 0 steps of None; there is at least 1 step"):
        binned(CAMERA, (2, 2, 4), steps=0)

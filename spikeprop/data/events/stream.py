"""``Events``: one recording of an event camera or a silicon cochlea, checked once when it is read.

An event (t, x, y, p) says that the brightness at column x and row y changed by one threshold at time t, upwards (p = 1) or
downwards (p = 0). A cochlea's event has a channel x, and y = p = 0. Times are microseconds from the recording's own start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spikeprop.errors import MissingDataError

Sensor = tuple[int, int, int]  # polarities (1 or 2), rows, columns
LATEST = 2**53  # microseconds; below it, times are exact in float64


@dataclass(frozen=True, eq=False)
class Events:
    """Events in the order of their times.

    Attributes:
        t: (N,) int64, microseconds from the recording's start.
        x, y: (N,) int16, column (or channel) and row.
        p: (N,) uint8, 1 for ON, 0 for OFF.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: Any) -> Events:
        """The events of a slice, a mask or an array of numbers."""
        return Events(self.t[rows], self.x[rows], self.y[rows], self.p[rows])

    @property
    def nbytes(self) -> int:
        """Bytes of the four arrays."""
        return self.t.nbytes + self.x.nbytes + self.y.nbytes + self.p.nbytes


def checked(t: Any, x: Any, y: Any, p: Any, *, sensor: Sensor, where: object, sort: bool = False) -> Events:
    """The events of these arrays, if they can be a recording of this sensor.

    Args:
        t, x, y, p: integers, (N,) each; y and p may be one number for all.
        sensor: polarities, rows, columns.
        where: of the recording, for the message.
        sort: whether times that run backwards are sorted; otherwise they are refused.

    Raises:
        MissingDataError: no events, an event outside the sensor, or time that is negative or runs backwards.
    """
    t, x = np.asarray(t).astype(np.int64), np.asarray(x)
    y, p = np.broadcast_to(y, t.shape), np.broadcast_to(p, t.shape)
    if not len(t):
        raise MissingDataError(
            f"{where} has no events; get the recording again, or move it out of the folder if it was empty from the start"
        )
    for name, values, bound in (("column" if sensor[1] > 1 else "channel", x, sensor[2]), ("row", y, sensor[1])):
        _inside(name, values, bound, where)
    _inside("polarity", p, sensor[0], where)
    backwards = np.flatnonzero(t[1:] < t[:-1])
    if len(backwards) and sort:
        order = np.argsort(t, kind="stable")
        t, x, y, p = t[order], x[order], y[order], p[order]
    elif len(backwards):
        at = int(backwards[0]) + 1
        raise MissingDataError(
            f"{where}: time runs backwards at event {at:,} of {len(t):,}, from {t[at - 1]:,} to {t[at]:,} microseconds; the file "
            "is damaged or of another format. If its order alone is wrong, data.sort=true sorts its events"
        )
    if t[0] < 0 or t[-1] >= LATEST:
        raise MissingDataError(f"{where} has events from {t[0]:,} to {t[-1]:,} microseconds, which is no recording; get it again")
    return Events(t, x.astype(np.int16), y.astype(np.int16), p.astype(np.uint8))


def _inside(name: str, values: np.ndarray, bound: int, where: object) -> None:
    outside = (values < 0) | (values >= bound)
    if outside.any():
        at = int(np.argmax(outside))
        raise MissingDataError(
            f"{where}: event {at:,} of {len(values):,} has the {name} {values[at]}, and this sensor has 0 to {bound - 1}; the "
            f"file is damaged or of another sensor ({int(outside.sum()):,} events are outside)"
        )

"""Events of a camera or cochlea as what a network reads: counts in bins of time, one bin a step.

    frames[k, p, y, x] = number of events of polarity p at (x, y) with k dt <= t - t_first < (k + 1) dt

A stream is refused where it cannot be what its sensor sent: places outside it, polarities beyond its channels, time running
backwards, no events.
"""

from __future__ import annotations

import numpy as np

from spikeprop_hardware.errors import HardwareError


def binned(
    events: np.ndarray, shape: tuple[int, ...], *, steps: int, dt: float | None = None, start: float | None = None
) -> np.ndarray:
    """The events of one recording, counted.

    Args:
        events: structured array with t, in any unit, not falling; x where ``shape`` has one axis or more behind the first; y
            where it has two; and p, the channel, where there is more than one.
        shape: (channels, height, width) of a camera, (channels, width) of a cochlea, or (width,) without channels.
        steps: of the result; events beyond the last are left out.
        dt: of a step, in the unit of t; default the recording in ``steps`` equal parts.
        start: time at which the first step begins; default that of the first event. Events before it are left out.

    Returns:
        (steps, *shape) float64, for ``simulate(network, frames[None])``.

    Raises:
        HardwareError: naming the first event that is not possible.
    """
    names = ("p", "y", "x")[-len(shape) :] if len(shape) != 2 else ("p", "x")
    held = np.asarray(events).dtype.names or ()
    missing = [name for name in ("t", *names) if name not in held and (name != "p" or shape[0] > 1)]
    if missing or len(shape) > 3:
        raise HardwareError(f"events have fields {held or 'none'}; for a sensor of shape {shape} they need t, {', '.join(names)}")
    if steps < 1 or (dt is not None and not dt > 0):
        raise HardwareError(f"events in {steps} steps of {dt}; there is at least 1 step, and dt is positive")
    if not len(events):
        raise HardwareError("the recording holds no events")
    t = np.asarray(events["t"], dtype=np.float64)
    back = np.flatnonzero(~(np.diff(t) >= 0))
    if len(back) or not np.isfinite(t).all():
        i = int(back[0]) + 1 if len(back) else 0
        raise HardwareError(f"event {i} is at t = {t[i]:g}, after one at t = {t[max(i - 1, 0)]:g}; sort the events by time")
    places = []
    for name, size in zip(names, shape):
        values = np.asarray(events[name], dtype=np.int64) if name in held else np.zeros(len(t), np.int64)
        wrong = np.flatnonzero((values < 0) | (values >= size))
        if len(wrong):
            i = int(wrong[0])
            raise HardwareError(f"event {i} has {name} = {values[i]}, and the sensor of shape {shape} has 0 to {size - 1}")
        places.append(values)
    start = float(t[0]) if start is None else start
    step = dt if dt is not None else max(np.nextafter(t[-1] - start, np.inf), np.finfo(np.float64).tiny) / steps
    k = np.floor((t - start) / step)
    inside = (k >= 0) & (k < steps)
    flat = np.ravel_multi_index(tuple(axis[inside] for axis in (k.astype(np.int64), *places)), (steps, *shape))
    return np.bincount(flat, minlength=steps * int(np.prod(shape))).reshape(steps, *shape).astype(np.float64)

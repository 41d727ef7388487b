"""``Binning``: events to frames, and ``Augmentation``: random changes of a recording that keep its class.

A recording's events at times t in [0, end) fall into T frames: frame floor(t T / end) if ``frames`` = T is given, or frame
floor(t / dt). Without ``duration`` the end is just after the last event. What a frame shows:

- count: the number of events of each polarity and pixel.
- binary: 1 where there is at least one event.
- time_surface: exp(-(e - l) / tau) with e the frame's end and l the time of the pixel's last event until then, 0 before the first
  (Lagorce et al. 2017, https://doi.org/10.1109/TPAMI.2016.2574707, eq. 3).
- voxel: one channel; each event adds its sign to the two frames nearest to t (T - 1) / (end - 1), by linear interpolation (Zhu et
  al. 2019, arXiv:1812.08156, eq. 1 and 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spikeprop.data.events.stream import Events, Sensor
from spikeprop.errors import DataError
from spikeprop.runtime.checks import not_negative, positive

KINDS = ("count", "binary", "time_surface", "voxel")
MOST_VALUES = 2**28  # of one recording's frames: 1 GiB, and twice as much while they are counted


@dataclass(frozen=True, kw_only=True)
class Binning:
    """How events become frames.

    Attributes:
        sensor: polarities, rows and columns of the events.
        frames: number of frames of equal duration; or else
        dt: milliseconds of a frame, so that a longer recording has more of them.
        duration: milliseconds from the start that count; None for all events.
        kind: count, binary, time_surface or voxel.
        tau: milliseconds in which a time surface falls to 1/e.
        downsample: this many rows and columns make one (events are added); must divide both. A cochlea's channels alike.
    """

    sensor: Sensor
    frames: int | None = None
    dt: float | None = None
    duration: float | None = None
    kind: str = "count"
    tau: float = 30.0
    downsample: int = 1

    def __post_init__(self) -> None:
        if (self.frames is None) == (self.dt is None):
            raise ValueError(
                f"frames is {self.frames} and dt is {self.dt}; give one of them: a number of frames, or a frame's milliseconds"
            )
        for name in ("frames", "dt", "duration", "tau", "downsample"):
            if getattr(self, name) is not None:
                positive(self, name)
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; use one of {', '.join(KINDS)}")
        if self.kind == "voxel" and self.frames is None:
            raise ValueError("kind is 'voxel', which interpolates between a given number of frames; set frames, not dt")
        for name in ("dt", "duration"):
            if getattr(self, name) is not None and round(getattr(self, name) * 1000) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} ms; events are timed in microseconds, so it is at least 0.001")
        if self.sensor[2] % self.downsample or (self.sensor[1] > 1 and self.sensor[1] % self.downsample):
            raise ValueError(
                f"downsample is {self.downsample}, which does not divide this sensor's {self.sensor[1]} rows and "
                f"{self.sensor[2]} columns"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a frame."""
        rows = max(1, self.sensor[1] // self.downsample)
        return 1 if self.kind == "voxel" else self.sensor[0], rows, self.sensor[2] // self.downsample

    @property
    def timesteps(self) -> int | None:
        """The number of frames, if it is the same for all recordings."""
        if self.frames is not None:
            return self.frames
        return None if self.duration is None else -(-_us(self.duration) // _us(self.dt))

    def cut(self, events: Events) -> Events:
        """The events within ``duration``.

        Raises:
            DataError: there are none.
        """
        if self.duration is None:
            return events
        count = int(np.searchsorted(events.t, _us(self.duration)))
        if not count:
            raise DataError(f"no event lies in the first {self.duration} ms of the recording; raise data.duration")
        return events[:count]

    def __call__(self, events: Events) -> np.ndarray:
        """The frames (T, C, H, W) float32 of a recording.

        Raises:
            DataError: no event lies within ``duration``, or the frames would not fit in memory.
        """
        events = self.cut(events)
        end = int(events.t[-1]) + 1 if self.duration is None else _us(self.duration)
        steps = self.timesteps or -(-end // _us(self.dt))
        size = steps * int(np.prod(self.shape))
        if size > MOST_VALUES:
            raise DataError(
                f"a recording of {end / 1000:,.0f} ms would have {steps:,} frames, {size:,} values; use fewer frames, a longer "
                "data.dt, a shorter data.duration or data.downsample"
            )
        step = events.t * steps // end if self.frames is not None else events.t // _us(self.dt)
        channel = 0 if self.kind == "voxel" else events.p
        _, rows, columns = self.shape
        row = events.y // self.downsample if self.sensor[1] > 1 else 0
        pixel = (np.int64(channel) * rows + row) * columns + events.x // self.downsample
        if self.kind == "voxel":
            values = self._voxels(events, pixel, steps, end)
        elif self.kind == "time_surface":
            values = self._surface(events, step, pixel, steps, end)
        else:
            values = np.bincount(step * (size // steps) + pixel, minlength=size)
            values = np.minimum(values, 1) if self.kind == "binary" else values
        return values.astype(np.float32).reshape(steps, *self.shape)

    def _voxels(self, events: Events, pixel: np.ndarray, steps: int, end: int) -> np.ndarray:
        sign = 2.0 * events.p - 1 if self.sensor[0] == 2 else np.ones(len(events))
        place = events.t * ((steps - 1) / max(1, end - 1))
        first, pixels = np.floor(place).astype(np.int64), int(np.prod(self.shape))
        later = place - first
        values = np.bincount(first * pixels + pixel, sign * (1 - later), minlength=(steps + 1) * pixels)
        values += np.bincount((first + 1) * pixels + pixel, sign * later, minlength=(steps + 1) * pixels)
        return values[: steps * pixels]  # the frame after the last has weight 0

    def _surface(self, events: Events, step: np.ndarray, pixel: np.ndarray, steps: int, end: int) -> np.ndarray:
        last = np.full((steps, int(np.prod(self.shape))), -np.inf)
        last[step, pixel] = events.t  # of several events in one place, numpy keeps the last
        np.maximum.accumulate(last, axis=0, out=last)
        width = end / steps if self.frames is not None else _us(self.dt)
        last -= (np.arange(1, steps + 1) * width)[:, None]
        return np.exp(np.minimum(last, 0) / (self.tau * 1000))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of a recording in training.

    Attributes:
        sensor: polarities, rows and columns of the events.
        shift: all events by up to this many columns and rows; those that leave the sensor are lost.
        flip: left and right, of half of the recordings.
        drop: probability with which each event is lost.
        noise: events at random places and times, as a share of the recording's own.
    """

    sensor: Sensor
    shift: int = 0
    flip: bool = False
    drop: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        not_negative(self, "shift", "noise", hint="; use 0 for none")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is {self.drop}; it is a probability below 1")
        if self.flip and self.sensor[1] == 1:
            raise ValueError("flip would reverse a cochlea's channels; leave it out")

    def __call__(self, events: Events, rng: np.random.Generator) -> Events:
        """The changed recording; never without events."""
        if self.drop:
            events = _kept(events, rng.random(len(events)) >= self.drop)
        if self.flip and rng.random() < 0.5:
            events = Events(events.t, (self.sensor[2] - 1 - events.x).astype(np.int16), events.y, events.p)
        if self.shift:
            across, down = rng.integers(-self.shift, self.shift + 1, 2) * (1, self.sensor[1] > 1)
            x, y = events.x + across, events.y + down
            inside = (x >= 0) & (x < self.sensor[2]) & (y >= 0) & (y < self.sensor[1])
            if inside.any():
                events = Events(events.t, x.astype(np.int16), y.astype(np.int16), events.p)[inside]
        return self._noisy(events, rng) if self.noise else events

    def _noisy(self, events: Events, rng: np.random.Generator) -> Events:
        count = rng.poisson(self.noise * len(events))
        drawn = [rng.integers(0, bound, count) for bound in (int(events.t[-1]) + 1, *self.sensor[::-1])]
        t, x, y, p = (np.concatenate([own, new.astype(own.dtype)]) for own, new in zip(_columns(events), drawn))
        return Events(t, x, y, p)[np.argsort(t, kind="stable")]


def _columns(events: Events) -> tuple[np.ndarray, ...]:
    return events.t, events.x, events.y, events.p


def _kept(events: Events, kept: np.ndarray) -> Events:
    """The events that are kept; the first one if none is."""
    return events[kept] if kept.any() else events[:1]


def _us(milliseconds: float | None) -> int:
    """Whole microseconds."""
    return round((milliseconds or 0) * 1000)

"""``ChartAxis``: maps values to coordinates of a chart, and chooses the values that get a tick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_PERCENT = 10.0  # of an axis of accuracies


@dataclass(frozen=True)
class ChartAxis:
    """A linear or logarithmic map from a range of values to a range of coordinates.

    Attributes:
        low, high: values at both ends; positive if ``log``.
        start, end: coordinates of the ends, in the chart's units.
        log: whether coordinates are proportional to the logarithm.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """The coordinate of a value."""
        low, high, at = (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (self.end - self.start) * (at - low) / (high - low)


def axis(values: Sequence[float], start: float, end: float, *, log: bool = False, margin: float = 0.06) -> ChartAxis:
    """An axis that holds all values, with a margin at both ends."""
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    if log:
        reach = max(math.log(high / low), 0.5)
        return ChartAxis(low * math.exp(-margin * reach), high * math.exp(margin * reach), start, end, log=True)
    reach = (high - low) or abs(high) or 1.0
    return ChartAxis(low - margin * reach, high + margin * reach, start, end)


def percent_axis(values: Sequence[float], start: float, end: float) -> ChartAxis:
    """An axis of percentages: at least 10 wide, so that a difference of a few images is small on it, and not beyond 0 and 100."""
    low, high = min(values), max(values)
    half = max(1.12 * (high - low), LEAST_PERCENT) / 2
    top = min((low + high) / 2 + half, 100.0)
    bottom = max(min((low + high) / 2 - half, top - LEAST_PERCENT), 0.0)
    return ChartAxis(bottom, max(top, bottom + LEAST_PERCENT), start, end)


def zero_axis(values: Sequence[float], start: float, end: float) -> ChartAxis:
    """An axis that begins at 0, of values that are not below."""
    low, high = min(values), max(values)
    return axis(values, start, end) if low < 0 else ChartAxis(0.0, 1.06 * high or 1.0, start, end)


def ticks(over: ChartAxis, wanted: int = 5) -> list[float]:
    """Round values on an axis: multiples of 1, 2 or 5, on a logarithmic axis times powers of ten."""
    if over.log:
        return _log_ticks(over, wanted)
    rough = (over.high - over.low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(over.low / step)
    return [round(i * step, 12) for i in range(first, math.floor(over.high / step + 1e-9) + 1)]


def _log_ticks(over: ChartAxis, wanted: int) -> list[float]:
    decades = range(math.floor(math.log10(over.low)), math.ceil(math.log10(over.high)) + 1)
    every = max(1, len(decades) // wanted)
    for multiples in ((1, 2, 5), (1,)):
        found = [m * 10.0**d for d in decades if d % every == 0 for m in multiples]
        found = [value for value in found if over.low <= value <= over.high]
        if len(found) <= wanted + 2:
            break
    return found


def spaced(values: Sequence[float], over: ChartAxis, least: float) -> list[float]:
    """A subset of the values whose coordinates are at least ``least`` apart, so that labels do not overlap."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or abs(over.place(value) - over.place(kept[-1])) >= least:
            kept.append(value)
    return kept


def short(value: float) -> str:
    """The text of a tick."""
    if value and abs(value) >= 1e4:
        power = math.floor(math.log10(abs(value)))
        letter = {1: "k", 2: "M", 3: "G", 4: "T"}.get(power // 3)
        if letter:
            return f"{value / 10 ** (3 * (power // 3)):g} {letter}"
    return f"{value:.6g}"

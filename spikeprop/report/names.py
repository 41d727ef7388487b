"""Where the names of points stand in a chart: beside their points, where they cover no curve, no marker and no other name.

Each name tries eight places around its point in turn; one that finds none is left out, and the numbers below the chart have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

LETTER, TALL = 6.2, 11.0  # width of a letter and height of a name, in the chart's units
GAP = 8.0  # between a marker and its name
MARKER = 5.0  # radius of what is kept free around a point
EVERY = 3.0  # distance of the places of a curve that are kept free
REPEATED = 60.0  # the same name is not written again so near

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass
class NamePlaces:
    """The names of one chart.

    Attributes:
        frame: left, top, right and bottom of the place for names.
        kept_free: places that no name may cover.
        taken: boxes of the names so far, with them.
    """

    frame: Box
    kept_free: list[tuple[float, float]] = field(default_factory=list)
    taken: list[tuple[str, Box]] = field(default_factory=list)

    def keep_free(self, places: Sequence[tuple[float, float]], *, joined: bool) -> None:
        """No name covers these places nor, where they are joined, what is between them."""
        for x, y in places:
            self.kept_free += [(x, y), (x - MARKER, y), (x + MARKER, y), (x, y - MARKER), (x, y + MARKER)]
        for (x0, y0), (x1, y1) in pairwise(places) if joined else ():
            count = int(max(abs(x1 - x0), abs(y1 - y0)) / EVERY)
            self.kept_free += [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(1, count)]

    def find(self, name: str, x: float, y: float) -> tuple[float, float] | None:
        """Left end and baseline of a name at a place; None where there is no room for it, or it is written already."""
        if any(n == name and abs(x - (b[0] + b[2]) / 2) + abs(y - (b[1] + b[3]) / 2) < REPEATED for n, b in self.taken):
            return None
        for box in _around(x, y, LETTER * len(name)):
            if self._is_free(box):
                self.taken.append((name, box))
                return box[0], box[3] - 2
        return None

    def _is_free(self, box: Box) -> bool:
        left, top, right, bottom = box
        if left < self.frame[0] or top < self.frame[1] or right > self.frame[2] or bottom > self.frame[3]:
            return False
        if any(left - 2 < x < right + 2 and top - 2 < y < bottom + 2 for x, y in self.kept_free):
            return False
        return not any(left < b[2] and b[0] < right and top < b[3] and b[1] < bottom for _, b in self.taken)


def _around(x: float, y: float, wide: float) -> Iterable[Box]:
    """Boxes beside a place: right below, right above, above, below, left, each also farther away."""
    for far in (GAP, 2.5 * GAP):
        for left, top in (
            (x + far, y + far / 2), (x + far, y - TALL - far / 2), (x - wide / 2, y - TALL - far), (x - wide / 2, y + far),
            (x - wide - far, y - TALL - far / 2), (x - wide - far, y + far / 2), (x + far, y - TALL / 2),
            (x - wide - far, y - TALL / 2),
        ):  # fmt: skip
            yield left, top, left + wide, top + TALL

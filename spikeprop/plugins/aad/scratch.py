"""Arrays that are used again from mini-batch to mini-batch.

The arrays of a batch are some megabytes. Freed after each batch, they go back to the system, and the next batch pays for every
page again: as long as for the simulation itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SHAPES = 24  # different sizes that are kept
EACH = 8  # arrays of a size that are kept: those of a few threads

_free: dict[tuple[tuple[int, ...], Any], list[np.ndarray]] = {}


class Scratch:
    """Arrays with any content, which are free for others when this object ends. Threads may take and give at once.

    Attributes:
        arrays: one for each of the shapes.
    """

    def __init__(self, *shapes: tuple[int, ...], dtype: Any = np.float64):
        self.arrays = [_taken(shape, np.dtype(dtype)) for shape in shapes]

    def __del__(self) -> None:
        for one in self.arrays:
            kept = _free.setdefault((one.shape, one.dtype), [])
            if len(kept) < EACH:
                kept.append(one)


def _taken(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if len(_free) > SHAPES:
        _free.clear()
    try:
        return _free[shape, dtype].pop()
    except (KeyError, IndexError):
        return np.empty(shape, dtype)

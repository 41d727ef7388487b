"""``bar``: the project's progress bar; it is updated often on a terminal and rarely in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def bar(label: str | None, *, total: int | None = None, initial: int = 0, unit: str = "batch", leave: bool = True) -> Any:
    """A bar with the remaining time; ``label=None`` shows nothing."""
    interval = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(
        desc=label,
        total=total,
        initial=initial,
        unit=unit,
        mininterval=interval,
        maxinterval=max(10.0, interval),
        leave=leave,
        disable=label is None,
    )

"""``bar``: the project's progress bar. It is for terminals: a log has a line for each stage instead, from the run folder."""

from __future__ import annotations

import sys
from typing import Any

_wanted = True  # for the process, as standard error is


def show_progress(wanted: bool) -> None:
    """Whether bars are shown from now on."""
    global _wanted
    _wanted = wanted


def bar(label: str | None, *, total: int | None = None, initial: int = 0, unit: str = "batch", leave: bool = True) -> Any:
    """A bar with the remaining time, on a terminal; ``label=None`` shows nothing."""
    from tqdm import tqdm

    hidden = label is None or not _wanted or not sys.stderr.isatty()
    return tqdm(desc=label, total=total, initial=initial, unit=unit, mininterval=0.2, leave=leave, disable=hidden)

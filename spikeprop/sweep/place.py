"""``TrialPlace``: where the trials of a sweep run, and ``RunningTrial``: a trial that was started there, as a sweep sees both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from spikeprop.runtime.locks import Lock


class RunningTrial(Protocol):
    """A trial that was started."""

    def start(self) -> bool:
        """Start it; False while another process works on it."""
        ...

    def ended(self) -> int | None:
        """Its exit code, or None before its end; starts it again where that helps."""
        ...

    def reason(self, code: int) -> str:
        """Why it failed."""
        ...

    def interrupt(self) -> None:
        """Interrupt it, as Ctrl-C does."""
        ...

    def stop(self) -> None:
        """Interrupt it, and wait until it has saved."""
        ...


class TrialPlace(Protocol):
    """Where trials run.

    Attributes:
        jobs: number of trials at the same time.
        threads: CPU threads of each.
    """

    jobs: int
    threads: int

    def trial(self, folder: Path, arguments: Sequence[str], log: Path, lock: Lock) -> RunningTrial:
        """A trial to start: its run folder, arguments of ``spikeprop``, log and lock."""
        ...

    def close(self) -> None:
        """Leave the place, when no trial runs any more."""
        ...

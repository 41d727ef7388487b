"""A short experiment for sweeps: its result is a parabola of x, and it fails for negative x."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from spikeprop.errors import MissingDataError
from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.runtime.signals import stop_if_requested


@dataclass(frozen=True, kw_only=True)
class Quick:
    """value = 1 - (x - 0.3)^2 after ``seconds``; every start appends a line to starts.txt in the folder."""

    x: float
    seconds: float = 0.0
    tags: list[int] | None = None

    def run(self, context: Context) -> Report:
        with open(context.folder.path / "starts.txt", "a") as file:
            file.write("start\n")
        context.folder.stage("wait", self._wait)
        value = 1 - (self.x - 0.3) ** 2
        report = Report(
            name=context.name, values={"value": value, "seconds": context.folder.seconds()}, rows=[("value", f"{value}")]
        )
        report.save(context.folder.path / "report.json")
        return report

    def _wait(self) -> dict[str, float]:
        if os.environ.get("QUICK_LACKS"):
            raise MissingDataError(f"no {os.environ['QUICK_LACKS']} on this machine")
        if self.x < 0:
            raise ValueError(f"x is {self.x}; it must not be negative")
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            stop_if_requested()
            time.sleep(0.01)
        return {}

"""The progress file of a learner: its finished runs and the current run. An interrupted run resumes with the same result."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from spikeprop.learn import load_latest
from spikeprop.runtime.files import previous_of, write_json, write_tensors
from spikeprop.runtime.signals import stop_if_requested, stop_requested

CHECKPOINT_SECONDS = 30.0
FORMAT = 1  # of spikeprop's checkpoints


class Resumable(Protocol):
    """A run whose state is tensors and JSON values; tensors whose name ends in "params" hold (parameters, Adam's moments)."""

    def tensors(self) -> dict[str, Tensor]: ...

    def place(self) -> dict[str, Any]: ...

    def load(self, tensors: dict[str, Tensor], place: dict[str, Any]) -> None: ...


class Progress:
    """The progress file of a learner.

    Args:
        path: safetensors file; a JSON file of the same name describes it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.finished: list[dict[str, Any]] = []
        self._tensors: dict[str, Tensor] = {}
        self._pending: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._saved = time.monotonic()
        if path.exists() or previous_of(path).exists():
            saved = load_latest(path)
            self.finished = saved.description["finished"]
            self._tensors = {k: v for k, v in saved.tensors.items() if not k.startswith("run.")}
            if saved.description["run"] is not None:
                self._pending = saved.section("run"), saved.description["run"]

    def resume(self, run: Resumable) -> None:
        """Load the state of the interrupted run, if there is one, into a new run."""
        if self._pending is not None:
            run.load(*self._pending)
            self._pending = None

    def keep(self, run: Resumable) -> None:
        """Save the current run if the last save is too long ago, or if a signal requests a stop; then stop."""
        if stop_requested() or time.monotonic() - self._saved > CHECKPOINT_SECONDS:
            self.write(run.place(), run.tensors())
        stop_if_requested()

    def finish(self, run: Resumable, result: dict[str, Any]) -> None:
        """Save the result and the networks of a finished run."""
        number = len(self.finished)
        self.finished.append(result)
        kept = {k: v for k, v in run.tensors().items() if k.endswith("params")}
        self._tensors |= {f"{number}.{k}": v[0].contiguous() for k, v in kept.items()}  # without Adam's moments
        self.write(None, {})

    def write(self, run: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        """Replace the file by the finished runs and the state of the current one."""
        header = {"spikeprop": json.dumps({"format": FORMAT, "finished": self.finished, "run": run})}
        write_tensors(self.path, self._tensors | {f"run.{k}": v for k, v in tensors.items()}, header, keep_previous=True)
        write_json(self.path.with_suffix(".json"), {"format": FORMAT, "finished": len(self.finished), "run": run and run["step"]})
        self._saved = time.monotonic()

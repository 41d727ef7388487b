"""Short real runs in separate processes, to be disturbed and compared with an undisturbed one.

Processes are forked from a server that has imported everything, so a run starts fast; it still has its own process and signals
and runs the code of the command line.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.forked import forkserver, output_to

SETTINGS = [
    "data.train_limit=320", "data.test_limit=64", "train.epochs=2", "finetune.epochs=2", "evaluate.timesteps=[2,8]",
    "simulate.samples=0", "device=cpu",
]  # fmt: skip
NETWORKS = ("ann", "converted", "finetuned")
ALLOWED_SECONDS = 300.0


@dataclass(frozen=True)
class Fault:
    """What a process changes in itself before its run starts.

    Attributes:
        largest_file: bytes beyond which no file grows, as on a full disk; None for no limit.
        prepare: a function of the tests' own, called in the process.
        user: number of the user that it runs as; None for ours.
    """

    largest_file: int | None = None
    prepare: Callable[[], None] | None = None
    user: int | None = None


@dataclass
class Run:
    """A run of digits_cnn_stdb in a folder, started until it completes.

    Attributes:
        folder: its --out.
        settings: of the recipe.
        recipe: its name or file.
    """

    folder: Path
    settings: list[str] = field(default_factory=lambda: list(SETTINGS))
    recipe: str = "digits_cnn_stdb"

    @property
    def arguments(self) -> list[str]:
        """The arguments of ``spikeprop``; progress is saved after every step."""
        return ["run", self.recipe, *self.settings, "--out", str(self.folder), "--threads", "1", "--save-every", "0"]

    @property
    def log(self) -> Path:
        """The output of the last process."""
        return self.folder.with_suffix(".log")

    def start(self, fault: Fault | None = None) -> Any:
        """The same command in a new process; returns when it has started to work, or ended."""
        self.log.unlink(missing_ok=True)
        process = forkserver().Process(target=_main, args=(self.arguments, self.log, fault or Fault()))
        process.start()
        deadline = time.monotonic() + ALLOWED_SECONDS
        while process.is_alive() and time.monotonic() < deadline and not self._begun():
            time.sleep(0.002)
        return process

    def finish(self, fault: Fault | None = None) -> int:
        """The same command to its end; its exit code."""
        return ended(self.start(fault))

    def said(self) -> str:
        """The text of the log, on one line, without the line breaks of the terminal's width."""
        return " ".join(self.log.read_text(encoding="utf-8", errors="replace").split())

    def _begun(self) -> bool:
        return self.log.exists() and f"-> {self.folder}" in self.log.read_text(errors="replace")


def ended(process: Any) -> int:
    """The exit code; negative for the signal that killed it.

    Raises:
        AssertionError: it hangs.
    """
    process.join(ALLOWED_SECONDS)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"the run hangs for more than {ALLOWED_SECONDS:.0f} s")
    assert process.exitcode is not None
    return int(process.exitcode)


def _main(arguments: list[str], log: Path, fault: Fault) -> None:
    """In the new process: output to the log, the fault, then the command line."""
    output_to(log)
    if fault.user is not None:
        os.chown(log, fault.user, fault.user)
        os.setgroups([])
        os.setgid(fault.user)
        os.setuid(fault.user)
    if fault.largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.largest_file, fault.largest_file))
    if fault.prepare is not None:
        fault.prepare()
    from spikeprop.cli import main

    main(arguments, prog_name="spikeprop")


def result(folder: Path) -> dict[str, Any]:
    """Everything that a run must reproduce: every tensor's bytes, every number of the report, every line of the metrics."""
    tensors = {f"{n}.{k}": v.numpy().tobytes() for n in NETWORKS for k, v in load_file(folder / f"{n}.safetensors").items()}
    report = json.loads((folder / "report.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "tensors": tensors,
        "report": _without_time(report),
        "metrics": [_without_time(line) for line in lines],
        "files": sorted(p.name for p in folder.iterdir() if "previous" not in p.name and "damaged" not in p.name),
    }


def _without_time(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_time(v) for k, v in value.items() if k not in ("seconds", "provenance")}
    return [_without_time(v) for v in value if not _has_seconds(v)] if isinstance(value, list) else value


def _has_seconds(row: Any) -> bool:
    """Whether this is the line of seconds in a report's table."""
    return isinstance(row, list) and row[:1] == ["seconds by stage"]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The differences of two results; empty if they are equal to the bit."""
    wrong = [key for key in one if one[key] != other[key]]
    names = set(one["files"]) ^ set(other["files"])
    return ", ".join(wrong) + (f" ({', '.join(sorted(names))})" if names else "")

"""``RunFolder``: where a run keeps its recipe, its versions, its finished stages and its files, so that it can be taken
up again.

``run.json`` says what ran (recipe, seed, commit, versions, machine); ``stages.json`` holds the result, the seconds and
the commit of every finished stage. Both are replaced whole. A folder belongs to one recipe: another one is refused rather than
mixed in.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from spikeprop.errors import RecipeError
from spikeprop.files import leaves, read_json, write_json, write_text
from spikeprop.recipe import Recipe, check, dump

OWN = {"name", "begun", "recipe"}  # of run.json: what no report repeats
MACHINE = {"device"}  # where a run takes place is no part of what it is
LIBRARIES = ("spikeprop", "torch", "torchvision", "numpy", "nir", "safetensors")


class RunFolder:
    """A folder of one run.

    Args:
        path: made if absent.
        recipe: what runs there.
        smoke: whether this is the tiny version.

    Raises:
        RecipeError: the folder holds a run of another recipe.
    """

    def __init__(self, path: Path, recipe: Recipe, smoke: bool = False):
        self.path = path
        described = recipe.describe()
        if (path / "run.json").exists():
            self._check_same(described)
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "recipe.yaml", dump(described))
        if not (path / "run.json").exists():
            begun = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"name": recipe.name, "begun": begun, "recipe": described, "smoke": smoke}
            write_json(path / "run.json", about | describe_machine())
        stages = path / "stages.json"
        self._stages: dict[str, Any] = read_json(stages) if stages.exists() else {}

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a stage: from the folder if it is finished, else from ``work``, which is timed and remembered."""
        if name not in self._stages:
            clock = self.path / f".{name}.seconds"
            before = float(clock.read_text()) if clock.exists() else 0.0
            started = time.monotonic()
            try:
                result = work()
            except BaseException:
                with contextlib.suppress(OSError):  # a full disk must not hide what went wrong first
                    write_text(clock, f"{before + time.monotonic() - started:.3f}")
                raise
            seconds = round(before + time.monotonic() - started, 2)
            self._stages[name] = {"seconds": seconds, "commit": _commit(), "result": result}
            write_json(self.path / "stages.json", self._stages)
            clock.unlink(missing_ok=True)
        return self._stages[name]["result"]

    def finished(self, name: str) -> bool:
        """Whether a stage is done."""
        return name in self._stages

    def seconds(self) -> dict[str, float]:
        """Seconds of each finished stage."""
        return {name: stage["seconds"] for name, stage in self._stages.items()}

    def provenance(self) -> dict[str, Any]:
        """Commit, versions and machine as recorded when the run began, and the commit that each stage ran at."""
        begun = {k: v for k, v in read_json(self.path / "run.json").items() if k not in OWN}
        return {**begun, "commits": {name: stage.get("commit") for name, stage in self._stages.items()}}

    def _check_same(self, described: dict[str, Any]) -> None:
        old, new = leaves(_completed(read_json(self.path / "run.json")["recipe"])), leaves(described)
        changed = {key for key in old | new if old.get(key) != new.get(key)} - MACHINE
        if changed:
            raise RecipeError(
                f"{self.path} holds a run of another recipe (it differs in {', '.join(sorted(changed)[:4])}); "
                "choose another --out folder or delete that one"
            )


def _completed(described: dict[str, Any]) -> dict[str, Any]:
    """A recorded recipe with the defaults of settings that did not exist when it was recorded."""
    try:
        return Recipe("", check(described)).describe()
    except RecipeError:  # it names what is gone by now: it is another recipe, as it stands
        return described


def describe_machine() -> dict[str, Any]:
    """Versions, git commit and machine."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.system(),
        },
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that spikeprop runs from, "-dirty" where it has changes; None when installed."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""``RunFolder``: the folder of a run, with its recipe, versions, finished stages and files, so that a stopped run can continue.

``run.json`` says what ran (recipe, seed, commit, versions, machine; under ``sessions`` the last three again for each session that
continued it); ``stages.json`` holds the result, the seconds and the commit of every finished stage. Both files are replaced
atomically. A folder belongs to one recipe: another one is refused rather than mixed in. A process that runs in a folder holds its
lock (``spikeprop.runtime.locks.locked``), as the command line does.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from spikeprop.errors import DamagedFileError, RecipeError
from spikeprop.recipe import Recipe, check, dump
from spikeprop.runtime.files import leaves, previous_of, read_json, remove_leftovers, write_json, write_text
from spikeprop.runtime.imports import only_trusted
from spikeprop.runtime.own_folders import own_folder
from spikeprop.runtime.processes import ALONE, Processes
from spikeprop.runtime.signals import stop_if_requested

OWN = {"name", "begun", "recipe"}  # keys of run.json that the report does not repeat
MACHINE = {"device", "sharded"}  # settings that may change when a run continues
LIBRARIES = ("spikeprop", "torch", "torchvision", "numpy", "nir", "safetensors")


class RunFolder:
    """A folder of one run.

    Args:
        path: made if absent.
        recipe: what runs there.
        smoke: whether this is the tiny version.
        processes: of this run; rank 0 writes.
        notify: shows a line at the beginning of each stage.

    Raises:
        RecipeError: the folder holds a run of another recipe.
        DamagedFileError: its ``run.json`` cannot be read.
    """

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        smoke: bool = False,
        processes: Processes = ALONE,
        notify: Callable[[str], None] = lambda _: None,
    ):
        self.path, self.processes, self._notify = path, processes, notify
        processes.on_rank_zero(lambda: self._begin(recipe, smoke))
        self._stages = _read_stages(path / "stages.json")

    def _begin(self, recipe: Recipe, smoke: bool) -> None:
        path, described = self.path, recipe.describe()
        self._continues = (path / "run.json").exists()
        if self._continues:
            check_same(path, described)
        path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        write_text(path / "recipe.yaml", dump(described))
        if not self._continues:
            begun = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"name": recipe.name, "begun": begun, "recipe": described, "smoke": smoke}
            write_json(path / "run.json", about | self._session())

    def _session(self) -> dict[str, Any]:
        """Processes, versions, commit and machine of this process."""
        more = {"processes": self.processes.count} if self.processes.count > 1 else {}
        return more | describe_machine()

    def _record_session(self) -> None:
        """In a run that continues, before its first work: add when, and with which versions and machine."""
        if self._continues:
            self._continues = False
            recorded = self._recorded()
            session = {"begun": datetime.now(UTC).isoformat(timespec="seconds"), **self._session()}
            write_json(self.path / "run.json", recorded | {"sessions": [*recorded.get("sessions", []), session]})

    def stage(self, name: str, work: Callable[[], dict[str, Any]], *, distributed: bool = False) -> dict[str, Any]:
        """The result of a stage: from the folder if it is finished, else from ``work``, whose time and result are kept.

        Args:
            name: of the stage.
            work: what it does.
            distributed: of several processes all do the work, and rank 0's result counts; else rank 0 does it and the others
                wait.
        """
        if name not in self._stages:
            self.processes.independently(stop_if_requested)
            own = (lambda: self._timed(name, work)) if self.processes.rank == 0 else work
            if distributed:
                self.processes.collectively(own)
            else:
                self.processes.on_rank_zero(own)
            if self.processes.rank:
                self.reread()
        return self._stages[name]["result"]

    def _timed(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        self._record_session()
        self._notify(f"stage {name}")
        clock = self.path / f".{name}.seconds"
        before = _read_seconds(clock)
        started = time.monotonic()
        try:
            result = work()
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk must not hide what went wrong first
                write_text(clock, f"{before + time.monotonic() - started:.3f}")
            raise
        seconds = round(before + time.monotonic() - started, 2)
        self._stages[name] = {"seconds": seconds, "commit": _commit(), "result": result}
        self._write_stages()
        clock.unlink(missing_ok=True)

    def reread(self) -> None:
        """Read again which stages are finished, after another process wrote it."""
        self._stages = _read_stages(self.path / "stages.json")

    def finished(self, name: str) -> bool:
        """Whether a stage is done."""
        return name in self._stages

    def forget(self, names: Collection[str]) -> None:
        """Remove the results of these stages, so that they run again."""
        if set(names) & set(self._stages):
            self._stages = {name: stage for name, stage in self._stages.items() if name not in names}
            self._write_stages()

    def _write_stages(self) -> None:
        file = self.path / "stages.json"
        _put_aside_damaged(file)
        write_json(file, self._stages, keep_previous=True)

    def seconds(self) -> dict[str, float]:
        """Seconds of each finished stage."""
        return {name: stage["seconds"] for name, stage in self._stages.items()}

    def provenance(self) -> dict[str, Any]:
        """Commit, versions and machine as recorded when the run began and continued, and the commit that each stage ran at."""
        begun = {k: v for k, v in self._recorded().items() if k not in OWN}
        return {**begun, "commits": {name: stage.get("commit") for name, stage in self._stages.items()}}

    def _recorded(self) -> dict[str, Any]:
        return _recorded(self.path)


def check_same(path: Path, described: dict[str, Any], keys: Collection[str] | None = None) -> None:
    """Before any work: a folder that holds a run holds one of this recipe.

    Args:
        path: of the folder, which need not exist.
        described: the recipe.
        keys: compare only these settings, by dotted path, where the others are not known yet.

    Raises:
        RecipeError: it is another recipe.
        DamagedFileError: ``run.json`` cannot be read.
    """
    if not (path / "run.json").exists():
        return
    old, new = leaves(_completed(_recorded(path)["recipe"], own_folder(path).packages())), leaves(described)
    compared = old | new if keys is None else old.keys() & new.keys() & set(keys)
    changed = {key for key in compared if old.get(key) != new.get(key)} - MACHINE
    if changed:
        raise RecipeError(
            f"{path} holds a run of another recipe (it differs in {', '.join(sorted(changed)[:4])}); "
            "choose another --out folder, or remove this one to begin again"
        )


def _recorded(path: Path) -> dict[str, Any]:
    recorded = read_json(path / "run.json")
    if not isinstance(recorded, dict) or not isinstance(recorded.get("recipe"), dict):
        raise DamagedFileError(f"{path / 'run.json'} does not hold what a run writes there; use another --out folder")
    return recorded


def _read_stages(path: Path) -> dict[str, Any]:
    """The finished stages; where the file is damaged or absent, those of its previous version."""
    problem = ""
    for file in (path, previous_of(path)):
        if not file.exists():
            continue
        try:
            stages = _complete_stages(file)
        except DamagedFileError as error:
            problem = str(error)
            continue
        if problem:
            warnings.warn(f"{problem}: going on from {file}, {', '.join(stages) or 'no stage'} done", stacklevel=3)
        return stages
    if problem:
        warnings.warn(f"{problem}: its stages run again", stacklevel=3)
    return {}


def _complete_stages(file: Path) -> dict[str, Any]:
    stages = read_json(file)
    if not isinstance(stages, dict) or not all(isinstance(s, dict) and {"seconds", "result"} <= set(s) for s in stages.values()):
        raise DamagedFileError(f"{file} does not hold what a run writes there")
    return stages


def _put_aside_damaged(file: Path) -> None:
    """Rename a damaged file, so that it does not replace the valid previous version when the next one is written."""
    try:
        if file.exists():
            _complete_stages(file)
    except DamagedFileError:
        file.replace(file.with_name(f"{file.name}.damaged"))


def _read_seconds(file: Path) -> float:
    """Seconds of earlier attempts at a stage; 0 where the file is damaged."""
    try:
        return float(file.read_text(encoding="utf-8")) if file.exists() else 0.0
    except ValueError:
        return 0.0


def _completed(described: dict[str, Any], trusted: Collection[str]) -> dict[str, Any]:
    """A recorded recipe, with the defaults of settings that its version of spikeprop did not have."""
    try:
        with only_trusted(trusted):  # the folder may come from anyone; what the run's own recipe names is imported already
            return Recipe("", check(described)).describe()
    except RecipeError:  # it names what does not exist any more: it is another recipe
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
    if not (here.parents[1] / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

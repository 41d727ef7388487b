"""``RunRecord``: what the files of a run folder say, finished or not, for ``spikeprop ls runs`` and the report page.

Only ``run.json`` is required: the folders of killed runs, and those in ``results/``, which hold no checkpoints and of which most
were written before run.json held name and time, are read as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spikeprop.errors import DamagedFileError, RunError
from spikeprop.evaluate.report import LABELS, networks_of
from spikeprop.runtime.files import read_json
from spikeprop.runtime.places import no_run_folder

AGAIN = "restore it from a copy, or run again with another --out folder"
DIAGNOSIS = "diagnosis.txt"  # of `spikeprop diagnose --keep`


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run folder.

    Attributes:
        path: of the folder.
        about: run.json: recipe, versions, commit, machine.
        stages: stages.json: result, seconds and commit of the finished stages.
        report: report.json; None while the run is not finished.
        metrics: metrics.jsonl: training, a line an epoch.
    """

    path: Path
    about: dict[str, Any]
    stages: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read a folder.

        Raises:
            RunError: it is no run folder, or one of its files is damaged.
        """
        if not (path / "run.json").is_file():
            raise RunError(no_run_folder(path))
        report = path / "report.json"
        return cls(
            path,
            _mapping(path / "run.json"),
            _mapping(path / "stages.json") if (path / "stages.json").exists() else {},
            _mapping(report) if report.exists() else None,
            _lines(path / "metrics.jsonl"),
        )

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    @property
    def recipe_name(self) -> str:
        """Name of its recipe."""
        return str(self.about.get("name") or (self.report or {}).get("name", "unknown"))

    @property
    def smoke(self) -> bool:
        """Whether it is a smoke run, or made from one: its figures are no results."""
        return bool(self.about.get("smoke"))

    @property
    def recipe(self) -> str:
        """Name of its recipe, with the mark of a smoke run."""
        return f"{self.recipe_name}, smoke" if self.smoke else self.recipe_name

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved recipe."""
        return self.about.get("recipe", {})

    @property
    def state(self) -> str:
        """ "finished", or where it stopped; a run in progress looks like a stopped one."""
        if self.report is not None:
            return "finished"
        begun = sorted(p.name.partition(".progress")[0] for p in self.path.glob("*.progress*") if not p.name.startswith("."))
        if begun:
            return f"stopped at {begun[0]}"
        return f"stopped after {list(self.stages)[-1]}" if self.stages else "stopped at the start"

    @property
    def hybrid(self) -> bool:
        """Whether the report is that of the hybrid conversion, which has an ANN."""
        return "ann" in (self.report or {}) and self.pipeline

    @property
    def pipeline(self) -> bool:
        """Whether the report is that of a pipeline, with spiking networks; the experiments of plugins have other reports."""
        return bool(self.networks)

    @property
    def networks(self) -> dict[str, str]:
        """The pipeline's spiking networks with their labels; without fine-tuning only the converted one."""
        return networks_of(self.report or {}) if "synops" in (self.report or {}) else {}

    @property
    def steps(self) -> int:
        """Time steps of the spiking network's training, at which networks are compared."""
        report = self.report or {}
        return int(report.get("rates_at", report.get("timesteps", 0)))

    def diagnosis(self) -> str:
        """What `spikeprop diagnose --keep` found; empty without."""
        file = self.path / DIAGNOSIS
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""

    def started(self) -> str:
        """When it started, where run.json says it."""
        at = self.about.get("begun")
        return f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at else "not recorded"

    def size(self) -> int:
        """Bytes of all files in the folder."""
        return sum(file.lstat().st_size for file in self.path.rglob("*") if file.is_file())

    def headline(self) -> dict[str, float]:
        """The main figures by name: accuracies in percent of a pipeline, means of a plugin's arms."""
        report = self.report or {}
        if self.pipeline:
            return {**({"ANN": report["ann"]["accuracy"]} if self.hybrid else {}), **self._at_steps()}
        arms = {name: arm["mean"] for name, arm in report.get("arms", {}).items()}
        return arms | {name: found["whole_run"]["mean"] for name, found in report.get("learners", {}).items()}

    def headline_text(self) -> str:
        """The headline in one line."""
        parts = [f"{name} {value:.4g}" for name, value in self.headline().items()]
        return ", ".join(parts if len(parts) <= 3 else [*parts[:3], f"and {len(parts) - 3} more"]) or "-"

    def figures(self) -> dict[str, float | None]:
        """Figures for a table of runs: those of a pipeline at ``steps``, or the headline."""
        report = self.report or {}
        if not self.pipeline:
            return {**self.headline()}
        found = {label: report[kind]["accuracy"].get(str(self.steps)) for kind, label in self.networks.items()}
        joules = report["energy_joules"]
        return {
            "ANN": report["ann"]["accuracy"] if self.hybrid else None,
            **{label: found.get(label) for label in LABELS.values()},
            "T": self.steps,
            "MACs": report.get("macs"),
            "SynOps": sum(report["synops"].values()),
            "uJ, ANN": joules["ann"] * 1e6 if self.hybrid else None,
            "uJ, SNN": joules["snn"] * 1e6,
        }

    def _at_steps(self) -> dict[str, float]:
        report, steps = self.report or {}, self.steps
        found = {label: report[kind]["accuracy"].get(str(steps)) for kind, label in self.networks.items()}
        return {f"{label}, T = {steps}": value for label, value in found.items() if value is not None}


def run_folders(folder: Path) -> list[Path]:
    """The run folders in a folder and below it, by path.

    Raises:
        RunError: it is no folder.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; give the one in which the run folders are, which --out named")
    return [file.parent for file in sorted(folder.rglob("run.json"))]


def _mapping(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except (DamagedFileError, OSError) as error:
        why = error.__cause__ or error  # the file is named once
        raise RunError(f"{file} is damaged ({why}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise RunError(f"{file} is damaged: it holds no JSON object; {AGAIN}")
    return found


def _lines(file: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics log; a killed run may have left half of one."""
    return list(_complete(file.read_text(encoding="utf-8").splitlines())) if file.exists() else []


def _complete(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue

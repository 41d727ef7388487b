"""``Sweep``: runs the trials of a plan, a few at a time, and keeps a table of all of them, including failed ones.

``sweep.json`` contains the plan and the state of each trial, ``sweep.csv`` the same as a table. Both are written whenever a trial
ends, so a sweep can be killed at any moment: the same command skips finished trials, resumes the others where they stopped and
runs failed ones again.
"""

from __future__ import annotations

import csv
import io
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spikeprop.errors import BusyError, RunError
from spikeprop.experiment.run_record import RunRecord
from spikeprop.runtime.files import leaves, read_json, write_json, write_text
from spikeprop.runtime.locks import Lock
from spikeprop.runtime.progress import bar
from spikeprop.sweep.cluster import Cluster
from spikeprop.sweep.place import RunningTrial, TrialPlace
from spikeprop.sweep.plan import SweepPlan
from spikeprop.sweep.process import ThisMachine
from spikeprop.sweep.tpe import propose

POLL_SECONDS = 0.1


@dataclass
class Trial:
    """One combination of values.

    Attributes:
        name: of its run folder.
        values: YAML text by key.
        state: "waiting", "finished" or "failed".
        why: the reason of a failure.
        metric: value of the sweep's metric.
        figures: accuracies and costs of its report.
        seconds: total of its stages.
    """

    name: str
    values: dict[str, str]
    state: str = "waiting"
    why: str = ""
    metric: float | None = None
    figures: dict[str, float | None] = field(default_factory=dict)
    seconds: float | None = None


class Sweep:
    """The trials of a plan in a folder.

    Args:
        plan: the trials.
        folder: created if absent; it belongs to one sweep.
        notify: called with messages for people.

    Raises:
        RunError: the folder contains another sweep.
        BusyError: a sweep is running there.
    """

    def __init__(self, plan: SweepPlan, folder: Path, notify: Callable[[str], None]):
        self.plan, self.folder, self.notify = plan, folder, notify
        self.trials: list[Trial] = []
        self._identity = plan.identity()
        file = folder / "sweep.json"
        if file.exists():
            self._resume(read_json(file))
        elif plan.sampler == "grid":
            self.trials = [self._trial(i, values) for i, values in enumerate(plan.grid())]
        self._lock = Lock(folder / "logs" / "sweep.lock")
        if not self._lock.acquire():
            raise BusyError(
                f"another sweep is at work in {folder} ({self._lock.holder()}); wait for it, stop it, or use another --out folder"
            )
        self._lock.sign()

    def run(self) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Run the unfinished trials; returns the heads and rows of the table, the best trials first."""
        running: dict[str, RunningTrial] = {}
        total = len(self.trials) if self.plan.sampler == "grid" else self.plan.trials
        with self._placed() as place, _sigterm_as_interrupt(), bar("sweep", total=total, unit="trial") as shown:
            try:
                for trial in self.trials:
                    self._update(trial)
                shown.update(len(self.finished()))
                self._save()
                todo = iter([trial for trial in self.trials if trial.state != "finished"])
                while self._fill(place, running, todo) or running:
                    time.sleep(POLL_SECONDS)
                    shown.update(self._collect(running))
            except KeyboardInterrupt:
                self.notify("stopping; the same command resumes the unfinished trials")
                raise
            finally:
                for process in running.values():
                    process.interrupt()
                for process in running.values():
                    process.stop()
                self._save()
        return self._table(sort=True)

    def finished(self) -> list[Path]:
        """Folders of the finished trials."""
        return [self.folder / trial.name for trial in self.trials if trial.state == "finished"]

    def failed(self) -> list[Trial]:
        """The failed trials."""
        return [trial for trial in self.trials if trial.state == "failed"]

    def log(self, trial: Trial) -> Path:
        """The file with a trial's output."""
        return self.folder / "logs" / f"{trial.name}.log"

    # trials -------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _placed(self) -> Iterator[TrialPlace]:
        """Where the trials run; afterwards the folder is free again."""
        place: TrialPlace | None = None
        try:
            if self.plan.on == "ray":
                with redirect_stdout(sys.stderr):  # Ray prints what its nodes say, and stdout is for the result
                    place = Cluster(self.plan, self.folder, self.notify)
                    yield place
            else:
                yield ThisMachine(self.plan)
        finally:
            if place is not None:
                place.close()
            self._lock.release()

    def _fill(self, place: TrialPlace, running: dict[str, RunningTrial], todo: Iterator[Trial]) -> bool:
        """Start trials up to the number of jobs; returns whether any was started."""
        started = False
        while len(running) < place.jobs:
            trial = next(todo, None) or self._propose()
            if trial is None:
                return started
            running[trial.name] = process = self._process(trial, place)
            if not process.start():
                self.notify(f"{trial.name} is still running for an earlier sweep, or by hand; waiting for it")
            started = True
        return started

    def _collect(self, running: dict[str, RunningTrial]) -> int:
        """Record the trials that have ended; returns their number."""
        ended = 0
        for trial in [trial for trial in self.trials if trial.name in running]:
            process = running[trial.name]
            code = process.ended()
            if code is not None:
                del running[trial.name]
                self._record(trial, process, code)
                self.notify(f"{trial.name}: {trial.state}")
                ended += 1
        return ended

    def _record(self, trial: Trial, process: RunningTrial, code: int) -> None:
        self._update(trial)
        if code != 0:
            trial.state, trial.why = "failed", process.reason(code)
        elif trial.state != "finished":
            trial.state, trial.why = "failed", "it ended without a report"
        self._save()

    def _update(self, trial: Trial) -> None:
        """Read the trial's state from its folder."""
        path = self.folder / trial.name
        run = RunRecord.read(path) if (path / "run.json").exists() else None
        if run is None or run.report is None:
            trial.state, trial.why = "waiting", ""
            return
        trial.state, trial.why, trial.figures = "finished", "", run.figures()
        trial.seconds = round(sum(run.report.get("seconds", {}).values()), 2)
        trial.metric = self._metric(run)

    def _metric(self, run: RunRecord) -> float | None:
        if self.plan.metric is None:
            headline = list(run.headline().values()) if run.pipeline else []
            return headline[-1] if headline else None
        return leaves(run.report).get(self.plan.metric)

    def _propose(self) -> Trial | None:
        """The next trial that tpe proposes, or None."""
        number = len(self.trials)
        if self.plan.sampler == "grid" or number >= self.plan.trials:
            return None
        done = [trial for trial in self.trials if trial.state != "waiting"]
        if any(trial.state == "finished" and not isinstance(trial.metric, int | float) for trial in done):
            known = ", ".join(list(leaves(RunRecord.read(self.finished()[0]).report))[:12])
            raise RunError(f"the report has no number {self.plan.metric or 'to raise'}; pass --metric, such as one of {known}")
        results = [(trial.values, trial.metric if trial.state == "finished" else None) for trial in done]
        self.trials.append(self._trial(number, propose(self.plan, number, results)))
        self._save()
        return self.trials[-1]

    def _trial(self, number: int, values: dict[str, str]) -> Trial:
        shown = "-".join(f"{key.rpartition('.')[2]}={values[key]}" for key in self.plan.varied)
        name = f"{number:03d}-{re.sub(r'[^A-Za-z0-9.=+-]+', '_', shown)[:60]}".rstrip("-_.")
        return Trial(name, values)

    def _process(self, trial: Trial, place: TrialPlace) -> RunningTrial:
        overrides = [f"{key}={value}" for key, value in trial.values.items()]
        folder = (self.folder / trial.name).resolve() if self.plan.on == "ray" else self.folder / trial.name
        options = ["--out", str(folder), "--threads", str(place.threads), *(["--smoke"] if self.plan.smoke else [])]
        lock = Lock(self.folder / "logs" / f"{trial.name}.lock")
        return place.trial(folder, ["run", self.plan.recipe, *overrides, *options], self.log(trial), lock)

    # files --------------------------------------------------------------------------------------------------------------------

    def _resume(self, found: dict[str, Any]) -> None:
        old, new = leaves(found["plan"]), leaves(self._identity)
        changed = sorted(key for key in old | new if old.get(key) != new.get(key))
        if changed:
            where = ", ".join(changed[:4])
            raise RunError(f"{self.folder} contains another sweep (it differs in {where}); use another --out folder")
        self.trials = [Trial(**trial) for trial in found["trials"]]

    def _save(self) -> None:
        write_json(self.folder / "sweep.json", {"plan": self._identity, "trials": [asdict(trial) for trial in self.trials]})
        text = io.StringIO()
        heads, rows = self._table(sort=False)
        csv.writer(text, lineterminator="\n").writerows([heads, *rows])
        write_text(self.folder / "sweep.csv", text.getvalue())

    def _table(self, *, sort: bool) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        figures = list(dict.fromkeys(name for trial in self.trials for name in trial.figures))
        keys = self.plan.varied
        heads = ("trial", *keys, "state", *(["metric"] if self.plan.metric else []), *figures, "seconds", "why")
        trials = sorted(self.trials, key=self._rank) if sort else self.trials
        return heads, [self._row(trial, keys, figures) for trial in trials]

    def _row(self, trial: Trial, keys: list[str], figures: list[str]) -> tuple[Any, ...]:
        numbers = [*([trial.metric] if self.plan.metric else []), *(trial.figures.get(name) for name in figures), trial.seconds]
        shown = ["" if number is None else f"{number:.6g}" for number in numbers]
        return (trial.name, *(trial.values[key] for key in keys), trial.state, *shown, trial.why)

    def _rank(self, trial: Trial) -> tuple[bool, float]:
        value = trial.metric
        return value is None, 0.0 if value is None else value if self.plan.least else -value


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Within this context SIGTERM acts like Ctrl-C, so that trials are stopped and saved."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread; only that one can handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""Sweeps as processes: one table of all trials with the failed ones; a kill loses no finished trial."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spikeprop.cli import main
from tests.forked import ROOT, Program

QUICK = "use: tests.sweep.quick.Quick\nx: 1.0\n"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "quick.yaml"
    file.write_text(QUICK)
    return file


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials find the experiment of the tests here."""
    monkeypatch.chdir(ROOT)


def sweep(recipe: Path, folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["sweep", str(recipe), "--out", str(folder), *arguments])


def trials(folder: Path) -> dict[str, dict]:
    return {trial["name"]: trial for trial in json.loads((folder / "sweep.json").read_text())["trials"]}


def starts(run: Path) -> int:
    return len((run / "starts.txt").read_text().splitlines())


def test_table_includes_failed_trials(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    axes = ["x=0.25,-1", "tags=[1,2]", "seconds=0.0", "--metric", "value", "--jobs", "2"]
    first = sweep(recipe, folder, *axes)
    assert first.exit_code == 1
    assert "1 of 2 trials failed" in first.output
    assert "x is -1.0; it must not be negative" in first.output
    found = trials(folder)
    assert [t["state"] for t in found.values()] == ["finished", "failed"]
    good = folder / "000-x=0.25"
    value = json.loads((good / "report.json").read_text())["value"]
    assert value == pytest.approx(1 - 0.05**2)
    assert json.loads((good / "run.json").read_text())["recipe"]["tags"] == [1, 2]
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == list(found)
    assert [row["x"] for row in rows] == ["0.25", "-1"]
    assert rows[0]["metric"] == f"{value:.6g}"
    assert rows[1]["metric"] == ""
    assert "must not be negative" in rows[1]["why"]
    assert "000-x=0.25" in (folder / "report.html").read_text()

    again = sweep(recipe, folder, *axes)  # finished ones are kept, failed ones run again
    assert again.exit_code == 1
    assert starts(good) == 1
    assert starts(folder / "001-x=-1") == 2

    other = sweep(recipe, folder, "x=0.25,0.5", "--metric", "value")
    assert other.exit_code == 1
    assert "contains another sweep (it differs in axes." in other.output


@contextmanager
def started_sweep(recipe: Path, folder: Path, *axes: str) -> Iterator[Program]:
    """A sweep in a separate process, whose first trial is running."""
    command = ["sweep", recipe, *axes, "--out", folder, "--metric", "value"]
    with Program(None, command, folder.with_suffix(".log")) as process:
        process.until((folder / "000" / "starts.txt").exists)
        yield process


def test_killed_sweep_resumes_and_waits_for_running_trials(recipe: Path, tmp_path: Path) -> None:
    folder, axes = tmp_path / "s", ["x=0.0", "seconds=6"]
    with started_sweep(recipe, folder, *axes) as process:
        process.kill()
    assert not (folder / "000" / "report.json").exists(), "the kill came too late to mean anything"
    result = sweep(recipe, folder, *axes, "--metric", "value")
    assert result.exit_code == 0, result.output
    assert "000 is still running for an earlier sweep" in result.output
    assert [starts(folder / name) for name in trials(folder)] == [1]
    assert all(trial["state"] == "finished" for trial in trials(folder).values())


def test_terminated_sweep_stops_its_trials_and_can_be_resumed(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with started_sweep(recipe, folder, "x=0.5", "seconds=60") as process:
        time.sleep(0.3)
        process.terminate()
        assert process.ended(40) != 0
    (trial,) = trials(folder).values()
    assert trial["state"] == "waiting"
    assert float((folder / "000" / ".wait.seconds").read_text()) < 59  # the trial was interrupted and saved its clock


@pytest.mark.slow
def test_tpe_from_the_command_line_can_be_given_more_trials(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed")
    folder = tmp_path / "s"
    axes = ["x=0.0..1.0", "--sampler", "tpe", "--metric", "value", "--trials"]
    assert sweep(recipe, folder, *axes, "1").exit_code == 0
    assert sweep(recipe, folder, *axes, "2").exit_code == 0
    assert [starts(folder / name) for name in trials(folder)] == [1, 1]
    values = {trial["values"]["x"] for trial in trials(folder).values()}
    assert len(values) == 2


def test_unknown_metric_is_named(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed")
    result = sweep(recipe, tmp_path / "s", "x=0.0..1.0", "--sampler", "tpe", "--metric", "accuracy", "--trials", "2")
    assert result.exit_code == 1
    assert "the report has no number accuracy; pass --metric, such as one of value" in result.output

"""Experiments of the risk plugin end to end at a tiny size: complete, resumed after an interruption, invalid settings refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from spikeprop.errors import RecipeError, SpikepropError, Stopped
from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.plugins.aad import engine, twin
from spikeprop.recipe import Recipe, load_recipe
from spikeprop.runtime.signals import deferred_signals


def run(recipe: Recipe, path: Path) -> Report:
    return recipe.experiment.run(Context(RunFolder(path, recipe), recipe.name, lambda _: None))


def test_risk_report_is_complete(tmp_path: Path) -> None:
    small = ["monitorings=12", "paths.paths=2048", "bumps=4", "repeats=1", "grid_spots=12", "grid_times=6"]
    recipe = load_recipe("aad_barrier", small)
    recipe.experiment.check()
    report = run(recipe, tmp_path)
    micro, quotes = report.values["microbuckets"], report.values["superbuckets"]
    assert micro["count"] == 12 * 6 + 3
    assert quotes["count"] == 16 * 6 + 3
    assert micro["price"] == quotes["price"]
    assert report.values["bumps"]["largest_in_standard_errors"] < 1
    rows = dict(report.rows)
    assert rows["audit by a bump on the same paths"].startswith("spot: adjoint ")
    assert " to " in rows["its 95 % interval (Student's t)"]
    assert len((tmp_path / "sensitivities.csv").read_text().splitlines()) == 1 + 12 * 6 + 3 + 16 * 6
    for picture in ("report.png", "superbuckets.png"):
        assert (tmp_path / picture).stat().st_size > 20000
    again = run(recipe, tmp_path)  # every stage is read from the folder
    assert again.values["microbuckets"]["cpu_seconds"] == micro["cpu_seconds"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("barrier=100.5", "barrier is 100.5 with width 1, and the spot is 100"),
        ("convexity=0.5", r"butterfly arbitrage: the denominator of Dupire's formula is -0\.0"),
        ("grid_high=10", "grid_high is 10; it must be above 45"),
        ("paths={use: Sobol, paths: 3}", "scramblings is 16 and paths is 3"),
        ("paths={use: Halton, paths: 3}", "no component 'Halton'"),
        ("monitorings=1", "max_step is 3 years"),
    ],
)
def test_invalid_risk_settings_are_refused(override: str, says: str) -> None:
    with pytest.raises(SpikepropError, match=says):
        load_recipe("aad_barrier", [override]).experiment.check()


def test_differential_learning_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("aad_differential", ["seeds=[0, 1]", "sizes=[512]", "test_size=128", "epochs=25", "dimension=2"])
    whole = run(recipe, tmp_path / "whole")
    kind = type(recipe.experiment)
    original = kind._compare

    def stopped(self: object, size: int, seed: int) -> dict:
        if (size, seed) == (512, 1):
            raise KeyboardInterrupt
        return original(self, size, seed)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "_compare", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "stopped")
    monkeypatch.undo()
    resumed = run(recipe, tmp_path / "stopped")
    assert resumed.values["sizes"] == whole.values["sizes"]
    assert set(json.loads((tmp_path / "stopped" / "report.json").read_text())["sizes"]) == {"512"}
    assert (tmp_path / "stopped" / "report.png").stat().st_size > 20000


def signal_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> list[int]:
    """Send this process SIGINT at a call of ``owner.name``; its calls, in a list that grows."""
    original, calls = getattr(owner, name), []

    def counted(*args: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize(
    ("recipe", "overrides", "owner", "name", "at", "most"),
    [
        ("aad_differential", ["seeds=[0]", "sizes=[512]", "epochs=20", "dimension=2"], twin._Scale, "loss", 9, 10),
        ("aad_barrier", ["paths.paths=8192", "repeats=1"], engine, "_values_and_adjoints", 6, 6),
        ("aad_barrier", ["paths.paths=8192", "repeats=1", "threads=2"], engine, "_values_and_adjoints", 6, 12),
    ],
)
def test_a_signal_stops_within_a_stage(
    recipe: str, overrides: list[str], owner: Any, name: str, at: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop happens at the end of the epoch (two steps here), of the batch, or of the batches of all threads."""
    small = ["monitorings=12", "grid_spots=12", "grid_times=6", "bumps=0"] if recipe == "aad_barrier" else []
    calls = signal_at(monkeypatch, owner, name, at)
    with pytest.raises(Stopped), deferred_signals(lambda _: None):
        run(load_recipe(recipe, [*small, *overrides]), tmp_path)
    assert at <= len(calls) <= most
    assert not (tmp_path / "report.json").exists()


def test_settings_of_differential_learning_are_checked() -> None:
    for override, says in (
        ("sizes=[8]", "at least 32"),
        ("last=0.5", "last is 0.5; it must be above 1"),
        ("seeds=[1, 1]", "once"),
    ):
        with pytest.raises(RecipeError, match=says):
            load_recipe("aad_differential", [override])

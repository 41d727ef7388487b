"""The two experiments on small links: contents of the reports, identical results after an interruption, refused settings."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from spikeprop.errors import RecipeError, Stopped
from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.learn import load_checkpoint, load_latest
from spikeprop.plugins.ldbp_pmd import start, training
from spikeprop.plugins.ldbp_pmd.single import PUBLISHED_LINK
from spikeprop.plugins.ldbp_pmd.summary import summarise
from spikeprop.recipe import Recipe, load_recipe
from spikeprop.runtime.signals import deferred_signals

SMALL = ["signal.symbols=64", "train_blocks=30", "test_blocks=10"]


def single(*overrides: str) -> Recipe:
    how = "training={iterations: 25, batch: 16, lr: 3e-3, every: 5}"
    return load_recipe("ldbp_single", [*SMALL, "seeds=[3, 4]", "fibre.spans=5", "launch_power_dbm=6.0", how, *overrides])


def pmd(*overrides: str) -> Recipe:
    few = "{iterations: 8, batch: 8, lr: 5e-4, rotation_lr: 2e-3, dgd_lr: 5e-4, decay: 2, every: 5}"
    alone = "{iterations: 20, batch: 8, lr: 0.0, rotation_lr: 0.05, dgd_lr: 0.01, every: 10}"
    return load_recipe("ldbp_pmd", [
        *SMALL, "realisations=[0, 1]", "changes=1", "repeats=1", "starts=1", "fibre.spans=2", "launch_powers_dbm=[8.0]",
        "drift={updates: 1, iterations: 5, blocks: 8}", f"training={few}", f"search={alone}",
        "pretraining={iterations: 10, batch: 16, lr: 1e-3}", *overrides,
    ])  # fmt: skip


def run(recipe: Recipe, path: Path) -> Report:
    return recipe.experiment.run(Context(RunFolder(path, recipe), recipe.name, lambda _: None))


def before_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> list[int]:
    """Call a function before a training step, counted over all trainings; the returned list grows with each step."""
    original, steps = training._advance, []

    def advance(*args: Any) -> float:
        steps.append(len(steps) + 1)
        if len(steps) == number:
            act()
        return original(*args)

    monkeypatch.setattr(training, "_advance", advance)
    return steps


@pytest.fixture(autouse=True)
def _short_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "MOST", 25)


def interrupt() -> None:
    raise KeyboardInterrupt


def spoil(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def results(folder: Path, report: Report) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The report without times, and the bits of all tensors in all files, including Adam's state."""
    values = {k: v for k, v in report.values.items() if k not in ("seconds", "provenance")}
    files = {file.name: load_checkpoint(file).tensors for file in sorted(folder.glob("*.safetensors"))}
    return values, {f"{file}: {k}": v.numpy().tobytes() for file, tensors in files.items() for k, v in tensors.items()}


@pytest.mark.parametrize(("make", "steps", "at"), [(single, 50, 38), (pmd, 125, 118)])
def test_interrupted_run_resumes_to_the_same_report(
    make: Any, steps: int, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last training is stopped by a signal."""
    recipe, stopped = make(), tmp_path / "stopped"
    whole = run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        before_step(patch, at, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped), deferred_signals(lambda _: None):
            run(recipe, stopped)
    (progress,) = stopped.glob("*.progress.safetensors")
    assert len(load_latest(progress).description["errors"]) == at - (25 if make is single else 110)
    left = before_step(monkeypatch, 0, interrupt)
    assert results(stopped, run(recipe, stopped)) == results(tmp_path / "whole", whole)
    assert len(left) == steps - at  # the current step was finished and saved
    assert json.loads((stopped / "report.json").read_text())["name"] == recipe.name
    assert (stopped / "report.png").stat().st_size > 5000
    check = _single_learns if make is single else _pmd_is_found
    check(whole.values)


@pytest.mark.parametrize("damaged", [False, True])
def test_killed_training_resumes_from_its_last_valid_checkpoint(
    damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, killed = single("seeds=[3]", "fibre.spans=2"), tmp_path / "killed"
    whole = run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        before_step(patch, 13, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, killed)
    if damaged:
        spoil(killed / "seed_3.progress.safetensors")
    left = before_step(monkeypatch, 0, interrupt)
    warned = pytest.warns(UserWarning, match="continuing from the checkpoint before it") if damaged else nullcontext()
    with warned:
        resumed = run(recipe, killed)
    assert results(killed, resumed) == results(tmp_path / "whole", whole)
    assert len(left) == (14 if damaged else 13)
    assert not list(killed.glob("*progress*"))


def _single_learns(values: dict[str, Any]) -> None:
    snr = {arm: found["mean"] for arm, found in values["effective_snr_db"].items()}
    assert snr["LDBP, trained"] > snr["LDBP, initial"]
    assert snr["DBP, 20 a span"] > snr["DBP, 1 a span"] > snr["dispersion undone"]


def _pmd_is_found(values: dict[str, Any]) -> None:
    peaks = {arm: found["mean"] for arm, found in values["peak_db"].items()}
    assert peaks["LDBP + least squares"] > peaks["dispersion undone + least squares"]
    assert peaks["LDBP-PMD"] > peaks["LDBP + LMS"]
    assert peaks["DBP, PMD known"] > peaks["DBP + least squares"]
    assert values["bits"]["8"]["LDBP-PMD"]["bits"] == 2 * 10 * 64 * 2 * 4
    (again,) = values["repeats"]
    assert abs(again["other_db"] - values["curves"][0][-1][1]) < 3
    assert again["random"][-1][1] > again["random"][0][1]
    (change,) = values["changes"]
    assert change["before"] == values["curves"][0][-1][1]  # the receiver that was trained, on the same blocks
    assert change["alone"]["curve"][0][1] == change["after"] < change["before"] - 3
    assert change["alone"]["curve"][-1][1] > change["after"] + 1
    assert change["equalizer"]["curve"][0][1] > change["before"] - 3
    assert len(values["drift"]["after"]) == 1


def test_summary_equals_hand_computed_values() -> None:
    free = {
        power: {"arms": {"LDBP": {"snr": snr}}, "curves": [], "plateaus": {"LDBP": 40}}
        for power, snr in ((2.0, 20.0), (4.0, 21.0))
    }
    curve = [[0, 1.0], [10, 20.5], [20, 20.6], [30, 22.0]]

    def one(ours: float, reference: float) -> dict[str, Any]:
        arms = {
            "LDBP + LMS": {"snr": reference, "gmi": 3.0, "errors": 5, "bits": 100},
            "LDBP-PMD": {"snr": ours, "gmi": 3.5, "errors": 1, "bits": 100},
        }
        return {"arms": arms, "curve": curve, "plateaus": {"LDBP-PMD": 20}, "dgd_ps": 3.0}

    found = {2.0: [one(19.0, 18.0), one(20.6, 18.2)], 4.0: [one(20.8, 19.0), one(20.4, 19.2)]}
    values = summarise("x", [0, 1], free, found)
    assert values["best_power_dbm"] == 4.0
    assert values["peak_db"]["LDBP-PMD"]["values"] == [20.8, 20.6]
    assert values["gap_db"]["mean"] == pytest.approx(21 - 20.7)
    assert values["gain_db"]["LDBP + LMS"]["mean"] == pytest.approx(20.7 - 19.1)
    assert values["bits"]["4"]["LDBP + LMS"] | {"gmi": 0} == {"gmi": 0, "errors": 10, "bits": 200, "ber": 0.05}
    assert values["iterations_to_1_percent"]["values"] == [10, 10]  # of the peak at constant rates, 20.6
    assert values["plateaus"]["4"] == {"LDBP": [40], "LDBP-PMD": [20, 20]}
    assert values["start_db"]["mean"] == 1.0


def test_published_figures_stand_beside_their_own_link_alone() -> None:
    assert single_link("ldbp_single") == PUBLISHED_LINK
    assert load_recipe("ldbp_pmd").experiment._beside_the_paper()
    for name in ("ldbp_wdm", "ldbp_drift", "ldbp_phase_noise"):
        assert not load_recipe(name).experiment._beside_the_paper()
    assert single_link("ldbp_single", "fibre.noise_factor=1.0") != PUBLISHED_LINK


def single_link(*recipe: str) -> tuple[Any, ...]:
    experiment = load_recipe(recipe[0], list(recipe[1:])).experiment
    return experiment.fibre, experiment.signal, experiment.launch_power_dbm


@pytest.mark.parametrize(
    ("make", "override", "says"),
    [
        (single, "fibre.loss_db_per_km=-0.2", r"fibre: loss_db_per_km is -0\.2 dB/km; it cannot be negative"),
        (single, "backward.filters.taps=1", "taps is 1, but the dispersion of a step of 80 km spreads over 3 samples"),
        (
            single,
            "forward_steps=5",
            r"longest step of the forward simulation is .* km, but at 64\.2 GHz .* unstable from .* km",
        ),
        (single, "launch_power_dbm=30.0", r"Kerr phase of a step is .* rad at 1e\+03 mW; the bound is 0\.1 rad"),
        (single, "fibre.pmd=0.1", "need two polarisations; use PolarisationMode"),
        (single, "seeds=[1, 1]", r"seeds is \[1, 1\]; give at least one, each once"),
        (single, "train_blocks=0", "train_blocks is 0"),
        (pmd, "backward.dgd_taps=0", r"fibre\.pmd and backward\.dgd_taps must be positive"),
        (pmd, "changes=2", r"changes is 2; 2 realisations allow 0 to 1"),
        (pmd, "repeats=3", r"repeats is 3; 2 realisations allow 0 to as many"),
        (
            pmd,
            "signal.neighbours=1",
            r"oversampling is 3: 96 GHz of samples do not hold 3 channels, 135\.2 GHz wide; use at least 5",
        ),
        (pmd, "realisations=[]", r"realisations is \[\]"),
        (pmd, "test_blocks=0", "test_blocks is 0"),
        (pmd, "backward.rotations=none", r"backward\.rotations: 'none' is not valid"),
    ],
)
def test_invalid_settings_are_refused(make: Any, override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        make(override)


def test_the_wdm_link_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one span, few blocks and few iterations."""
    page = (Path(__file__).parents[2] / "docs/plugins/ldbp-pmd.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for shown, small in (
        ("spans=5", "spans=1"),
        ("(150, 40)", "(24, 8)"),
        ("iterations=400", "iterations=4"),
        ("decay=100", "decay=2"),
    ):
        assert code.count(shown) == 1
        code = code.replace(shown, small)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    snr, gmi = re.search(r"to ([0-9.]+) dB; GMI ([0-9.]+) bit", capsys.readouterr().out).groups()  # type: ignore[union-attr]
    assert float(snr) > 15
    assert 5 < float(gmi) <= 6


@pytest.mark.slow
def test_the_published_gain_is_reached(tmp_path: Path) -> None:
    """20.9 to 22.5 dB; a third of the iterations and half of the data give most of it."""
    recipe = load_recipe("ldbp_single", ["seeds=[0]", "training.iterations=500", "train_blocks=1000", "test_blocks=200"])
    snr = run(recipe, tmp_path / "run").values["effective_snr_db"]
    assert snr["LDBP, initial"]["mean"] == pytest.approx(20.9, abs=0.15)
    assert snr["LDBP, trained"]["mean"] == pytest.approx(22.5, abs=0.1)
